//! Segments become the in-order bytes of one direction of a connection.
//!
//! [`Streams`] is the flow table: it takes every TCP segment, says in which [`PacketOutcome`] the packet ends, and
//! calls a [`Sink`] with the [`Chunk`]s of each direction in stream order. It has no clock and no socket: time is
//! what the packets say (DESIGN §2 "Time") or what [`Streams::advance`] is told.
//!
//! What holds always:
//!
//! - Of each direction the sink sees [`Chunk::Open`] first, [`Chunk::Closed`] last, each once, and between them every
//!   byte once, in order; a byte that never came is counted in a [`Chunk::Gap`].
//! - Directions are independent. The other one is asked for two things: what it acknowledged shortens the wait for a
//!   hole; and that requests came of it ends the search for any in one that looks like answers.
//! - SYN, FIN and RST destroy nothing. A FIN or RST ends a direction only [`StreamOptions::linger`] after it, so a
//!   forged one in the middle of a stream changes nothing, and late copies of a closed connection's segments still
//!   find their stream and end as duplicates. A SYN is kept beside the flow that exists; segments go to the generation
//!   in whose window they lie, and only those that fit none open a new one.
//! - What is held never costs more than the caps of [`StreamOptions`], bookkeeping included.
//!
//! # Caps, and who gives way
//!
//! | cap | of | reached |
//! |---|---|---|
//! | [`StreamOptions::flow_cap`] | what one direction holds | it sheds, as below |
//! | [`StreamOptions::total_cap`] | what all hold, and the state of flows | whoever holds most sheds |
//! | half of it | the state of flows | a flow is evicted |
//! | a quarter of it, above half | what one source has in all | its direction sheds |
//! | a quarter of the half, above half of that | the state of one source's flows | one of its own is evicted |
//! | [`StreamOptions::max_flows`] | flows | a flow is evicted |
//! | [`StreamOptions::isn_entries`] | SYNs without a flow | the oldest of its set goes |
//! | 4 | generations of a direction | the one silent longest goes, if it has ended; else the segment is refused |
//!
//! Bytes in order are never held, so they always pass. For a segment ahead of a hole, in this order:
//!
//! 1. What a cut frame proves to be missing is given up, if it is next in the same direction.
//! 2. Where the whole table is full, whoever holds most sheds, down to those that hold as much (to within a factor of
//!    two) as the segment's own flow would: its farthest ahead, in whole segments. Nobody who holds little loses a byte.
//! 3. The same direction sheds what lies farther ahead than the segment, farthest first.
//! 4. The segment is refused ([`PacketOutcome::OverCap`]).
//!
//! For the state of a new flow or direction:
//!
//! 1. Where its source has more than its share, the source's own flow that was silent longest is flushed and closed.
//! 2. Else the one silent longest of a source that has more than its share.
//! 3. Else the one silent longest of all.
//!
//! A flow's source is its client, taken to be the end with the higher port. Since a hole is given up after
//! [`StreamOptions::gap_after`], nothing is held longer than that while its sender makes no progress, and a full table
//! empties itself. Each byte that was shed or refused is in [`Stats::shed_bytes`].
//!
//! # Copies that disagree
//!
//! Two held copies are compared byte by byte. Of bytes that were handed on, 0 are kept here: a late copy is compared
//! with what the sink still holds of an unfinished request ([`Sink::compare`]), which is then marked, and with the keyed
//! hashes of the last four segments, where it covers one of them. So a copy of a request that is gone, cut at other
//! bounds than the first one, is not compared. Each that disagrees is in [`Stats::late_conflicts`].
//!
//! Of **urgent data** every byte stays in line. Receivers take the urgent byte out of the stream unless they ask for it
//! (`SO_OOBINLINE`), so the chunk that has it is marked as conflicting. **Data on a SYN** waits until the client shows
//! whether the server took it (see `direction/syn.rs`).
//!
//! TCP options change nothing: a segment that a server would drop for its time stamp (PAWS, RFC 7323 §5) or for its MD5
//! signature (RFC 2385) is taken; if it disagrees with the true one, that is a conflict as any other.
//!
//! **The hash** over addresses and ports is keyed ([`crate::keyed`]): an outsider chooses half of the key of every flow.
//! Nothing that is given out is ever ordered by it.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::time::Duration;

use crate::decode::Vni;
use crate::keyed::Keyed;
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

mod clock;
mod direction;
mod flow;
mod flows;
mod held;
mod index;
mod isn;
mod offset;
mod table;

#[cfg(test)]
mod tests;

pub(crate) use clock::SET_BACK;
pub use offset::StreamOffset;
pub use table::{Named, Stats, Streams};

/// How many segments are decoded before the first of them is taken; see [`Streams::look_ahead`].
pub const AHEAD: usize = 16;

/// Names one direction of one connection for as long as the table holds it, in the order in which they appeared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirectionId(u64);

impl DirectionId {
    /// Bits of a place; those before it are the number. Of numbers there are enough for a hundred days of a hundred
    /// thousand directions a second.
    const PLACE_BITS: u32 = 24;
    /// As many places as there can be.
    const PLACES: usize = 1 << Self::PLACE_BITS;

    /// The direction of this number, never used again within a run, in this place, of which the lower 24 bits count.
    #[must_use]
    pub const fn new(number: u64, place: usize) -> Self {
        Self(number << Self::PLACE_BITS | (place % Self::PLACES) as u64)
    }

