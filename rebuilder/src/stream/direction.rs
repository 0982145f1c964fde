//! One direction of one connection: a sequence space, what of it was delivered, and what waits.

use std::hash::BuildHasher;

use crate::decode::Seq;
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

use super::held::{Arrival, Held, Piece};
use super::isn::Opening;
use super::offset::{StreamOffset, advance, distance, len64};
use super::table::Stats;
use super::{Chunk, DirectionId, Endpoints, Interest, Sink, StreamOptions};
use crate::budget::{Budget, Source};

mod caps;
mod ending;
mod holes;
mod late;
mod syn;

pub(super) use caps::cost_of;
use late::Recent;
use syn::SynData;

/// How far ahead a segment may lie in a direction whose bytes nobody wants: the largest window that TCP can scale to
/// (RFC 7323 §2.3). Nothing is held there, so nothing speaks for less.
const OPAQUE_WINDOW: u32 = 1 << 30;

/// What the direction needs of the table around it.
pub(super) struct Env<'a> {
    /// Flow time.
    pub(super) now: Timestamp,
    pub(super) opts: &'a StreamOptions,
    pub(super) budget: &'a mut Budget,
    pub(super) stats: &'a mut Stats,
    /// Of what is handed on.
    pub(super) hasher: &'a foldhash::fast::RandomState,
    /// Where the place of a direction goes that is gone.
    pub(super) free_places: &'a mut Vec<usize>,
}

impl Env<'_> {
    fn hash(&self, bytes: &[u8]) -> u64 {
        self.hasher.hash_one(bytes)
    }
}

/// The part of a segment that takes sequence space, SYN aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part<'a> {
    /// Of the first payload byte.
    pub(super) seq: Seq,
    pub(super) payload: &'a [u8],
    pub(super) cut: u32,
    pub(super) fin: bool,
    /// It came with the SYN.
    pub(super) syn: bool,
    /// The urgent pointer.
    pub(super) urgent: Option<u16>,
    /// What the sender acknowledges.
    pub(super) ack: Option<Seq>,
    pub(super) ts: Timestamp,
}

impl Part<'_> {
    /// Bytes of the stream that the segment had on the wire.
    pub(super) fn len(&self) -> u64 {
        len64(self.payload.len()) + u64::from(self.cut)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The SYN was not seen, nothing was delivered yet: earlier bytes may come until the wait since then is over.
    Waiting(Timestamp),
    /// The stream begins there.
    At(StreamOffset),
}

/// How near a segment lies to what a direction expects next; the lesser is the nearer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reach {
    /// It ends before the direction's first byte: inside the window, but hardly of this direction.
    pub(super) before_start: bool,
    /// Bytes to or from the next expected one.
    pub(super) distance: u64,
}

/// The missing bytes between the next expected one and the first held one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hole {
    end: StreamOffset,
    /// Since when the other side is known to have received all of it.
    acked: Option<Timestamp>,
}

/// Invariants (see `check`): nothing held lies before `next`; after every call no held piece lies at `next` unless the
/// start is still open; `charged` is what the budget has for it.
///
/// There are more of these than a processor's caches hold, and a packet of a connection in order should fetch few lines of
/// them: what such a packet needs stands in front, in one line what an acknowledgement needs, in three all of it.
#[repr(C, align(64))]
pub(super) struct Direction {
    /// The next byte to deliver; while the start is open, the first byte that was seen.
    next: StreamOffset,
    /// The end of the farthest byte known to exist.
    high: StreamOffset,
    /// Flow time of the last segment that took sequence space here.
    pub(super) last: Timestamp,
    /// The farthest acknowledgement of the other side, and when it came.
    acked: Option<(StreamOffset, Timestamp)>,
    /// The sequence number of offset zero.
    anchor: Seq,
    opaque: Option<PacketOutcome>,
    /// What the bytes seem to be, while they are wanted all the same.
    presumed: Option<PacketOutcome>,
    // The second line.
    pub(super) id: DirectionId,
    /// When the last new byte in order arrived.
    progress: Timestamp,
    /// `None` when the direction was joined midway and its SYN did not come late either.
    isn: Option<Seq>,
    /// What the sender acknowledged last: where its peer's next segment, or its RST, stands.
    ack_sent: Option<Seq>,
    // As long as a line.
    recent: Recent,
    // What only the full way asks for.
    start: Start,
    ends: Endpoints,
    source: Source,
    held: Held,
    charged: usize,
    hole: Option<Hole>,
    /// Bytes in this range were shed or refused at a cap: a hole in it is not waited for.
    shed: Option<(StreamOffset, StreamOffset)>,
    /// Where the FIN stands, and since when it is known.
    fin: Option<(StreamOffset, Timestamp)>,
    reset: Option<Timestamp>,
    /// What came with the SYN.
    syn_data: Option<Box<SynData>>,
    /// Where the urgent byte is.
    urgent: Option<StreamOffset>,
    /// When the last segment came of which nothing was new.
    repeated: Timestamp,
}

