//! What is sent, byte for byte.

use super::super::bytes::{Outgoing, outgoing};
use super::super::sharing::{BODY_SHARED_MAX, HEAD_SHARED_MAX, Sharing};
use super::*;
use crate::stream::End;

pub(super) const PERSIST: Rewrite = Rewrite {
    xff: XffStyle::Line,
    hop_by_hop: HopByHop::Persist,
};
pub(super) const KEEP: Rewrite = Rewrite {
    xff: XffStyle::Line,
    hop_by_hop: HopByHop::Keep,
};
pub(super) const APPEND: Rewrite = Rewrite {
    xff: XffStyle::Append,
    hop_by_hop: HopByHop::Persist,
};
const XFF: &str = "X-Forwarded-For: 203.0.113.7\r\n";
const REST: &str = "X-Real-IP: 203.0.113.7\r\nX-Server-Addr: 10.1.2.3\r\nX-Server-Port: 8080\r\n";

fn text(sent: &Outgoing) -> &str {
    std::str::from_utf8(&sent.bytes).unwrap()
}

/// What is sent for this capture.
fn sent(raw: &str, rewrite: Rewrite) -> String {
    text(&outgoing(&captured(raw.as_bytes()), rewrite)).to_owned()
}

#[test]
fn our_lines_stand_after_the_captured_ones_and_nothing_else_changes() {
    assert_eq!(
        sent(
            "PoST /a%00?<x> HTTP/1.1\r\nhOsT:  h \r\nA:1\r\na:\t2\r\nContent-Length: 3\r\n\r\nb\r\n",
            PERSIST
        ),
        format!(
            "PoST /a%00?<x> HTTP/1.1\r\nhOsT:  h \r\nA:1\r\na:\t2\r\nContent-Length: 3\r\n{XFF}{REST}\r\nb\r\n"
        )
    );
}

