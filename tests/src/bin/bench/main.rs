//! What the rebuilder costs, in processor time; `tests/bench` builds all that this needs.

mod capture;
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
    if let Some(What::Walk { file }) = &options.what {
        offline::walk(file).with_context(|| file.display().to_string())?;
        return Ok(());
    }
    std::fs::create_dir_all(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    let [both, inbound, mixed] = offline::captures(&options.directory)?;
    let mut rows = offline::run("both directions", &both, true)?;
    rows.extend(offline::run("inbound only", &inbound, false)?);
    rows.extend(offline::run("both, packets mixed", &mixed, false)?);
    table::print(&rows);
    Ok(())
}
