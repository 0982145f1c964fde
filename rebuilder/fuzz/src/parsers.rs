//! The smaller parsers of the HTTP stage, each behind the extractor that it works for, and those of the rest.

use std::net::IpAddr;
use std::time::Duration;

use rebuilder::forward::Target;
use rebuilder::forward::answer::{AnswerError, AnswerReader, AnswerTo, Head};
use rebuilder::http::{Cidr, Flags, HttpOptions, OriginSource};
use rebuilder::stream::End;
use rebuilder::units::{parse_bytes, parse_duration};

use crate::http::{Dice, Outcome, Piece, each_way, ends, run};
use crate::input::Input;

fn whole(bytes: &[u8], options: &HttpOptions) -> Outcome {
    run(
        bytes,
        &[Piece::Data(0..bytes.len(), true)],
        options,
        false,
        End::Fin,
    )
}

/// Bytes at the beginning of a connection.
///
/// Asserts: a head that `httparse` accepts gives the same method, target, version and header list; and all that
/// [`crate::http`] asserts.
pub fn head(data: &[u8]) {
    each_way(data, &HttpOptions::default());
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut theirs = httparse::Request::new(&mut fields);
    // What begins like a PROXY header is one to us and a method to it.
    if data.starts_with(b"PROXY ")
        || !matches!(theirs.parse(data), Ok(httparse::Status::Complete(_)))
    {
        return;
    }
    let outcome = whole(data, &HttpOptions::default());
    let Some(ours) = outcome.requests.first() else {
        panic!("no request where httparse sees one");
    };
    assert_eq!(
        ours.bytes(&ours.method),
        theirs.method.unwrap_or_default().as_bytes()
    );
    assert_eq!(
        ours.bytes(&ours.target),
        theirs.path.unwrap_or_default().as_bytes()
    );
    assert_eq!(Some(ours.version), theirs.version.map(|minor| (1, minor)));
    assert_eq!(ours.headers.len(), theirs.headers.len());
    for (ours_is, theirs_is) in ours.headers.iter().zip(theirs.headers.iter()) {
        assert_eq!(ours.bytes(&ours_is.name), theirs_is.name.as_bytes());
        assert_eq!(
            ours_is.value.as_ref().map(|v| ours.bytes(v)),
            Some(theirs_is.value)
        );
    }
}

/// The body of a chunked request, and what follows it.
///
/// Asserts: a body that the strictest reading accepts ends where that says, with as many bytes of data, undisputed;
/// and all that [`crate::http`] asserts.
pub fn chunked(data: &[u8]) {
    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bytes = [HEAD, data].concat();
    each_way(&bytes, &HttpOptions::default());
    let outcome = whole(&bytes, &HttpOptions::default());
    let first = &outcome.requests[0];
    let damaged = Flags::TRUNCATED | Flags::ABORTED | Flags::DISPUTED;
    if let Some((end, len)) = strict_chunks(data) {
        assert_eq!(first.raw.len(), HEAD.len() + end);
        assert_eq!(first.body_len, len);
        assert!(!first.flags.intersects(damaged), "{:?}", first.flags);
    }
    if !first.flags.intersects(damaged) {
        assert!(first.raw.ends_with(b"\r\n\r\n"));
    }
}

/// RFC 9112 §7.1 without extensions and trailers: where the body ends, and its bytes of data.
fn strict_chunks(data: &[u8]) -> Option<(usize, u64)> {
    let (mut at, mut len) = (0, 0);
    loop {
        let line = memchr::memmem::find(&data[at..], b"\r\n")?;
        let digits = &data[at..at + line];
        if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let size = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        at += line + 2;
        let end = at.checked_add(usize::try_from(size).ok()?)?;
        if data.get(end..end + 2)? != b"\r\n" {
            return None;
        }
        if size == 0 {
            return Some((end + 2, len));
        }
        len += u64::from(size);
        at = end + 2;
    }
}

