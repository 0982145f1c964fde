//! The flow table: finds the direction a segment belongs to, keeps time and caps.

use crate::decode::{Segment, Seq, TcpFlags};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

use super::clock::FlowClock;
use super::direction::{Direction, Env, Part, cost_of};
use super::flow::{Flow, FlowKey, Name, Place, Side};
use super::flows::{Flows, size};
use super::held::RUN_BYTES;
use super::isn::IsnCache;
use super::offset::advance;
use super::{DirectionId, End, Endpoints, Sink, StreamOptions};
use crate::budget::{Budget, Source};

mod ahead;

#[cfg(test)]
pub(super) use ahead::NEAR;
pub use ahead::Named;
use ahead::Near;

/// Counts since the table was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that entered the table.
    pub flows: u64,
    /// Directions that had bytes.
    pub directions: u64,
    /// Directions that were joined midway.
    pub midstream: u64,
    /// Bytes given to the sink.
    pub delivered_bytes: u64,
    /// Bytes told to the sink as missing.
    pub gap_bytes: u64,
    /// Bytes shed or refused because a cap was reached.
    pub shed_bytes: u64,
    /// Bytes on which two copies disagreed, as far as both were there to be compared.
    pub conflicting_bytes: u64,
    /// Late copies that disagreed with bytes that had been handed on.
    pub late_conflicts: u64,
    /// Flows closed because the table was full.
    pub evicted_flows: u64,
    /// Packets whose time was more than an hour ahead of flow time.
    pub time_jumps: u64,
}

/// What the way of most packets looks at.
#[derive(Clone, Copy)]
struct Next<'a> {
    flags: TcpFlags,
    seq: Seq,
    ack: Seq,
    ts: Timestamp,
    payload: &'a [u8],
}

impl<'a> Next<'a> {
    fn of(seg: &Segment<'a>) -> Self {
        Self {
            flags: seg.flags,
            seq: seg.seq,
            ack: seg.ack,
            ts: seg.ts,
            payload: seg.payload,
        }
    }
}

/// The connections of one worker. See the module's documentation for what it promises.
pub struct Streams {
    opts: StreamOptions,
    /// For what was handed on. It need not withstand somebody who sees hashes, for nobody does.
    content: foldhash::fast::RandomState,
    flows: Flows,
    /// Nothing happens by time alone before this.
    next_due: Timestamp,
    /// The flow that time will change next, as far as memory was asked for it and not yet for what is around it.
    due_next: Option<u32>,
    clock: FlowClock,
    isns: IsnCache,
    budget: Budget,
    stats: Stats,
    next_number: u64,
    /// Those that directions had which are gone, and how many there are in all.
    free_places: Vec<usize>,
    places: usize,
    near: Near,
    /// Every segment goes the full way, so that both ways can be compared.
    #[cfg(test)]
    pub(super) never_plain: bool,
}

impl Streams {
    /// An empty table.
    #[must_use]
    pub fn new(opts: StreamOptions) -> Self {
        Self {
            flows: Flows::new(opts.total_cap / 2, opts.max_flows),
            content: foldhash::fast::RandomState::default(),
            next_due: Timestamp::INFINITY,
            due_next: None,
            clock: FlowClock::default(),
            isns: IsnCache::new(opts.isn_entries, opts.idle),
            budget: Budget::new(opts.total_cap),
            stats: Stats::default(),
            next_number: 0,
            free_places: Vec::new(),
            places: 0,
            near: Near::NONE,
            #[cfg(test)]
            never_plain: false,
            opts,
        }
    }

    /// Takes a segment and says where its packet ends. Flow time advances to the segment's first, so chunks of other
    /// directions may come too.
    pub fn push(&mut self, seg: &Segment<'_>, sink: &mut impl Sink) -> PacketOutcome {
        let now = self.clock.observe(seg.ts);
        self.push_at(now, seg, sink)
    }

