//! How busy a worker is: the figure that the fleet scales by.

use std::time::{Duration, Instant};

/// Measures the share of time that a worker spends on work, over windows of fixed length.
///
/// CPU figures of the instance would also count what is not ours and would not see a worker that is stuck behind one
/// core; the time that the loop did **not** spend waiting is what bounds its throughput. Pure: time is an argument.
#[derive(Debug)]
pub struct LoadMeter {
    window: Duration,
    started: Instant,
    idle: Duration,
    fill: f64,
}

impl LoadMeter {
    /// A meter whose first window begins now.
    #[must_use]
    pub fn new(window: Duration, now: Instant) -> Self {
        Self {
            window: window.max(Duration::from_millis(1)),
            started: now,
            idle: Duration::ZERO,
            fill: 0.0,
        }
    }

    /// So much (0 to 1) of the room for packets was taken by some that wait. The most of a window counts: a worker that
    /// is stopped again and again, by others on its core, looks idle and loses packets all the same.
    pub fn fill(&mut self, share: f64) {
        self.fill = self.fill.max(share);
    }

    /// The worker waited this long with nothing to do.
    pub fn idle(&mut self, waited: Duration) {
        self.idle = self.idle.saturating_add(waited);
    }

    /// At the end of a window: the busy share (0 to 1) of it, or the fill where that is more; the next window begins.
    /// `None` before.
    pub fn sample(&mut self, now: Instant) -> Option<f64> {
        let elapsed = now.saturating_duration_since(self.started);
        if elapsed < self.window {
            return None;
        }
        let idle = self.idle.min(elapsed);
        self.started = now;
        self.idle = Duration::ZERO;
        let busy = 1.0 - idle.as_secs_f64() / elapsed.as_secs_f64();
        Some(busy.max(std::mem::take(&mut self.fill)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_is_the_share_of_the_window_not_spent_waiting() {
        let t0 = Instant::now();
        let mut meter = LoadMeter::new(Duration::from_secs(1), t0);
        meter.idle(Duration::from_millis(300));
        meter.idle(Duration::from_millis(600));
        assert_eq!(meter.sample(t0 + Duration::from_millis(999)), None);
        let load = meter.sample(t0 + Duration::from_millis(1200)).unwrap();
        assert!((load - 0.25).abs() < 1e-9, "{load}");
        // The next window starts empty: nothing idle in it, so the worker was busy throughout.
        let load = meter.sample(t0 + Duration::from_millis(2400)).unwrap();
        assert!((load - 1.0).abs() < 1e-9, "{load}");
    }

    #[test]
    fn a_ring_that_was_nearly_full_is_load_and_forgotten_in_the_next_window() {
        let t0 = Instant::now();
        let mut meter = LoadMeter::new(Duration::from_secs(1), t0);
        meter.idle(Duration::from_millis(500));
        meter.fill(0.875);
        meter.fill(0.25);
        let load = meter.sample(t0 + Duration::from_secs(1)).unwrap();
        assert!((load - 0.875).abs() < 1e-9, "{load}");
        meter.idle(Duration::from_millis(500));
        meter.fill(0.25);
        let load = meter.sample(t0 + Duration::from_secs(2)).unwrap();
        assert!((load - 0.5).abs() < 1e-9, "{load}");
    }

    #[test]
    fn more_waiting_than_time_is_no_negative_load() {
        let t0 = Instant::now();
        let mut meter = LoadMeter::new(Duration::from_secs(1), t0);
        meter.idle(Duration::from_secs(9));
        let load = meter.sample(t0 + Duration::from_secs(1)).unwrap();
        assert!(load.abs() < 1e-9, "{load}");
    }
}
