//! The PROXY protocol header, versions 1 and 2, at the beginning of a connection (haproxy's `proxy-protocol.txt`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `\r\n\r\n\0\r\nQUIT\n`: §2.2, "binary header signature".
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest version 1 line, its CRLF included (§2.1).
const MAX_LINE: usize = 107;

/// The TLV that holds a checksum of the whole header (§2.2.3).
const PP2_TYPE_CRC32C: u8 = 0x03;

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
        /// An IPv4 address written as IPv6 (`::ffff:a.b.c.d`) is given as IPv4. `None` for LOCAL, UNKNOWN, UNIX, UNSPEC
        /// and families that nobody knows: the connection's own peer counts.
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
    // TCP or UDP over IPv4 or IPv6, by the table of §2.2; other values name no client that we know.
    let (size, pair) = match family {
        0x11 | 0x12 => (4, 12),
        0x21 | 0x22 => (16, 36),
        _ => (0, 0),
    };
    // Too short for its family, or damaged on the way: a broken sender; the peer is all that is known. The header is still
    // none of the client's bytes.
    let sound =
        payload.len() >= pair && checksum_is_sound(bytes.get(..len).unwrap_or_default(), pair);
    let source = (command & 0x0f == 1 && pair > 0 && sound)
        .then(|| payload.get(..size).and_then(from_octets))
        .flatten();
    Preamble::Header { len, source }
}

/// Whether the header holds no `PP2_TYPE_CRC32C` (§2.2.3), or one that is right. `pair`: bytes of its addresses.
fn checksum_is_sound(header: &[u8], pair: usize) -> bool {
    let mut at = 16 + pair;
    while let Some(&[kind, high, low]) = header.get(at..at + 3) {
        let value = at + 3..at + 3 + usize::from(u16::from_be_bytes([high, low]));
        if kind == PP2_TYPE_CRC32C {
            let told = header
                .get(value.clone())
                .and_then(|v| <[u8; 4]>::try_from(v).ok())
                .map(u32::from_be_bytes);
            let zeroed = header
                .iter()
                .enumerate()
                .map(|(n, b)| if value.contains(&n) { 0 } else { *b });
            return told == Some(crc32c(zeroed));
        }
        at = value.end;
    }
    true
}

/// CRC-32C (RFC 9260, Appendix A; reflected polynomial 0x82f63b78). A header in a thousand has one: bit by bit will do.
fn crc32c(bytes: impl Iterator<Item = u8>) -> u32 {
    !bytes.fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 * (crc & 1))
        })
    })
}

fn v1(bytes: &[u8]) -> Preamble {
    let window = bytes.get(..MAX_LINE).unwrap_or(bytes);
    let cr = memchr::memchr(b'\r', window);
    let (line, lf) = match cr.map(|cr| (window.get(..cr), cr + 1)) {
        Some((line, lf)) if window.get(lf) == Some(&b'\n') => (line, lf),
        // The line end may still be to come.
        Some((_, lf)) if lf == bytes.len() && lf < MAX_LINE => return Preamble::More,
        None if bytes.len() < MAX_LINE => return Preamble::More,
        _ => return Preamble::Absent,
    };
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
            source: Some(source.to_canonical()),
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
        .map(|address| address.to_canonical())
}
