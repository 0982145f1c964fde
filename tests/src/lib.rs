//! A VPC on one machine.
//!
//! Everything here is made of real parts: network namespaces and `tc` mirroring for the VPC, nginx in the instances,
//! curl and wrk as clients, nginx with `ModSecurity` as the analyser. Only AWS's API is emulated (`tests/emulator`).
//!
//! ```text
//!  client ──┐ ┌── instance (nginx)         one namespace each, veths on the bridge of namespace `vpc`
//!           bridge                         mirroring: tc filters on the vpc side of an instance's veth
//!  analyser ┘ └── rebuilder ◀── nlb ◀── one VXLAN device a session, each in a namespace of its own
//! ```
//!
//! All of it needs root. Names carry the owner's pid and start time ([`janitor`]), so that whatever a killed run
//! leaves behind is removed by the next one and by nobody else's.

pub mod analyser;
pub mod balancer;
pub mod batch;
pub mod client;
pub mod cpu;
pub mod data_plane;
pub mod emulator;
pub mod fabric;
pub mod fleet;
pub mod inspect;
pub mod janitor;
pub mod judge;
pub mod netns;
pub mod network;
pub mod nginx;
pub mod paced;
pub mod perturb;
pub mod process;
pub mod random;
pub mod rebuilder;
pub mod recorder;
pub mod relay;
pub mod skip;
mod sys;
pub mod verbatim;
pub mod vxlan;
pub mod world;

/// Seconds since the epoch.
#[must_use]
pub fn now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
