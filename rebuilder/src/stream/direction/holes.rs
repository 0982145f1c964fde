//! When a hole becomes a gap (DESIGN §2 rule 3).

use std::time::Duration;

use crate::decode::Seq;
use crate::time::Timestamp;

use super::super::offset::StreamOffset;
use super::super::{Sink, StreamOptions};
use super::{Direction, Env, Hole};

/// How far ahead a segment may lie alone and still be believed: more than what overtakes a byte on the way from the
/// mirror (64 jumbo frames are 576 KiB), and no more than a server's own receive window would take.
const STRAY_REACH: u64 = 1 << 20;

impl Direction {
    /// Takes an acknowledgement of the other side.
    pub(in crate::stream) fn note_ack(
        &mut self,
        ack: Seq,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) {
        if self.syn_data.is_some() {
            self.note_taken(ack, env, sink);
        }
        if self.note_acked(ack, env.now, env.opts.window) {
            self.refresh_hole();
        }
    }

    /// The same where nothing is held and nothing came with the SYN. `true` where it is farther than any before.
    pub(in crate::stream) fn note_acked(&mut self, ack: Seq, now: Timestamp, window: u32) -> bool {
        // In order and with nothing to wait for, acknowledgements tell nothing that will be asked.
        if self.opaque.is_some() || self.ahead(ack, 0, window).is_none() {
            return false;
        }
        let Ok(at) = u64::try_from(self.place(ack)) else {
            return false;
        };
        let at = StreamOffset(at);
        let is_new = self.acked.is_none_or(|(acked, _)| acked < at);
        if is_new {
            self.acked = Some((at, now));
        }
        is_new
    }

    /// Notes whether there is a hole, and whether the other side has all of it.
    pub(super) fn refresh_hole(&mut self) {
        let end = match self.held.first() {
            Some(first) if !self.is_waiting() => match first.cut {
                Some((end, _)) if first.at <= self.next => end,
                _ => first.at,
            },
            _ => {
                self.hole = None;
                return;
            }
        };
        let mut hole = self
            .hole
            .filter(|hole| hole.end == end)
            .unwrap_or(Hole { end, acked: None });
        if hole.acked.is_none() {
            hole.acked = self
                .acked
                .filter(|(acked, _)| *acked >= end)
                .map(|(_, at)| at);
        }
        self.hole = Some(hole);
    }

    /// When the hole becomes a gap.
    pub(super) fn hole_due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        let hole = self.hole?;
        let first = self.held.first()?;
        let by_cut = match first.cut {
            Some((_, since)) if first.at <= self.next => Some(since + opts.cut_gap_after),
            _ => None,
        };
        // A byte that is exactly as late as the setting allows still fills its hole; and while bytes in order arrive,
        // the sender is not behind the hole.
        let by_age = first.known.max(self.progress) + opts.gap_after + Duration::from_nanos(1);
        let by_ack = hole.acked.map(|at| at + opts.acked_gap_after);
        by_cut.into_iter().chain(by_ack).chain([by_age]).min()
    }

    /// Gives the hole up: the bytes before what is held, or the cut that is next.
    pub(super) fn give_up_hole(&mut self, env: &mut Env<'_>, sink: &mut impl Sink) {
        let Some(first) = self.held.first() else {
            return;
        };
        match first.cut {
            Some((end, _)) if first.at <= self.next => {
                self.held.pop_cut();
                self.give_up_until(end, env, sink);
            }
            _ => self.give_up_until(first.at, env, sink),
        }
        self.drain(env, sink);
    }

    /// Drops a segment that lies alone, far ahead, and of which nobody has acknowledged anything, instead of giving up
    /// all that lies before it: whoever can guess a port may send it, and the stream would be lost up to there. If it
    /// was the sender's after all, it is as lost as the many bytes before it; what follows tells the gap.
    pub(super) fn drop_stray(&mut self, env: &mut Env<'_>) -> bool {
        let acked = self.hole.is_some_and(|hole| hole.acked.is_some());
        if acked || !self.is_stray() {
            return false;
        }
        if let Some(shed) = self.held.shed_last(usize::MAX) {
            env.stats.shed_bytes += shed.bytes;
        }
        self.high = self.next;
        self.settle(env);
        true
    }

    /// Whether all that is held is a single segment farther ahead than [`STRAY_REACH`].
    pub(super) fn is_stray(&self) -> bool {
        self.held.is_lone()
            && !self.is_waiting()
            && self
                .held
                .first()
                .is_some_and(|first| first.at.since(self.next) > STRAY_REACH)
    }
}
