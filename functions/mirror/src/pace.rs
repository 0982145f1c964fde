//! How fast we may change things: a token bucket. Time is an argument.

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
