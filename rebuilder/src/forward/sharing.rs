//! Which requests may be followed by others on one connection.
//!
//! A shared connection is safe only while we and the analyser agree where each request ends. So sharing is not granted
//! by the parser that framed the request, which is tolerant on purpose, but by this second, strict reader: what it
//! does not recognise byte for byte goes alone, whatever the flags say. It errs towards quarantine.

use super::bytes::{Field, Fields, is_word, parse_length};
use crate::http::{Flags, Framing, Request, is_token};

/// What may stand behind a request on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Anything.
    Followed,
    /// Nothing: the analyser may close or leave HTTP after it. It goes on a connection of its own, because every one costs
    /// its connection anyway, and a shared one would be lost to all others.
    Last,
    /// Nothing before or behind: two readers may disagree where it ends.
    Alone,
}

/// A longer head meets the smallest limit of a usual server (8 KiB a line in nginx and Apache) and a close.
pub const HEAD_SHARED_MAX: usize = 8 * 1024;
/// A longer body meets nginx' default `client_max_body_size`, 413 and a close.
pub const BODY_SHARED_MAX: usize = 1024 * 1024;
/// More fields than this meet Apache's `LimitRequestFields` (100) and a close.
pub const FIELDS_SHARED_MAX: usize = 90;

/// What was made of the request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// `Connection` was overwritten where it would have closed.
    pub(super) persist: bool,
    pub(super) head_len: usize,
    pub(super) body_len: usize,
}

/// Reads `request` to the letter; `None` when two readers may disagree where it ends. `framed` says that the body that is
/// sent ends where the head says.
pub(super) fn strict(request: &Request, fields: &Fields, framed: bool) -> Option<StrictHead> {
    if request.flags.contains(Flags::DISPUTED) || !framed {
        return None;
    }
    let head = strict_head(request, fields)?;
    let agrees = match request.framing {
        Framing::None => head.lengths == 0 && head.codings == 0,
        // Our own rewriting put the number of bytes there that is sent.
        Framing::Length(_) => head.lengths == 1 && head.codings == 0,
        Framing::Chunked => {
            head.lengths == 0 && head.codings == 1 && head.chunked && request.version == (1, 1)
        }
    };
    let body = request.raw.get(request.head_end..).unwrap_or_default();
    (agrees && head.lookalikes == 0 && !begins_like_a_request(body)).then_some(head)
}

/// Whether a reader that takes no body where there is one ("CL.0") would go on with a request line, of which the next
/// request on the connection would become a part.
fn begins_like_a_request(body: &[u8]) -> bool {
    let line = body.trim_ascii_start();
    let method = line
        .iter()
        .take_while(|&&b| b.is_ascii_uppercase() || b == b'-' || b == b'_')
        .count();
    method > 0 && line.get(method) == Some(&b' ')
}

/// What may stand behind `request`, by its strict reading.
pub(super) fn of(request: &Request, head: Option<&StrictHead>, sent: &Sent) -> Sharing {
    let Some(head) = head else {
        return Sharing::Alone;
    };
    let stays_open = if sent.persist {
        true
    } else {
        !head.close && (request.version == (1, 1) || head.keep_alive)
    };
    let followed = stays_open
        && !head.upgrade
        && head.plain_method
        && head.plain_target
        && head.hosts == 1
        && sent.head_len <= HEAD_SHARED_MAX
        && sent.body_len <= BODY_SHARED_MAX
        && request.headers.len() <= FIELDS_SHARED_MAX;
    if followed {
        Sharing::Followed
    } else {
        Sharing::Last
    }
}

/// What a strict reading of a head found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StrictHead {
    lengths: usize,
    codings: usize,
    chunked: bool,
    hosts: usize,
    lookalikes: usize,
    upgrade: bool,
    close: bool,
    keep_alive: bool,
    plain_method: bool,
    plain_target: bool,
}

