//! How long to wait before trying again. Pure.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// The first pause; each further one is twice as long.
const FIRST: Duration = Duration::from_millis(50);

/// Capped exponential back-off with jitter, so that a fleet does not come back in step.
#[derive(Debug)]
pub(super) struct Backoff {
    /// Strikes that cost no pause.
    free: u32,
    max: Duration,
    strikes: u32,
    until: Option<Instant>,
    jitter: u64,
}

impl Backoff {
    /// Pauses behind each strike but the first `free` ones, of at most `max` and a quarter.
    #[must_use]
    pub(super) fn new(free: u32, max: Duration) -> Self {
        Self {
            free,
            max,
            strikes: 0,
            until: None,
            // Any odd seed will do that two workers do not share: the standard library's hash keys are random.
            jitter: RandomState::new().hash_one(FIRST) | 1,
        }
    }

    /// It failed.
    pub(super) fn strike(&mut self, now: Instant) {
        self.strikes = self.strikes.saturating_add(1);
        let Some(doublings) = self.strikes.checked_sub(self.free + 1) else {
            return;
        };
        let pause = FIRST
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(self.max);
        // xorshift64: spreads, and needs to do no more.
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let quarter = u64::try_from(pause.as_nanos() / 4).unwrap_or(0);
        let extra = Duration::from_nanos(self.jitter.checked_rem(quarter).unwrap_or(0));
        self.until = now.checked_add(pause + extra);
    }

    /// It worked.
    pub(super) const fn reset(&mut self) {
        self.strikes = 0;
        self.until = None;
    }

    /// How often it failed since it last worked.
    #[must_use]
    pub(super) const fn strikes(&self) -> u32 {
        self.strikes
    }

    /// Until when to wait, if so.
    #[must_use]
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|&until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_a_quarter() {
        let now = Instant::now();
        let max = Duration::from_secs(1);
        let mut backoff = Backoff::new(0, max);
        assert_eq!(backoff.until(now), None);
        for strike in 0..70_u32 {
            backoff.strike(now);
            let pause = backoff.until(now).unwrap() - now;
            let least = Duration::from_millis(50 << strike.min(10)).min(max);
            assert!(
                pause >= least && pause < least * 5 / 4,
                "{strike}: {pause:?}"
            );
        }
        assert_eq!(backoff.until(now + max * 5 / 4), None);
        backoff.reset();
        assert_eq!((backoff.strikes(), backoff.until(now)), (0, None));
    }

    #[test]
    fn free_strikes_cost_no_pause() {
        let now = Instant::now();
        let mut backoff = Backoff::new(2, Duration::from_secs(1));
        backoff.strike(now);
        backoff.strike(now);
        assert_eq!(backoff.until(now), None);
        backoff.strike(now);
        assert!(backoff.until(now).is_some());
    }
}