#[test]
fn empty_lines_before_the_request_line_are_not_sent() {
    assert_eq!(
        sent("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST),
        format!("GET / HTTP/1.1\r\nHost: h\r\n{XFF}{REST}\r\n")
    );
}

#[test]
fn the_client_is_appended_to_the_last_captured_list_or_has_a_line_of_its_own() {
    let head = "GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3 \r\nHost: h\r\n";
    assert_eq!(
        sent(&format!("{head}\r\n"), PERSIST),
        format!("{head}{XFF}{REST}\r\n")
    );
    assert_eq!(
        sent(&format!("{head}\r\n"), APPEND),
        format!(
            "GET / HTTP/1.1\r\nX-Forwarded-For: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3, 203.0.113.7 \r\n\
             Host: h\r\n{REST}\r\n"
        )
    );
    assert_eq!(
        sent("GET / HTTP/1.1\r\nHost: h\r\n\r\n", APPEND),
        format!("GET / HTTP/1.1\r\nHost: h\r\n{XFF}{REST}\r\n")
    );
    assert_eq!(
        sent("GET / HTTP/1.1\r\nX-Forwarded-For:\r\n\r\n", APPEND),
        format!("GET / HTTP/1.1\r\nX-Forwarded-For: 203.0.113.7\r\n{REST}\r\n")
    );
}

#[test]
fn a_field_that_would_pass_for_ours_loses_its_first_byte_and_is_flagged() {
    let request = captured(
        b"GET / HTTP/1.1\r\nX-Real-IP: 1.1.1.1\r\nx_server_addr: 2\r\nX-SERVER_PORT : 3\r\nx-mirror-flags\r\nX-Real-IPs: 4\r\n\r\n",
    );
    let sent = outgoing(&request, PERSIST);
    assert_eq!(
        text(&sent),
        format!(
            "GET / HTTP/1.1\r\nZ-Real-IP: 1.1.1.1\r\nZ_server_addr: 2\r\nZ-SERVER_PORT : 3\r\nZ-mirror-flags\r\n\
             X-Real-IPs: 4\r\n{XFF}{REST}X-Mirror-Flags: spoofed\r\n\r\n"
        )
    );
    assert_eq!(sent.flags, Flags::SPOOFED);
}

/// Found by the fuzzer: behind the method a bare CR ended what was taken for a field's name.
#[test]
fn a_method_that_reads_as_one_of_our_fields_stays_as_it_is() {
    for line in ["x_server_addr \r HTTP/1.1", "X-Real-IP:6 / HTTP/1.1"] {
        let request = captured(format!("{line}\r\nHost: h\r\n\r\n").as_bytes());
        let sent = outgoing(&request, PERSIST);
        assert!(text(&sent).starts_with(line), "{:?}", text(&sent));
        assert!(!sent.flags.contains(Flags::SPOOFED), "{:?}", text(&sent));
    }
}

#[test]
fn what_would_pass_for_ours_loses_its_first_byte_wherever_some_reader_sees_a_field() {
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n";
    for (captured, sent) in [
        // Trailers, also of a body that is not to the letter.
        (
            format!("{head}\r\n3\r\nabc\r\n0\r\nA: b\r\nx_real_ip : 6\r\n\r\n"),
            "0\r\nA: b\r\nZ_real_ip : 6\r\n\r\n",
        ),
        (
            format!("{head}\r\n3\nabc\n0\nX-Real-IP: 6\n\n"),
            "3\nabc\n0\nZ-Real-IP: 6\n\n",
        ),
        (
            format!("{head}\r\n0\r\nX-Mirror-Flags: \r\n\r\n"),
            "\r\n\r\n0\r\nZ-Mirror-Flags: \r\n\r\n",
        ),
        // A string that ends at a NUL. Folded, and hidden in a fold; behind a bare LF and a bare CR.
        (
            "GET / HTTP/1.1\r\nX-Real-IP:\r\n 6\r\nA: b\r\n\tX-Server-Addr: 6\r\n\r\n".to_owned(),
            "\r\nZ-Real-IP:\r\n 6\r\nA: b\r\n\tZ-Server-Addr: 6\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nA: b\nX-Real-IP: 6\rX-Server-Port: 6\r\n\r\n".to_owned(),
            "\r\nA: b\nZ-Real-IP: 6\rZ-Server-Port: 6\r\n",
        ),
        (
            "GET /\rX-Real-IP: 6 HTTP/1.1\r\n X-Mirror-Flags\0a\x0b: 6\r\n\r\n".to_owned(),
            "GET /\rZ-Real-IP: 6 HTTP/1.1\r\n Z-Mirror-Flags\0a\x0b: 6\r\n",
        ),
        // To whoever takes the second length, the body is a request.
        (
            "POST / HTTP/1.1\r\nContent-Length: 34\r\nContent-Length: 0\r\n\r\nGET /s HTTP/1.1\r\nX-Real-IP: 6\r\n\r\n"
                .to_owned(),
            "\r\n\r\nGET /s HTTP/1.1\r\nZ-Real-IP: 6\r\n\r\n",
        ),
        // A proxy would take our fields away.
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: TE, x-real-ip,X-Forwarded-For\r\n\r\n".to_owned(),
            "\r\nConnection: TE, Z-real-ip,Z-Forwarded-For\r\n",
        ),
    ] {
        let requests = extracted(captured.as_bytes(), End::Fin);
        let outgoing = outgoing(&requests[0], PERSIST);
        assert!(text(&outgoing).contains(sent), "{captured:?}: {:?}", text(&outgoing));
        assert!(text(&outgoing).contains("spoofed"), "{:?}", text(&outgoing));
        assert_eq!(outgoing.bytes.len(), {
            let added = text(&outgoing).matches("X-Mirror-Flags: ").count();
            assert_eq!(added, 1);
            let flags = text(&outgoing).split_once("X-Mirror-Flags: ").unwrap().1;
            let flags = flags.split_once("\r\n").unwrap().0.len() + "X-Mirror-Flags: \r\n".len();
            requests[0].raw.len() + XFF.len() + REST.len() + flags
        });
    }
    // Nobody disputes this body: it holds no fields.
    let body = "X-Real-IP: 6\r\n";
    let raw = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let sent = outgoing(&extracted(raw.as_bytes(), End::Fin)[0], PERSIST);
    assert!(text(&sent).ends_with(body));
    assert_eq!(sent.flags, Flags::empty());
}

#[test]
fn under_persist_a_close_reads_keep_alive_and_http_1_0_gets_one() {
    let flags = "X-Mirror-Flags: hop\r\n";
    for (captured, expected) in [
        (
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
            format!("GET / HTTP/1.1\r\nConnection: keep-alive\r\n{XFF}{REST}{flags}\r\n"),
        ),
        (
            "GET / HTTP/1.1\r\nConnection: TE,  CLOSE ,close\r\n\r\n",
            format!(
                "GET / HTTP/1.1\r\nConnection: TE,  keep-alive ,keep-alive\r\n{XFF}{REST}{flags}\r\n"
            ),
        ),
        (
            "GET / HTTP/1.0\r\nHost: h\r\n\r\n",
            format!(
                "GET / HTTP/1.0\r\nHost: h\r\n{XFF}{REST}{flags}Connection: keep-alive\r\n\r\n"
            ),
        ),
        (
            "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            format!("GET / HTTP/1.0\r\nConnection: keep-alive\r\n{XFF}{REST}\r\n"),
        ),
        (
            "GET / HTTP/1.1\r\nConnection: upgrade\r\nX: close\r\n\r\n",
            format!("GET / HTTP/1.1\r\nConnection: upgrade\r\nX: close\r\n{XFF}{REST}\r\n"),
        ),
    ] {
        assert_eq!(sent(captured, PERSIST), expected);
        let kept = captured.replacen("\r\n\r\n", &format!("\r\n{XFF}{REST}\r\n"), 1);
        assert_eq!(sent(captured, KEEP), kept);
    }
}