impl Direction {
    /// A direction whose SYN was seen.
    pub(super) fn from_syn(
        id: DirectionId,
        ends: Endpoints,
        opening: Opening,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> Self {
        let isn = opening.isn;
        let anchor = advance(isn, 1);
        let mut this = Self::new(id, ends, Some(isn), anchor, StreamOffset::ZERO, env);
        if let Some(urgent) = opening.urgent {
            this.note_urgent(urgent, 1);
        }
        this.open(StreamOffset::ZERO, false, env, sink);
        this
    }

    /// A direction joined midway, of which `first` is the first sequence number seen.
    pub(super) fn midstream(
        id: DirectionId,
        ends: Endpoints,
        first: Seq,
        env: &mut Env<'_>,
    ) -> Self {
        Self::new(id, ends, None, first, StreamOffset::MIDWAY, env)
    }

    fn new(
        id: DirectionId,
        ends: Endpoints,
        isn: Option<Seq>,
        anchor: Seq,
        next: StreamOffset,
        env: &mut Env<'_>,
    ) -> Self {
        env.stats.directions += 1;
        Self {
            id,
            ends,
            source: Source::of(ends.src.ip()),
            isn,
            anchor,
            start: Start::Waiting(env.now),
            next,
            high: next,
            held: Held::default(),
            charged: 0,
            hole: None,
            progress: env.now,
            acked: None,
            shed: None,
            fin: None,
            reset: None,
            syn_data: None,
            urgent: None,
            recent: Recent::default(),
            repeated: env.now,
            ack_sent: None,
            opaque: None,
            presumed: None,
            last: env.now,
        }
    }

    fn open(&mut self, at: StreamOffset, midstream: bool, env: &mut Env<'_>, sink: &mut impl Sink) {
        self.start = Start::At(at);
        self.next = at;
        env.stats.midstream += u64::from(midstream);
        self.emit(Chunk::Open { midstream }, sink);
    }

    /// The lowest sequence number is the start after all.
    fn open_midstream(&mut self, env: &mut Env<'_>, sink: &mut impl Sink) {
        let at = self.held.first().map_or(self.next, |first| first.at);
        self.open(at, true, env, sink);
        self.drain(env, sink);
    }

    fn is_waiting(&self) -> bool {
        matches!(self.start, Start::Waiting(_))
    }

    /// A FIN or RST was seen and nothing since has contradicted it.
    pub(super) fn is_ended(&self) -> bool {
        self.fin.is_some() || self.reset.is_some()
    }

    /// Bytes of memory that are held, bookkeeping included.
    fn cost(&self) -> usize {
        self.held.cost() + self.syn_data.as_ref().map_or(0, |kept| kept.cost())
    }

    /// What the budget has for it.
    pub(super) fn charged(&self) -> usize {
        self.charged
    }

    /// Where `seq` lies on the scale of [`StreamOffset`]; negative when before offset zero.
    fn place(&self, seq: Seq) -> i64 {
        let next = i64::try_from(self.next.0).unwrap_or(i64::MAX);
        next.saturating_add(distance(advance(self.anchor, self.next.0), seq))
    }

    /// How near a segment lies to the next expected byte; `None` when it is not of this direction's window.
    pub(super) fn reach(&self, seq: Seq, len: u64, window: u32) -> Option<Reach> {
        let ahead = self.ahead(seq, len, window)?;
        let before_start = match self.start {
            Start::At(start) => {
                let start = i64::try_from(start.0).unwrap_or(i64::MAX);
                let end = self.place(seq).saturating_add_unsigned(len);
                // One byte just before the first is a keep-alive probe.
                end < start || (end == start && len > 1)
            }
            Start::Waiting(_) => false,
        };
        Some(Reach {
            before_start,
            distance: ahead.unsigned_abs(),
        })
    }

    /// How far a segment lies ahead of the next expected byte; `None` when it is not of this direction's window.
    fn ahead(&self, seq: Seq, len: u64, window: u32) -> Option<i64> {
        let ahead = distance(advance(self.anchor, self.next.0), seq);
        let limit = if self.opaque.is_some() {
            OPAQUE_WINDOW
        } else {
            window
        };
        let end = ahead.saturating_add_unsigned(len);
        let near =
            (ahead <= i64::from(limit) || self.runs_on(seq, window)) && end >= -i64::from(window);
        near.then_some(ahead)
    }

    /// Whether a segment farther ahead than a window goes on from bytes that are known to exist. A sender is never that
    /// far ahead of a byte that its peer lacks, so the peer has it, only the copy is missing, and the hole has not grown
    /// old yet: a fast upload sends more than a window in that time. It would be wrong to take this for another connection:
    /// a line in the middle of a body would become its first request.
    fn runs_on(&self, seq: Seq, window: u32) -> bool {
        let high = i64::try_from(self.high.0).unwrap_or(i64::MAX);
        // A part may be missing there, too, or come later.
        let reach = high.saturating_add(i64::from(window / 16));
        !self.is_waiting() && self.place(seq) <= reach
    }

    fn emit(&mut self, chunk: Chunk<'_>, sink: &mut impl Sink) {
        if self.opaque.is_some() {
            return;
        }
        match sink.chunk(self.id, &self.ends, chunk) {
            Interest::Wanted => self.presumed = None,
            Interest::Presumed(outcome) => self.presumed = Some(outcome),
            Interest::Opaque(outcome) => self.opaque = Some(outcome),
        }
    }

    /// What the stage behind keeps for it; `None` where it is told no more bytes.
    pub(super) fn behind(&self) -> Option<DirectionId> {
        self.opaque.is_none().then_some(self.id)
    }

    /// Whether it looks like answers, and is looked through for requests all the same.
    #[inline]
    pub(super) fn seems_to_answer(&self) -> bool {
        self.opaque.is_none() && self.presumed == Some(PacketOutcome::Response)
    }

    /// Whether the other direction gives answers because this one gave requests. Where its SYN was not seen, only if it comes
    /// from the higher port: else whoever makes a server send a body that reads like a request could silence himself.
    pub(super) fn asks(&self, sink: &impl Sink) -> bool {
        (self.isn.is_some() || self.ends.src.port() > self.ends.dst.port()) && sink.asks(self.id)
    }

    /// No more bytes are wanted.
    pub(super) fn make_opaque(
        &mut self,
        outcome: PacketOutcome,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) {
        self.opaque = Some(outcome);
        self.drain(env, sink);
        self.refresh_hole();
    }

    /// Takes a segment that lies in this direction's window.
    pub(super) fn take(
        &mut self,
        part: &Part<'_>,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        self.last = env.now;
        if let Some(ack) = part.ack {
            self.note_sent_ack(ack);
        }
        let outcome = self.take_payload(part, env, sink);
        if outcome == PacketOutcome::Duplicate {
            self.repeated = env.now;
        }
        let end = self.place(part.seq).saturating_add_unsigned(part.len());
        if part.fin
            && let Ok(at) = u64::try_from(end)
        {
            self.note_fin(StreamOffset(at), env);
        }
        self.refresh_hole();
        if part.payload.is_empty() {
            return PacketOutcome::Control;
        }
        let presumed = self.presumed.filter(|_| outcome == PacketOutcome::Stream);
        self.opaque.or(presumed).unwrap_or(outcome)
    }

    /// Whether nothing is held, nothing but the idle time will end it, and nothing is in doubt.
    pub(super) fn is_plain(&self) -> bool {
        !self.is_waiting()
            && self.held.is_empty()
            && self.syn_data.is_none()
            && self.fin.is_none()
            && self.reset.is_none()
            && self.shed.is_none()
            && self.urgent.is_none()
            && self.hole.is_none()
    }

    /// Whether it goes on at `seq`.
    #[inline]
    pub(super) fn is_next(&self, seq: Seq) -> bool {
        advance(self.anchor, self.next.0) == seq
    }

    /// Takes the next payload of a plain direction, as [`Direction::take`] does, if nobody wants it.
    #[inline]
    pub(super) fn pass_next(&mut self, len: usize, now: Timestamp) -> Option<PacketOutcome> {
        let outcome = self.opaque?;
        self.last = now;
        self.next = self.next + len64(len);
        self.high = self.high.max(self.next);
        Some(outcome)
    }

    /// The same, if it is wanted.
    pub(super) fn take_next(
        &mut self,
        payload: &[u8],
        ts: Timestamp,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        self.last = env.now;
        self.high = self.high.max(self.next + len64(payload.len()));
        self.progress = env.now;
        let piece = Piece {
            data: payload,
            ts,
            segment_start: true,
            conflict: false,
        };
        self.deliver(piece, env, sink);
        if self.opaque.is_some() {
            self.drain(env, sink);
        }
        self.opaque
            .or(self.presumed)
            .unwrap_or(PacketOutcome::Stream)
    }

    fn take_payload(
        &mut self,
        part: &Part<'_>,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        if let Some(outcome) = self.keep_syn_data(part, env) {
            return outcome;
        }
        let mut suspect = self.weigh_syn_data(part, env, sink);
        if let Some(pointer) = part.urgent {
            self.note_urgent(part.seq, pointer);
        }
        suspect |= self.is_urgent(part);
        self.compare_late(part, env, sink);
        let outcome = self.place_payload(part, suspect, env, sink);
        self.drop_syn_data(env);
        outcome
    }