/// Reads the head once more; `None` when a byte of it is out of RFC 9112's grammar or not where the ranges say.
fn strict_head(request: &Request, fields: &Fields) -> Option<StrictHead> {
    // Whatever lies behind it is not of the head.
    let raw = request.raw.get(..request.head_end)?;
    let method = raw.get(request.method.clone())?;
    let target = raw.get(request.target.clone())?;
    let target_is = Target::of(target);
    if request.method.start != request.line_start
        || method.is_empty()
        || !all_token(method)
        || request.target.start != request.method.end.checked_add(1)?
        || raw.get(request.method.end) != Some(&b' ')
        || target.is_empty()
        || target_is == Target::Blank
        || !is_head_text(raw.get(request.line_start..)?, request.headers.len())
    {
        return None;
    }
    let version: &[u8] = match request.version {
        (1, 0) => b" HTTP/1.0\r\n",
        (1, 1) => b" HTTP/1.1\r\n",
        _ => return None,
    };
    let mut at = request.target.end;
    if !raw.get(at..)?.starts_with(version) {
        return None;
    }
    at += version.len();

    let mut head = StrictHead {
        plain_method: method.iter().all(u8::is_ascii_uppercase) && method != b"CONNECT",
        plain_target: target_is == Target::Plain,
        ..StrictHead::default()
    };
    for (i, header) in request.headers.iter().enumerate() {
        // Its bytes were looked at together with all others.
        let value_at = header.value.as_ref()?;
        let name = raw.get(header.name.start..header.name.end)?;
        let value = raw.get(value_at.start..value_at.end)?;
        let between = raw.get(header.name.end..value_at.start)?;
        if header.name.start != at
            || name.is_empty()
            || !all_token(name)
            || !(between == b": " || is_colon_and_blanks(between))
        {
            return None;
        }
        let mut behind = raw.get(value_at.end..)?;
        at = value_at.end + 2;
        while !behind.starts_with(b"\r\n") {
            behind = match behind {
                [b' ' | b'\t', rest @ ..] => rest,
                _ => return None,
            };
            at += 1;
        }
        match fields.of(i, name) {
            Field::ContentLength => {
                head.lengths += 1;
                parse_length(value)?;
            }
            Field::TransferEncoding => {
                head.codings += 1;
                head.chunked = is_word(value, b"chunked");
            }
            Field::Host => head.hosts += if is_plain_host(value) { 1 } else { 2 },
            Field::Upgrade => head.upgrade = true,
            // Nearly every one, and most of the others are one token too.
            Field::Connection if is_word(value, b"keep-alive") => head.keep_alive = true,
            Field::Connection => {
                for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                    head.close |= is_word(token, b"close");
                    head.keep_alive |= is_word(token, b"keep-alive");
                    head.upgrade |= is_word(token, b"upgrade");
                }
            }
            Field::Lookalike => head.lookalikes += 1,
            Field::ForwardedFor | Field::Other => {}
        }
    }
    (raw.get(at..)? == b"\r\n").then_some(head)
}

/// What stands between a name and its value.
fn is_colon_and_blanks(bytes: &[u8]) -> bool {
    matches!(bytes, [b':', blanks @ ..] if blanks.iter().all(|&b| is_blank(b)))
}

/// What a target looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// No usual server refuses it.
    Plain,
    /// nginx answers with 400 and a close.
    Odd,
    /// It has a blank in it, so it may be read as another one.
    Blank,
}

impl Target {
    fn of(target: &[u8]) -> Self {
        let looked_into = |b: u8| (b <= b' ') | (b == b'%') | (b == b'.');
        let plain = if any(target, looked_into) {
            if any(target, is_blank) {
                return Self::Blank;
            }
            is_plain_target(target)
        } else {
            target.first() == Some(&b'/')
        };
        if plain { Self::Plain } else { Self::Odd }
    }
}

/// A path whose escapes are whole and that does not climb: nginx answers any other target with 400 and a close.
fn is_plain_target(target: &[u8]) -> bool {
    let path_end = memchr::memchr(b'?', target);
    let path = target
        .get(..path_end.unwrap_or(target.len()))
        .unwrap_or_default();
    if memchr::memchr3(b'%', b'.', 0, path).is_none() {
        return path.first() == Some(&b'/');
    }
    let mut rest = path;
    let mut dots = 0;
    while let Some((&first, behind)) = rest.split_first() {
        let byte = if first == b'%' {
            let Some(byte) = behind.get(..2).and_then(hex) else {
                return false;
            };
            rest = behind.get(2..).unwrap_or_default();
            byte
        } else {
            rest = behind;
            first
        };
        // Two dots in a row climb where they are a whole segment; that is not looked into.
        dots = if byte == b'.' { dots + 1 } else { 0 };
        if byte == 0 || dots > 1 {
            return false;
        }
    }
    path.first() == Some(&b'/')
}

