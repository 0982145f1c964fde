//! Captured bytes that would pass for one of our fields.
//!
//! An analyser believes our fields because they come from us, so nothing that was captured may read as one of them, to
//! whatever reader: in any case, with `_` for `-`, with blanks or control bytes around the name, with or without a colon,
//! in the head or in the trailers of a chunked body, in a folded line, behind a bare LF or a bare CR. Therefore this does
//! not rely on the fields that our own parser found; it looks at every place where some reader may see a line begin. Pure.

use std::ops::Range;

/// Fields that an analyser believes because they come from us; `X-Forwarded-For` is a list whose last entry is ours.
const OURS: [&[u8]; 4] = [
    b"X-Real-IP",
    b"X-Server-Addr",
    b"X-Server-Port",
    b"X-Mirror-Flags",
];

/// Whether a reader that takes `_` for `-` reads `name` as `field`, in any case.
pub(super) fn reads_as(name: &[u8], field: &[u8]) -> bool {
    name.len() == field.len()
        && name.iter().zip(field).all(|(&a, b)| {
            let a = if a == b'_' { b'-' } else { a };
            a.eq_ignore_ascii_case(b)
        })
}

/// Whether `name` would pass for one of ours.
pub(super) fn is_ours(name: &[u8]) -> bool {
    OURS.iter().any(|ours| reads_as(name, ours))
}

/// Whether a `Connection` header that names it would have a proxy before the analyser take away what we add.
pub(super) fn is_added(name: &[u8]) -> bool {
    is_ours(name) || reads_as(name, b"X-Forwarded-For")
}

/// Where the names that would pass for ours begin, in `region` of `raw`, in order; the region begins with a line.
///
/// A name is what a lenient reader finds in a line: up to the first colon, or to a NUL for one whose strings end there,
/// without blanks and control bytes around it. Every one of ours begins with an X and a hyphen, which few other words do: so
/// those are looked for, and whether a line begins there is asked of each.
pub(super) fn names(raw: &[u8], region: Range<usize>) -> Vec<usize> {
    /// Looked at together: of so many at a time, and without a way out in the middle, the compiler takes sixteen at once.
    const TOGETHER: usize = 64;
    let text = raw.get(region.clone()).unwrap_or_default();
    let mut found = Vec::new();
    if text.is_empty() {
        return found;
    }
    let any = |part: &[u8; TOGETHER + 1]| {
        // With the one behind, because a pair is looked for.
        let [_, seconds @ ..] = part;
        let pairs = part.iter().zip(seconds);
        pairs.fold(false, |any, (&a, &b)| any | begins_ours(a, b))
    };
    let mut look = |part: Range<usize>| {
        for at in memchr::memchr2_iter(b'x', b'X', text.get(part.clone()).unwrap_or_default()) {
            let at = part.start + at;
            let (before, rest) = text.split_at_checked(at).unwrap_or_default();
            if matches!(rest, [first, second, ..] if begins_ours(*first, *second))
                && begins_line(before)
                && is_ours(name_of(rest))
            {
                found.push(region.start + at);
            }
        }
    };
    let mut at = 0;
    while let Some(part) = text.get(at..).and_then(<[u8]>::first_chunk) {
        if any(part) {
            look(at..at + TOGETHER);
        }
        at += TOGETHER;
    }
    // The last ones with some of those before them, where there are so many.
    if text.last_chunk().is_none_or(any) {
        look(at..text.len());
    }
    found
}

/// Whether a name of ours may begin with these two, to a reader that takes `_` for `-`.
const fn begins_ours(first: u8, second: u8) -> bool {
    (first | 0x20 == b'x') & ((second == b'-') | (second == b'_'))
}

const fn is_line_end(byte: u8) -> bool {
    byte == b'\r' || byte == b'\n'
}

/// Neither a blank nor a control byte.
const fn is_visible(byte: u8) -> bool {
    byte > b' ' && byte != 0x7f
}

/// Whether a line begins behind `before`, blanks and control bytes aside.
fn begins_line(before: &[u8]) -> bool {
    let last = before
        .iter()
        .rfind(|&&b| is_line_end(b) || is_visible(b))
        .copied();
    last.is_none_or(is_line_end)
}

/// The name that `rest` begins with.
fn name_of(rest: &[u8]) -> &[u8] {
    let end = rest
        .iter()
        .position(|&b| b == b':' || b == 0 || is_line_end(b));
    let name = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
    let len = name.iter().rposition(|&b| is_visible(b));
    name.get(..len.map_or(0, |last| last + 1))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same by lines: each is cut out, and its name is taken from it.
    fn by_lines(text: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        let mut at = 0;
        for line in text.split(|&b| b == b'\r' || b == b'\n') {
            let visible = |b: &u8| *b > b' ' && *b != 0x7f;
            if let Some(start) = line.iter().position(visible) {
                let rest = &line[start..];
                let end = rest.iter().position(|&b| b == b':' || b == 0);
                let name = &rest[..end.unwrap_or(rest.len())];
                let len = name.iter().rposition(visible).map_or(0, |last| last + 1);
                if is_ours(&name[..len]) {
                    found.push(at + start);
                }
            }
            at += line.len() + 1;
        }
        found
    }

    proptest! {
        #[test]
        fn by_their_first_letter_the_same_names_are_found_as_by_lines(
            pieces in prop::collection::vec(
                prop::sample::select(vec![
                    "X-Real-IP", "x_real_ip", "X-SERVER-addr", "x-server_port", "X-Mirror-Flags", "x", "X-", "y", ":", " ",
                    "\t", "\r", "\n", "\r\n", "\0", "\x0b", "\x7f", "1",
                ]),
                // Some are longer than what is looked at together.
                0..150,
            ),
        ) {
            let text = pieces.concat();
            let text = text.as_bytes();
            prop_assert_eq!(names(text, 0..text.len()), by_lines(text));
        }
    }

    #[test]
    fn a_line_may_begin_behind_any_line_end_and_after_any_blanks() {
        let raw = b"GET / HTTP/1.1\r\nA: X-Real-IP\nx_real_ip: 1\rX-SERVER-addr\t : 2\r\n\x0b x-Server_Port\0 : 3\r\n\
                    X-Mirror-Flags\r\nX-Real-IPs: 4\r\nX-Real- IP: 5\r\n\r\n";
        let found: Vec<&[u8]> = names(raw, 0..raw.len())
            .into_iter()
            .map(|at| &raw[at..at + 9])
            .collect();
        let expected: [&[u8]; 4] = [b"x_real_ip", b"X-SERVER-", b"x-Server_", b"X-Mirror-"];
        assert_eq!(found, expected);
        // Offsets count from the beginning of all bytes.
        assert_eq!(names(b"....X-Real-IP: 1", 4..16), [4]);
        assert_eq!(names(b"X-Real-IP: 1", 0..99), Vec::<usize>::new());
    }
}
