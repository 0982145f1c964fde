//! The PROXY protocol header, versions 1 and 2, at the beginning of a connection (haproxy's `proxy-protocol.txt`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `\r\n\r\n\0\r\nQUIT\n`: §2.2, "binary header signature".
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest version 1 line, its CRLF included (§2.1).
const MAX_LINE: usize = 107;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preamble {
    /// Too few to tell.
    More,
    /// No PROXY header: all of them belong to what the client says.
    Absent,
    /// A PROXY header.
    Header {
        /// In bytes, signature and TLVs included.
        len: usize,
        /// `None` for LOCAL, UNKNOWN, UNIX and UNSPEC: the connection's own peer counts.
        source: Option<IpAddr>,
    },
}

/// Reads the first bytes of a connection. What is not exactly a PROXY header is none.
pub(super) fn read(bytes: &[u8]) -> Preamble {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(SIGNATURE) {
        return if bytes.len() < 16 {
            more_of_v2(bytes)
        } else {
            v2(bytes)
        };
    }
    if begins(b"PROXY ") {
        return v1(bytes);
    }
    Preamble::Absent
}

/// The signature has begun; what is there of the fixed part must fit.
fn more_of_v2(bytes: &[u8]) -> Preamble {
    match bytes.get(12) {
        Some(version) if version >> 4 != 2 => Preamble::Absent,
        _ => Preamble::More,
    }
}

fn v2(bytes: &[u8]) -> Preamble {
    let [command, family, high, low] = match bytes.get(12..16) {
        Some(&[a, b, c, d]) => [a, b, c, d],
        _ => return Preamble::More,
    };
    if command >> 4 != 2 || command & 0x0f > 1 {
        return Preamble::Absent;
    }
    let len = 16 + usize::from(u16::from_be_bytes([high, low]));
    if bytes.len() < len {
        return Preamble::More;
    }
    let payload = bytes.get(16..len).unwrap_or_default();
    let (size, pair) = match family >> 4 {
        1 => (4, 12),
        2 => (16, 36),
        _ => (0, 0),
    };
    // Too short for its family: a broken sender; the peer is all that is known.
    let source = (command & 0x0f == 1 && pair > 0 && payload.len() >= pair)
        .then(|| payload.get(..size).and_then(from_octets))
        .flatten();
    Preamble::Header { len, source }
}

fn v1(bytes: &[u8]) -> Preamble {
    let window = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let Some(lf) = memchr::memchr(b'\n', window) else {
        return if bytes.len() < MAX_LINE {
            Preamble::More
        } else {
            Preamble::Absent
        };
    };
    let line = window.get(..lf).and_then(|l| l.strip_suffix(b"\r"));
    let Some(text) = line.and_then(|l| std::str::from_utf8(l).ok()) else {
        return Preamble::Absent;
    };
    let mut words = text.split(' ').skip(1);
    let source = match words.next() {
        // §2.1: what follows UNKNOWN is to be ignored.
        Some("UNKNOWN") => {
            return Preamble::Header {
                len: lf + 1,
                source: None,
            };
        }
        Some("TCP4") => pair::<Ipv4Addr>(&mut words).map(IpAddr::V4),
        Some("TCP6") => pair::<Ipv6Addr>(&mut words).map(IpAddr::V6),
        _ => None,
    };
    match source {
        Some(source) if words.next().is_none() => Preamble::Header {
            len: lf + 1,
            source: Some(source),
        },
        _ => Preamble::Absent,
    }
}

/// Source, destination, and both ports; the source when all four are well formed.
fn pair<'a, A: std::str::FromStr>(words: &mut impl Iterator<Item = &'a str>) -> Option<A> {
    let source = words.next()?.parse().ok()?;
    let _destination: A = words.next()?.parse().ok()?;
    for _ in 0..2 {
        let port = words.next()?;
        if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() {
            return None;
        }
    }
    Some(source)
}

/// 4 or 16 bytes in network order.
fn from_octets(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}
