//! Who holds how many bytes. Every byte that waits (for its packet, in a stream, for its request) is charged to such an
//! account, with its bookkeeping.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

/// Who is charged: the sender's IPv4 address or the /64 of its IPv6 address, because one host commands a whole /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    V4(u32),
    V6(u64),
}

/// One word, and without the kind: every word costs a round of SipHash, and no more than two sources share one.
impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(match self {
            Self::V4(address) => u64::from(*address),
            Self::V6(network) => *network,
        });
    }
}

impl Source {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => {
                // The upper 64 of 128 bits always fit.
                #[allow(clippy::cast_possible_truncation)]
                Self::V6((ip.to_bits() >> 64) as u64)
            }
        }
    }
}

/// Held bytes, in all and per source. A source that holds nothing has no entry, so the table is no larger than
/// what is held.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    cap: usize,
    /// std's `RandomState` is keyed per process: senders cannot choose colliding addresses.
    sources: HashMap<Source, usize>,
}

impl Budget {
    pub(crate) fn new(cap: usize) -> Self {
        Self {
            total: 0,
            cap,
            sources: HashMap::new(),
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// What `source` holds went from `before` to `after` bytes in one of its directions.
    pub(crate) fn change(&mut self, source: Source, before: usize, after: usize) {
        if before == after {
            return;
        }
        self.total = self.total.saturating_sub(before).saturating_add(after);
        match self.sources.entry(source) {
            Entry::Occupied(mut entry) => {
                let held = entry.get().saturating_sub(before).saturating_add(after);
                if held == 0 {
                    entry.remove();
                } else {
                    entry.insert(held);
                }
            }
            Entry::Vacant(entry) => {
                if after > 0 {
                    entry.insert(after);
                }
            }
        }
    }

    /// Whether `source` may not hold `more` bytes: the table is full, or it is more than half full and the source
    /// would have more than a quarter of it.
    pub(crate) fn exceeded(&self, source: Source, more: usize) -> bool {
        self.excess(source, more) > 0
    }

    /// How many bytes too many it would be if `source` held `more`.
    pub(crate) fn excess(&self, source: Source, more: usize) -> usize {
        let total = self.total.saturating_add(more);
        let above_half = total.saturating_sub(self.cap / 2);
        if above_half == 0 {
            return 0;
        }
        let held = self.sources.get(&source).copied().unwrap_or(0);
        let above_quarter = held.saturating_add(more).saturating_sub(self.cap / 4);
        above_half
            .min(above_quarter)
            .max(total.saturating_sub(self.cap))
    }

    /// How many bytes over the cap all would be with `more`.
    pub(crate) fn over(&self, more: usize) -> usize {
        self.total.saturating_add(more).saturating_sub(self.cap)
    }

    /// Whether with `more` bytes the table would be more than half full, and `source` would have more than a quarter.
    pub(crate) fn over_share(&self, source: Source, more: usize) -> bool {
        let held = self.sources.get(&source).copied().unwrap_or(0);
        self.total.saturating_add(more) > self.cap / 2 && held.saturating_add(more) > self.cap / 4
    }

    /// Whether the sums agree; `held` is the sum over all streams.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn check(&self, held: usize) {
        assert_eq!(self.total, held, "charged and held bytes differ");
        assert_eq!(self.sources.values().sum::<usize>(), held);
        assert!(self.sources.values().all(|held| *held > 0));
        assert!(
            self.total <= self.cap,
            "{} bytes held over the cap of {}",
            self.total,
            self.cap
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_v6_subnet_is_one_source() {
        let of = |s: &str| Source::of(s.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn a_source_is_held_to_a_quarter_only_above_half_of_the_total() {
        let mut budget = Budget::new(1000);
        let (a, b) = (Source::V4(1), Source::V4(2));
        budget.change(a, 0, 400);
        assert!(
            !budget.exceeded(a, 100),
            "a quarter does not bind below half"
        );
        assert!(budget.exceeded(a, 101));
        budget.change(b, 0, 150);
        assert!(!budget.exceeded(b, 100));
        assert!(budget.exceeded(b, 101));
        budget.change(a, 400, 0);
        assert_eq!(budget.total(), 150);
        budget.check(150);
    }
}
