//! What a direction sheds when it, its sender or the table has reached a cap.

use super::super::Sink;
use super::super::held::{MARK_BYTES, RUN_BYTES, RUN_OVERHEAD};
use super::super::offset::StreamOffset;
use super::{Direction, Env, Part};

/// What a segment of `len` bytes costs at most.
pub(in crate::stream) fn cost_of(len: usize) -> usize {
    len.saturating_add(RUN_OVERHEAD + MARK_BYTES)
}

impl Direction {
    /// Gives up a hole before `to` of which it is known that its bytes were shed.
    pub(super) fn skip_shed(&mut self, to: StreamOffset, env: &mut Env<'_>, sink: &mut impl Sink) {
        let Some((from, end)) = self.shed else { return };
        if self.is_waiting() {
            return;
        }
        // Copies of what was shed may be held.
        let to = self.held.first().map_or(to, |first| first.at.min(to));
        if from <= self.next && self.next < end && to > self.next {
            self.give_up_until(to.min(end), env, sink);
        }
        if self.next >= end {
            self.shed = None;
        }
    }

    /// Tells the budget what is held now.
    pub(super) fn settle(&mut self, env: &mut Env<'_>) {
        let cost = self.cost();
        env.budget.change(self.source, self.charged, cost);
        self.charged = cost;
    }

    /// How many bytes over a cap `more` would be.
    pub(super) fn excess(&self, more: usize, env: &Env<'_>) -> usize {
        let cost = self.cost().saturating_add(more);
        cost.saturating_sub(env.opts.flow_cap)
            .max(env.budget.excess(self.source, more))
    }

    /// Where a segment of `len` bytes would exceed a cap, gives up what cut frames prove to be missing rather than shed
    /// bytes for the sake of a copy that may come.
    pub(super) fn give_up_cuts_for(&mut self, len: usize, env: &mut Env<'_>, sink: &mut impl Sink) {
        while self.held.first().is_some_and(|first| first.cut.is_some())
            && !self.is_waiting()
            && self.excess(cost_of(len), env) > 0
        {
            if self.held.first().is_none_or(|first| first.at > self.next) {
                break;
            }
            self.give_up_hole(env, sink);
        }
    }

    /// The bytes that the whole table would be over its cap if this segment were held; none where it would not be.
    pub(in crate::stream) fn lacks(&self, part: &Part<'_>, env: &Env<'_>) -> usize {
        let ahead = self.place(part.seq) > i64::try_from(self.next.0).unwrap_or(i64::MAX);
        if part.payload.is_empty() || self.opaque.is_some() || !(ahead || self.is_waiting()) {
            return 0;
        }
        // A run that grows, grows by half.
        env.budget
            .over(cost_of(part.payload.len()) + self.held.cost().min(RUN_BYTES) / 2)
    }

    /// Frees about `need` bytes for somebody who holds less; `false` where nothing could be freed.
    pub(in crate::stream) fn give_way(
        &mut self,
        need: usize,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) -> bool {
        let waited = self.is_waiting();
        let before = self.charged;
        if self.syn_data.is_some() {
            self.release_syn_data(env, sink);
        } else if waited {
            self.open_midstream(env, sink);
        } else if let Some(first) = self.held.first()
            && first.cut.is_some()
            && first.at <= self.next
        {
            self.give_up_hole(env, sink);
        } else if let Some(shed) = self.held.shed_last(need) {
            env.stats.shed_bytes += shed.bytes;
            self.note_shed(shed.from, shed.to);
        }
        self.settle(env);
        self.refresh_hole();
        self.charged < before || waited
    }

    /// Whether a segment at `from` is the farthest ahead and exceeds a cap: then it is refused without a copy.
    pub(super) fn has_no_room(&self, from: StreamOffset, len: usize, env: &Env<'_>) -> bool {
        !self.is_waiting()
            && from > self.next
            && self.held.end().is_none_or(|end| from >= end)
            && self.excess(cost_of(len), env) > 0
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
        if self.over_cap(before, env) == 0 {
            return None;
        }
        if self.is_waiting() {
            // Better an early start than lost bytes.
            self.open_midstream(env, sink);
        }
        let mut lowest = None;
        loop {
            let over = self.over_cap(before, env);
            if over == 0 {
                break;
            }
            let Some(shed) = self.held.shed_last(over) else {
                break;
            };
            env.stats.shed_bytes += shed.bytes;
            self.note_shed(shed.from, shed.to);
            lowest = Some(shed.from);
            self.settle(env);
        }
        lowest
    }

    /// How many bytes must go: none where no more is held than `before`.
    fn over_cap(&self, before: usize, env: &Env<'_>) -> usize {
        let more = self.cost().saturating_sub(before);
        self.excess(0, env).min(more)
    }

    pub(super) fn note_shed(&mut self, from: StreamOffset, to: StreamOffset) {
        let (a, b) = self.shed.unwrap_or((from, to));
        self.shed = Some((a.min(from), b.max(to)));
    }
}