    /// Where whoever keeps something for each direction may put it: no other direction has the place from its first chunk
    /// to [`Chunk::Closed`], and the places in use lie close together.
    #[must_use]
    pub fn place(self) -> usize {
        offset::index(self.0) % Self::PLACES
    }
}

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
        /// Whether the direction was joined midway: its SYN was not seen, and the bytes before are unknown.
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
        /// Copies of these bytes disagreed, or the receiver may have taken one of them out of the stream (urgent data).
        conflict: bool,
    },
    /// Bytes that will never come. Nothing is spliced across it. Neighbouring holes may be told one by one.
    Gap {
        /// How many bytes are missing.
        len: u64,
    },
    /// The last event of a direction.
    Closed(End),
}

/// Whether a direction's further bytes are of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// They are.
    Wanted,
    /// They are, though it looks as if they gave nothing: packets that bring new ones end in this outcome. With
    /// [`PacketOutcome::Response`] they are of no use any more once the other direction is known to ask.
    Presumed(PacketOutcome),
    /// They are not: nothing is held for the direction any more, its packets end in this outcome, and of further
    /// chunks it gets only [`Chunk::Closed`].
    Opaque(PacketOutcome),
}

/// What became of comparing a late copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Bytes of the copy whose first copy is still held.
    pub held: u64,
    /// Bytes among them that disagree.
    pub conflicting: u64,
}

/// The stage behind: takes the bytes.
pub trait Sink {
    /// A later copy of bytes that were given has come; it ends `behind` bytes before the next byte of the direction.
    /// Whoever still holds the first copy compares them. As it stands here, nothing is held.
    fn compare(&mut self, dir: DirectionId, behind: u64, copy: &[u8]) -> Compared {
        let _ = (dir, behind, copy);
        Compared::default()
    }

    /// Whether requests came of this direction, so that the other one of its connection gives answers. As it stands here,
    /// nobody knows.
    fn asks(&self, dir: DirectionId) -> bool {
        let _ = dir;
        false
    }

    /// Called in stream order. Says whether the direction's further bytes are wanted (of no meaning after
    /// [`Chunk::Closed`]).
    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest;
}

/// What tells two connections with the same addresses and ports apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowScope {
    /// Nothing: a connection that is mirrored at both of its ends is one connection, whose second copy is a
    /// retransmission.
    #[default]
    Global,
    /// The outermost VNI: for address plans that overlap.
    Vni,
}

/// Whose bytes stay where two held copies overlap and disagree. Both copies are marked as conflicting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverlapPolicy {
    /// Those that were captured first (as Windows since Vista does).
    #[default]
    First,
    /// As Linux does: a segment that begins earlier wins, and one that begins at the same byte and is longer.
    Linux,
}

/// Times and caps of the flow table. All times are flow time.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// What belongs to a flow's key. Default: [`FlowScope::Global`].
    pub flow_scope: FlowScope,
    /// Which copy stays. Default: [`OverlapPolicy::First`].
    pub overlap: OverlapPolicy,
    /// A hole older than this becomes a gap. Default: 1 s.
    pub gap_after: Duration,
    /// A hole becomes a gap this long after the other side acknowledged all of it. Default: 100 ms.
    pub acked_gap_after: Duration,
    /// What a cut frame proves to be missing becomes a gap this long after it: a connection that is mirrored twice may
    /// have a whole copy. Default: 100 ms.
    pub cut_gap_after: Duration,
    /// How long a direction whose SYN was not seen waits for earlier bytes. Default: 50 ms.
    pub midstream_wait: Duration,
    /// A flow without packets for this long is flushed and closed; what comes later is joined midway, and whom a PROXY
    /// header named is forgotten. Default: 10 min, as load balancers keep connections that long.
    pub idle: Duration,
    /// How long after its FIN or RST a direction is closed; late copies are recognised until then, and while they go
    /// on coming, three times as long as they have. Default: 2 s.
    pub linger: Duration,
    /// Bytes that one direction may hold ahead of a hole, bookkeeping included. Default: 4 MiB.
    pub flow_cap: usize,
    /// Bytes of all directions that are held, bookkeeping included, and of the state of all flows, which takes at most
    /// half of it; above half, one source (an IPv4 address, a /64 of IPv6) may have a quarter. Default: 256 MiB.
    pub total_cap: usize,
    /// Flows in the table, however little they cost; two million at most. Default: 200,000.
    pub max_flows: usize,
    /// SYNs remembered before their connection's first byte, rounded up to a power of two; 32 bytes each.
    /// Default: 65,536.
    pub isn_entries: usize,
    /// How far from the next expected byte a segment may lie, ahead or behind, and still belong to the direction.
    /// Default: 16 MiB, above the largest receive window that systems come with.
    pub window: u32,
    /// For what is looked up by addresses and ports. Default: under a random key.
    pub hash: Keyed,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self {
            flow_scope: FlowScope::default(),
            overlap: OverlapPolicy::default(),
            gap_after: Duration::from_secs(1),
            acked_gap_after: Duration::from_millis(100),
            cut_gap_after: Duration::from_millis(100),
            midstream_wait: Duration::from_millis(50),
            idle: Duration::from_secs(600),
            linger: Duration::from_secs(2),
            flow_cap: 4 << 20,
            total_cap: 256 << 20,
            max_flows: 200_000,
            isn_entries: 1 << 16,
            window: 16 << 20,
            hash: Keyed::default(),
        }
    }
}