#[test]
fn the_flags_and_the_origin_s_source_are_named() {
    let mut request = get("/");
    request.flags = Flags::all() - Flags::SPOOFED;
    request.origin_from = OriginSource::Xff;
    let names = "midstream, truncated, aborted, resynced, ambiguous, disputed, client-xff";
    assert_eq!(
        text(&outgoing(&request, PERSIST)),
        format!(
            "GET / HTTP/1.1\r\nHost: shop.example\r\n{XFF}{REST}X-Mirror-Flags: {names}\r\n\r\n"
        ),
        "`hop` is said of what was changed, not of what was captured"
    );
    request.flags = Flags::empty();
    request.origin_from = OriginSource::Proxy;
    assert!(text(&outgoing(&request, PERSIST)).contains("\r\nX-Mirror-Flags: client-proxy\r\n"));
}

#[test]
fn ipv6_addresses_stand_without_brackets() {
    let mut request = get("/");
    request.origin = "2001:db8::7".parse().unwrap();
    request.endpoints.dst = "[2001:db8::1]:443".parse().unwrap();
    assert!(text(&outgoing(&request, PERSIST)).ends_with(
        "X-Forwarded-For: 2001:db8::7\r\nX-Real-IP: 2001:db8::7\r\nX-Server-Addr: 2001:db8::1\r\n\
         X-Server-Port: 443\r\n\r\n"
    ));
}

#[test]
fn a_cut_body_has_its_length_rewritten_in_place() {
    let mut request =
        captured(b"POST / HTTP/1.1\r\nContent-Length: 1000\r\nHost: h\r\n\r\n0123456789");
    request.flags = Flags::TRUNCATED;
    let sent = outgoing(&request, PERSIST);
    assert_eq!(
        text(&sent),
        format!(
            "POST / HTTP/1.1\r\nContent-Length: 10\r\nHost: h\r\n{XFF}{REST}X-Mirror-Flags: truncated\r\n\r\n0123456789"
        )
    );
    assert_eq!(sent.sharing, Sharing::Followed);
}

