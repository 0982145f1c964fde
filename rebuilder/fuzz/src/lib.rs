//! Fuzz targets of the rebuilder: one function each, which takes any bytes and panics where the rebuilder is wrong.
//!
//! The bodies live in this library, and not in the binaries of `fuzz_targets/`, so that `cargo test` replays every
//! seed and every crasher that was ever found through the same functions, without libFuzzer and in seconds. See the
//! README beside this crate for how to run them and what each asserts.

mod bytemap;
mod capture;
mod forwarded;
mod fragments;
mod frame;
mod http;
mod input;
mod parsers;
mod pipeline;
mod requests;
mod ring;
mod stream;
mod wire;

pub use capture::capture;
pub use fragments::fragments;
pub use frame::{frame, vxlan};
pub use http::{http, http_built};
pub use parsers::{answer, chunked, client, head, proxy, search, text};
pub use pipeline::pipeline;
pub use ring::ring;
pub use stream::stream;

/// A target: its name is that of its binary and of its folders in `seeds/` and `crashers/`.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: &[(&str, Target)] = &[
    ("answer", answer),
    ("capture", capture),
    ("chunked", chunked),
    ("client", client),
    ("fragments", fragments),
    ("frame", frame),
    ("head", head),
    ("http", http),
    ("http_built", http_built),
    ("pipeline", pipeline),
    ("proxy", proxy),
    ("ring", ring),
    ("search", search),
    ("stream", stream),
    ("text", text),
    ("vxlan", vxlan),
];

/// The target with this name.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn target(name: &str) -> Target {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    assert!(found.is_some(), "no fuzz target is called {name}");
    found.map_or(|_| {}, |(_, target)| *target)
}
