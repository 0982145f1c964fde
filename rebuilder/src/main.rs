//! The `rebuilder` program: `run`, `inspect`, `replay` and, with the feature `cloudwatch`, `publish`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
