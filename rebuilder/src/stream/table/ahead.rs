//! Segments that are in memory together: named first, all of them, so that memory can be asked for their flows before the first
//! is taken.

use super::{Next, Streams};
use crate::decode::Plain;
use crate::stream::flow::{PlainKey, PlainName, Side};
use crate::stream::flows::NIL;
use crate::stream::offset::index;
use crate::stream::{AHEAD, Sink};
use crate::telemetry::PacketOutcome;

/// How many flows are taken to be near by because memory was asked for them last; a power of two.
const ASKED: usize = 64;

/// Hashes and slots of the flows that memory was asked for last.
pub(super) type Asked = [(u64, u32); ASKED];

/// Nothing was asked for.
pub(super) const NOTHING: Asked = [(0, NIL); _];

/// The flow that a plain segment belongs to, and the side that sent it.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    name: PlainName,
    side: Side,
}

impl Named {
    /// Nobody's, to be written over.
    pub const NONE: Self = Self {
        name: PlainName::NONE,
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
        let Some(slot) = self.flows.find_plain(&named.name) else {
            return self.push_unknown(&seg.segment(), named.name.general(), named.side, sink);
        };
        if slot != named.name.slot {
            self.asked[index(named.name.hash) % ASKED] = (named.name.hash, slot);
        }
        self.flows.touch(slot, now);
        let next = Next {
            flags: seg.flags,
            seq: seg.seq,
            ack: seg.ack,
            ts: seg.ts,
            payload: seg.payload,
        };
        match self.push_plain(slot, &next, named.side, sink) {
            Some(outcome) => outcome,
            None => self.push_full(slot, &seg.segment(), named.name.general(), named.side, sink),
        }
    }

    /// Names the flow of a segment, and asks memory for what tells where it is.
    #[inline]
    pub fn name(&self, seg: &Plain<'_>, named: &mut Named) {
        let (key, side) = PlainKey::of(self.opts.flow_scope, seg);
        let hash = key.hash(self.opts.hash);
        self.flows.prefetch_place(hash);
        let slot = NIL;
        *named = Named {
            name: PlainName { key, hash, slot },
            side,
        };
    }

    /// Asks memory for what is held of the flows that are named, so that it is near by when their segments are taken.
    /// Each loop asks for many things at once, where one segment after the other would wait for each.
    pub fn look_ahead(&mut self, named: &mut [Named]) {
        let mut slots = [NIL; AHEAD];
        let mut count = 0;
        for Named { name, side } in named {
            // What a flow had a moment ago is still near by: packets come in trains.
            let asked = &mut self.asked[index(name.hash) % ASKED];
            if asked.0 != name.hash {
                let slot = self.flows.probably(name.hash).unwrap_or(NIL);
                *asked = (name.hash, slot);
                if slot == NIL {
                    self.isns.prefetch(name.tag(*side));
                } else if let Some(place) = slots.get_mut(count) {
                    *place = slot;
                    count += 1;
                }
            }
            name.slot = asked.1;
        }
        let slots = || slots.iter().take(count);
        for slot in slots() {
            self.flows.prefetch(*slot);
        }
        for flow in slots().filter_map(|slot| self.flows.get(*slot)) {
            flow.prefetch_directions();
        }
    }
}
