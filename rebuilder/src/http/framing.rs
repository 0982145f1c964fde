//! Where a request ends: one verdict, by the table of the design ("How a disputed request is framed").
//!
//! | seen | framed as | disputed |
//! |---|---|---|
//! | `Transfer-Encoding: chunked`, once, alone, HTTP/1.1 | chunked | no |
//! | last coding is `chunked`, others or copies before it | chunked | yes |
//! | last coding is `chunked` and there is a `Content-Length` | chunked | yes |
//! | last coding is `chunked` in HTTP/1.0 (RFC 9112 §6.1: "as if the framing is faulty") | chunked | yes |
//! | another last coding, with a length | the length | yes |
//! | another last coding, without | no body | yes |
//! | one `Content-Length` of digits | that | no |
//! | several lengths, the same or not | the first that is digits | yes |
//! | none of the lengths is digits, or it does not fit 64 bits | no body: what stands behind is parsed, not swallowed | yes |
//! | CONNECT | no body (RFC 9110 §9.3.6) | if it has a length or a coding |
//! | `Transfer_Encoding` or `Content_Length`, which some servers take for the field with `-` | as if it were not there | yes |
//! | a body behind `Expect` of anything but `100-continue`, or behind several | as without `Expect` | yes |
//! | a body behind `Expect: 100-continue` that begins with a request line: was it refused, and is this the next request? | the body | yes |
//! | trailers that frame: `Content-Length`, `Transfer-Encoding` | as if they were not there | yes |

use super::head::{Head, is_blank, request_line};
use super::{Framing, Header};

/// What the fields of a head say about what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) framing: Framing,
    /// Two readers may frame it differently, and so what follows.
    pub(super) disputed: bool,
    /// A reader may refuse it, but whoever takes it frames it like everybody.
    pub(super) refused: bool,
    pub(super) connect: bool,
    /// It asks for another protocol behind it.
    pub(super) upgrade: bool,
    /// A field of it would pass for one of ours.
    pub(super) spoofed: bool,
    /// The client says that nothing follows: `Connection: close`, or HTTP/1.0 without keep-alive.
    pub(super) closes: bool,
    /// It waits for an answer before it sends its body: `Expect: 100-continue`.
    pub(super) expects: bool,
}

/// The fields that the analyser takes for ours (§5 of the design), in lower case.
const OURS: [&[u8]; 4] = [
    b"x-real-ip",
    b"x-server-addr",
    b"x-server-port",
    b"x-mirror-flags",
];

/// The fields that frame a body, in lower case.
const FRAMING: [&[u8]; 2] = [b"content-length", b"transfer-encoding"];

/// Whether the most lenient reader takes `name` for `field`, which is in lower case: any case, `_` for `-` (as CGI and
/// what followed it do).
pub(super) fn reads_as(name: &[u8], field: &[u8]) -> bool {
    field.len() == name.len()
        && field.iter().zip(name).all(|(field, byte)| {
            *field == byte.to_ascii_lowercase() || (*field == b'-' && *byte == b'_')
        })
}

/// A captured field that some server would hand on under the name of one of ours.
fn passes_for_ours(name: &[u8]) -> bool {
    OURS.iter().any(|ours| reads_as(name, ours))
}

/// A field name as a tolerant server reads it: without blanks around it.
pub(super) fn field_name<'a>(bytes: &'a [u8], header: &Header) -> &'a [u8] {
    strip(bytes.get(header.name.clone()).unwrap_or_default(), is_blank)
}

fn strip(mut bytes: &[u8], out: impl Fn(u8) -> bool) -> &[u8] {
    while let [first, rest @ ..] = bytes
        && out(*first)
    {
        bytes = rest;
    }
    while let [rest @ .., last] = bytes
        && out(*last)
    {
        bytes = rest;
    }
    bytes
}

/// The members of a comma-separated list (RFC 9110 §5.6.1), blanks and folds around them removed; empty ones too.
pub(super) fn members(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value
        .split(|b| *b == b',')
        .map(|member| strip(member, |b| is_blank(b) || matches!(b, b'\r' | b'\n')))
}

/// Decides by the head alone. `bytes` is what the head was split from.
pub(super) fn judge(bytes: &[u8], head: &Head) -> Verdict {
    let mut lengths = 0usize;
    let mut length = None;
    let mut coded = false;
    let mut codings = 0usize;
    let mut expectations = 0usize;
    let mut expects = false;
    let mut lookalike = false;
    let mut chunked_last = false;
    let mut upgrade = false;
    let mut spoofed = false;
    let mut close = false;
    let mut keep_alive = false;
    for header in &head.headers {
        let name = field_name(bytes, header);
        let value = || {
            let range = header.value.clone();
            range.and_then(|r| bytes.get(r)).unwrap_or_default()
        };
        match name.len() {
            // As long as those of `OURS`.
            9 | 13 | 14 if passes_for_ours(name) => spoofed = true,
            14 | 17 if is_lookalike(name) => lookalike = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                for member in members(value()) {
                    lengths += 1;
                    length = length.or_else(|| digits(member));
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                coded = true;
                for member in members(value()) {
                    // An empty member is none (RFC 9110 §5.6.1.2) for some, and a coding that is not `chunked` for others.
                    codings += 1;
                    chunked_last = member.eq_ignore_ascii_case(b"chunked")
                        || (member.is_empty() && chunked_last);
                }
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                for member in members(value()) {
                    close |= member.eq_ignore_ascii_case(b"close");
                    keep_alive |= member.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            6 if name.eq_ignore_ascii_case(b"expect") => {
                expectations += 1;
                expects |= value().eq_ignore_ascii_case(b"100-continue");
            }
            _ => {}
        }
    }
    let connect = bytes.get(head.method.clone()) == Some(b"CONNECT");
    let framing = match length {
        _ if connect => Framing::None,
        _ if chunked_last => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => Framing::None,
    };
    let disputed = head.odd
        || lengths > 1
        || (lengths == 1 && length.is_none())
        || (coded && (lengths > 0 || codings != 1 || !chunked_last || head.version != (1, 1)))
        || (connect && (coded || length.is_some_and(|n| n > 0)))
        || lookalike;
    let refused = head.refused
        || (expectations > usize::from(expects)
            && !matches!(framing, Framing::None | Framing::Length(0)));
    Verdict {
        framing,
        disputed,
        refused,
        connect,
        upgrade,
        spoofed,
        closes: close || (head.version < (1, 1) && !keep_alive),
        expects,
    }
}

/// A field that frames a body, for a reader that takes `_` for `-`.
fn is_lookalike(name: &[u8]) -> bool {
    name.contains(&b'_') && FRAMING.iter().any(|field| reads_as(name, field))
}

/// Whether what stands behind the last chunk with data (the line of the zero chunk, trailers, the empty line) holds a
/// field that some reader may frame by, though RFC 9110 §6.5.1 forbids it there.
pub(super) fn trailers_frame(last: &[u8]) -> bool {
    last.split(|b| *b == b'\n').skip(1).any(|line| {
        let name = line.split(|b| *b == b':').next().unwrap_or_default();
        let name = strip(name, is_blank);
        FRAMING.iter().any(|field| reads_as(name, field))
    })
}

/// Whether a body begins with a request line.
pub(super) fn begins_with_a_request(body: &[u8]) -> bool {
    memchr::memchr(b'\n', body)
        .and_then(|lf| body.get(..lf))
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line))
        .is_some_and(|line| request_line(line).is_some())
}

/// 1*DIGIT that fits 64 bits.
fn digits(member: &[u8]) -> Option<u64> {
    if member.is_empty() {
        return None;
    }
    member.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}
