//! A request that two servers may frame differently, or that makes the analyser close, costs no other request anything:
//! whoever shares the rebuilder's connections gets his own answer, once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod bench;
mod flood;
mod leavers;
mod smugglers;

use std::sync::{Mutex, MutexGuard, PoisonError};

use lab::data_plane::DataPlane;
use lab::rebuilder::Rebuilder;

/// Held by a test while it runs: one at a time, because some of them measure.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A rebuilder with one worker, so that all requests meet.
fn rebuilder(plane: &DataPlane, port: u16, flags: &[&str]) -> Rebuilder {
    plane
        .rebuild(port, &[&["--workers", "1"], flags].concat())
        .unwrap()
}
