//! The `rebuilder` program.

fn main() {}
