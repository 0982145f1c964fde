//! Captured bytes that would pass for one of our fields.
//!
//! An analyser believes our fields because they come from us, so nothing that was captured may read as one of them, to
//! whatever reader: in any case, with `_` for `-`, with blanks or control bytes around the name, with or without a colon,
//! in the head or in the trailers of a chunked body, in a folded line, behind a bare LF or a bare CR. Therefore this does
//! not rely on the fields that our own parser found; it looks at every place where some reader may see a line begin. Pure.

use std::ops::Range;

/// Fields that an analyser believes because they come from us; `X-Forwarded-For` is a list whose last entry is ours.
const OURS: [&str; 4] = [
    "X-Real-IP",
    "X-Server-Addr",
    "X-Server-Port",
    "X-Mirror-Flags",
];

/// Whether a reader that takes `_` for `-` reads `name` as `field`, in any case.
pub(super) fn reads_as(name: &[u8], field: &str) -> bool {
    name.len() == field.len()
        && name.iter().zip(field.bytes()).all(|(&a, b)| {
            let a = if a == b'_' { b'-' } else { a };
            a.eq_ignore_ascii_case(&b)
        })
}

/// Whether `name` would pass for one of ours.
pub(super) fn is_ours(name: &[u8]) -> bool {
    OURS.iter().any(|ours| reads_as(name, ours))
}

/// Whether a `Connection` header that names it would have a proxy before the analyser take away what we add.
pub(super) fn is_added(name: &[u8]) -> bool {
    is_ours(name) || reads_as(name, "X-Forwarded-For")
}

/// Where the names that would pass for ours begin, in `region` of `raw`, in order; the region begins with a line.
pub(super) fn names(raw: &[u8], region: Range<usize>) -> Vec<usize> {
    let mut found = Vec::new();
    let text = raw.get(region.clone()).unwrap_or_default();
    let mut at = region.start;
    for line in text.split(|&b| b == b'\r' || b == b'\n') {
        if let Some(name) = name_of(line)
            && is_ours(line.get(name.clone()).unwrap_or_default())
        {
            found.push(at + name.start);
        }
        at += line.len() + 1;
    }
    found
}

/// The name that a lenient reader finds in a line: up to the first colon, or to a NUL for one whose strings end there,
/// without blanks and control bytes around it.
fn name_of(line: &[u8]) -> Option<Range<usize>> {
    let visible = |b: &u8| *b > b' ' && *b != 0x7f;
    let start = line.iter().position(visible)?;
    let rest = line.get(start..)?;
    // Nearly every line ends here.
    if !rest.first()?.eq_ignore_ascii_case(&b'x') {
        return None;
    }
    let end = rest
        .iter()
        .position(|&b| b == b':' || b == 0)
        .unwrap_or(rest.len());
    let len = rest.get(..end)?.iter().rposition(visible)? + 1;
    Some(start..start + len)
}

#[cfg(test)]
mod tests {
    use super::*;

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