/// The first bytes of a connection, a request behind them.
///
/// Asserts: a PROXY header that the crate `ppp` reads names the same client; and all that [`crate::http`] asserts.
pub fn proxy(data: &[u8]) {
    let bytes = [data, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
    each_way(&bytes, &HttpOptions::default());
    let (len, source, summed) = if let Ok(header) = ppp::v2::Header::try_from(&bytes[..]) {
        let source: Option<IpAddr> = match (header.command, header.protocol, header.addresses) {
            // Neither TCP nor UDP: of whom the addresses are is not said.
            (ppp::v2::Command::Local, ..) | (_, ppp::v2::Protocol::Unspecified, _) => None,
            (.., ppp::v2::Addresses::IPv4(ends)) => Some(ends.source_address.into()),
            (.., ppp::v2::Addresses::IPv6(ends)) => Some(ends.source_address.into()),
            _ => None,
        };
        // `ppp` does not look at the checksum that a header may hold.
        let summed = header.tlv_bytes().contains(&3);
        (header.len(), source, summed)
    } else if let Ok(header) = ppp::v1::Header::try_from(&bytes[..]) {
        let source: Option<IpAddr> = match header.addresses {
            ppp::v1::Addresses::Unknown => None,
            ppp::v1::Addresses::Tcp4(ends) => Some(ends.source_address.into()),
            ppp::v1::Addresses::Tcp6(ends) => Some(ends.source_address.into()),
        };
        // To it a line goes on behind a lone carriage return.
        if memchr::memchr(b'\r', &bytes) != Some(header.header.len() - 2) {
            return;
        }
        (header.header.len(), source, false)
    } else {
        return;
    };
    if len != data.len() {
        return;
    }
    let outcome = whole(&bytes, &HttpOptions::default());
    assert_eq!(outcome.requests.len(), 1);
    let request = &outcome.requests[0];
    assert_eq!(
        request.raw,
        &bytes[len..],
        "the header is no part of the request"
    );
    let named = (request.origin, request.origin_from);
    let peer = (ends().src.ip(), OriginSource::Peer);
    match source {
        _ if summed && named == peer => {}
        Some(source) => assert_eq!(named, (source.to_canonical(), OriginSource::Proxy)),
        None => assert_eq!(named, peer),
    }
}

/// Members of an X-Forwarded-For list: how they are written, and who they are. Empty ones are nobody, and passed over.
const HOPS: &[(&str, Hop)] = &[
    ("10.0.0.1", Hop::Trusted([10, 0, 0, 1])),
    ("10.0.0.1:443", Hop::Trusted([10, 0, 0, 1])),
    ("::ffff:10.0.0.1", Hop::Trusted([10, 0, 0, 1])),
    ("[::ffff:10.0.0.1]:8080", Hop::Trusted([10, 0, 0, 1])),
    ("10.255.0.2", Hop::Trusted([10, 255, 0, 2])),
    ("192.0.2.9", Hop::Trusted([192, 0, 2, 9])),
    ("203.0.113.9", Hop::Client("203.0.113.9")),
    ("203.0.113.9:80", Hop::Client("203.0.113.9")),
    ("11.0.0.1", Hop::Client("11.0.0.1")),
    ("2001:db8::9", Hop::Client("2001:db8::9")),
    ("[2001:db8::9]", Hop::Client("2001:db8::9")),
    ("[2001:db8::9]:443", Hop::Client("2001:db8::9")),
    ("", Hop::Nobody),
    (" \t", Hop::Nobody),
    ("unknown", Hop::Garbage),
    ("_hidden", Hop::Garbage),
    ("10.0.0", Hop::Garbage),
    ("10.0.0.1.2", Hop::Garbage),
    ("10.0.0.1:99999", Hop::Garbage),
    ("[::1", Hop::Garbage),
    ("::1]", Hop::Garbage),
    ("1.2.3.4 5.6.7.8", Hop::Garbage),
    ("\"10.0.0.1\"", Hop::Garbage),
    ("\u{e9}", Hop::Garbage),
];

#[derive(Clone, Copy)]
enum Hop {
    Trusted([u8; 4]),
    Client(&'static str),
    Nobody,
    Garbage,
}

/// X-Forwarded-For lines behind a trusted peer; the first byte chooses: lists of known members, or any bytes.
///
/// Asserts: the client is the rightmost known member that is not trusted, as the design says.
pub fn client(data: &[u8]) {
    let mut input = Input::new(data);
    let trust: Vec<Cidr> = ["10.0.0.0/8", "192.0.2.0/24"]
        .iter()
        .filter_map(|t| t.parse().ok())
        .collect();
    let options = HttpOptions {
        trust,
        ..HttpOptions::default()
    };
    let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
    if input.get::<bool>() {
        let line = data.iter().filter(|b| !matches!(b, b'\r' | b'\0'));
        bytes.extend(b"X-Forwarded-For: ");
        bytes.extend(line);
        bytes.extend(b"\r\n\r\n");
        each_way(&bytes, &options);
        return;
    }
    let mut hops = Vec::new();
    for _ in 0..input.below(4) {
        let members: Vec<(&str, Hop)> = (0..=input.below(5)).map(|_| input.pick(HOPS)).collect();
        let name = input.pick(&["X-Forwarded-For", "x-forwarded-FOR"]);
        let list: Vec<&str> = members.iter().map(|(text, _)| *text).collect();
        let comma = input.pick(&[",", ", ", " ,\t"]);
        bytes.extend(format!("{name}:{}\r\nA: b\r\n", list.join(comma)).bytes());
        hops.extend(members.into_iter().map(|(_, hop)| hop));
    }
    bytes.extend(b"\r\n");
    let mut named: Option<IpAddr> = None;
    for hop in hops.into_iter().rev() {
        match hop {
            Hop::Nobody => {}
            Hop::Garbage => break,
            Hop::Trusted(ip) => named = Some(ip.into()),
            Hop::Client(text) => {
                named = text.parse().ok();
                break;
            }
        }
    }
    let outcome = whole(&bytes, &options);
    let request = &outcome.requests[0];
    let expected = match named {
        Some(ip) => (ip, OriginSource::Xff),
        None => (ends().src.ip(), OriginSource::Peer),
    };
    assert_eq!(
        (request.origin, request.origin_from),
        expected,
        "{:?}",
        String::from_utf8_lossy(&bytes)
    );
}

/// Bytes of a connection joined midway, in segments.
///
/// Asserts: the first request begins where a segment does; where a segment begins with a well-formed request line and
/// a whole head, a request is found, whatever the bytes before it look like; and all that [`crate::http`] asserts.
pub fn search(data: &[u8]) {
    each_way(data, &HttpOptions::default());
    if data.is_empty() {
        return;
    }
    let mut dice = Dice::of(data);
    // Line feeds are where segments of people's streams tend to begin.
    let mut starts: Vec<usize> = (0..dice.below(6)).map(|_| dice.below(data.len())).collect();
    starts.extend(
        memchr::memchr_iter(b'\n', data)
            .map(|lf| lf + 1)
            .filter(|at| *at < data.len()),
    );
    starts.push(0);
    starts.sort_unstable();
    starts.dedup();
    let edges: Vec<usize> = starts.iter().copied().chain([data.len()]).collect();
    let pieces: Vec<Piece> = edges
        .windows(2)
        .map(|w| Piece::Data(w[0]..w[1], true))
        .collect();
    let outcome = run(data, &pieces, &HttpOptions::default(), true, End::Fin);
    if let Some(first) = outcome.requests.first() {
        assert!(first.flags.contains(Flags::MIDSTREAM));
        let mut places = memchr::memmem::find_iter(data, &first.raw);
        assert!(
            places.any(|at| starts.binary_search(&at).is_ok()),
            "found inside a segment"
        );
    }
    let must = starts.iter().any(|at| {
        let rest = &data[*at..];
        plain_line(rest) && !whole(rest, &HttpOptions::default()).requests.is_empty()
    });
    assert!(
        !must || !outcome.requests.is_empty(),
        "a request at a segment's start was missed"
    );
}

/// Whether the bytes begin with a request line of the usual shape.
fn plain_line(bytes: &[u8]) -> bool {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n") else {
        return false;
    };
    let words: Vec<&[u8]> = bytes[..end].split(|b| *b == b' ').collect();
    match words[..] {
        [b"GET" | b"POST" | b"PUT", target, version] => {
            !target.is_empty()
                && target.iter().all(|b| *b > b' ' && *b != 0x7f)
                && matches!(version, [b'H', b'T', b'T', b'P', b'/', a, b'.', b]
                    if a.is_ascii_digit() && b.is_ascii_digit())
        }
        _ => false,
    }
}

/// What an analyser answers, the first byte choosing to which method.
///
/// Asserts: the same events at the same places however the bytes are cut; every call takes a byte; a head that
/// `httparse` accepts has the same status.
pub fn answer(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else {
        return;
    };
    let to = [AnswerTo::Other, AnswerTo::Head, AnswerTo::Connect][usize::from(first % 3)];
    let all = 0..bytes.len();
    let expected = events(bytes, std::slice::from_ref(&all), to);
    let mut dice = Dice::of(data);
    let count = [1, 5, 4000][dice.below(3)];
    let got = events(bytes, &dice.cut(bytes.len(), count), to);
    assert_eq!(got, expected, "where the bytes are cut matters");

    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut theirs = httparse::Response::new(&mut fields);
    if let Ok(httparse::Status::Complete(_)) = theirs.parse(bytes)
        && let (Some(code), Some(Event::Head(_, ours))) = (theirs.code, expected.first())
        && (200..=999).contains(&code)
    {
        assert_eq!(ours.status, code);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Event {
    Head(usize, Head),
    End(usize, bool),
    Error(AnswerError),
    /// Of what is left at the end.
    Rest {
        at_close: bool,
        between: bool,
    },
}

fn events(bytes: &[u8], pieces: &[std::ops::Range<usize>], to: AnswerTo) -> Vec<Event> {
    let mut reader = AnswerReader::default();
    let mut out = Vec::new();
    for piece in pieces {
        let mut at = piece.start;
        while at < piece.end {
            let step = match reader.read(&bytes[at..piece.end], to) {
                Ok(step) => step,
                Err(e) => {
                    out.push(Event::Error(e));
                    return out;
                }
            };
            assert!(
                step.used > 0 && step.used <= piece.end - at,
                "no way forward"
            );
            at += step.used;
            out.extend(step.head.map(|head| Event::Head(at, head)));
            out.extend(step.end.map(|reusable| Event::End(at, reusable)));
        }
    }
    out.push(Event::Rest {
        at_close: reader.ends_at_close(),
        between: reader.is_between_answers(),
    });
    out
}

/// What people write on a command line: sizes, times, networks, the analyser's URL.
///
/// Asserts: a number is what the arithmetic of the textbook says; a network and a URL survive being written down and
/// read again; a network contains its own address.
pub fn text(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let units = [
        ("K", 1 << 10),
        ("k", 1 << 10),
        ("M", 1 << 20),
        ("m", 1 << 20),
        ("G", 1 << 30),
        ("g", 1 << 30),
    ];
    let expected = number(&text, &units, 1)
        .filter(|n| *n > 0)
        .and_then(|n| usize::try_from(n).ok());
    assert_eq!(parse_bytes(&text).ok(), expected, "{text:?}");

    let units = [("ms", 1), ("s", 1_000), ("m", 60_000)];
    let small = text.trim_end_matches(['m', 's']).parse::<u32>().is_ok();
    let expected = number(&text, &units, 1_000).filter(|_| small);
    let expected = expected
        .and_then(|ms| u64::try_from(ms).ok())
        .map(Duration::from_millis);
    assert_eq!(parse_duration(&text).ok(), expected, "{text:?}");

    match text.parse::<Cidr>() {
        Ok(cidr) => {
            let written = cidr.to_string();
            assert_eq!(written.parse::<Cidr>().as_ref(), Ok(&cidr));
            let own = written
                .split('/')
                .next()
                .and_then(|a| a.parse::<IpAddr>().ok());
            let mapped = own.is_some_and(|ip| ip.to_canonical() != ip);
            assert!(
                mapped || own.is_some_and(|ip| cidr.contains(ip)),
                "{written}"
            );
        }
        Err(e) => assert!(e.to_string().contains(&*text)),
    }
    match text.parse::<Target>() {
        Ok(target) => {
            let written = target.to_string();
            assert_eq!(
                written.parse::<Target>().ok().map(|t| t.to_string()),
                Some(written)
            );
        }
        // The text is quoted, so the message is one line whatever stands in it.
        Err(e) => assert_eq!(e.to_string().lines().count(), 1),
    }
}

/// A number and its unit, or, without one, times `alone`.
fn number(text: &str, units: &[(&str, u128)], alone: u128) -> Option<u128> {
    let (digits, unit) = units
        .iter()
        .find_map(|(unit, worth)| Some((text.strip_suffix(unit)?, *worth)))
        .unwrap_or((text, alone));
    let digits = digits.strip_prefix('+').unwrap_or(digits);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    // Nothing that is read here is longer than 20 digits.
    let significant = digits.trim_start_matches('0');
    let n = match significant.len() {
        0 => 0,
        1..30 => significant.parse::<u128>().ok()?,
        _ => return None,
    };
    Some(n * unit)
}
