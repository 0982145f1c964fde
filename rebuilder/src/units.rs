//! Sizes and times as people write them on a command line. No input panics.

use std::time::Duration;

/// A number of bytes, with an optional `K`, `M` or `G` (powers of 1024); not zero.
///
/// # Errors
/// What is expected, in one line.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .filter(|&n| n > 0)
        .ok_or_else(|| "bytes are a number with an optional K, M or G, such as 64M".into())
}

/// A number of `ms`, `s` or `m`; of seconds where it stands alone.
///
/// # Errors
/// What is expected, in one line.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (digits, unit) = if let Some(digits) = text.strip_suffix("ms") {
        (digits, Duration::from_millis(1))
    } else if let Some(digits) = text.strip_suffix('s') {
        (digits, Duration::from_secs(1))
    } else if let Some(digits) = text.strip_suffix('m') {
        (digits, Duration::from_secs(60))
    } else {
        (text, Duration::from_secs(1))
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|n| unit.checked_mul(n))
        .ok_or_else(|| "a duration is a number with ms, s or m, such as 10s".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_with_their_units() {
        assert_eq!(parse_bytes("64M"), Ok(64 << 20));
        assert_eq!(parse_bytes("1000"), Ok(1000));
        assert!(parse_bytes("0").is_err() && parse_bytes("M").is_err() && parse_bytes("").is_err());
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        assert!(parse_duration("soon").is_err());
    }
}
