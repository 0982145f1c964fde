//! What a whole command or a thread costs.

use std::io;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::sys;

/// Times of a process from its start to its end, its own children included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// In user mode.
    pub user: Duration,
    /// In the kernel, on its behalf.
    pub system: Duration,
    /// On the clock.
    pub wall: Duration,
}

impl Cost {
    /// Processor time.
    #[must_use]
    pub fn cpu(&self) -> Duration {
        self.user + self.system
    }
}

/// Runs a command to its end. No other child of this process may end meanwhile, or it is charged for that one too.
///
/// # Errors
/// Where it cannot be started.
pub fn of(command: &mut Command) -> io::Result<(Cost, Output)> {
    let before = sys::cpu_of_children();
    let begun = Instant::now();
    let output = command.stdin(Stdio::null()).output()?;
    let wall = begun.elapsed();
    let after = sys::cpu_of_children();
    let cost = Cost {
        user: after.0.saturating_sub(before.0),
        system: after.1.saturating_sub(before.1),
        wall,
    };
    Ok((cost, output))
}

/// Processor time of the calling thread so far, user and system.
#[must_use]
pub fn of_this_thread() -> Duration {
    sys::cpu_of_this_thread()
}
