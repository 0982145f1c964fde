//! What the rebuilder costs, in processor time; `tests/bench` builds all that this needs.

mod capture;
mod egress;
mod live;
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
    /// Packets through a virtual wire only.
    Live,
    /// Whether packets are lost at 80 % of the rate at which they can be sent: five runs of 20 seconds, not part of the table.
    Loss,
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
    let directory = &options.directory;
    match &options.what {
        Some(What::Walk { file }) => {
            offline::walk(file).with_context(|| file.display().to_string())?;
            return Ok(());
        }
        Some(What::Sink) => return egress::sink(),
        _ => {}
    }
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let wanted = |what: &What| {
        let asked = options.what.as_ref();
        asked.is_none_or(|asked| std::mem::discriminant(asked) == std::mem::discriminant(what))
    };
    if let Some(What::Loss) = options.what {
        return live::loss(&offline::capture(directory)?);
    }
    let mut rows = Vec::new();
    if wanted(&What::Offline) {
        let [both, inbound, mixed] = offline::captures(directory)?;
        rows.extend(offline::run("both directions", &both, true)?);
        rows.extend(offline::run("inbound only", &inbound, false)?);
        rows.extend(offline::run("both, packets mixed", &mixed, false)?);
    }
    if wanted(&What::Live) {
        match live::run(&offline::capture(directory)?) {
            Ok(live) => rows.extend(live),
            // The other parts need neither root nor a second processor.
            Err(error) if options.what.is_none() => eprintln!("live: {error:#}; not measured"),
            Err(error) => return Err(error),
        }
    }
    if wanted(&What::Egress) {
        rows.extend(egress::run()?);
    }
    table::print_machine();
    table::print(&rows);
    Ok(())
}
