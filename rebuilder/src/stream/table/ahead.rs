//! Segments that are in memory together: named first, all of them, so that memory can be asked for their flows before the first
//! is taken.

use super::{Next, Streams};
use crate::decode::Plain;
use crate::stream::flow::{PlainKey, PlainName, Side};
use crate::stream::flows::NIL;
use crate::stream::{AHEAD, DirectionId, Sink};
use crate::telemetry::PacketOutcome;

/// How many flows are taken to be near by because memory was asked for them last; a power of two.
pub(in crate::stream) const NEAR: usize = 64;

/// The flows that packets were of lately.
#[derive(Clone, Copy)]
pub(super) struct Near {
    /// By [`PlainKey::near`].
    names: [PlainName; NEAR],
    /// Where those stand that came in since [`Streams::look_ahead`], and who sent the packet that brought them in.
    fresh: [(usize, Side); AHEAD],
    count: usize,
}

impl Near {
    pub(super) const NONE: Self = Self {
        names: [PlainName::NONE; _],
        fresh: [(0, Side::Low); _],
        count: 0,
    };
}

/// The flow that a plain segment belongs to, and the side that sent it.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    key: PlainKey,
    hash: u64,
    near: usize,
    side: Side,
}

impl Named {
    /// Nobody's, to be written over.
    pub const NONE: Self = Self {
        key: PlainName::NONE.key,
        hash: PlainName::NONE.hash,
        near: 0,
        side: Side::Low,
    };
}

impl Streams {
    /// As [`Streams::push`], for a segment that was named before.
    #[inline]
    pub fn push_named(
        &mut self,
        seg: &Plain<'_>,
        named: &Named,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        let now = self.clock.observe(seg.ts);
        if now >= self.next_due {
            self.expire(now, sink);
        }
        let Named {
            key, hash, side, ..
        } = *named;
        let near = &mut self.near.names[named.near % NEAR];
        let slot = if near.key == key { near.slot } else { NIL };
        let name = PlainName { key, hash, slot };
        let Some(slot) = self.flows.find_plain(&name) else {
            return self.push_unknown(&seg.segment(), name.general(), side, sink);
        };
        if slot != name.slot {
            *near = PlainName { key, hash, slot };
        }
        self.flows.touch(slot, now);
        let next = Next {
            flags: seg.flags,
            seq: seg.seq,
            ack: seg.ack,
            ts: seg.ts,
            payload: seg.payload,
        };
        match self.push_plain(slot, &next, side, sink) {
            Some(outcome) => outcome,
            None => self.push_full(slot, &seg.segment(), name.general(), side, sink),
        }
    }

    /// Names the flow of a segment, and asks memory for what tells where it is.
    #[inline]
    pub fn name(&mut self, seg: &Plain<'_>, named: &mut Named) {
        let (key, side) = PlainKey::of(self.opts.flow_scope, seg);
        let near = key.near() % NEAR;
        // Packets come in trains: as a rule it was named a moment ago, and hashing costs more than looking.
        let name = &mut self.near.names[near];
        if name.key != key {
            let hash = key.hash(self.opts.hash);
            self.flows.prefetch_place(hash);
            let slot = NIL;
            *name = PlainName { key, hash, slot };
            if let Some(place) = self.near.fresh.get_mut(self.near.count) {
                *place = (near, side);
                self.near.count += 1;
            }
        }
        *named = Named {
            key,
            hash: name.hash,
            near,
            side,
        };
    }

    /// Asks memory for what is held of the flows that were named and that are not near by, so that it is when their segments
    /// are taken. Each loop asks for many things at once, where one segment after the other would wait for each. `behind`
    /// does the same for what the stage behind keeps of a direction that is told its bytes.
    pub fn look_ahead(&mut self, mut behind: impl FnMut(DirectionId)) {
        let Near {
            names,
            fresh,
            count,
        } = &mut self.near;
        let fresh = fresh.get(..*count).unwrap_or_default();
        *count = 0;
        for (near, side) in fresh {
            let name = &mut names[near % NEAR];
            match self.flows.probably(name.hash) {
                Some(slot) => {
                    name.slot = slot;
                    self.flows.prefetch(slot);
                }
                None => self.isns.prefetch(name.tag(*side)),
            }
        }
        if let Some(slot) = self.due_next.take() {
            self.flows.prefetch_around(slot);
        }
        for (near, _) in fresh {
            if let Some(flow) = self.flows.get(names[near % NEAR].slot) {
                flow.prefetch_directions(&mut behind);
                self.flows.prefetch_move(flow, self.clock.now());
            }
        }
    }
}