    /// Takes a segment that came past the packets that wait to be read, from a worker that may be ahead of this one. Its
    /// time moves flow time no more than those would: they may fill the holes that would grow old.
    pub fn push_handed(&mut self, seg: &Segment<'_>, sink: &mut impl Sink) -> PacketOutcome {
        let now = self.clock.first(seg.ts);
        self.push_at(now, seg, sink)
    }

    fn push_at(
        &mut self,
        now: Timestamp,
        seg: &Segment<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        if now >= self.next_due {
            self.expire(now, sink);
        }
        let (key, side) = FlowKey::of(self.opts.flow_scope, seg);
        let hash = key.hash(self.opts.hash);
        let name = Name { key, hash };
        let Some(slot) = self.flows.find(&name) else {
            return self.push_unknown(seg, name, side, sink);
        };
        self.flows.touch(slot, now);
        if seg.cut == 0
            && let Some(outcome) = self.push_plain(slot, &Next::of(seg), side, sink)
        {
            return outcome;
        }
        self.push_full(slot, seg, name, side, sink)
    }

    fn push_full(
        &mut self,
        slot: u32,
        seg: &Segment<'_>,
        name: Name,
        side: Side,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        let outcome = self.push_known(slot, seg, name, side, sink);
        self.settle(slot, sink);
        outcome
    }

    /// The way of most packets: a segment that is the next one of a connection in which nothing is held, nothing waits
    /// for a time and nothing is in doubt. It changes a few numbers, and nobody's cost. `None` where anything is otherwise;
    /// nothing has changed then, and the full way comes to the same.
    #[inline]
    fn push_plain(
        &mut self,
        slot: u32,
        seg: &Next<'_>,
        side: Side,
        sink: &mut impl Sink,
    ) -> Option<PacketOutcome> {
        #[cfg(test)]
        if self.never_plain {
            return None;
        }
        let apart = TcpFlags::SYN | TcpFlags::FIN | TcpFlags::RST | TcpFlags::URG;
        if seg.flags & (apart | TcpFlags::ACK) != TcpFlags::ACK {
            return None;
        }
        let now = self.clock.now();
        let flow = self.flows.get_mut(slot)?;
        let (own, peer) = flow.halves_mut(side);
        let own = own.plain()?;
        if !own.is_next(seg.seq) || own.seems_to_answer() {
            return None;
        }
        if !peer.generations.is_empty() {
            let peer = peer.plain()?;
            peer.note_acked(seg.ack, now, self.opts.window);
        }
        own.note_sent_ack(seg.ack);
        if seg.payload.is_empty() {
            return Some(PacketOutcome::Control);
        }
        if let Some(outcome) = own.pass_next(seg.payload.len(), now) {
            return Some(outcome);
        }
        let (flow, mut env) = self.parts(slot)?;
        let own = flow.half(side).plain()?;
        let outcome = own.take_next(seg.payload, seg.ts, &mut env, sink);
        end_answers(flow, side, 0, &mut env, sink);
        Some(outcome)
    }

    /// A segment of no flow in the table: only payload makes one.
    fn push_unknown(
        &mut self,
        seg: &Segment<'_>,
        name: Name,
        side: Side,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        let now = self.clock.now();
        if seg.flags.contains(TcpFlags::RST) {
            return PacketOutcome::Control;
        }
        if seg.flags.contains(TcpFlags::SYN) {
            let tag = name.tag(side);
            self.isns.insert(tag, seg.seq, now);
        }
        if seg.payload.is_empty() {
            if seg.flags.contains(TcpFlags::URG) {
                let tag = name.tag(side);
                let at = advance(seg.seq, u64::from(seg.urgent.max(1)) - 1);
                self.isns.note_urgent(tag, at);
            }
            return PacketOutcome::Control;
        }
        // As a rule the client has the higher port. Where it has not, it is charged to whom it talks to, and only such
        // flows of that host's give way for it.
        let client = if seg.src.port() < seg.dst.port() {
            seg.dst.ip()
        } else {
            seg.src.ip()
        };
        let slot = self.flows.insert(Flow::new(name, now), Source::of(client));
        self.stats.flows += 1;
        self.next_due = self.next_due.min(now + self.opts.idle);
        let outcome = self.take(slot, seg, name, side, sink);
        self.settle(slot, sink);
        outcome
    }

