//! What is sent to the analyser for a request: the captured bytes and what the contract adds, nothing else.

use std::net::IpAddr;

use rebuilder::forward::bytes::{Outgoing, outgoing};
use rebuilder::forward::{HopByHop, Rewrite, XffStyle};
use rebuilder::http::{Flags, Framing, HttpOptions, OriginSource, Request};
use rebuilder::stream::End;

use crate::http::{Piece, run};

const REWRITES: [Rewrite; 3] = [
    Rewrite {
        xff: XffStyle::Line,
        hop_by_hop: HopByHop::Persist,
    },
    Rewrite {
        xff: XffStyle::Append,
        hop_by_hop: HopByHop::Persist,
    },
    Rewrite {
        xff: XffStyle::Append,
        hop_by_hop: HopByHop::Keep,
    },
];

/// Holds the forwarded bytes to the contract, line by line and by reading them again.
pub(crate) fn check(request: &Request) {
    for rewrite in REWRITES {
        let sent = outgoing(request, rewrite);
        line_by_line(request, rewrite, &sent.bytes);
        read_again(request, &sent);
    }
}

/// A captured field, as far as the contract treats it apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Ours,
    ForwardedFor,
    Connection,
    ContentLength,
    Other,
}

fn field(line: &[u8]) -> Field {
    let name = line
        .split(|b| *b == b':')
        .next()
        .unwrap_or_default()
        .trim_ascii();
    let lower: Vec<u8> = name.to_ascii_lowercase();
    let dashed: Vec<u8> = lower
        .iter()
        .map(|b| if *b == b'_' { b'-' } else { *b })
        .collect();
    let has_value = line.contains(&b':');
    match (&dashed[..], &lower[..]) {
        (b"x-real-ip" | b"x-server-addr" | b"x-server-port" | b"x-mirror-flags", _) => Field::Ours,
        (_, b"x-forwarded-for") if has_value => Field::ForwardedFor,
        (_, b"connection") if has_value => Field::Connection,
        (_, b"content-length") if has_value => Field::ContentLength,
        _ => Field::Other,
    }
}

/// The next line of `sent`, its line feed included.
fn next_line<'a>(sent: &mut &'a [u8]) -> &'a [u8] {
    let end = memchr::memchr(b'\n', sent).map_or(sent.len(), |lf| lf + 1);
    let (line, rest) = sent.split_at(end);
    *sent = rest;
    line
}