    /// `suspect`: another reader may have other bytes in its place.
    fn place_payload(
        &mut self,
        part: &Part<'_>,
        suspect: bool,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> PacketOutcome {
        self.give_up_cuts_for(part.payload.len(), env, sink);
        let cut = u64::from(part.cut.min(env.opts.window));
        let at = self.place(part.seq);
        let captured_end = at.saturating_add_unsigned(len64(part.payload.len()));
        let floor = if self.is_waiting() {
            StreamOffset::ZERO
        } else {
            self.next
        };
        // What lies before the floor was delivered, given up, or never belonged to this direction.
        let clamp = |place: i64| StreamOffset(u64::try_from(place).unwrap_or(0)).max(floor);
        let (from, to, cut_to) = (
            clamp(at),
            clamp(captured_end),
            clamp(captured_end.saturating_add_unsigned(cut)),
        );

        if cut_to > self.high {
            self.high = cut_to;
            // The sender went on: the RST before was not its own, or did not take.
            self.reset = None;
            if self.fin.is_some_and(|(fin, _)| fin < cut_to) {
                self.fin = None;
            }
        }
        if self.opaque.is_some() {
            self.next = self.next.max(cut_to);
            return PacketOutcome::Stream;
        }
        if from >= cut_to {
            return self.outcome_behind(at, captured_end);
        }

        let fresh = from.0 == u64::try_from(at).unwrap_or(u64::MAX);
        let skip = part
            .payload
            .len()
            .saturating_sub(super::offset::index(to.since(from)));
        let bytes = part.payload.get(skip..).unwrap_or_default();
        let before = self.cost();
        self.skip_shed(from, env, sink);

        let mut outcome = PacketOutcome::Duplicate;
        if bytes.is_empty() {
            // All of the captured payload is known; only the cut behind it may tell something new.
        } else if !self.is_waiting() && from == self.next && self.held.is_empty() {
            self.progress = env.now;
            let piece = Piece {
                data: bytes,
                ts: part.ts,
                segment_start: fresh,
                conflict: suspect,
            };
            self.deliver(piece, env, sink);
            if cut == 0 && self.opaque.is_none() {
                // The way of most segments: nothing was held, and nothing is.
                return PacketOutcome::Stream;
            }
            outcome = PacketOutcome::Stream;
        } else if self.has_no_room(from, bytes.len(), env) {
            self.note_shed(from, to);
            env.stats.shed_bytes += len64(bytes.len());
            return PacketOutcome::OverCap;
        } else {
            let new = Arrival {
                at: from,
                bytes,
                ts: part.ts,
                now: env.now,
                segment_start: fresh,
                suspect,
            };
            let done = self.held.insert(new, env.opts.overlap);
            env.stats.conflicting_bytes += done.conflicting;
            if done.stored > 0 {
                outcome = PacketOutcome::Stream;
                if from == self.next {
                    self.progress = env.now;
                }
            }
        }
        if cut > 0 && self.opaque.is_none() {
            let cut_from = to.max(self.next);
            self.held
                .insert_cut(cut_from, cut_to.since(cut_from), env.now);
        }
        if !self.is_waiting() {
            self.drain(env, sink);
        }
        if let Some(shed_from) = self.enforce_caps(before, env, sink)
            && shed_from <= from
            && from >= self.next
            && outcome == PacketOutcome::Stream
        {
            outcome = PacketOutcome::OverCap;
        }
        outcome
    }

    /// The outcome of a payload of which nothing is new: `at..end`.
    fn outcome_behind(&self, at: i64, end: i64) -> PacketOutcome {
        let start = match self.start {
            Start::At(start) => i64::try_from(start.0).unwrap_or(i64::MAX),
            Start::Waiting(_) => 0,
        };
        // A keep-alive probe may carry one byte, just before the first (RFC 9293 §3.8.4).
        let probe = end == start && end - at == 1;
        if end > start || probe {
            PacketOutcome::Duplicate
        } else {
            PacketOutcome::OutOfWindow
        }
    }

    fn deliver(&mut self, piece: Piece<'_>, env: &mut Env<'_>, sink: &mut impl Sink) {
        let len = len64(piece.data.len());
        if self.opaque.is_none() {
            env.stats.delivered_bytes += len;
            self.remember(&piece, env);
        }
        self.next = self.next + len;
        let chunk = Chunk::Data {
            bytes: piece.data,
            ts: piece.ts,
            segment_start: piece.segment_start,
            conflict: piece.conflict,
        };
        self.emit(chunk, sink);
    }

    /// The bytes before `to` will never come.
    fn give_up_until(&mut self, to: StreamOffset, env: &mut Env<'_>, sink: &mut impl Sink) {
        let len = to.since(self.next);
        if len == 0 {
            return;
        }
        self.next = to;
        if self.opaque.is_none() {
            env.stats.gap_bytes += len;
        }
        self.emit(Chunk::Gap { len }, sink);
    }

    /// Delivers all that follows on what was delivered.
    fn drain(&mut self, env: &mut Env<'_>, sink: &mut impl Sink) {
        loop {
            if self.opaque.is_some() {
                self.held.clear();
                self.syn_data = None;
                self.shed = None;
                self.next = self.next.max(self.high);
                break;
            }
            let Some(first) = self.held.first() else {
                break;
            };
            if first.at > self.next {
                let before = self.next;
                self.skip_shed(first.at, env, sink);
                if self.next == before {
                    break;
                }
                continue;
            }
            if first.cut.is_some() {
                // A hole, though its length is known.
                break;
            }
            let Some(run) = self.held.pop_run() else {
                break;
            };
            for piece in run.pieces() {
                self.deliver(piece, env, sink);
            }
        }
        self.settle(env);
    }

    /// When time alone changes something here; `None` when it does not.
    pub(super) fn due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        let start = match self.start {
            Start::Waiting(since) => Some(since + opts.midstream_wait),
            Start::At(_) => None,
        };
        [
            start,
            self.syn_data_due(opts),
            self.hole_due(opts),
            self.end_due(opts),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Lets time pass. `true` when the direction has ended and is to be closed.
    pub(super) fn tick(&mut self, env: &mut Env<'_>, sink: &mut impl Sink) -> bool {
        if let Start::Waiting(since) = self.start
            && since + env.opts.midstream_wait <= env.now
        {
            self.open_midstream(env, sink);
            self.refresh_hole();
        }
        if self
            .syn_data_due(env.opts)
            .is_some_and(|due| due <= env.now)
        {
            self.release_syn_data(env, sink);
        }
        while self.hole_due(env.opts).is_some_and(|due| due <= env.now) {
            if !self.drop_stray(env) {
                self.give_up_hole(env, sink);
            }
            self.refresh_hole();
        }
        self.end_due(env.opts).is_some_and(|due| due <= env.now)
    }

    /// Panics where an invariant does not hold.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self, opts: &StreamOptions) {
        self.held.check();
        assert_eq!(self.charged, self.cost(), "the budget knows another figure");
        assert!(self.cost() <= opts.flow_cap, "over the flow's cap");
        assert!(self.high >= self.held.end().unwrap_or(self.high));
        if let Some(first) = self.held.first() {
            assert!(self.opaque.is_none(), "an opaque direction holds bytes");
            if !self.is_waiting() {
                let waits = first.at > self.next || first.cut.is_some();
                assert!(waits && first.at >= self.next, "bytes could be delivered");
                assert!(self.hole.is_some());
            }
        } else {
            assert!(self.hole.is_none());
        }
        if !self.is_waiting() {
            assert!(self.next <= self.high);
        }
    }
}