    /// Charges a flow for what it has become, and sees to it that the caps hold again and that time finds it.
    fn settle(&mut self, slot: u32, sink: &mut impl Sink) {
        self.flows.settle(slot, &mut self.budget);
        self.rearm(slot);
        while let Some(victim) = self.flows.victim(slot) {
            self.stats.evicted_flows += 1;
            self.close_flow(victim, End::Idle, sink);
        }
        while self.budget.over(0) > 0 && self.shed_largest(self.budget.over(0), 0, sink) {}
    }

    /// Makes whoever holds most of all shed about `need` bytes; `false` where nobody holds more than one of size `own`.
    fn shed_largest(&mut self, need: usize, own: u8, sink: &mut impl Sink) -> bool {
        let Some((victim, largest)) = self.flows.largest() else {
            return false;
        };
        let Some((flow, mut env)) = self.parts(victim) else {
            return false;
        };
        let Some(direction) = flow.largest().filter(|_| largest > own) else {
            return false;
        };
        let freed = direction.give_way(need, &mut env, sink);
        self.flows.settle(victim, &mut self.budget);
        self.rearm(victim);
        freed
    }

    fn push_known(
        &mut self,
        slot: u32,
        seg: &Segment<'_>,
        name: Name,
        side: Side,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        let tag = seg.flags.contains(TcpFlags::SYN).then(|| name.tag(side));
        let Some((flow, mut env)) = self.parts(slot) else {
            return PacketOutcome::Control;
        };
        if seg.flags.contains(TcpFlags::RST) {
            // Text on a RST is a diagnosis for people, no part of the stream (RFC 9293 §3.10.7.4 discards it).
            reset(flow, seg, side, env.now);
            return PacketOutcome::Control;
        }
        if seg.flags.contains(TcpFlags::ACK) {
            for generation in &mut flow.other(side).generations {
                generation.note_ack(seg.ack, &mut env, sink);
            }
        }
        if seg.payload.is_empty() && tag.is_none() {
            flow.half(side).note_bare(seg, &mut env, sink);
        }
        if let Some(tag) = tag {
            let mut own = false;
            for generation in &mut flow.half(side).generations {
                own = own || generation.note_syn(seg.seq, &mut env, sink);
            }
            if !own {
                let now = env.now;
                self.isns.insert(tag, seg.seq, now);
            }
        }
        if seg.payload.is_empty() && seg.cut == 0 {
            if seg.flags.contains(TcpFlags::FIN) && tag.is_none() {
                self.bare_fin(slot, seg.seq, side);
            }
            return PacketOutcome::Control;
        }
        self.take(slot, seg, name, side, sink)
    }

    fn bare_fin(&mut self, slot: u32, seq: Seq, side: Side) {
        let Some((flow, env)) = self.parts(slot) else {
            return;
        };
        let half = flow.half(side);
        if let Place::In(at) | Place::Doubtful(at) = half.place(seq, 0, env.opts)
            && let Some(generation) = half.generations.get_mut(at)
        {
            generation.note_bare_fin(seq, &env);
        }
    }