fn line_by_line(request: &Request, rewrite: Rewrite, mut sent: &[u8]) {
    let head = &request.raw[request.line_start..request.head_end];
    let mut lines: Vec<&[u8]> = head.split_inclusive(|b| *b == b'\n').collect();
    let empty = lines.pop().unwrap_or_default();
    assert!(matches!(empty, b"\r\n" | b"\n"));
    let mut of = Field::Other;
    let mut appended = false;
    for (n, line) in lines.into_iter().enumerate() {
        let got = next_line(&mut sent);
        // A folded line belongs to the field before it; the request line is none.
        let folded = n > 1 && matches!(line.first(), Some(b' ' | b'\t'));
        if n > 0 && !folded {
            of = field(line);
        }
        if got == line {
            continue;
        }
        let allowed = match of {
            _ if n == 0 => false,
            Field::Ours => one_byte_became_z(line, got),
            Field::Connection => {
                rewrite.hop_by_hop == HopByHop::Persist && closes_became_keep_alive(line, got)
            }
            Field::ContentLength => digits_removed(line) == digits_removed(got),
            Field::ForwardedFor => {
                let was = appended;
                appended = true;
                !was && rewrite.xff == XffStyle::Append && one_appended(line, got, request.origin)
            }
            Field::Other => false,
        };
        assert!(
            allowed,
            "{:?} was sent as {:?}",
            String::from_utf8_lossy(line),
            String::from_utf8_lossy(got)
        );
    }
    let origin = request.origin;
    if !appended {
        assert_eq!(
            text(next_line(&mut sent)),
            format!("X-Forwarded-For: {origin}\r\n")
        );
    }
    assert_eq!(
        text(next_line(&mut sent)),
        format!("X-Real-IP: {origin}\r\n")
    );
    let server = request.endpoints.dst;
    assert_eq!(
        text(next_line(&mut sent)),
        format!("X-Server-Addr: {}\r\n", server.ip())
    );
    assert_eq!(
        text(next_line(&mut sent)),
        format!("X-Server-Port: {}\r\n", server.port())
    );
    let mut last = next_line(&mut sent);
    if let Some(flags) = last.strip_prefix(b"X-Mirror-Flags: ") {
        check_flags(request, text(flags).trim_end());
        last = next_line(&mut sent);
    }
    if last == b"Connection: keep-alive\r\n" {
        assert!(rewrite.hop_by_hop == HopByHop::Persist && request.version < (1, 1));
        last = next_line(&mut sent);
    }
    assert_eq!(text(last), text(empty));
    check_body(request, sent);
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

fn one_byte_became_z(line: &[u8], got: &[u8]) -> bool {
    let changed: Vec<usize> = (0..line.len().min(got.len()))
        .filter(|i| line[*i] != got[*i])
        .collect();
    let first = line.iter().position(|b| !b.is_ascii_whitespace());
    line.len() == got.len()
        && changed.len() == 1
        && Some(changed[0]) == first
        && got[changed[0]] == b'Z'
}

/// Members of the comma list that are `close` became `keep-alive`.
fn closes_became_keep_alive(line: &[u8], got: &[u8]) -> bool {
    // Behind the colon; a folded line has none, or has it within its value.
    let lower = line.to_ascii_lowercase();
    let mut expected = Vec::<u8>::new();
    let mut rest = 0;
    while let Some(at) = memchr::memmem::find(&lower[rest..], b"close") {
        let at = rest + at;
        expected.extend(&line[rest..at]);
        let edge =
            |b: Option<&u8>| b.is_none_or(|b| b.is_ascii_whitespace() || matches!(b, b',' | b':'));
        let whole = edge(lower.get(at.wrapping_sub(1))) && edge(lower.get(at + 5));
        if whole && got.get(expected.len()..expected.len() + 10) == Some(b"keep-alive") {
            expected.extend(b"keep-alive");
        } else {
            expected.extend(&line[at..at + 5]);
        }
        rest = at + 5;
    }
    expected.extend(&line[rest..]);
    expected == got
}

fn digits_removed(line: &[u8]) -> Vec<u8> {
    line.iter()
        .filter(|b| !b.is_ascii_digit())
        .copied()
        .collect()
}

/// `, origin` or ` origin` stands somewhere in `got` and not in `line`.
fn one_appended(line: &[u8], got: &[u8], origin: IpAddr) -> bool {
    let Some(more) = got.len().checked_sub(line.len()) else {
        return false;
    };
    let at = (0..line.len())
        .find(|i| line[*i] != got[*i])
        .unwrap_or(line.len());
    [format!(", {origin}"), format!(" {origin}")]
        .iter()
        .any(|added| {
            // What was added may begin like what it was put before.
            more == added.len()
                && (0..=at)
                    .rev()
                    .any(|i| got[i..].starts_with(added.as_bytes()) && got[i + more..] == line[i..])
        })
}

fn check_flags(request: &Request, listed: &str) {
    let names: Vec<&str> = listed.split(", ").collect();
    for name in request
        .flags
        .names()
        .filter(|name| !["hop", "spoofed"].contains(name))
    {
        assert!(names.contains(&name), "{name} is not among {listed}");
    }
    let origin = |name| names.contains(&name);
    assert_eq!(
        origin("client-proxy"),
        request.origin_from == OriginSource::Proxy
    );
    assert_eq!(
        origin("client-xff"),
        request.origin_from == OriginSource::Xff
    );
}

fn check_body(request: &Request, sent: &[u8]) {
    let body = &request.raw[request.head_end..];
    match request.framing {
        Framing::None => assert!(sent.is_empty(), "a body was sent where there is none"),
        Framing::Length(_) => assert_eq!(text(sent), text(body)),
        Framing::Chunked => {
            let damaged = request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED);
            let cut = sent
                .strip_suffix(b"0\r\n\r\n")
                .filter(|cut| body.starts_with(cut));
            assert!(
                body.starts_with(sent) || (damaged && cut.is_some()),
                "the body was changed"
            );
        }
    }
}

/// The bytes that are sent are one request, the captured one.
fn read_again(request: &Request, sent: &Outgoing) {
    let bytes = &sent.bytes;
    let options = HttpOptions {
        max_head: bytes.len(),
        ..HttpOptions::default()
    };
    let again = run(
        bytes,
        &[Piece::Data(0..bytes.len(), true)],
        &options,
        false,
        End::Fin,
    );
    let Some(first) = again.requests.first() else {
        panic!("what is sent is no request: {:?}", text(bytes));
    };
    assert_eq!(
        text(first.bytes(&first.method)),
        text(request.bytes(&request.method))
    );
    assert_eq!(
        text(first.bytes(&first.target)),
        text(request.bytes(&request.target))
    );
    assert_eq!(first.version, request.version);
    if request.flags.contains(Flags::DISPUTED) {
        return;
    }
    assert_eq!(
        again.requests.len(),
        1,
        "a second request was made: {:?}",
        text(bytes)
    );
    assert_eq!(first.raw.len(), bytes.len());
    let flags = first.flags - Flags::SPOOFED - Flags::HOP;
    assert!(flags.is_empty(), "{:?} {:?}", first.flags, text(bytes));
    assert!(first.headers.len() >= request.headers.len() + 3);
    for (ours, captured) in first.headers.iter().zip(&request.headers) {
        let (ours, captured) = (first.bytes(&ours.name), request.bytes(&captured.name));
        assert!(ours == captured || ours.trim_ascii().first() == Some(&b'Z'));
    }
}
