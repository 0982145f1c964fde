//! Segments that reached another worker than their connection's go on to the one that holds it.
//!
//! The kernel picks a datagram's worker by what it can read: a frame, with two VLAN tags at most, whose IP packet begins
//! with TCP (`receive/steering.rs`). The pieces of a packet, and what stands behind extension headers or a second
//! tunnel, it spreads by less than the connection, so that such a segment may come out of the decoder of a worker that
//! does not know its connection. Each worker asks [`Handover::route`] of every segment whose it is, by the same
//! arithmetic as the kernel's, and puts those of others into their inboxes.
//!
//! An inbox holds at most [`MAX_HANDED_BYTES`]. Who has handed over so much waits before reading on
//! ([`Handover::may_read`]); what has no room all the same is refused and so counted (`handover_full`). The packet
//! of a segment that was handed over ends with the worker that takes it, in exactly one outcome.
//!
//! Segments of one connection that come by both ways may overtake each other, by as much as one worker is behind the
//! other: some milliseconds while both keep up. To the stream stage that is reordering like any other.

use std::mem::{size_of, take};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::decode::{Plain, Segment, Seq, TcpFlags, Vni};
use crate::receive;
use crate::time::Timestamp;

/// The most that may wait for one worker, in bytes, bookkeeping included.
pub const MAX_HANDED_BYTES: usize = 8 << 20;

/// Larger payloads than those of a jumbo frame are rare; should they come all the same, [`Route::Full`] says so.
const LARGE_PAYLOAD: usize = 9000;

/// Packets that a worker of many reads at least while every inbox is half empty.
const LEAST_READ: usize = 128;

/// Whose a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// This worker's.
    Own,
    /// Another one's, to which it is on its way.
    Handed,
    /// Another one's, which has no room for it.
    Full,
    /// Nobody's: a connection of the fleet itself.
    Loop,
}