    /// Gives a segment that takes sequence space to the generation in whose window it lies, or opens one for it.
    fn take(
        &mut self,
        slot: u32,
        seg: &Segment<'_>,
        name: Name,
        side: Side,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        let syn = seg.flags.contains(TcpFlags::SYN);
        let part = Part {
            // The SYN itself takes one sequence number; data may come with it (RFC 7413).
            seq: advance(seg.seq, u64::from(syn)),
            payload: seg.payload,
            cut: seg.cut,
            fin: seg.flags.contains(TcpFlags::FIN),
            syn,
            urgent: seg.flags.contains(TcpFlags::URG).then_some(seg.urgent),
            ack: seg.flags.contains(TcpFlags::ACK).then_some(seg.ack),
            ts: seg.ts,
        };
        let Some((flow, env)) = self.parts(slot) else {
            return PacketOutcome::OutOfWindow;
        };
        let place = flow.half(side).place(part.seq, part.len(), env.opts);
        let doubtful = match place {
            Place::In(at) => return self.take_in(slot, side, at, &part, sink),
            Place::Doubtful(at) => Some(at),
            Place::Free | Place::Stray => None,
        };
        let Ok(evict) = flow.half(side).make_room(env.now, env.opts) else {
            return self.take_doubtful(slot, side, doubtful, &part, sink);
        };
        let (now, window) = (env.now, env.opts.window);
        let tag = name.tag(side);
        let opening = self.isns.take(tag, part.seq, window, now);
        let opens = opening.is_some()
            || (!part.payload.is_empty()
                && match place {
                    Place::Free => true,
                    Place::Stray => self.strays_agree(slot, side, &part),
                    Place::In(_) | Place::Doubtful(_) => false,
                });
        if !opens {
            return self.take_doubtful(slot, side, doubtful, &part, sink);
        }
        let ends = Endpoints {
            vni: seg.vni,
            src: seg.src,
            dst: seg.dst,
        };
        let id = self.next_id();
        self.flows.furnish(slot, side);
        let Some((flow, mut env)) = self.parts(slot) else {
            return PacketOutcome::OutOfWindow;
        };
        if let Some(evict) = evict {
            let old = flow.half(side).generations.remove(evict);
            old.close(End::Idle, &mut env, sink);
        }
        let generation = match opening {
            Some(opening) => Direction::from_syn(id, ends, opening, &mut env, sink),
            None => Direction::midstream(id, ends, part.seq, &mut env),
        };
        let half = flow.half(side);
        let at = half.generations.len();
        // As a rule there is one: no room for three more.
        half.generations.reserve_exact(1);
        half.generations.push(generation);
        self.take_in(slot, side, at, &part, sink)
    }

    fn strays_agree(&mut self, slot: u32, side: Side, part: &Part<'_>) -> bool {
        let end = advance(part.seq, part.len());
        self.flow(slot)
            .is_some_and(|flow| flow.half(side).note_stray(part.seq, end))
    }

    fn take_doubtful(
        &mut self,
        slot: u32,
        side: Side,
        at: Option<usize>,
        part: &Part<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        match at {
            Some(at) => self.take_in(slot, side, at, part, sink),
            None if part.payload.is_empty() => PacketOutcome::Control,
            None => PacketOutcome::OutOfWindow,
        }
    }

    fn take_in(
        &mut self,
        slot: u32,
        side: Side,
        at: usize,
        part: &Part<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        self.make_room(slot, side, at, part, sink);
        let Some((flow, mut env)) = self.parts(slot) else {
            return PacketOutcome::OutOfWindow;
        };
        end_answers(flow, side, at, &mut env, sink);
        let Some(generation) = flow.half(side).generations.get_mut(at) else {
            return PacketOutcome::OutOfWindow;
        };
        let outcome = generation.take(part, &mut env, sink);
        end_answers(flow, side, at, &mut env, sink);
        outcome
    }

    /// Where the table is full and a segment must be held, whoever holds much more gives way.
    fn make_room(
        &mut self,
        slot: u32,
        side: Side,
        at: usize,
        part: &Part<'_>,
        sink: &mut impl Sink,
    ) {
        // More than any segment costs, with a run that grows.
        while self.budget.over(3 * RUN_BYTES) > 0 {
            let Some((flow, env)) = self.parts(slot) else {
                return;
            };
            let own = size(flow.held() + cost_of(part.payload.len()));
            let Some(generation) = flow.half(side).generations.get(at) else {
                return;
            };
            let lacks = generation.lacks(part, &env);
            if lacks == 0 || !self.shed_largest(lacks, own, sink) {
                return;
            }
        }
    }

