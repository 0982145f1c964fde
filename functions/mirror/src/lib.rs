//! What to mirror, and what to do about it. Pure: no AWS crate, no clock, no I/O.
//!
//! The flow of one run, each step a module:
//!
//! ```text
//! event ──▶ (ports: describe) ──▶ interface + selection ──▶ verdict ──▶ plan ──▶ converge (ports: mutate) ──▶ answer
//! ```
//!
//! An event is a hint that names an instance or an interface; the truth is what AWS describes now. [`plan::plan`] is
//! the only place that decides what is created, changed or deleted; [`attach`], [`reconcile`] and [`custom`] are
//! the three ways into it, generic over the [`ports`], so that all of them run in tests against memory. [`drain`] stands
//! beside them: it has nothing to do with sessions, but lets a rebuilder leave.

pub mod answer;
pub mod attach;
pub mod converge;
pub mod custom;
pub mod drain;
pub mod emf;
pub mod error;
pub mod event;
pub mod families;
pub mod id;
pub mod interface;
pub mod layer;
pub mod memory;
pub mod pace;
pub mod plan;
pub mod ports;
pub mod reconcile;
pub mod selection;
pub mod settings;
mod survey;
mod ties;
mod time;
pub mod verdict;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod sim;