/// The byte that two hexadecimal digits stand for.
fn hex(digits: &[u8]) -> Option<u8> {
    let digits = std::str::from_utf8(digits).ok()?;
    // `from_str_radix` would take a sign.
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// A host that no usual server refuses.
fn is_plain_host(host: &[u8]) -> bool {
    // In these words, which the compiler turns into a few comparisons of sixteen bytes.
    let other = |b: u8| {
        let letter = (b | 0x20).wrapping_sub(b'a') < 26;
        let digit_or_colon = b.wrapping_sub(b'0') < 11;
        let mark = (b == b'.') | (b == b'-') | (b == b'_') | (b == b'[') | (b == b']');
        !(letter | digit_or_colon | mark)
    };
    !host.is_empty() && !any(host, other)
}

const fn is_blank(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

/// How far a body follows RFC 9112 §7.1 to the letter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ChunkWalk {
    /// Where the last whole chunk with data ends.
    pub chunks_end: usize,
    /// The zero chunk was seen.
    pub trailers: bool,
    /// Where the body ends, behind its trailers; `None` when it does not end or is not to the letter.
    pub end: Option<usize>,
}

/// Walks a chunked body, stopping at the first byte that is not to the letter.
pub(super) fn walk_chunks(body: &[u8]) -> ChunkWalk {
    let mut walk = ChunkWalk::default();
    loop {
        let Some((size, data)) = chunk_line(body, walk.chunks_end) else {
            return walk;
        };
        if size == 0 {
            walk.trailers = true;
            walk.end = trailers_end(body, data);
            return walk;
        }
        let Some(end) = data.checked_add(size) else {
            return walk;
        };
        match body.get(end..).map(|rest| rest.starts_with(b"\r\n")) {
            Some(true) => walk.chunks_end = end + 2,
            _ => return walk,
        }
    }
}

/// A chunk's size and where its data begins: `1*HEXDIG [ ";" ext ] CRLF`.
fn chunk_line(body: &[u8], at: usize) -> Option<(usize, usize)> {
    let rest = body.get(at..)?;
    let digits = rest.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    // More than 15 digits overflow somebody's 64-bit arithmetic.
    if digits == 0 || digits > 15 {
        return None;
    }
    let size = std::str::from_utf8(rest.get(..digits)?).ok()?;
    let size = usize::from_str_radix(size, 16).ok()?;
    let line = line_end(rest)?;
    let extension = rest.get(digits..line)?;
    let plain = extension.is_empty() || extension.starts_with(b";") && is_field_text(extension);
    plain.then_some((size, at + line + 2))
}

/// Where the trailers that begin at `at` end, the empty line included.
fn trailers_end(body: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let rest = body.get(at..)?;
        let line = rest.get(..line_end(rest)?)?;
        at += line.len() + 2;
        if line.is_empty() {
            return Some(at);
        }
        let colon = line.iter().position(|&b| b == b':')?;
        let (name, value) = line.split_at_checked(colon)?;
        if name.is_empty() || !all_token(name) || !is_field_text(value) {
            return None;
        }
    }
}

/// Bytes before the first line end when that is a CRLF.
fn line_end(rest: &[u8]) -> Option<usize> {
    let lf = rest.iter().position(|&b| b == b'\n')?;
    let cr = lf.checked_sub(1)?;
    (rest.get(cr) == Some(&b'\r')).then_some(cr)
}

/// Whether a head of so many fields has no other control byte than tabs and two for each of its lines: where its lines are
/// known to end in CR and LF, there are none within. Asked once, because the beginning and the end of a search cost as much
/// as a field is long.
fn is_head_text(head: &[u8], fields: usize) -> bool {
    // The request line and the empty one.
    let lines = fields + 2;
    let control = |b: u8| ((b < b' ') & (b != b'\t')) | (b == 0x7f);
    // So many at a time that a byte holds their count: the compiler then takes sixteen at a time.
    let counts = head.chunks(128).map(|bytes| {
        let count = |count: u8, &b: &u8| count + u8::from(control(b));
        usize::from(bytes.iter().fold(0, count))
    });
    counts.sum::<usize>() == 2 * lines
}