    /// Lets time pass without a packet: holes become gaps, idle flows close. `now` is believed; call it with the wall
    /// clock only when nothing waits to be read.
    pub fn advance(&mut self, now: Timestamp, sink: &mut impl Sink) {
        let now = self.clock.advance(now);
        if now >= self.next_due {
            self.expire(now, sink);
        }
    }

    /// Flushes everything, in the order in which the directions appeared: holes become gaps and every direction is
    /// closed, for `end` where neither FIN nor RST was seen. The table is empty afterwards and may be used again.
    pub fn finish(&mut self, end: End, sink: &mut impl Sink) {
        let mut all: Vec<(DirectionId, u32, Side)> = Vec::new();
        for (slot, flow) in self.flows.iter_mut() {
            for side in [Side::Low, Side::High] {
                let generations = flow.half(side).generations.iter();
                all.extend(generations.map(|generation| (generation.id, slot, side)));
            }
        }
        all.sort_unstable_by_key(|(id, ..)| *id);
        for (id, slot, side) in all {
            let Some((flow, mut env)) = self.parts(slot) else {
                continue;
            };
            let generations = &mut flow.half(side).generations;
            if let Some(at) = generations.iter().position(|g| g.id == id) {
                let ended = generations.remove(at);
                ended.close(end, &mut env, sink);
            }
        }
        self.flows.clear(&mut self.budget);
        self.next_due = Timestamp::INFINITY;
    }

    /// Connections in the table.
    #[must_use]
    pub fn flows(&self) -> usize {
        self.flows.len()
    }

    /// Bytes that wait behind holes, with the bookkeeping of each piece.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.budget.total() - self.flows.bytes()
    }

    /// What the state of all flows is charged, the bytes that they hold aside.
    #[must_use]
    pub fn flow_bytes(&self) -> usize {
        self.flows.bytes()
    }

    /// Payload bytes shed or refused because a cap was reached.
    #[must_use]
    pub fn shed_bytes(&self) -> u64 {
        self.stats.shed_bytes
    }

    /// Flow time: the latest believed packet time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Counts since the table was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats {
            time_jumps: self.clock.jumps(),
            ..self.stats
        }
    }

    fn flow(&mut self, slot: u32) -> Option<&mut Flow> {
        self.flows.get_mut(slot)
    }

    /// A flow, and what its directions need of the rest.
    fn parts(&mut self, slot: u32) -> Option<(&mut Flow, Env<'_>)> {
        let flow = self.flows.get_mut(slot)?;
        let env = Env {
            now: self.clock.now(),
            opts: &self.opts,
            budget: &mut self.budget,
            stats: &mut self.stats,
            hasher: &self.content,
            free_places: &mut self.free_places,
        };
        Some((flow, env))
    }

    fn next_id(&mut self) -> DirectionId {
        let number = self.next_number;
        self.next_number += 1;
        let place = self.free_places.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        });
        DirectionId::new(number, place)
    }

    fn close_flow(&mut self, slot: u32, end: End, sink: &mut impl Sink) {
        if let Some((flow, mut env)) = self.parts(slot) {
            while let Some((side, at)) = flow.eldest() {
                let ended = flow.half(side).generations.remove(at);
                ended.close(end, &mut env, sink);
            }
        }
        self.flows.remove(slot, &mut self.budget);
    }

    /// Sees to it that the table looks at a flow no later than when time changes something there.
    fn rearm(&mut self, slot: u32) {
        let Some(flow) = self.flows.get(slot) else {
            return;
        };
        if let Some(due) = flow.due(&self.opts) {
            self.flows.arm(slot, due);
            self.next_due = self.next_due.min(due);
        }
    }

    /// Does what time alone does, in the order of time.
    fn expire(&mut self, now: Timestamp, sink: &mut impl Sink) {
        while let Some(slot) = self.flows.pop_timer(now) {
            self.tick(slot, sink);
            self.flows.settle(slot, &mut self.budget);
            self.rearm(slot);
        }
        let mut idle = None;
        while let Some(slot) = self.flows.oldest() {
            let Some(last) = self.flows.get(slot).map(|flow| flow.last) else {
                break;
            };
            if last + self.opts.idle > now {
                idle = Some(last + self.opts.idle);
                break;
            }
            self.close_flow(slot, End::Idle, sink);
        }
        let timer = self.flows.next_timer();
        self.due_next = timer.map(|(_, slot)| slot);
        if let Some(slot) = self.due_next {
            self.flows.prefetch_whole(slot);
        }
        let due = timer.map(|(due, _)| due).into_iter().chain(idle).min();
        self.next_due = due.unwrap_or(Timestamp::INFINITY);
    }

    fn tick(&mut self, slot: u32, sink: &mut impl Sink) {
        let Some((flow, mut env)) = self.parts(slot) else {
            return;
        };
        for side in [Side::Low, Side::High] {
            let half = flow.half(side);
            let newest = half.generations.iter().map(|g| g.last).max();
            let mut at = 0;
            while let Some(generation) = half.generations.get_mut(at) {
                let superseded =
                    Some(generation.last) < newest && generation.last + env.opts.idle <= env.now;
                if generation.tick(&mut env, sink) || superseded {
                    let ended = half.generations.remove(at);
                    ended.close(End::Idle, &mut env, sink);
                } else {
                    at += 1;
                }
            }
        }
        if flow.is_empty() {
            self.flows.remove(slot, &mut self.budget);
        }
    }

    /// Holds the table to its invariants, for the property tests and the fuzz targets.
    ///
    /// # Panics
    /// Where one does not hold.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn check(&self) {
        let mut held = 0;
        self.flows.check(|flow| {
            for half in flow.halves() {
                assert!(half.generations.len() <= super::flow::MAX_GENERATIONS);
                for generation in &half.generations {
                    generation.check(&self.opts);
                }
            }
            held += flow.held();
            if let Some(due) = flow.due(&self.opts) {
                let armed = flow.armed.is_some_and(|armed| armed <= due);
                assert!(armed, "a flow would be forgotten");
                assert!(self.next_due <= due);
            }
        });
        assert_eq!(self.held_bytes(), held);
        self.budget.check(held + self.flows.bytes());
    }
}

