//! What ends a direction: FIN, RST, time.

use crate::decode::Seq;
use crate::time::Timestamp;

use super::super::offset::{StreamOffset, distance};
use super::super::{Chunk, End, Sink, StreamOptions};
use super::{Direction, Env, Start};

/// While the sender repeats what it sent, the direction is kept for so many times the span of the copies that came.
/// Retransmission time-outs double (RFC 6298 §5.5): the next copy comes after one more such span and a little.
const REPEATS: u32 = 3;

impl Direction {
    /// Takes a FIN that stands at `at`. One before bytes that were seen is not the sender's.
    pub(in crate::stream) fn note_fin(&mut self, at: StreamOffset, env: &Env<'_>) {
        let known = self.fin.is_some_and(|(fin, _)| fin >= at);
        // A stray says nothing of where the stream ends.
        let high = if self.is_stray() {
            self.next
        } else {
            self.high
        };
        if at >= high && !known && at.since(self.next) <= u64::from(env.opts.window) {
            self.fin = Some((at, env.now));
        }
    }

    /// A FIN without payload.
    pub(in crate::stream) fn note_bare_fin(&mut self, seq: Seq, env: &Env<'_>) {
        if let Ok(at) = u64::try_from(self.place(seq)) {
            self.last = env.now;
            self.note_fin(StreamOffset(at), env);
        }
    }

    /// Takes the sequence number of the sender's RST, or what the other side's RST acknowledges. It counts only
    /// where a receiver would take it: at the end of what was sent (RFC 5961 §3.2).
    pub(in crate::stream) fn note_reset(&mut self, seq: Seq, now: Timestamp) -> bool {
        let Ok(at) = u64::try_from(self.place(seq)) else {
            return false;
        };
        let at = StreamOffset(at);
        let behind_fin = self.fin.is_some_and(|(fin, _)| fin + 1 == at);
        // A stray says nothing of where the stream ends.
        let at_high = at == self.high && !self.is_stray();
        let counts = at_high || at == self.next || behind_fin;
        if counts {
            self.reset.get_or_insert(now);
        }
        counts
    }

    /// The other side's RST acknowledges bytes up to `ack`, and stands where this side expects the other one to go on.
    /// That the peer has not read all of what was sent is no reason to doubt it.
    pub(in crate::stream) fn note_reset_by_peer(&mut self, ack: Seq, now: Timestamp) {
        let Ok(at) = u64::try_from(self.place(ack)) else {
            return;
        };
        let start = match self.start {
            Start::At(start) => start,
            Start::Waiting(_) => StreamOffset::ZERO,
        };
        if (start..=self.high).contains(&StreamOffset(at)) {
            self.reset.get_or_insert(now);
        }
    }

    /// The other direction of the connection was reset, so this one is.
    pub(in crate::stream) fn end_by_peer(&mut self, now: Timestamp) {
        self.reset.get_or_insert(now);
    }

    /// Takes what the sender of this direction acknowledges.
    #[inline]
    pub(in crate::stream) fn note_sent_ack(&mut self, ack: Seq) {
        if self.ack_sent.is_none_or(|sent| distance(sent, ack) > 0) {
            self.ack_sent = Some(ack);
        }
    }

    /// Whether this side expects the other one to go on at `seq`.
    pub(in crate::stream) fn expects_peer_at(&self, seq: Seq) -> bool {
        self.ack_sent == Some(seq)
    }

    /// Whether this side has acknowledged anything of the other one.
    pub(in crate::stream) fn has_acknowledged(&self) -> bool {
        self.ack_sent.is_some()
    }

    /// When the direction is closed because it has ended. A sender whose end is not acknowledged repeats it at growing
    /// distances; were the direction gone by then, the copy would be rebuilt as a request of its own.
    pub(super) fn end_due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        let since = self
            .fin
            .map(|(_, at)| at)
            .into_iter()
            .chain(self.reset)
            .min()?;
        // While bytes come in order before it, it was not the sender's, or has not taken.
        let since = since.max(self.progress);
        let span = self.repeated.since(since);
        let next_copy = self.repeated + span.saturating_mul(REPEATS).min(opts.idle);
        Some(next_copy.max(since + opts.linger.max(opts.gap_after)))
    }

    /// Delivers what is held, tells every hole as a gap, and closes. `end` is the reason unless the direction has
    /// one of its own.
    pub(in crate::stream) fn close(mut self, end: End, env: &mut Env<'_>, sink: &mut impl Sink) {
        if self.is_waiting() {
            self.open_midstream(env, sink);
        }
        self.release_syn_data(env, sink);
        if self.fin.is_some_and(|(fin, _)| fin < self.high) {
            self.drop_stray(env);
        }
        while !self.held.is_empty() {
            self.give_up_hole(env, sink);
        }
        let known_end = self.fin.map_or(self.high, |(fin, _)| fin.max(self.high));
        self.give_up_until(known_end, env, sink);
        // One that a stray hid from what contradicted it is no end.
        let fin = self.fin.filter(|(fin, _)| *fin >= self.next);
        let end = match (fin, self.reset) {
            (Some(_), _) => End::Fin,
            (None, Some(_)) => End::Reset,
            (None, None) => end,
        };
        sink.chunk(self.id, &self.ends, Chunk::Closed(end));
        env.free_places.push(self.id.place());
    }
}
