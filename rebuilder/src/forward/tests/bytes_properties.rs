//! What is sent, whatever was captured.

use proptest::prelude::*;

use super::super::bytes::{Outgoing, outgoing};
use super::super::sharing::Sharing;
use super::bytes::{APPEND, KEEP, PERSIST};
use super::*;

/// Undoes by the contract's words alone: the names of our lines, and how many of them the flags say there are.
fn captured_back(sent: &Outgoing, body_len: usize, hop_line: bool) -> Vec<u8> {
    let (head, body) = sent.bytes.split_at(sent.bytes.len() - body_len);
    let head = head.strip_suffix(b"\r\n").unwrap();
    let mut lines: Vec<&[u8]> = head.split_inclusive(|&b| b == b'\n').collect();
    let mut take = |name: &str| {
        let line = lines.pop().unwrap();
        assert!(line.starts_with(name.as_bytes()), "{}", line.escape_ascii());
        assert!(line.ends_with(b"\r\n"));
        assert_eq!(line.iter().filter(|&&b| b == b'\r').count(), 1);
    };
    if hop_line {
        take("Connection: keep-alive");
    }
    if !sent.flags.is_empty() {
        take("X-Mirror-Flags: ");
    }
    take("X-Server-Port: 8080");
    take("X-Server-Addr: 10.1.2.3");
    take("X-Real-IP: 203.0.113.7");
    take("X-Forwarded-For: 203.0.113.7");
    [lines.concat(), b"\r\n".to_vec(), body.to_vec()].concat()
}

fn field_name() -> impl Strategy<Value = String> {
    prop_oneof![
        "[!#-'*+.^_`|~0-9A-Za-z-]{1,20}",
        prop::sample::select(vec![
            "X-Real-IP",
            "x_real_ip",
            "X-Server-Addr",
            "x-server_port",
            "X-Mirror-Flags",
            "X-Forwarded-For",
            "Host",
            "Connection",
            "Cookie",
        ])
        .prop_map(str::to_owned),
    ]
}

fn field_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(
            any::<u8>().prop_filter("no line break", |&b| b != b'\r' && b != b'\n'),
            0..20
        ),
        prop::sample::select(vec!["close", "keep-alive", "TE, close", "1.2.3.4"])
            .prop_map(|v| v.as_bytes().to_vec()),
    ]
}

/// Without the digits of each length.
fn without_length(bytes: &[u8]) -> Vec<u8> {
    let name = b"Content-Length: ";
    let mut out = Vec::new();
    for (at, &byte) in bytes.iter().enumerate() {
        let digits = bytes[..at]
            .iter()
            .rev()
            .take_while(|b| b.is_ascii_digit())
            .count();
        if !(byte.is_ascii_digit() && bytes[..at - digits].ends_with(name)) {
            out.push(byte);
        }
    }
    out
}

/// What heads and bodies are made of, sound or not.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "Host: h\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "X-Forwarded-For: 1.1.1.1\r\n",
            "\r\n",
            "\r\nhello",
            "3\r\nabc\r\n",
            "0\r\n\r\n",
            "0\r\n",
            "GET /b HTTP/1.1\r\n",
            "\r\nX-Real-IP: 6\r\n",
            "\r\n0\r\nX-Real-IP: 6\r\n\r\n",
            "Content-Length: 14\r\n",
        ]),
        prop::sample::select(vec![
            "X-Real-IP",
            "x_real_ip",
            "X-Server-Addr",
            "X-SERVER-Port",
            "x-mirror_flags",
            "A",
            ":",
            ": ",
            " : ",
            "\t",
            " ",
            "\r\n",
            "\n",
            "\r",
            "\0",
            "\x0b",
            "\x7f",
            "6",
            ",",
            ";",
        ]),
    ]
    .prop_map(str::to_owned)
}

