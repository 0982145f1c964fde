//! The `rebuilder` program: `run`, `inspect` and `replay`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