fn is_field_text(bytes: &[u8]) -> bool {
    !any(bytes, |b| ((b < b' ') & (b != b'\t')) | (b == 0x7f))
}

/// Whether a byte is of this kind. Looks at all of them: without a way out in the middle the compiler takes sixteen at a time.
/// The last ones are taken with some of those before them, and of fewer the first ones and the last ones.
#[inline]
fn any(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    #[inline]
    fn among<const N: usize>(bytes: &[u8; N], is: impl Fn(u8) -> bool) -> bool {
        let found = |found: u8, &byte: &u8| found | u8::from(is(byte));
        bytes.iter().fold(0, found) != 0
    }
    if let Some(last) = bytes.last_chunk::<16>() {
        let (sixteens, _) = bytes.as_chunks::<16>();
        return sixteens.iter().any(|bytes| among(bytes, &is)) || among(last, &is);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        return among(first, &is) | among(last, &is);
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return among(first, &is) | among(last, &is);
    }
    bytes.iter().any(|&byte| is(byte))
}

/// Whether all bytes are those of a token.
fn all_token(bytes: &[u8]) -> bool {
    // Nearly all are letters and hyphens, which are told together.
    let other = |byte: u8| ((byte | 0x20).wrapping_sub(b'a') >= 26) & (byte != b'-');
    !any(bytes, other)
        || bytes
            .iter()
            .all(|&byte| TOKEN.get(usize::from(byte)) == Some(&true))
}

const TOKEN: [bool; 256] = {
    let mut token = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let of = is_token(byte as u8);
        token[byte] = of;
        byte += 1;
    }
    token
};

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_one_whatever_its_length_and_wherever_another_byte_stands() {
        for len in 1..36 {
            for at in 0..len {
                for byte in 0..=255 {
                    for filling in [b'a', b'Z', b'-', b'!'] {
                        let mut name = vec![filling; len];
                        name[at] = byte;
                        assert_eq!(all_token(&name), is_token(byte), "{}", name.escape_ascii());
                    }
                }
            }
        }
        assert!(all_token(b""));
    }
    /// Every byte in every place of texts of all these lengths.
    fn everywhere(filling: u8, check: impl Fn(&[u8])) {
        for len in 1..36 {
            for at in 0..len {
                for byte in 0..=255 {
                    let mut text = vec![filling; len];
                    text[at] = byte;
                    check(&text);
                }
            }
        }
    }

    #[test]
    fn what_is_told_of_sixteen_bytes_at_a_time_is_what_each_of_them_says() {
        let in_host = |b: &u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(b);
        let control = |b: &u8| b.is_ascii_control() && *b != b'\t';
        everywhere(b'a', |text| {
            let why = text.escape_ascii();
            assert_eq!(is_plain_host(text), text.iter().all(in_host), "{why}");
            let controls = text.iter().filter(|b| control(b)).count();
            assert_eq!(is_field_text(text), controls == 0, "{why}");
        });
        assert!(!is_plain_host(b""));
        assert!(is_field_text(b""));
    }

    #[test]
    fn a_head_has_two_control_characters_a_line() {
        for len in [0, 5, 63, 64, 65, 127, 128, 129, 300] {
            for controls in 0..8 {
                let text = [vec![b'\t'; len], vec![b'\r'; controls], vec![b'a'; len]].concat();
                for fields in 0..3 {
                    let right = controls == 2 * (fields + 2);
                    assert_eq!(
                        is_head_text(&text, fields),
                        right,
                        "{len} {controls} {fields}"
                    );
                }
            }
        }
    }

    proptest! {
        #[test]
        fn a_target_is_what_its_bytes_say(target in "[/?a.% \t0-9A-G\\x00\\x1f]{0,40}") {
            let target = target.as_bytes();
            let expected = if target.iter().any(|&b| is_blank(b)) {
                Target::Blank
            } else if is_plain_target(target) {
                Target::Plain
            } else {
                Target::Odd
            };
            prop_assert_eq!(Target::of(target), expected);
        }
    }
}
