//! When a hole becomes a gap (DESIGN §2 rule 3).

use std::time::Duration;

use crate::decode::Seq;
use crate::time::Timestamp;

use super::super::StreamOptions;
use super::super::offset::StreamOffset;
use super::{Direction, Env, Hole};

impl Direction {
    /// Takes an acknowledgement of the other side.
    pub(in crate::stream) fn note_ack(&mut self, ack: Seq, env: &Env<'_>) {
        // In order and with nothing to wait for, acknowledgements tell nothing that will be asked.
        if self.opaque.is_some() || self.reach(ack, 0, env.opts.window).is_none() {
            return;
        }
        let Ok(at) = u64::try_from(self.place(ack)) else {
            return;
        };
        let at = StreamOffset(at);
        if self.acked.is_none_or(|(acked, _)| acked < at) {
            self.acked = Some((at, env.now));
            self.refresh_hole();
        }
    }

    /// Notes whether there is a hole, and whether the other side has all of it.
    pub(super) fn refresh_hole(&mut self) {
        let end = match self.held.first() {
            Some((end, _)) if !self.is_waiting() => end,
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
        // A byte that is exactly as late as the setting allows still fills its hole.
        let by_age = self.held.first()?.1 + opts.gap_after + Duration::from_nanos(1);
        let by_ack = hole.acked.map(|at| at + opts.acked_gap_after);
        Some(by_ack.map_or(by_age, |by_ack| by_ack.min(by_age)))
    }
}