/// Says whose segments are.
pub trait Steer {
    /// Whether a plain segment is this worker's without a doubt. Asked of nearly every packet, so it must be told quickly;
    /// where it is not, [`Steer::route`] says it.
    fn is_own(&self, segment: &Plain<'_>) -> bool;

    /// Whose the segment is. One of another worker's is on its way then.
    fn route(&mut self, segment: &Segment<'_>) -> Route;
}

/// The only worker there is: every segment is its own.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Steer for Alone {
    fn is_own(&self, _: &Plain<'_>) -> bool {
        true
    }

    fn route(&mut self, _: &Segment<'_>) -> Route {
        Route::Own
    }
}

/// A segment that owns its bytes.
#[derive(Debug)]
struct Handed {
    ts: Timestamp,
    vni: Option<Vni>,
    src: SocketAddr,
    dst: SocketAddr,
    seq: Seq,
    ack: Seq,
    flags: TcpFlags,
    urgent: u16,
    cut: u32,
    payload: Box<[u8]>,
}

impl Handed {
    fn cost(payload: usize) -> usize {
        // What the allocator adds, rounded up.
        size_of::<Self>() + payload + 32
    }
}

/// What waits for one worker.
#[derive(Debug, Default)]
struct Inbox {
    /// `None` once the worker takes nothing more.
    segments: Mutex<Option<Vec<Handed>>>,
    /// What it costs, with what is on its way here.
    bytes: AtomicUsize,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Handed>>> {
        // Nothing that panics runs under the lock.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the segments, which are in it no more.
    fn give(&self, segments: &[Handed], f: &mut impl FnMut(&Segment<'_>)) -> usize {
        let mut bytes = 0;
        for handed in segments {
            bytes += Handed::cost(handed.payload.len());
            f(&Segment {
                ts: handed.ts,
                vni: handed.vni,
                src: handed.src,
                dst: handed.dst,
                seq: handed.seq,
                ack: handed.ack,
                flags: handed.flags,
                urgent: handed.urgent,
                payload: &handed.payload,
                cut: handed.cut,
            });
        }
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        segments.len()
    }
}

/// One worker's side.
#[derive(Debug)]
pub struct Handover {
    own: usize,
    inboxes: Arc<[Inbox]>,
    /// How many workers may still hand something over.
    senders: Arc<AtomicUsize>,
    sends: bool,
    /// For each worker, what this one has for it since the last [`Handover::flush`]: the lock is taken once for all.
    outgoing: Vec<Vec<Handed>>,
    handed: u64,
}

impl Handover {
    /// The sides of `workers` workers, in their order.
    #[must_use]
    pub fn group(workers: usize) -> Vec<Self> {
        let inbox = |_| Inbox {
            segments: Mutex::new(Some(Vec::new())),
            bytes: AtomicUsize::new(0),
        };
        let inboxes: Arc<[Inbox]> = (0..workers).map(inbox).collect();
        let senders = Arc::new(AtomicUsize::new(workers));
        let side = |own| Self {
            own,
            inboxes: Arc::clone(&inboxes),
            senders: Arc::clone(&senders),
            sends: true,
            outgoing: (0..workers).map(|_| Vec::new()).collect(),
            handed: 0,
        };
        (0..workers).map(side).collect()
    }

    /// How many packets this worker may read before an inbox could be full, if all were for one that has least room.
    /// What is not read waits in the socket's buffer, which is larger and whose loss the kernel counts; whoever is
    /// behind takes from its inbox whether it may read or not, so nobody waits for ever.
    #[must_use]
    pub fn may_read(&self) -> usize {
        let others = self.inboxes.iter().enumerate();
        let least = others
            .filter(|(worker, _)| *worker != self.own)
            .map(|(_, inbox)| MAX_HANDED_BYTES.saturating_sub(inbox.bytes.load(Ordering::Relaxed)))
            .min();
        let Some(room) = least else {
            return usize::MAX;
        };
        // All others may do the same at this moment.
        let share = room / Handed::cost(LARGE_PAYLOAD) / (self.inboxes.len() - 1);
        if room >= MAX_HANDED_BYTES / 2 {
            share.max(LEAST_READ)
        } else {
            share
        }
    }

    /// How many segments went to other workers.
    #[must_use]
    pub fn handed(&self) -> u64 {
        self.handed
    }

    /// Whether [`Handover::route`] would say that a segment between these IPv4 ends is this worker's.
    #[inline]
    #[must_use]
    pub fn is_own(&self, ends: &([u32; 2], [u16; 2])) -> bool {
        self.inboxes.len() == 1 || receive::owner_of_plain(ends, self.inboxes.len()) == self.own
    }

    /// Says whose the segment is; one of another worker's goes to it with the next [`Handover::flush`].
    pub fn route(&mut self, segment: &Segment<'_>) -> Route {
        let owner = receive::owner(segment.src, segment.dst, self.inboxes.len());
        let (Some(inbox), Some(outgoing)) = (self.inboxes.get(owner), self.outgoing.get_mut(owner))
        else {
            return Route::Own;
        };
        if owner == self.own {
            return Route::Own;
        }
        let cost = Handed::cost(segment.payload.len());
        let room = |bytes: usize| Some(bytes + cost).filter(|bytes| *bytes <= MAX_HANDED_BYTES);
        let relaxed = Ordering::Relaxed;
        if inbox.bytes.fetch_update(relaxed, relaxed, room).is_err() {
            return Route::Full;
        }
        outgoing.push(Handed {
            ts: segment.ts,
            vni: segment.vni,
            src: segment.src,
            dst: segment.dst,
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            urgent: segment.urgent,
            cut: segment.cut,
            payload: segment.payload.into(),
        });
        Route::Handed
    }

    /// Hands over what [`Handover::route`] collected. How many segments their workers take no more: they have ended.
    pub fn flush(&mut self) -> u64 {
        let mut late = 0;
        for (inbox, outgoing) in self.inboxes.iter().zip(&mut self.outgoing) {
            if outgoing.is_empty() {
                continue;
            }
            let count = outgoing.len() as u64;
            match inbox.lock().as_mut() {
                Some(segments) => {
                    segments.append(outgoing);
                    self.handed += count;
                }
                None => {
                    let cost = |handed: &Handed| Handed::cost(handed.payload.len());
                    let bytes = outgoing.iter().map(cost).sum();
                    inbox.bytes.fetch_sub(bytes, Ordering::Relaxed);
                    outgoing.clear();
                    late += count;
                }
            }
        }
        late
    }

    /// Takes what others have handed over. How many segments that was.
    pub fn take(&mut self, mut f: impl FnMut(&Segment<'_>)) -> usize {
        let Some(inbox) = self.inboxes.get(self.own) else {
            return 0;
        };
        if inbox.bytes.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let segments = inbox.lock().as_mut().map(take).unwrap_or_default();
        inbox.give(&segments, &mut f)
    }

    /// This worker hands over nothing more; what [`Handover::route`] says from now on is of no meaning.
    pub fn stop_sending(&mut self) {
        if std::mem::take(&mut self.sends) {
            self.senders.fetch_sub(1, Ordering::Release);
        }
    }

    /// Whether no worker hands over anything more: after one more [`Handover::take`] the inbox stays empty.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.senders.load(Ordering::Acquire) == 0
    }

    /// Takes what is there, and nothing more: what comes later is told to its sender.
    pub fn close(&mut self, mut f: impl FnMut(&Segment<'_>)) {
        if let Some(inbox) = self.inboxes.get(self.own) {
            let rest = inbox.lock().take().unwrap_or_default();
            inbox.give(&rest, &mut f);
        }
    }
}

impl Drop for Handover {
    /// Also where its worker panicked: nobody must wait for it.
    fn drop(&mut self) {
        self.stop_sending();
    }
}

#[cfg(test)]
mod tests;