/// Looks no more for requests in a direction that looks like answers, where the other one is known to ask.
fn end_answers(flow: &mut Flow, side: Side, at: usize, env: &mut Env<'_>, sink: &mut impl Sink) {
    let half = flow.half(side);
    if !half
        .generations
        .get(at)
        .is_some_and(Direction::seems_to_answer)
    {
        return;
    }
    let asked = flow.other(side).generations.iter().any(|g| g.asks(sink));
    if asked && let Some(generation) = flow.half(side).generations.get_mut(at) {
        generation.make_opaque(PacketOutcome::Response, env, sink);
    }
}

/// A RST counts where its receiver takes it, whatever it acknowledges: exactly where the sender's stream goes on, or where
/// the receiver has said that it expects it (RFC 9293 §3.10.7.4, RFC 5961 §3.2). Then it ends both directions. Only a side
/// that has acknowledged nothing yet may be one whose SYN it answers; that must be acknowledged exactly.
fn reset(flow: &mut Flow, seg: &Segment<'_>, side: Side, now: Timestamp) {
    let half = flow.half(side);
    let mut counts = false;
    for generation in &mut half.generations {
        counts |= generation.note_reset(seg.seq, now);
    }
    let unknown = half.generations.is_empty();
    let other = flow.other(side);
    let alone = other.generations.len() == 1;
    for generation in &mut other.generations {
        let genuine = generation.expects_peer_at(seg.seq);
        if !seg.flags.contains(TcpFlags::ACK) {
            if genuine || (counts && alone) {
                generation.end_by_peer(now);
            }
        } else if genuine || counts || (unknown && !generation.has_acknowledged()) {
            let all = generation.note_reset(seg.ack, now);
            if !all && (genuine || (counts && alone)) {
                generation.note_reset_by_peer(seg.ack, now);
            }
        }
    }
}
