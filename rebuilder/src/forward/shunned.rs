//! Addresses of the analyser that lately failed. Pure.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How long one is passed over. Of two addresses of which one is dead, that costs one attempt in so long instead of
/// every second one. Each further failure doubles it.
const PAUSE: Duration = Duration::from_secs(5);
/// As often, at most.
const DOUBLINGS_MAX: u32 = 3;
/// Remembered at most; a name has fewer addresses.
const MAX: usize = 64;

/// One that failed.
#[derive(Debug)]
struct Failed {
    address: SocketAddr,
    /// Failures before the last one, since a connection to it last served.
    before: u32,
    at: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shunned(Vec<Failed>);

impl Shunned {
    /// It could not be connected to, or a connection to it ended without any answer.
    pub(super) fn failed(&mut self, address: SocketAddr, now: Instant) {
        let known = self.0.iter().position(|failed| failed.address == address);
        let before = known.map_or(0, |known| self.0.remove(known).before.saturating_add(1));
        if self.0.len() == MAX {
            self.0.remove(0);
        }
        self.0.push(Failed {
            address,
            before,
            at: now,
        });
    }

    /// A fresh connection to it has brought an answer.
    pub(super) fn worked(&mut self, address: SocketAddr) {
        self.0.retain(|failed| failed.address != address);
    }

    fn passes_over(&self, address: SocketAddr, now: Instant) -> bool {
        self.0.iter().any(|failed| {
            let pause = PAUSE * (1 << failed.before.min(DOUBLINGS_MAX));
            failed.address == address && now.saturating_duration_since(failed.at) < pause
        })
    }

    /// The one of `candidates` that is not passed over and has the fewest connections; the first of these. Where all are
    /// passed over it is as if none were.
    pub(super) fn pick(
        &self,
        candidates: &[SocketAddr],
        now: Instant,
        connections: impl Fn(SocketAddr) -> usize,
    ) -> Option<SocketAddr> {
        let key =
            |address: &&SocketAddr| (self.passes_over(**address, now), connections(**address));
        candidates.iter().min_by_key(key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: fn(SocketAddr) -> usize = |_| 0;

    fn two() -> [SocketAddr; 2] {
        ["10.0.0.1:80", "10.0.0.2:80"].map(|a| a.parse().unwrap())
    }

    #[test]
    fn a_dead_address_is_passed_over_for_a_while_unless_it_is_the_only_one() {
        let t0 = Instant::now();
        let [a, b] = two();
        let mut shunned = Shunned::default();
        assert_eq!(shunned.pick(&[a, b], t0, NONE), Some(a));
        shunned.failed(a, t0);
        assert_eq!(shunned.pick(&[a, b], t0, NONE), Some(b));
        assert_eq!(shunned.pick(&[a], t0, NONE), Some(a));
        assert_eq!(shunned.pick(&[a, b], t0 + PAUSE, NONE), Some(a));
        shunned.failed(b, t0 + PAUSE / 2);
        assert_eq!(shunned.pick(&[a, b], t0, NONE), Some(a), "both: as if none");
        shunned.worked(a);
        assert_eq!(shunned.pick(&[b, a], t0 + PAUSE, NONE), Some(a));
        assert_eq!(shunned.pick(&[], t0, NONE), None);
    }

    #[test]
    fn one_that_fails_often_is_passed_over_for_longer_until_it_serves() {
        let t0 = Instant::now();
        let [a, b] = two();
        let mut shunned = Shunned::default();
        for seconds in [5, 10, 20, 40, 40] {
            shunned.failed(a, t0);
            let pause = Duration::from_secs(seconds);
            assert_eq!(shunned.pick(&[a, b], t0 + pause * 9 / 10, NONE), Some(b));
            assert_eq!(shunned.pick(&[a, b], t0 + pause, NONE), Some(a));
        }
        shunned.worked(a);
        shunned.failed(a, t0);
        assert_eq!(shunned.pick(&[a, b], t0 + PAUSE, NONE), Some(a));
    }

    #[test]
    fn the_one_with_the_fewest_connections_is_next() {
        let now = Instant::now();
        let [a, b] = two();
        let mut shunned = Shunned::default();
        let more_to_a = |address| usize::from(address == a);
        assert_eq!(shunned.pick(&[a, b], now, more_to_a), Some(b));
        shunned.failed(b, now);
        assert_eq!(shunned.pick(&[a, b], now, more_to_a), Some(a));
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
