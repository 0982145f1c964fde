//! Turns mirrored VPC packets back into the HTTP requests that were sent.
//!
//! The stages stand in the order of the flow, and each knows only the type it takes and the type it gives:
//!
//! ```text
//! receive ── Frame ──▶ decode ── Segment ──▶ stream ── Chunk ──▶ http ── Request ──▶ forward ── Delivery
//! ```
//!
//! `decode`, `stream` and `http` are pure: bytes and time in, events out, no clock and no socket. So a capture file
//! and a live socket run the same code. Every packet ends in exactly one [`telemetry::PacketOutcome`], every
//! request in exactly one [`telemetry::RequestOutcome`]; these enums are the label sets of the metrics.

mod budget;
pub mod decode;
pub mod forward;
pub mod handover;
pub mod http;
pub mod inspect;
pub mod keyed;
pub mod loops;
pub mod pipeline;
mod prefetch;
pub mod publish;
pub mod receive;
pub mod replay;
pub mod run;
pub mod selftest;
pub mod stream;
pub mod telemetry;
pub mod time;
pub mod units;
