//! The main job, live: an instance appears, is mirrored by itself, and its requests reach the analyser.
//!
//! `tests/demo` starts this with everything it needs; see the README.

mod progress;
mod report;
mod requests;
mod story;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Shows mirrorfleet at work on this machine, and checks that the numbers agree.
#[derive(Parser)]
struct Options {
    /// Leave out the AWS side: the sessions are a fixed list, nothing is deployed.
    #[arg(long)]
    data_plane: bool,
    /// MTU of the VPC: 1500, or 9001 as between instances of a real one.
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u32).range(576..=9001))]
    mtu: u32,
    /// Python environment with aws, sam and the emulator's packages; `tests/demo` makes it.
    #[arg(long, required_unless_present = "data_plane")]
    venv: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let venv = if options.data_plane {
        None
    } else {
        options.venv
    };
    let told = story::tell(options.mtu, venv.as_deref());
    // After Ctrl-C the clean-up ends the process, and what went wrong meanwhile is its doing.
    lab::janitor::stop_if_interrupted();
    match told {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:#}");
            eprintln!(
                "demo: MIRRORFLEET_KEEP_LOGS=1 keeps every log, in {}",
                std::env::temp_dir().display()
            );
            ExitCode::FAILURE
        }
    }
}
