//! Segments become the in-order bytes of one direction of a connection.

use std::net::SocketAddr;

use crate::decode::Vni;
use crate::time::Timestamp;

/// Names one direction of one connection for as long as the table holds it; never reused within a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirectionId(pub u64);

/// Who talks to whom in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// Of the first segment that was seen; `None` when bare.
    pub vni: Option<Vni>,
    /// The sender of the bytes.
    pub src: SocketAddr,
    /// The receiver of the bytes.
    pub dst: SocketAddr,
}

/// Why a direction gives no more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender closed (FIN) and all bytes before it were delivered.
    Fin,
    /// Reset; all that could be delivered was delivered.
    Reset,
    /// Nothing came for the idle time, the table was full, or a drain flushed it.
    Idle,
    /// The capture file ended.
    Eof,
}

/// What the stream stage tells the next one, in stream order for one direction.
#[derive(Clone, Copy, Debug)]
pub enum Chunk<'a> {
    /// The first event of a direction.
    Open {
        /// Whether the SYN was seen; if not, the bytes before are unknown.
        midstream: bool,
    },
    /// In-order bytes, each given once.
    Data {
        /// Never empty.
        bytes: &'a [u8],
        /// Capture time of the first-seen copy of `bytes`.
        ts: Timestamp,
        /// `bytes` begins where a captured segment began (only there may a lost framing be found again).
        segment_start: bool,
        /// Copies of these bytes disagreed.
        conflict: bool,
    },
    /// Bytes that will never come. Nothing is spliced across it.
    Gap {
        /// How many bytes are missing.
        len: u64,
    },
    /// The last event of a direction.
    Closed(End),
}
