//! Runs inputs through one target, without the engine: to look at a crasher with a debugger.
//!
//!     cargo run -p rebuilder-fuzz --example run TARGET FILE…

use std::{env, fs, io};

fn main() -> io::Result<()> {
    let mut args = env::args().skip(1);
    let Some(name) = args.next() else {
        return Err(io::Error::other("usage: run TARGET FILE…"));
    };
    let target = rebuilder_fuzz::target(&name);
    for path in args {
        target(&fs::read(&path)?);
        println!("{path}: passed");
    }
    Ok(())
}
