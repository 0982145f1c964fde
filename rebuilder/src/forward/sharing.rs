//! Which requests may be followed by others on one connection.
//!
//! A shared connection is safe only while we and the analyser agree where each request ends. So sharing is not granted
//! by the parser that framed the request, which is tolerant on purpose, but by this second, strict reader: what it
//! does not recognise byte for byte goes alone, whatever the flags say. It errs towards quarantine.

use super::bytes::{Field, is_word, parse_length};
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
pub(super) fn strict(request: &Request, framed: bool) -> Option<StrictHead> {
    if request.flags.contains(Flags::DISPUTED) || !framed {
        return None;
    }
    let head = strict_head(request)?;
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
fn strict_head(request: &Request) -> Option<StrictHead> {
    let raw = &*request.raw;
    let method = raw.get(request.method.clone())?;
    let target = raw.get(request.target.clone())?;
    if request.method.start != request.line_start
        || method.is_empty()
        || !all_token(method)
        || request.target.start != request.method.end.checked_add(1)?
        || raw.get(request.method.end) != Some(&b' ')
        || target.is_empty()
        || memchr::memchr2(b' ', b'\t', target).is_some()
        || !is_head_text(
            raw.get(request.line_start..request.head_end)?,
            request.headers.len(),
        )
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
        plain_target: is_plain_target(target),
        ..StrictHead::default()
    };
    for header in &request.headers {
        let name = raw.get(header.name.clone())?;
        let value_range = header.value.clone()?;
        let value = raw.get(value_range.clone())?;
        // Its bytes were looked at together with all others.
        if header.name.start != at
            || name.is_empty()
            || !all_token(name)
            || raw.get(header.name.end) != Some(&b':')
            || !raw
                .get(header.name.end + 1..value_range.start)?
                .iter()
                .all(|&b| is_blank(b))
        {
            return None;
        }
        at = value_range.end;
        while raw.get(at).copied().is_some_and(is_blank) {
            at += 1;
        }
        if !raw.get(at..)?.starts_with(b"\r\n") {
            return None;
        }
        at += 2;
        match Field::of(name) {
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
    (raw.get(at..request.head_end)? == b"\r\n").then_some(head)
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
    let other = |b: u8| {
        let mark = matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
        !(b.is_ascii_alphanumeric() | mark)
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
    !any(bytes, |b| (b < b' ' && b != b'\t') || b == 0x7f)
}

/// Whether a byte is of this kind. Looks at all of them: without a way out in the middle the compiler takes sixteen at a
/// time.
fn any(bytes: &[u8], is: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(false, |found, &byte| found | is(byte))
}

/// Whether all bytes are those of a token.
fn all_token(bytes: &[u8]) -> bool {
    // Nearly all are letters and hyphens, of which eight are told at a time: the last ones with some of those before them, and
    // of fewer the first four and the last four.
    let (eights, rest) = bytes.as_chunks();
    let last = match (bytes.last_chunk(), rest.first_chunk(), rest.last_chunk()) {
        (Some(last), _, _) => Some(*last),
        (None, Some([a, b, c, d]), Some([e, f, g, h])) => Some([*a, *b, *c, *d, *e, *f, *g, *h]),
        _ => None,
    };
    let plain = |eight: &[u8; 8]| all_letters_or_hyphens(u64::from_le_bytes(*eight));
    if last.as_ref().is_some_and(plain) && eights.iter().all(plain) {
        return true;
    }
    !any(bytes, |byte| TOKEN.get(usize::from(byte)) != Some(&true))
}

/// Whether each of eight bytes is an ASCII letter or a hyphen.
const fn all_letters_or_hyphens(eight: u64) -> bool {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // In lower case only letters are between `a` and `z`.
    let lower = (eight | each(0x20)) & each(0x7f);
    // The highest bit of each byte says it. No sum carries into the next byte, and the difference borrows nothing from it.
    let from_a = lower + each(0x80 - b'a');
    let behind_z = lower + each(0x80 - b'z' - 1);
    let hyphen = each(0x80) - ((eight & each(0x7f)) ^ each(b'-'));
    let ascii = !eight;
    ((from_a & !behind_z) | hyphen) & ascii & each(0x80) == each(0x80)
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
    use super::*;

    #[test]
    fn a_token_is_one_whatever_its_length_and_wherever_another_byte_stands() {
        for len in 1..20 {
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
}
