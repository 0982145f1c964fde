//! Whether this process should be sent mirrored traffic.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A worker that has not moved for this long is stuck.
pub(super) const STUCK_AFTER: Duration = Duration::from_secs(5);

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// What `/healthz` says. It never depends on the analyser: one dead analyser would empty the load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not all workers read yet.
    Starting,
    /// Takes traffic.
    Ready,
    /// SIGTERM came: what was captured is being delivered, nothing new should be sent here.
    Draining,
    /// A worker does not move.
    Stuck {
        /// Which, from 0.
        worker: usize,
        /// For how long.
        since: Duration,
    },
}

impl Status {
    /// 200 while traffic should come here, else 503.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Ready => 200,
            Self::Starting | Self::Draining | Self::Stuck { .. } => 503,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("starting"),
            Self::Ready => f.write_str("ready"),
            Self::Draining => f.write_str("draining"),
            Self::Stuck { worker, since } => {
                write!(f, "worker {worker} has not moved for {} s", since.as_secs())
            }
        }
    }
}

/// Shared between the workers, who beat, and the admin thread, who asks.
#[derive(Debug)]
pub struct Health {
    epoch: Instant,
    phase: AtomicU8,
    /// Milliseconds after `epoch` of each worker's last sign of life.
    beats: Vec<AtomicU64>,
}

impl Health {
    /// Starting, with every worker alive at `now`.
    #[must_use]
    pub fn new(workers: usize, now: Instant) -> Self {
        Self {
            epoch: now,
            phase: AtomicU8::new(STARTING),
            beats: (0..workers).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// A worker's loop came round. A number that no worker has is ignored.
    pub fn beat(&self, worker: usize, now: Instant) {
        if let Some(beat) = self.beats.get(worker) {
            beat.store(self.millis(now), Ordering::Relaxed);
        }
    }

    /// All workers read. Has no effect once draining.
    pub fn ready(&self) {
        // A drain that began while starting must not be undone by the last worker's start.
        let _ = self
            .phase
            .compare_exchange(STARTING, READY, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// SIGTERM came.
    pub fn drain(&self) {
        self.phase.store(DRAINING, Ordering::Relaxed);
    }

    /// Whether SIGTERM came.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == DRAINING
    }

    /// What to tell a load balancer. A stuck worker is named while ready; while starting or draining that is said.
    #[must_use]
    pub fn status(&self, now: Instant) -> Status {
        match self.phase.load(Ordering::Relaxed) {
            STARTING => return Status::Starting,
            DRAINING => return Status::Draining,
            _ => {}
        }
        let now = self.millis(now);
        let slowest = self
            .beats
            .iter()
            .map(|beat| now.saturating_sub(beat.load(Ordering::Relaxed)))
            .enumerate()
            .max_by_key(|&(_, since)| since);
        match slowest {
            Some((worker, since)) if Duration::from_millis(since) >= STUCK_AFTER => Status::Stuck {
                worker,
                since: Duration::from_millis(since),
            },
            _ => Status::Ready,
        }
    }

    fn millis(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn healthy_only_between_ready_and_drain() {
        let t0 = Instant::now();
        let health = Health::new(2, t0);
        assert_eq!(health.status(t0).http_status(), 503);
        health.ready();
        assert_eq!(health.status(t0), Status::Ready);
        assert_eq!(health.status(t0).http_status(), 200);
        health.drain();
        assert_eq!(health.status(t0), Status::Draining);
        assert_eq!(health.status(t0).http_status(), 503);
        health.ready();
        assert!(health.is_draining(), "a drain is final");
    }

    #[test]
    fn a_worker_that_has_not_moved_for_5_s_makes_it_unhealthy_and_is_named() {
        let t0 = Instant::now();
        let health = Health::new(3, t0);
        health.ready();
        let later = t0 + Duration::from_millis(4_999);
        assert_eq!(health.status(later), Status::Ready);
        let later = t0 + Duration::from_millis(5_000);
        health.beat(0, later);
        health.beat(2, later);
        assert_eq!(
            health.status(later).to_string(),
            "worker 1 has not moved for 5 s"
        );
        assert_eq!(health.status(later).http_status(), 503);
        health.beat(1, later);
        assert_eq!(health.status(later), Status::Ready);
    }
}
