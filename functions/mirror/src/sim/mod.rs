//! A simulated account: a clock of its own, pages, throttles, errors, lost answers, eventual consistency, crashes between
//! any two calls, and a log of all calls. The functions run in it as they are; only [`crate::ports`] is simulated.
//!
//! Everything is drawn from one seed, so a run that fails can be had again by its number.

mod account;
mod burst;
mod chaos;
mod clock;
mod cut;
mod large;
mod process;
mod queue;

pub(crate) use account::{Account, Faults, World};
pub(crate) use clock::{Sim, run};
pub(crate) use process::{Kill, Process};

/// SplitMix64: small, seeded, good enough to draw faults from.
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to `below`, which is not 0.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        self.next() % below
    }

    /// True in `n` of 1,000 cases.
    pub(crate) fn in_thousand(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }
}

/// A number from the environment, so that the same tests can be had with more cases.
pub(crate) fn setting(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.and_then(|t| t.parse().ok()).unwrap_or(default)
}