#[test]
fn of_several_lengths_those_that_framed_it_are_rewritten_and_it_stays_in_quarantine() {
    let mut request = captured(
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nContent-Length : 9, 9\r\nContent-Length: 4\r\n\r\nab",
    );
    request.framing = Framing::Length(9);
    request.flags = Flags::ABORTED;
    let sent = outgoing(&request, PERSIST);
    assert!(text(&sent).starts_with(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length : 2, 2\r\nContent-Length: 4\r\n"
    ));
    assert_eq!(sent.sharing, Sharing::Alone);
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n";

fn chunked(body: &str, last_whole: usize, flags: Flags) -> Outgoing {
    let mut request = captured(format!("{CHUNKED}\r\n{body}").as_bytes());
    request.last_whole_chunk_end = request.head_end + last_whole;
    request.flags = flags;
    outgoing(&request, PERSIST)
}

#[test]
fn a_whole_chunked_body_is_sent_verbatim() {
    let body = "003;a=\"b\"\r\nabc\r\n0\r\nTrailer: x\r\n\r\n";
    let sent = chunked(body, 16, Flags::empty());
    assert_eq!(text(&sent), format!("{CHUNKED}{XFF}{REST}\r\n{body}"));
    assert_eq!(sent.sharing, Sharing::Followed);
}

#[test]
fn a_cut_chunked_body_ends_after_its_last_whole_chunk() {
    let flags = "X-Mirror-Flags: truncated\r\n";
    let head = format!("{CHUNKED}{XFF}{REST}{flags}\r\n");
    // Cut inside the second chunk, inside the trailers, and inside the first size: the same end, the zero chunk.
    for (body, last_whole, kept) in [
        ("3\r\nabc\r\n5\r\nab", 8, "3\r\nabc\r\n"),
        ("3\r\nabc\r\n0\r\nTrai", 8, "3\r\nabc\r\n"),
        ("3", 0, ""),
    ] {
        let sent = chunked(body, last_whole, Flags::TRUNCATED);
        assert_eq!(text(&sent), format!("{head}{kept}0\r\n\r\n"));
        assert_eq!(sent.sharing, Sharing::Followed, "{body:?}");
    }
    // A tolerant parser's chunk that a strict one does not see: as the parser has it, but alone.
    let sent = chunked("3\nabc\n5\nab", 6, Flags::TRUNCATED);
    assert_eq!(text(&sent), format!("{head}3\nabc\n0\r\n\r\n"));
    assert_eq!(sent.sharing, Sharing::Alone);
}

#[test]
fn what_may_follow_a_request_is_decided_by_the_letter() {
    use Sharing::{Alone, Followed, Last};
    let long_head = format!(
        "GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n",
        "x".repeat(HEAD_SHARED_MAX)
    );
    let long_body = format!(
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {0}\r\n\r\n{1}",
        BODY_SHARED_MAX + 1,
        "x".repeat(BODY_SHARED_MAX + 1)
    );
    let many_fields = format!(
        "GET / HTTP/1.1\r\nHost: h\r\n{}\r\n",
        "A: b\r\n".repeat(100)
    );
    for (raw, rewrite, expected) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Followed),
        (
            "GET /%20?%zz HTTP/1.1\r\nHost: h:80\r\n\r\n",
            PERSIST,
            Followed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nX: \x7fa\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nX: \u{e9}\r\n\r\n",
            PERSIST,
            Followed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            PERSIST,
            Followed,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            KEEP,
            Last,
        ),
        ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", PERSIST, Followed),
        ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", KEEP, Last),
        (
            "GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n",
            KEEP,
            Followed,
        ),
        ("GET / HTTP/1.1\r\n\r\n", PERSIST, Last),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n",
            PERSIST,
            Last,
        ),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", PERSIST, Last),
        ("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
            PERSIST,
            Last,
        ),
        ("get / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("M-SEARCH / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("GET x HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("GET /%00 HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("GET /../x HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        (
            "GET /a/%2e%2E%2fx HTTP/1.1\r\nHost: h\r\n\r\n",
            PERSIST,
            Last,
        ),
        ("GET /a/.%2e HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        ("GET /%+1 HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Last),
        (
            "GET /a.b/.c/d.?../.. HTTP/1.1\r\nHost: h\r\n\r\n",
            PERSIST,
            Followed,
        ),
        (&long_head, PERSIST, Last),
        (&long_body, PERSIST, Last),
        (&many_fields, PERSIST, Last),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\n\r\nGET /",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 7\r\n\r\nGET=/ &",
            PERSIST,
            Followed,
        ),
        ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", PERSIST, Alone),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Alone),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Alone),
        ("G(T / HTTP/1.1\r\nHost: h\r\n\r\n", PERSIST, Alone),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", PERSIST, Alone),
        ("GET / HTTP/1.1\r\nHost: h\r\n X: y\r\n\r\n", PERSIST, Alone),
        ("GET / HTTP/1.1\r\nHost: h\r\nX\r\n\r\n", PERSIST, Alone),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\nb: c\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent_Length: 5\r\n\r\nx",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
            PERSIST,
            Alone,
        ),
        (
            "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000000\r\n\r\n",
            PERSIST,
            Alone,
        ),
    ] {
        let sent = outgoing(&captured(raw.as_bytes()), rewrite);
        assert_eq!(sent.sharing, expected, "{:?}", &raw[..raw.len().min(200)]);
    }
    assert_eq!(outgoing(&disputed("/"), PERSIST).sharing, Alone);
    let spoofed = "GET / HTTP/1.1\r\nHost: h\r\nX-Real-IP: 1\r\n\r\n";
    assert_eq!(
        outgoing(&captured(spoofed.as_bytes()), PERSIST).sharing,
        Followed
    );
}

#[test]
fn addresses_and_ports_stand_as_the_standard_library_writes_them() {
    for (origin, server) in [
        ("0.0.0.0", "255.255.255.255:65535"),
        ("1.20.100.9", "10.99.101.200:1"),
        ("2001:db8::1", "[::ffff:1.2.3.4]:10"),
        ("::", "[fe80::200:1]:9999"),
        ("192.0.2.1", "192.0.2.10:10000"),
    ] {
        let mut request = get("/");
        request.origin = origin.parse().unwrap();
        request.endpoints.dst = server.parse().unwrap();
        let server = request.endpoints.dst;
        let sent = outgoing(&request, Rewrite::default()).bytes;
        let expected = format!(
            "\r\nX-Forwarded-For: {0}\r\nX-Real-IP: {0}\r\nX-Server-Addr: {1}\r\nX-Server-Port: {2}\r\n\r\n",
            request.origin,
            server.ip(),
            server.port()
        );
        let sent = String::from_utf8(sent).unwrap();
        assert!(sent.ends_with(&expected), "{sent} {expected}");
    }
}
