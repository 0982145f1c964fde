//! A head as clients write it, found and split in one pass.
//!
//! Nearly every head is one: it begins with a method that servers know, ends within the piece, and nothing in it is odd or
//! would be refused. Whatever else comes (an empty line before it, a fold, a control, a bare LF, a HTAB, a name with a `.`,
//! a value that is empty or has other than one space before it, a version of more digits, a head that goes on in the next
//! segment) is left to [`super::head`], which knows them all. A property test holds the two together: what is taken here,
//! [`super::head`] takes, and gives the same.

use super::head::{Head, is_blank};
use super::{Header, methods};

/// The head at the beginning of `data` and its length in bytes, the empty line included. `None`: not one of these, or no
/// empty line within `data`.
pub(super) fn plain(data: &[u8]) -> Option<(Head, usize)> {
    let method = 0..find(data, 0, |b| !is_common(b))?;
    if data.get(method.end) != Some(&b' ') || !methods::is_known(data.get(method.clone())?, b"") {
        return None;
    }
    let target =
        method.end + 1..find(data, method.end + 1, |b| b.wrapping_sub(b'!') > b'~' - b'!')?;
    let version = match data.get(target.end..)?.first_chunk()? {
        b" HTTP/1.1\r\n" => (1, 1),
        b" HTTP/1.0\r\n" => (1, 0),
        _ => return None,
    };
    if target.is_empty() {
        return None;
    }
    let mut line = target.end + b" HTTP/1.1\r\n".len();
    // As many as a browser sends, or a few more.
    let mut headers = Vec::with_capacity(16);
    while !data.get(line..)?.starts_with(b"\r\n") {
        let colon = find(data, line, |b| !is_common(b))?;
        let start = match data.get(colon..)? {
            [b':', b' ', first, ..] if colon > line && !is_blank(*first) => colon + 2,
            _ => return None,
        };
        let end = find(data, start, is_control)?;
        match data.get(end - 1..)? {
            [last, b'\r', b'\n', ..] if *last != b' ' => {}
            _ => return None,
        }
        headers.push(Header {
            name: line..colon,
            value: Some(start..end),
        });
        line = end + b"\r\n".len();
    }
    let head = Head {
        method,
        target,
        version,
        headers,
        ..Head::default()
    };
    Some((head, line + b"\r\n".len()))
}

/// The first byte at or behind `from` that `ends` the run. All bytes of a block are looked at, with no early exit: where
/// `ends` has no branch either, the compiler does so at once.
fn find(data: &[u8], mut from: usize, ends: impl Fn(u8) -> bool) -> Option<usize> {
    while let Some(block) = data.get(from..)?.first_chunk::<16>() {
        let mut marks = [0; 16];
        for (mark, byte) in marks.iter_mut().zip(block) {
            *mark = if ends(*byte) { 0xff } else { 0 };
        }
        if marks.iter().fold(0, |any, mark| any | mark) != 0 {
            return Some(from + u128::from_le_bytes(marks).trailing_zeros() as usize / 8);
        }
        from += block.len();
    }
    let at = data.get(from..)?.iter().position(|b| ends(*b))?;
    Some(from + at)
}

/// A byte of the names that clients write. Of the other bytes of a `token` (RFC 9110 §5.6.2) hardly one is ever seen in
/// a name, and this can be told of sixteen bytes at once.
fn is_common(byte: u8) -> bool {
    let letter = (byte | 0x20).wrapping_sub(b'a') < 26;
    let digit = byte.wrapping_sub(b'0') < 10;
    letter | digit | (byte == b'-')
}

/// A byte that ends a plain value: any control, HTAB too.
fn is_control(byte: u8) -> bool {
    (byte < b' ') | (byte == 0x7f)
}
