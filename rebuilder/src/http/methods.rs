//! The methods that servers know.

/// The IANA registry of HTTP methods (RFC 9110 §16.1.1), `*` and `PRI` aside.
const REGISTERED: [&[u8]; 38] = [
    b"ACL",
    b"BASELINE-CONTROL",
    b"BIND",
    b"CHECKIN",
    b"CHECKOUT",
    b"CONNECT",
    b"COPY",
    b"DELETE",
    b"GET",
    b"HEAD",
    b"LABEL",
    b"LINK",
    b"LOCK",
    b"MERGE",
    b"MKACTIVITY",
    b"MKCALENDAR",
    b"MKCOL",
    b"MKREDIRECTREF",
    b"MKWORKSPACE",
    b"MOVE",
    b"OPTIONS",
    b"ORDERPATCH",
    b"PATCH",
    b"POST",
    b"PROPFIND",
    b"PROPPATCH",
    b"PUT",
    b"REBIND",
    b"REPORT",
    b"SEARCH",
    b"TRACE",
    b"UNBIND",
    b"UNCHECKOUT",
    b"UNLINK",
    b"UNLOCK",
    b"UPDATE",
    b"UPDATEREDIRECTREF",
    b"VERSION-CONTROL",
];

/// Beyond the registry: what the strictest server that we know of, Node's llhttp, takes as well. `SOURCE` is Icecast's,
/// `M-SEARCH` to `UNSUBSCRIBE` are UPnP's, `PURGE` is what caches listen to.
const TAKEN: [&[u8]; 7] = [
    b"M-SEARCH",
    b"NOTIFY",
    b"PURGE",
    b"QUERY",
    b"SOURCE",
    b"SUBSCRIBE",
    b"UNSUBSCRIBE",
];

/// Whether a server that reads a list of methods, instead of any token, can be expected to take this one. It is given in
/// two pieces, because a search finds it so.
pub(super) fn is_known(first: &[u8], second: &[u8]) -> bool {
    if matches!(
        first,
        b"GET" | b"POST" | b"PUT" | b"HEAD" | b"OPTIONS" | b"DELETE" | b"PATCH"
    ) && second.is_empty()
    {
        return true;
    }
    REGISTERED.iter().chain(&TAKEN).any(|method| {
        method
            .strip_prefix(first)
            .is_some_and(|rest| rest == second)
    })
}

/// Whether it is what is left of a known method whose first bytes are missing.
pub(super) fn is_tail(first: &[u8], second: &[u8]) -> bool {
    REGISTERED.iter().chain(&TAKEN).any(|method| {
        let rest = method.strip_suffix(second);
        rest.is_some_and(|rest| rest.len() > first.len() && rest.ends_with(first))
    })
}
