//! The fleet changes under traffic: it is updated, it shrinks, an instance dies; and every request is counted.
//!
//! `tests/roll` starts this with everything it needs; see the README.

mod cloud;
mod judge;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Changes the fleet under traffic on this machine, and counts what is lost.
#[derive(Clone, Parser)]
pub(crate) struct Options {
    /// Python environment with aws, sam and the emulator's packages; `tests/roll` makes it.
    #[arg(long)]
    venv: PathBuf,
    /// How long a second of what AWS does in minutes takes here: health checks, deregistration delays, grace periods,
    /// timeouts of an update. 1 is full length.
    #[arg(long, default_value_t = 0.2)]
    second: f64,
    /// Requests a second.
    #[arg(long, default_value_t = 2000)]
    rate: u32,
    /// Connections that they are sent over, and that stay open.
    #[arg(long, default_value_t = 200)]
    connections: u32,
}

fn main() -> ExitCode {
    let told = story::tell(&Options::parse());
    // After Ctrl-C the clean-up ends the process, and what went wrong meanwhile is its doing.
    lab::janitor::stop_if_interrupted();
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("roll: {error:#}");
            eprintln!(
                "roll: MIRRORFLEET_KEEP_LOGS=1 keeps every log, in {}",
                std::env::temp_dir().display()
            );
            ExitCode::FAILURE
        }
    }
}
