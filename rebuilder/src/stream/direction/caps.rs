//! What a direction sheds when it, its sender or the table has reached a cap.

use super::super::Sink;
use super::super::held::{PIECE_OVERHEAD, What};
use super::super::offset::{StreamOffset, len64};
use super::{Direction, Env};

impl Direction {
    /// Gives up a hole before `to` of which it is known that its bytes were shed.
    pub(super) fn skip_shed(&mut self, to: StreamOffset, env: &mut Env<'_>, sink: &mut impl Sink) {
        let Some((from, end)) = self.shed else { return };
        if self.is_waiting() {
            return;
        }
        if from <= self.next && self.next < end && to > self.next {
            self.give_up_until(to.min(end), env, sink);
        }
        if self.next >= end {
            self.shed = None;
        }
    }

    /// Tells the budget what is held now.
    pub(super) fn settle(&mut self, env: &mut Env<'_>) {
        let cost = self.held.cost();
        env.budget.change(self.source, self.charged, cost);
        self.charged = cost;
    }

    /// Whether a segment at `from` is the farthest ahead and exceeds a cap: then it is refused without a copy.
    pub(super) fn has_no_room(&self, from: StreamOffset, len: usize, env: &Env<'_>) -> bool {
        let cost = len.saturating_add(PIECE_OVERHEAD);
        !self.is_waiting()
            && from > self.next
            && self.held.end().is_none_or(|end| from >= end)
            && (self.held.cost().saturating_add(cost) > env.opts.flow_cap
                || env.budget.exceeded(self.source, cost))
    }

    /// Sheds the farthest ahead until the caps hold again, or until no more is held than `before`. Gives the lowest
    /// offset that was shed.
    pub(super) fn enforce_caps(
        &mut self,
        before: usize,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> Option<StreamOffset> {
        self.settle(env);
        if !self.over_cap(before, env) {
            return None;
        }
        if self.is_waiting() {
            // Better an early start than lost bytes.
            self.open_midstream(env, sink);
        }
        let mut lowest = None;
        while self.over_cap(before, env) {
            let Some((at, piece)) = self.held.pop_last() else {
                break;
            };
            let len = match piece.what {
                What::Bytes(bytes) => {
                    let len = len64(bytes.data.len());
                    env.stats.shed_bytes += len;
                    len
                }
                What::Cut(len) => len,
            };
            self.note_shed(at, at + len);
            lowest = Some(at);
            self.settle(env);
        }
        lowest
    }

    pub(super) fn over_cap(&self, before: usize, env: &Env<'_>) -> bool {
        let cost = self.held.cost();
        cost > before && (cost > env.opts.flow_cap || env.budget.exceeded(self.source, 0))
    }

    pub(super) fn note_shed(&mut self, from: StreamOffset, to: StreamOffset) {
        let (a, b) = self.shed.unwrap_or((from, to));
        self.shed = Some((a.min(from), b.max(to)));
    }
}
