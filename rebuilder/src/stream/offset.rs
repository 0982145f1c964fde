//! Places in a stream: 64 bits that never wrap, against the 32 bits of TCP that do.

use std::ops::Add;

use crate::decode::Seq;

/// A byte's place in one direction of a connection. Only differences mean something: a direction whose SYN was seen
/// counts from zero at the byte behind the SYN, one that was joined midway from [`StreamOffset::MIDWAY`] at the
/// first byte that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamOffset(pub u64);

impl StreamOffset {
    /// The first byte behind a SYN.
    pub const ZERO: Self = Self(0);
    /// Where a direction of unknown start begins to count: far enough from zero that earlier bytes have a place,
    /// and a multiple of 2³², so that it stands for the same sequence number as zero.
    pub const MIDWAY: Self = Self(1 << 32);

    /// Bytes from `earlier` to here; zero when `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<u64> for StreamOffset {
    type Output = Self;
    fn add(self, rhs: u64) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

/// How far `to` lies ahead of `from` on the circle of sequence numbers; negative when behind (RFC 9293 §3.4).
#[must_use]
pub(super) fn distance(from: Seq, to: Seq) -> i64 {
    i64::from(to.0.wrapping_sub(from.0).cast_signed())
}

/// The sequence number `by` behind `seq`.
#[must_use]
pub(super) fn advance(seq: Seq, by: u64) -> Seq {
    // Sequence numbers are modulo 2³²: dropping the upper half is the arithmetic that is meant.
    #[allow(clippy::cast_possible_truncation)]
    Seq(seq.0.wrapping_add(by as u32))
}

/// A length as a stream counts it.
#[must_use]
pub(super) fn len64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A stream length that is known to fit memory, because it is a part of a slice.
#[must_use]
pub(super) fn index(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_is_signed_across_the_wrap() {
        assert_eq!(distance(Seq(u32::MAX), Seq(4)), 5);
        assert_eq!(distance(Seq(4), Seq(u32::MAX)), -5);
        assert_eq!(distance(Seq(7), Seq(7)), 0);
    }

    #[test]
    fn advance_wraps_at_32_bits() {
        assert_eq!(advance(Seq(u32::MAX), 1), Seq(0));
        assert_eq!(advance(Seq(3), StreamOffset::MIDWAY.0), Seq(3));
    }
}
