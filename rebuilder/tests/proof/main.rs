//! What the whole packet path promises, proven from outside: through the library's public interface, with frames as a
//! mirror delivers them.
//!
//! | file | what it proves |
//! |---|---|
//! | `chaos.rs` | captures of nobody's design: no byte is made up, each has a number |
//! | `crowded.rs` | the extractor with room for hardly anything |
//! | `dependencies.rs` | no AWS crate is compiled |
//! | `exhaustion.rs` | memory stays within the cap, others' requests stay exact, every byte has a number |
//! | `replayed.rs` | `replay` over a real socket |
//! | `poor.rs` | public captures as a poor mirror copies them: nothing is made up |
//! | `table.rs` | what a mirror loses, delays, doubles and cuts, and what comes out: a snapshot |
//! | `tshark.rs` | another reader finds the same requests |
//! | `metamorphic.rs` | captures told differently (one direction, wrapped, tagged, cut up, twice, ...) give the same requests |

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod build;
mod captures;
mod chaos;
mod crowded;
mod dependencies;
mod exhaustion;
mod metamorphic;
mod poor;
mod random;
mod replayed;
mod run;
mod simulator;
mod table;
mod tshark;
mod wire;
