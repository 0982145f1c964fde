//! What is sent to the analyser for a request: the captured bytes and what the contract adds, nothing else.

use rebuilder::forward::bytes::{Outgoing, outgoing};
use rebuilder::forward::sharing::Sharing;
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
        line_by_line(request, rewrite, &sent.bytes, sent.sharing);
        // Only in quarantine can what two readers frame differently harm nobody.
        let disputed = request.flags.contains(Flags::DISPUTED);
        assert!(!disputed || sent.sharing == Sharing::Alone);
        read_again(request, &sent);
    }
}

/// The fields that an analyser believes because they come from us.
const OURS: [&str; 4] = [
    "x-real-ip",
    "x-server-addr",
    "x-server-port",
    "x-mirror-flags",
];

/// A captured field, as far as the contract treats it apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    ForwardedFor,
    Connection,
    ContentLength,
    Other,
}

fn field(line: &[u8]) -> Field {
    if !line.contains(&b':') {
        return Field::Other;
    }
    let name = line.split(|b| *b == b':').next().unwrap_or_default();
    match &name.trim_ascii().to_ascii_lowercase()[..] {
        b"x-forwarded-for" => Field::ForwardedFor,
        b"connection" => Field::Connection,
        b"content-length" => Field::ContentLength,
        _ => Field::Other,
    }
}

/// As a reader sees it that takes `_` for `-` and cares for no case.
fn folded(bytes: &[u8]) -> Vec<u8> {
    let dash = |b: &u8| {
        if *b == b'_' {
            b'-'
        } else {
            b.to_ascii_lowercase()
        }
    };
    bytes.iter().map(dash).collect()
}

/// Nothing in captured bytes reads as one of our fields, wherever a reader may see a line begin.
fn assert_nothing_passes_for_ours(captured: &[u8]) {
    for line in captured.split(|b| matches!(b, b'\r' | b'\n')) {
        let name = line
            .split(|b| matches!(b, b':' | 0))
            .next()
            .unwrap_or_default();
        let visible = |b: &u8| *b > b' ' && *b != 0x7f;
        let from = name.iter().position(visible).unwrap_or(name.len());
        let to = name.iter().rposition(visible).map_or(from, |last| last + 1);
        let name = folded(&name[from..to]);
        assert!(
            !OURS.iter().any(|ours| name == ours.as_bytes()),
            "passes for ours: {:?}",
            text(line)
        );
    }
}

/// The next line of `sent`, its line feed included.
fn next_line<'a>(sent: &mut &'a [u8]) -> &'a [u8] {
    let end = memchr::memchr(b'\n', sent).map_or(sent.len(), |lf| lf + 1);
    let (line, rest) = sent.split_at(end);
    *sent = rest;
    line
}

fn line_by_line(request: &Request, rewrite: Rewrite, all: &[u8], sharing: Sharing) {
    let mut sent = all;
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
        assert!(
            n > 0 || line.contains(&b'\r'),
            "the request line was changed"
        );
        assert!(
            is_allowed(line, got, of, request, rewrite, &mut appended),
            "{:?} was sent as {:?}",
            text(line),
            text(got)
        );
    }
    // The method is nobody's field, whatever it reads as.
    let captured = &all[..all.len() - sent.len()];
    let first = captured.iter().position(|b| matches!(b, b'\r' | b'\n'));
    assert_nothing_passes_for_ours(&captured[first.unwrap_or(captured.len())..]);
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
    check_body(request, sent, sharing);
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

/// Whether `got` is `line` with changes that the contract names and no others.
fn is_allowed(
    line: &[u8],
    got: &[u8],
    of: Field,
    request: &Request,
    rewrite: Rewrite,
    appended: &mut bool,
) -> bool {
    let no_digits = |line: &[u8]| -> Vec<u8> {
        line.iter()
            .filter(|b| !b.is_ascii_digit())
            .copied()
            .collect()
    };
    let (mut old, mut new) = (line.to_vec(), got.to_vec());
    let damaged = request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED);
    if of == Field::ContentLength && damaged {
        (old, new) = (no_digits(&old), no_digits(&new));
    }
    let persist = rewrite.hop_by_hop == HopByHop::Persist;
    let added = [
        format!(", {}", request.origin),
        format!(" {}", request.origin),
    ];
    let (mut i, mut j) = (0, 0);
    while j < new.len() || i < old.len() {
        let (rest, got) = (&old[i..], &new[j..]);
        if !rest.is_empty() && rest.first() == got.first() {
            (i, j) = (i + 1, j + 1);
        } else if of == Field::Connection
            && persist
            && rest
                .get(..5)
                .is_some_and(|word| word.eq_ignore_ascii_case(b"close"))
            && got.starts_with(b"keep-alive")
        {
            (i, j) = (i + 5, j + 10);
        } else if got.first() == Some(&b'Z') && begins_like_ours(rest, of) {
            (i, j) = (i + 1, j + 1);
        } else if let Some(added) = added.iter().find(|a| got.starts_with(a.as_bytes()))
            && of == Field::ForwardedFor
            && rewrite.xff == XffStyle::Append
            && !*appended
        {
            *appended = true;
            j += added.len();
        } else {
            return false;
        }
    }
    true
}

/// A name that is defused begins here; in a `Connection` header also one that would have ours taken away.
fn begins_like_ours(bytes: &[u8], of: Field) -> bool {
    let bytes = folded(bytes.get(..20.min(bytes.len())).unwrap_or_default());
    OURS.iter().any(|ours| bytes.starts_with(ours.as_bytes()))
        || (of == Field::Connection && bytes.starts_with(b"x-forwarded-for"))
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

fn check_body(request: &Request, sent: &[u8], sharing: Sharing) {
    let body = &request.raw[request.head_end..];
    let disputed = sharing == Sharing::Alone;
    // In a body that some read as a head, and in trailers, names are defused; nothing else changes.
    let same = |sent: &[u8]| {
        let defusable = disputed || request.framing == Framing::Chunked;
        sent.len() <= body.len()
            && sent.iter().enumerate().all(|(i, b)| {
                *b == body[i]
                    || (defusable && *b == b'Z' && begins_like_ours(&body[i..], Field::Other))
            })
    };
    match request.framing {
        Framing::None => assert!(sent.is_empty(), "a body was sent where there is none"),
        Framing::Length(_) => assert!(
            sent.len() == body.len() && same(sent),
            "the body was changed"
        ),
        Framing::Chunked => {
            let damaged = request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED);
            let cut = sent.strip_suffix(b"0\r\n\r\n").filter(|cut| same(cut));
            assert!(
                same(sent) || (damaged && cut.is_some()),
                "the body was changed"
            );
        }
    }
    if disputed {
        assert_nothing_passes_for_ours(sent);
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
    // Behind a bare CR a name is defused even there.
    let (target, captured) = (first.bytes(&first.target), request.bytes(&request.target));
    assert_eq!(target.len(), captured.len());
    let same = target.iter().enumerate().all(|(i, b)| {
        *b == captured[i] || (*b == b'Z' && begins_like_ours(&captured[i..], Field::Other))
    });
    assert!(same, "{:?}", text(target));
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
