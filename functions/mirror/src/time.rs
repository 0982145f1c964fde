//! The one time format that events carry.

use std::time::Duration;

/// Seconds since 1970 of `2026-11-11T21:29:54Z`, with or without a fraction, which is left out. Anything else is `None`:
/// EventBridge and CloudTrail write UTC.
pub(crate) fn since_epoch(text: &str) -> Option<Duration> {
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = text.get(from..to)?;
        let all = digits.bytes().all(|b| b.is_ascii_digit());
        all.then(|| digits.parse().ok()).flatten()
    };
    let is = |at: usize, c: u8| text.as_bytes().get(at) == Some(&c);
    let marks = is(4, b'-') && is(7, b'-') && is(10, b'T') && is(13, b':') && is(16, b':');
    if !marks || !text.ends_with('Z') {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let fine = year >= 1970
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !fine {
        return None;
    }
    // Days since 0000-03-01 with years that begin in March, so that the leap day is the last of its year (Howard
    // Hinnant, "chrono-compatible low-level date algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let from_march = (month + 9) % 12;
    let days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1;
    let days = days.checked_sub(719_468)?;
    Some(Duration::from_secs(
        ((days * 24 + hour) * 60 + minute) * 60 + second,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_event_is_seconds_since_1970() {
        // Expected values: `date -u -d … +%s`.
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2024-02-29T23:59:59Z", 1_709_251_199),
            ("2026-11-11T21:29:54Z", 1_794_432_594),
            ("2026-11-11T21:29:54.123Z", 1_794_432_594),
            ("2100-03-01T00:00:00Z", 4_107_542_400),
        ] {
            assert_eq!(
                since_epoch(text),
                Some(Duration::from_secs(seconds)),
                "{text}"
            );
        }
        for bad in [
            "",
            "Z",
            "2026-11-11",
            "2026-11-11T21:29:54",
            "2026-11-11T21:29:54+01:00",
            "2026-13-11T21:29:54Z",
            "1969-12-31T23:59:59Z",
            "2026-11-11T+1:29:54Z",
            "2026-1ü-11T21:29:54Z",
        ] {
            assert_eq!(since_epoch(bad), None, "{bad}");
        }
    }
}
