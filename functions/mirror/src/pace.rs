//! How fast we may change things: a token bucket. Time is an argument.
//!
//! # Whatever runs at once
//!
//! The processes share nothing, so `MutationsPerSecond` (M) is divided between them: [`Pacer::for_sweep`] has half,
//! [`Pacer::for_poller`] a quarter each, of which there are two. All changes go through a bucket, retries too. A bucket
//! holds **one** token and is **empty when its process starts**, because the process that it replaces may have spent one
//! just now; so changes of one process are never closer than 1 / (its rate), and
//!
//! * in any 4 / M · n seconds (half open) there are at most 4 · n changes of all three: M a second, exactly;
//! * in any single second at most ⌈M/2⌉ + 2 · ⌈M/4⌉: with M = 3 that is 4.
//!
//! The second line is above M, because nobody who does not know what the others do can keep a whole number below a
//! fraction: each of the three must be allowed to make its change now. It harms nobody: the account's bucket for such
//! calls holds 50 and refills 5 a second (EC2 API throttling), and ours is below its refill in the long run, with one
//! call a process on top. An idle process saves nothing up for later: a burst of its own would come at the very moment
//! when everybody else launches something too.
//!
//! One moment remains at which two processes of `reconcile` change something: the pass that answers the update of a stack,
//! beside a scheduled sweep. While it lasts the sum is 1.5 · M; with M = 3 that is below the refill too.

use std::time::Duration;

/// A token bucket in monotonic time. A taker may go into debt and waits until it is paid, so that takers are served in
/// order and never faster than the rate.
#[derive(Debug, Clone)]
pub struct Pacer {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Duration,
}

impl Pacer {
    /// `per_second` calls a second in the long run, `burst` at once after a rest. A rate at or below zero counts as
    /// one call in 1,000 s.
    pub fn new(per_second: f64, burst: u32) -> Self {
        let per_second = if per_second.is_finite() && per_second > 0.001 {
            per_second
        } else {
            0.001
        };
        let burst = f64::from(burst.max(1));
        Self {
            per_second,
            burst,
            tokens: burst,
            at: Duration::ZERO,
        }
    }

    /// Of `mutations_per_second`, what `reconcile` may use: half.
    pub fn for_sweep(mutations_per_second: f64) -> Self {
        Self::new(mutations_per_second / 2.0, 1).spent()
    }

    /// Of `mutations_per_second`, what one of the two pollers of `attach` may use: a quarter.
    pub fn for_poller(mutations_per_second: f64) -> Self {
        Self::new(mutations_per_second / 4.0, 1).spent()
    }

    /// All of `mutations_per_second`: for the removal, when events and schedule are gone.
    pub fn alone(mutations_per_second: f64) -> Self {
        Self::new(mutations_per_second, 1).spent()
    }

    fn spent(mut self) -> Self {
        self.tokens = 0.0;
        self
    }

    /// How long a call that comes at `now` would wait, without taking anything.
    pub fn wait(&self, now: Duration) -> Duration {
        let missing = 1.0 - self.filled(now);
        if missing > 0.0 {
            Duration::from_secs_f64(missing / self.per_second)
        } else {
            Duration::ZERO
        }
    }

    /// Takes one token at `now`; the caller waits what [`Pacer::wait`] said.
    pub fn take(&mut self, now: Duration) {
        self.tokens = self.filled(now) - 1.0;
        self.at = self.at.max(now);
    }

    fn filled(&self, now: Duration) -> f64 {
        let since = now.saturating_sub(self.at).as_secs_f64();
        (self.tokens + since * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spend(pacer: &mut Pacer, mut now: Duration, calls: usize) -> Duration {
        for _ in 0..calls {
            now += pacer.wait(now);
            pacer.take(now);
        }
        now
    }

    #[test]
    fn a_burst_is_free_and_then_the_rate_holds() {
        let mut pacer = Pacer::new(2.0, 3);
        assert_eq!(spend(&mut pacer, Duration::ZERO, 3), Duration::ZERO);
        let end = spend(&mut pacer, Duration::ZERO, 10).as_secs_f64();
        assert!((end - 5.0).abs() < 1e-6, "10 calls at 2/s took {end} s");
    }

    #[test]
    fn a_new_process_waits_for_its_first_change_and_an_idle_one_saves_nothing_up() {
        for (mut pacer, every) in [
            (Pacer::for_sweep(3.0), 2.0 / 3.0),
            (Pacer::for_poller(3.0), 4.0 / 3.0),
            (Pacer::alone(3.0), 1.0 / 3.0),
        ] {
            let end = spend(&mut pacer, Duration::ZERO, 1).as_secs_f64();
            assert!((end - every).abs() < 1e-6, "the first after {end} s");
            let start = Duration::from_secs(1000);
            let end = (spend(&mut pacer, start, 4) - start).as_secs_f64();
            assert!(
                (end - 3.0 * every).abs() < 1e-6,
                "4 after a rest in {end} s"
            );
        }
    }

    #[test]
    fn a_rest_fills_the_bucket_only_to_its_brim() {
        let mut pacer = Pacer::new(1.0, 2);
        let start = Duration::from_secs(1000);
        let end = spend(&mut pacer, start, 4);
        assert!((end - start).as_secs_f64() - 2.0 < 1e-6);
        assert!(end - start >= Duration::from_millis(1999));
    }

    #[test]
    fn a_rate_of_nothing_waits_long_and_does_not_panic() {
        for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let mut pacer = Pacer::new(rate, 0);
            pacer.take(Duration::ZERO);
            assert!(pacer.wait(Duration::ZERO) >= Duration::from_secs(999));
        }
    }
}
