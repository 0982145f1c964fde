//! Addresses of the analyser that lately could not be connected to. Pure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long one is passed over. Of two addresses of which one is dead, that costs one attempt in so long instead of
/// every second one.
const PAUSE: Duration = Duration::from_secs(5);
/// Remembered at most; a name has fewer addresses.
const MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shunned(Vec<(SocketAddr, Instant)>);

impl Shunned {
    /// It could not be connected to.
    pub(super) fn failed(&mut self, address: SocketAddr, now: Instant) {
        self.worked(address);
        if self.0.len() == MAX {
            self.0.remove(0);
        }
        self.0.push((address, now));
    }

    /// It could.
    pub(super) fn worked(&mut self, address: SocketAddr) {
        self.0.retain(|&(other, _)| other != address);
    }

    /// The first of `candidates` that is not passed over; the first of all where each is.
    pub(super) fn pick(
        &self,
        candidates: impl IntoIterator<Item = SocketAddr>,
        now: Instant,
    ) -> Option<SocketAddr> {
        let passed_over = |address: SocketAddr| {
            self.0.iter().any(|&(other, failed)| {
                other == address && now.saturating_duration_since(failed) < PAUSE
            })
        };
        let mut first = None;
        for address in candidates {
            if !passed_over(address) {
                return Some(address);
            }
            first.get_or_insert(address);
        }
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_address_is_passed_over_for_a_while_unless_it_is_the_only_one() {
        let t0 = Instant::now();
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse().unwrap());
        let mut shunned = Shunned::default();
        assert_eq!(shunned.pick([a, b], t0), Some(a));
        shunned.failed(a, t0);
        assert_eq!(shunned.pick([a, b], t0), Some(b));
        assert_eq!(shunned.pick([a], t0), Some(a));
        assert_eq!(shunned.pick([a, b], t0 + PAUSE), Some(a));
        shunned.failed(b, t0 + PAUSE / 2);
        assert_eq!(shunned.pick([a, b], t0), Some(a), "both: as if none");
        shunned.worked(a);
        assert_eq!(shunned.pick([b, a], t0 + PAUSE), Some(a));
        assert_eq!(shunned.pick([], t0), None);
    }

    #[test]
    fn it_remembers_a_bounded_number() {
        let now = Instant::now();
        let mut shunned = Shunned::default();
        for port in 1..1000 {
            shunned.failed(SocketAddr::from(([10, 0, 0, 1], port)), now);
        }
        assert_eq!(shunned.0.len(), MAX);
    }
}
