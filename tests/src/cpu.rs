//! What a whole command, a process or a thread costs.

use std::fs;
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

/// What a process or a thread has used so far.
///
/// The sum of user and system is exact. Of many kernels the two are a guess: at each tick (250 a second, say) one of
/// them is charged, and the sum is divided as these were. So the parts of what takes less than some hundred ticks mean
/// little.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    sum: Duration,
    user: Duration,
    system: Duration,
    at: Instant,
}

impl Reading {
    /// Of a process with all its threads.
    ///
    /// # Errors
    /// Where there is none.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // proc_pid_stat(5): utime and stime are the 14th and the 15th, in hundredths of a second. The second may hold
        // anything, so they are counted from its end.
        let mut fields = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ');
        let mut hundredths = fields.by_ref().skip(11).map(|field| {
            let n = field.parse().map_err(io::Error::other)?;
            Ok::<_, io::Error>(Duration::from_millis(10) * n)
        });
        let mut part = || hundredths.next().unwrap_or(Ok(Duration::ZERO));
        Ok(Self {
            user: part()?,
            system: part()?,
            sum: sys::cpu_of_process(pid)?,
            at: Instant::now(),
        })
    }

    /// Of the calling thread.
    #[must_use]
    pub fn of_this_thread() -> Self {
        let (user, system) = sys::parts_of_this_thread();
        Self {
            sum: sys::cpu_of_this_thread(),
            user,
            system,
            at: Instant::now(),
        }
    }

    /// What was used since an earlier one.
    #[must_use]
    pub fn since(&self, before: &Self) -> Cost {
        let sum = self.sum.saturating_sub(before.sum);
        let user = self.user.saturating_sub(before.user);
        let system = self.system.saturating_sub(before.system);
        let share = user.as_secs_f64() / (user + system).as_secs_f64().max(1e-9);
        let user = sum.mul_f64(share.clamp(0.0, 1.0));
        Cost {
            user,
            system: sum.saturating_sub(user),
            wall: self.at.saturating_duration_since(before.at),
        }
    }
}

/// Processors that the calling thread may run on.
///
/// # Errors
/// What the kernel says.
pub fn processors() -> io::Result<Vec<usize>> {
    sys::processors()
}

/// Keeps the calling thread, and what it starts, on a processor.
///
/// # Errors
/// Where there is no such processor.
pub fn pin_this_thread(processor: usize) -> io::Result<()> {
    sys::pin_this_thread(processor)
}