proptest! {
    #[test]
    fn taking_away_what_was_added_gives_the_captured_bytes(
        minor in 0_u8..2,
        fields in prop::collection::vec((field_name(), field_value()), 0..12),
        body in prop::collection::vec(any::<u8>(), 0..50),
        keep in any::<bool>(),
    ) {
        let mut raw = format!("POST /p HTTP/1.{minor}\r\n").into_bytes();
        for (name, value) in &fields {
            raw.extend_from_slice(name.as_bytes());
            raw.extend_from_slice(b": ");
            raw.extend_from_slice(value);
            raw.extend_from_slice(b"\r\n");
        }
        raw.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        raw.extend_from_slice(&body);
        let requests = extracted(&raw, End::Fin);
        prop_assert_eq!(requests.len(), 1);
        let request = &requests[0];
        let sent = outgoing(request, if keep { KEEP } else { PERSIST });

        // The HTTP stage and this one name the same flags, each by its own code (`hop` only under persist).
        let expected = if keep { request.flags - Flags::HOP } else { request.flags };
        prop_assert_eq!(sent.flags, expected);

        let ours = ["x-real-ip", "x-server-addr", "x-server-port", "x-mirror-flags"];
        let spoofed = |name: &str| ours.contains(&name.to_lowercase().replace('_', "-").as_str());
        let closes = |value: &[u8]| value.split(|&b| b == b',').any(|t| t.trim_ascii() == b"close");
        let keeps = |value: &[u8]| value.split(|&b| b == b',').any(|t| t.trim_ascii() == b"keep-alive");
        let connection = |(name, _): &&(String, Vec<u8>)| name.eq_ignore_ascii_case("connection");
        let mut connections = fields.iter().filter(connection);
        let hop_line = !keep && minor == 0 && !connections.any(|(_, v)| closes(v) || keeps(v));
        let back = captured_back(&sent, body.len(), hop_line);

        let mut expected = format!("POST /p HTTP/1.{minor}\r\n").into_bytes();
        for (name, value) in &fields {
            if spoofed(name) {
                expected.push(b'Z');
                expected.extend_from_slice(&name.as_bytes()[1..]);
            } else {
                expected.extend_from_slice(name.as_bytes());
            }
            expected.extend_from_slice(b": ");
            if name.eq_ignore_ascii_case("connection") && !keep && closes(value) {
                let text = String::from_utf8(value.clone()).unwrap();
                expected.extend_from_slice(text.replace("close", "keep-alive").as_bytes());
            } else {
                expected.extend_from_slice(value);
            }
            expected.extend_from_slice(b"\r\n");
        }
        expected.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        expected.extend_from_slice(&body);
        prop_assert_eq!(back, expected);
    }

    /// httparse, which is none of ours, must find each of our fields once, with our value, whatever was captured.
    #[test]
    fn no_header_can_be_injected(
        fields in prop::collection::vec((field_name(), "[ -~]{0,20}"), 0..12),
        append in any::<bool>(),
    ) {
        let mut raw = b"GET / HTTP/1.1\r\n".to_vec();
        for (name, value) in &fields {
            raw.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        raw.extend_from_slice(b"\r\n");
        let request = captured(&raw);
        let sent = outgoing(&request, if append { APPEND } else { PERSIST });
        let mut parsed = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Request::new(&mut parsed);
        prop_assert!(head.parse(&sent.bytes).unwrap().is_complete());
        let values = |field: &str| -> Vec<&[u8]> {
            let same = |name: &str| name.replace('_', "-").eq_ignore_ascii_case(field);
            head.headers.iter().filter(|h| same(h.name)).map(|h| h.value).collect()
        };
        prop_assert_eq!(values("X-Real-IP"), [b"203.0.113.7"]);
        prop_assert_eq!(values("X-Server-Addr"), [b"10.1.2.3"]);
        prop_assert_eq!(values("X-Server-Port"), [b"8080"]);
        prop_assert!(values("X-Mirror-Flags").len() <= 1);
        let last = head.headers.iter().rfind(|h| h.name.eq_ignore_ascii_case("X-Forwarded-For"));
        prop_assert!(last.unwrap().value.ends_with(b"203.0.113.7"));
        let had = fields.iter().any(|(n, _)| n.eq_ignore_ascii_case("X-Forwarded-For"));
        let lines = fields.len() + 3 + usize::from(!sent.flags.is_empty()) + usize::from(!(append && had));
        prop_assert_eq!(head.headers.len(), lines);
    }

    /// What goes onto a shared connection must mean one request to every strict reader: the HTTP stage reads it back as
    /// exactly one undisputed request that ends where it ends.
    #[test]
    fn what_may_be_followed_is_exactly_one_request(
        method in prop::sample::select(vec!["GET", "POST", "get"]),
        fields in prop::collection::vec(
            (
                prop::sample::select(vec![
                    "Content-Length", "Transfer-Encoding", "Content_Length", "Host", "X", "Connection", "content-length ",
                ]),
                prop::sample::select(vec!["0", "5", "12", "chunked", "5, 5", "gzip", "close", "\x0bchunked", "h"]),
                prop::sample::select(vec!["\r\n", "\r\n", "\r\n", "\n", "\r\n "]),
            ),
            0..5,
        ),
        body in prop::sample::select(vec![
            "", "hello", "5\r\nhello\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\r\n",
            "5;x\r\nhello\r\n0\r\nA: b\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "ffffffffffffffffff\r\nhello\r\n",
        ]),
        fin in any::<bool>(),
    ) {
        let mut raw = format!("{method} / HTTP/1.1\r\n");
        for (name, value, end) in fields {
            raw.push_str(&format!("{name}: {value}{end}"));
        }
        raw.push_str("\r\n");
        raw.push_str(body);
        for request in extracted(raw.as_bytes(), if fin { End::Fin } else { End::Eof }) {
            let sent = outgoing(&request, PERSIST);
            if sent.sharing == Sharing::Alone {
                continue;
            }
            let mut twice = sent.bytes.clone();
            twice.extend_from_slice(b"GET /behind HTTP/1.1\r\nHost: h\r\n\r\n");
            let read = extracted(&twice, End::Fin);
            prop_assert_eq!(read.len(), 2, "{}", sent.bytes.escape_ascii());
            prop_assert_eq!(&read[0].raw, &sent.bytes);
            prop_assert!(!read[0].flags.intersects(Flags::DISPUTED | Flags::TRUNCATED | Flags::ABORTED));
        }
    }

    /// Every byte of a forwarded request was captured, in its place, but those that the contract names; and no reader,
    /// however lenient, finds one of our names where a field may stand. Heads of any kind: whatever the tolerant parser
    /// makes a request of.
    #[test]
    fn a_request_of_any_kind_is_sent_as_captured(pieces in prop::collection::vec(piece(), 0..40)) {
        let raw = [b"POST / HTTP/1.1\r\n".to_vec(), pieces.concat().into_bytes()].concat();
        for request in extracted(&raw, End::Fin) {
            let sent = outgoing(&request, KEEP);
            let text = &sent.bytes;
            let flags = sent.flags.iter_names().map(|(name, _)| name.to_lowercase()).collect::<Vec<_>>().join(", ");
            let lines = format!(
                "X-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\nX-Server-Addr: 10.1.2.3\r\nX-Server-Port: 8080\r\n{}",
                if flags.is_empty() { String::new() } else { format!("X-Mirror-Flags: {flags}\r\n") }
            );
            let Some(block) = text.windows(lines.len()).position(|w| w == lines.as_bytes()) else {
                panic!("{}", text.escape_ascii());
            };
            let back = [&text[..block], &text[block + lines.len()..]].concat();
            let captured = &request.raw[request.line_start..];
            let cut = request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED);
            // Of one that was cut the head, but for the length.
            let (back, captured, block) = if cut {
                let head = without_length(&back[..block]);
                let end = head.len();
                (head, without_length(captured), end)
            } else {
                prop_assert_eq!(back.len(), captured.len(), "{}", text.escape_ascii());
                (back, captured.to_vec(), block)
            };
            let mut defused = 0;
            for (at, (&now, &then)) in back.iter().zip(&captured).enumerate() {
                if now == then {
                    continue;
                }
                prop_assert!(now == b'Z' && matches!(then, b'x' | b'X'), "{}", text.escape_ascii());
                let line = back[..at].rsplit(|b| matches!(b, b'\r' | b'\n')).next().unwrap();
                prop_assert!(line.iter().all(|&b| b <= b' ' || b == 0x7f), "{}", text.escape_ascii());
                defused += 1;
            }
            if !cut {
                prop_assert_eq!(defused > 0, sent.flags.contains(Flags::SPOOFED), "{}", text.escape_ascii());
            }
            // Our own block is taken out; what is left has none of its names, in the head or, disputed, anywhere. The
            // first line begins with the method, which is nobody's field.
            let looked_at = if sent.sharing == Sharing::Alone { back.len() } else { block };
            for line in back[..looked_at].split(|b| matches!(b, b'\r' | b'\n')).skip(1) {
                let name = line.split(|b| matches!(b, b':' | 0)).next().unwrap();
                let name = String::from_utf8_lossy(name).to_lowercase().replace('_', "-");
                let name = name.trim_matches(|c: char| c <= ' ' || c == '\x7f');
                let ours = ["x-real-ip", "x-server-addr", "x-server-port", "x-mirror-flags"];
                prop_assert!(!ours.contains(&name), "{}", text.escape_ascii());
            }
        }
    }

    #[test]
    fn no_ranges_panic(
        raw in prop::collection::vec(prop::sample::select(b"GETX-real_ip: \r\n0;chunked".to_vec()), 0..80),
        ranges in prop::collection::vec((0_usize..100, 0_usize..100), 4..12),
        framing in 0_u8..3,
        length in any::<u64>(),
        flags in any::<u16>(),
        places in (0_usize..100, 0_usize..100, prop_oneof![0_usize..100, Just(usize::MAX)]),
    ) {
        let range = |i: usize| {
            let (a, b): (usize, usize) = ranges[i % ranges.len()];
            a..b
        };
        let request = Request {
            line_start: places.0,
            head_end: places.1,
            long_version: false,
            last_whole_chunk_end: places.2,
            method: range(0),
            target: range(1),
            headers: (2..ranges.len())
                .map(|i| Header { name: range(i), value: (i % 3 > 0).then(|| range(i + 1)) })
                .collect(),
            framing: match framing {
                0 => Framing::None,
                1 => Framing::Length(length),
                _ => Framing::Chunked,
            },
            flags: Flags::from_bits_truncate(flags),
            ..request_of(raw)
        };
        for rewrite in [PERSIST, KEEP, APPEND] {
            let _ = outgoing(&request, rewrite);
        }
    }
}
