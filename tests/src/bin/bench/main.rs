//! What the rebuilder costs, in processor time; `tests/bench` builds all that this needs.

mod capture;
mod egress;
mod offline;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};

/// Measures the rebuilder on this machine, and prints one table.
#[derive(Parser)]
struct Options {
    /// Where the captures are made; some 2 GB.
    #[arg(long, default_value = "target/lab/bench")]
    directory: PathBuf,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Subcommand)]
enum What {
    /// Captures in files only.
    Offline,
    /// Sending requests only.
    Egress,
    /// What they are sent to: says its address, answers, and ends with its input.
    #[command(hide = true)]
    Sink,
    /// Reads a capture and looks at its headers, nothing else: the least that any reader does.
    #[command(hide = true)]
    Walk {
        /// The capture.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    match &options.what {
        Some(What::Walk { file }) => {
            offline::walk(file).with_context(|| file.display().to_string())?;
            return Ok(());
        }
        Some(What::Sink) => return egress::sink(),
        Some(What::Egress) => {
            table::print(&egress::run()?);
            return Ok(());
        }
        Some(What::Offline) | None => {}
    }
    std::fs::create_dir_all(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    let [both, inbound, mixed] = offline::captures(&options.directory)?;
    let mut rows = offline::run("both directions", &both, true)?;
    rows.extend(offline::run("inbound only", &inbound, false)?);
    rows.extend(offline::run("both, packets mixed", &mixed, false)?);
    if options.what.is_none() {
        rows.extend(egress::run()?);
    }
    table::print(&rows);
    Ok(())
}
