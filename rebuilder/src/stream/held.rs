//! What has arrived ahead of its turn in one direction.
//!
//! Neighbouring segments lie in one **run**: their bytes in one buffer, and a **mark** where each begins. So a segment
//! that overlaps thousands of small ones is compared with a few buffers. What one call costs at most, beside copying
//! and comparing the segment's own bytes: a step for each hole that it fills, which is gone then (so it was paid for by
//! the segment that made it), and for each run that it overlaps, of which there are no more than two for every
//! [`RUN_BYTES`] of its length and two for every [`RUN_MARKS`] segments that it overlaps; a step is a look-up in the
//! tree and at most [`RUN_BYTES`] moved.
//!
//! A frame that the mirror cut leaves a **cut**: bytes that are known to exist and known to be missing.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::time::Timestamp;

use super::OverlapPolicy;
use super::offset::{StreamOffset, index, len64};

/// What a run or a cut costs beyond its bytes and marks: its share of a half-filled tree node and the allocator's least
/// blocks. Charged like bytes, so that a million one-byte segments cannot hold more memory than the cap says.
pub(super) const RUN_OVERHEAD: usize = 160;
/// What a mark costs.
pub(super) const MARK_BYTES: usize = size_of::<Mark>();
/// Segments that touch share a run until it has so many bytes ...
pub(super) const RUN_BYTES: usize = 32 << 10;
/// ... or so many segments: what inserting at its front moves.
const RUN_MARKS: usize = 128;
/// So many pieces are looked through for what a cut frame leaves missing; behind them it is an ordinary hole. Unlike a
/// copy, a cut frame changes nothing where others came before it, so its work is not paid for by anybody.
const CUT_STEPS: usize = 256;

/// Where the bytes of one segment begin in a run.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: StreamOffset,
    /// Capture time of the segment.
    ts: Timestamp,
    /// Flow time at which anything at or behind this place first arrived: since then, a hole just before it is known.
    known: Timestamp,
    /// The segment's payload begins here.
    segment_start: bool,
    /// Another copy disagreed with some of the bytes, or another reader may not have them.
    conflict: bool,
}

/// Bytes of neighbouring segments. Never empty; the first mark stands at its beginning.
#[derive(Debug, Default)]
pub(super) struct Run {
    data: Vec<u8>,
    marks: Vec<Mark>,
}

/// The bytes of one segment in a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    /// Never empty.
    pub(super) data: &'a [u8],
    /// Capture time of the segment they came in.
    pub(super) ts: Timestamp,
    /// They begin where that segment's payload began.
    pub(super) segment_start: bool,
    /// Another copy disagreed with some of them, or another reader may not have them.
    pub(super) conflict: bool,
}

impl Run {
    fn start(&self) -> StreamOffset {
        self.marks.first().map_or(StreamOffset::ZERO, |m| m.at)
    }

    fn end(&self) -> StreamOffset {
        self.start() + len64(self.data.len())
    }

    fn known(&self) -> Timestamp {
        self.marks.first().map_or(Timestamp::INFINITY, |m| m.known)
    }

    /// Bytes of memory charged for it.
    fn cost(&self) -> usize {
        RUN_OVERHEAD + self.data.capacity() + self.marks.capacity() * MARK_BYTES
    }

    fn fits(&self, bytes: usize, marks: usize) -> bool {
        self.data.len() + bytes <= RUN_BYTES && self.marks.len() + marks <= RUN_MARKS
    }

    fn append(&mut self, bytes: &[u8], marks: &[Mark]) {
        reserve(&mut self.data, bytes.len());
        self.data.extend_from_slice(bytes);
        reserve(&mut self.marks, marks.len());
        self.marks.extend_from_slice(marks);
    }

    /// The marks whose bytes share one with `from..to`, which shares one with the run.
    fn marks_in(&self, from: StreamOffset, to: StreamOffset) -> Range<usize> {
        let first = self.marks.partition_point(|m| m.at <= from);
        first.saturating_sub(1)..self.marks.partition_point(|m| m.at < to)
    }

    /// Where the bytes of the segment of this mark end.
    fn end_of(&self, mark: usize) -> StreamOffset {
        self.marks.get(mark + 1).map_or(self.end(), |next| next.at)
    }

    /// The bytes of each segment, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        let start = self.start();
        let ends = self.marks.iter().skip(1).map(|m| m.at).chain([self.end()]);
        self.marks.iter().zip(ends).map(move |(mark, end)| Piece {
            data: slice(&self.data, start, mark.at, end),
            ts: mark.ts,
            segment_start: mark.segment_start,
            conflict: mark.conflict,
        })
    }

    /// Takes off what lies at and behind `at`, which lies inside.
    fn split_off(&mut self, at: StreamOffset) -> Self {
        let data = self
            .data
            .split_off(index(at.since(self.start())).min(self.data.len()));
        let from = self.marks.partition_point(|m| m.at < at);
        let mut marks = self.marks.split_off(from.min(self.marks.len()));
        if marks.first().is_none_or(|m| m.at > at)
            && let Some(within) = self.marks.last()
        {
            let rest = Mark {
                at,
                segment_start: false,
                ..*within
            };
            marks.insert(0, rest);
        }
        self.data.shrink_to_fit();
        self.marks.shrink_to_fit();
        marks.shrink_to_fit();
        Self { data, marks }
    }
}

/// Makes room for `more` by half of what is there, so that little is charged for nothing.
fn reserve<T>(buffer: &mut Vec<T>, more: usize) {
    let need = buffer.len() + more;
    if need > buffer.capacity() {
        let capacity = need.max(buffer.capacity() + buffer.capacity() / 2);
        buffer.reserve_exact(capacity - buffer.len());
    }
}

/// Bytes that a cut frame proves to be missing from the capture. A copy that comes in time still fills them.
#[derive(Clone, Copy, Debug)]
struct Cut {
    len: u64,
    /// Flow time at which the cut frame arrived.
    since: Timestamp,
    /// As [`Mark::known`].
    known: Timestamp,
}

/// The first thing that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct First {
    pub(super) at: StreamOffset,
    /// Since when a hole before it is known.
    pub(super) known: Timestamp,
    /// It is a cut: where it ends, and when the cut frame arrived.
    pub(super) cut: Option<(StreamOffset, Timestamp)>,
}

/// A segment that is to be held.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival<'a> {
    pub(super) at: StreamOffset,
    pub(super) bytes: &'a [u8],
    pub(super) ts: Timestamp,
    /// Flow time.
    pub(super) now: Timestamp,
    /// `bytes` begins where the segment's payload begins.
    pub(super) segment_start: bool,
    /// Another reader may not have these bytes as they stand.
    pub(super) suspect: bool,
}

/// What became of the bytes of one insertion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// Bytes of which no copy was held.
    pub(super) stored: u64,
    /// Bytes on which this copy and a held one disagreed.
    pub(super) conflicting: u64,
}

/// What was shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shed {
    pub(super) from: StreamOffset,
    pub(super) to: StreamOffset,
    /// Captured bytes among them.
    pub(super) bytes: u64,
}

/// Invariants: runs and cuts are never empty and never overlap, `cost` is the sum of their costs, and `known` never
/// decreases along the stream.
#[derive(Debug, Default)]
pub(super) struct Held {
    runs: BTreeMap<StreamOffset, Run>,
    cuts: BTreeMap<StreamOffset, Cut>,
    cost: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.cuts.is_empty()
    }

    /// Whether a single segment is held, and nothing else.
    pub(super) fn is_lone(&self) -> bool {
        self.cuts.is_empty()
            && self.runs.len() == 1
            && self
                .runs
                .first_key_value()
                .is_some_and(|(_, run)| run.marks.len() == 1)
    }

    /// Bytes of memory, bookkeeping included.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// What lies first.
    pub(super) fn first(&self) -> Option<First> {
        let run = self.runs.first_key_value().map(|(at, run)| First {
            at: *at,
            known: run.known(),
            cut: None,
        });
        let cut = self.cuts.first_key_value().map(|(at, cut)| First {
            at: *at,
            known: cut.known,
            cut: Some((*at + cut.len, cut.since)),
        });
        match (run, cut) {
            (Some(run), Some(cut)) if cut.at < run.at => Some(cut),
            (Some(run), _) => Some(run),
            (None, cut) => cut,
        }
    }

    /// The end of what lies last.
    pub(super) fn end(&self) -> Option<StreamOffset> {
        let run = self.runs.last_key_value().map(|(_, run)| run.end());
        let cut = self.cuts.last_key_value().map(|(at, cut)| *at + cut.len);
        run.max(cut)
    }

    pub(super) fn pop_run(&mut self) -> Option<Run> {
        let (_, run) = self.runs.pop_first()?;
        self.cost -= run.cost();
        Some(run)
    }

    pub(super) fn pop_cut(&mut self) {
        if self.cuts.pop_first().is_some() {
            self.cost -= RUN_OVERHEAD;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Sheds the farthest ahead: a cut, or segments until `need` bytes of memory are free or the run is gone.
    pub(super) fn shed_last(&mut self, need: usize) -> Option<Shed> {
        let run = self.runs.last_key_value().map(|(at, _)| *at);
        let cut = self.cuts.last_key_value().map(|(at, _)| *at);
        if cut > run {
            let (from, cut) = self.cuts.pop_last()?;
            self.cost -= RUN_OVERHEAD;
            return Some(Shed {
                from,
                to: from + cut.len,
                bytes: 0,
            });
        }
        let (start, mut run) = self.runs.pop_last()?;
        let (cost, to) = (run.cost(), run.end());
        self.cost -= cost;
        let mut from = to;
        while let Some(mark) = run.marks.pop() {
            from = mark.at;
            let left = index(from.since(start));
            if run.data.capacity() - left.min(run.data.capacity()) >= need {
                break;
            }
        }
        if from > start {
            run.data.truncate(index(from.since(start)));
            run.data.shrink_to_fit();
            run.marks.shrink_to_fit();
            self.cost += run.cost();
            self.runs.insert(start, run);
        }
        Some(Shed {
            from,
            to,
            bytes: to.since(from),
        })
    }

    /// Since when it is known that something lies at or behind `at`, given that something arrives there now. Arrivals
    /// are in order of flow time, so what is there already came no later.
    fn known_since(&self, at: StreamOffset, now: Timestamp) -> Timestamp {
        let run = match self.run_at(at) {
            Some(run) => {
                let from = run.marks.partition_point(|m| m.at <= at).saturating_sub(1);
                run.marks.get(from).map(|m| m.known)
            }
            None => self.runs.range(at..).next().map(|(_, run)| run.known()),
        };
        let cut = self
            .cut_at(at)
            .or_else(|| self.cuts.range(at..).next().map(|(at, cut)| (*at, *cut)))
            .map(|(_, cut)| cut.known);
        run.into_iter().chain(cut).fold(now, Timestamp::min)
    }

    /// The run that holds the byte at `at`.
    fn run_at(&self, at: StreamOffset) -> Option<&Run> {
        self.runs
            .range(..=at)
            .next_back()
            .map(|(_, run)| run)
            .filter(|run| run.end() > at)
    }

    /// The cut that the byte at `at` is missing in.
    fn cut_at(&self, at: StreamOffset) -> Option<(StreamOffset, Cut)> {
        self.cuts
            .range(..=at)
            .next_back()
            .map(|(start, cut)| (*start, *cut))
            .filter(|(start, cut)| *start + cut.len > at)
    }

    /// The first run that shares a byte with `from..to`.
    fn overlapping(&mut self, from: StreamOffset, to: StreamOffset) -> Option<&mut Run> {
        if from >= to {
            return None;
        }
        let start = match self.run_at(from) {
            Some(run) => run.start(),
            None => *self.runs.range(from..to).next()?.0,
        };
        self.runs.get_mut(&start)
    }

    /// Stores the segment where nothing is held, and compares it where something is. `policy` says which copy stays
    /// where two overlap.
    pub(super) fn insert(&mut self, new: Arrival<'_>, policy: OverlapPolicy) -> Inserted {
        let end = new.at + len64(new.bytes.len());
        let mut done = Inserted::default();
        match policy {
            OverlapPolicy::First => {
                let mut from = new.at;
                while let Some(run) = self.overlapping(from, end) {
                    let (start, run_end) = (run.start(), run.end());
                    done.conflicting += compare(run, &new, from, end);
                    done.stored += self.store(&new, (from, start), new.suspect);
                    from = run_end;
                }
                done.stored += self.store(&new, (from, end), new.suspect);
            }
            OverlapPolicy::Linux => {
                let from = self.kept_until(new.at, end);
                let (mut at, mut held, mut disagreed) = (new.at, 0, new.suspect);
                while let Some(run) = self.overlapping(at, end) {
                    let (lap, lap_end) = (run.start().max(at), run.end().min(end));
                    let below = compare(run, &new, lap, lap_end.min(from));
                    let above = compare(run, &new, lap.max(from), lap_end);
                    done.conflicting += below + above;
                    // What was in doubt before stays so, whoever wins.
                    let marks = run.marks.get(run.marks_in(lap.max(from), lap_end));
                    let doubted = marks.is_some_and(|marks| marks.iter().any(|m| m.conflict));
                    disagreed |= doubted && lap.max(from) < lap_end;
                    held += lap_end.since(lap.max(from));
                    at = lap_end;
                }
                if from < end {
                    let known = self.known_since(from, new.now);
                    self.remove(from, end);
                    let new = Arrival { now: known, ..new };
                    self.store(&new, (from, end), disagreed);
                    done.stored = end.since(from) - held;
                }
            }
        }
        done
    }

    /// Where what stays of the copies held ends, as Linux sees it: a segment that begins at `at` gives way to one that
    /// began before it, or there and is no shorter; all that begin behind `at` give way to it.
    fn kept_until(&mut self, at: StreamOffset, end: StreamOffset) -> StreamOffset {
        let Some(run) = self.overlapping(at, at + 1) else {
            return at;
        };
        let first = run.marks_in(at, at + 1).start;
        let (begins, ends) = (run.marks.get(first).map(|m| m.at), run.end_of(first));
        if begins < Some(at) || ends >= end {
            ends
        } else {
            at
        }
    }

    /// Forgets the bytes in `from..to`.
    fn remove(&mut self, from: StreamOffset, to: StreamOffset) {
        while let Some(start) = self.overlapping(from, to).map(|run| run.start()) {
            let Some(mut run) = self.runs.remove(&start) else {
                return;
            };
            self.cost -= run.cost();
            if run.end() > to {
                let rest = run.split_off(to);
                self.add_run(rest);
            }
            if start < from {
                drop(run.split_off(from));
                self.add_run(run);
            }
        }
    }

    fn add_run(&mut self, run: Run) {
        self.cost += run.cost();
        let before = self.runs.insert(run.start(), run);
        debug_assert!(before.is_none(), "two runs at one place");
    }

    /// Stores the part `range` of a segment's payload, where nothing is held.
    fn store(
        &mut self,
        new: &Arrival<'_>,
        range: (StreamOffset, StreamOffset),
        conflict: bool,
    ) -> u64 {
        let (from, to) = range;
        let data = slice(new.bytes, new.at, from, to);
        if data.is_empty() {
            return 0;
        }
        let mark = Mark {
            at: from,
            ts: new.ts,
            known: self.known_since(from, new.now),
            segment_start: new.segment_start && from == new.at,
            conflict,
        };
        self.uncut(from, to);
        let before = self
            .runs
            .range_mut(..from)
            .next_back()
            .filter(|(_, run)| run.end() == from && run.fits(data.len(), 1));
        let start = if let Some((start, run)) = before {
            let cost = run.cost();
            run.append(data, &[mark]);
            self.cost = self.cost - cost + run.cost();
            *start
        } else {
            let run = Run {
                data: data.to_vec(),
                marks: vec![mark],
            };
            self.add_run(run);
            from
        };
        self.join(start, to);
        len64(data.len())
    }

    /// Makes one run of the one at `start` and the one at its end `end`, if it is not too large for that.
    fn join(&mut self, start: StreamOffset, end: StreamOffset) {
        let Some((bytes, marks)) = self
            .runs
            .get(&end)
            .map(|run| (run.data.len(), run.marks.len()))
        else {
            return;
        };
        if !self
            .runs
            .get(&start)
            .is_some_and(|run| run.fits(bytes, marks))
        {
            return;
        }
        let Some(right) = self.runs.remove(&end) else {
            return;
        };
        self.cost -= right.cost();
        if let Some(left) = self.runs.get_mut(&start) {
            let cost = left.cost();
            left.append(&right.data, &right.marks);
            self.cost = self.cost - cost + left.cost();
        }
    }

    /// Notes that the `len` bytes at `at` are missing from the capture, except where a copy is held.
    pub(super) fn insert_cut(&mut self, at: StreamOffset, len: u64, now: Timestamp) {
        let end = at + len;
        let mut from = at;
        for _ in 0..CUT_STEPS {
            if from >= end {
                return;
            }
            if let Some(run) = self.run_at(from) {
                from = run.end();
                continue;
            }
            if let Some((start, cut)) = self.cut_at(from) {
                from = start + cut.len;
                continue;
            }
            let run = self.runs.range(from..end).next().map(|(at, _)| *at);
            let cut = self.cuts.range(from..end).next().map(|(at, _)| *at);
            let to = run.into_iter().chain(cut).fold(end, StreamOffset::min);
            self.add_cut(from, to, now, self.known_since(from, now));
            from = to;
        }
    }

    fn add_cut(
        &mut self,
        from: StreamOffset,
        to: StreamOffset,
        since: Timestamp,
        known: Timestamp,
    ) {
        if from < to {
            let len = to.since(from);
            self.cuts.insert(from, Cut { len, since, known });
            self.cost += RUN_OVERHEAD;
        }
    }

    /// Takes `from..to` out of all cuts.
    fn uncut(&mut self, from: StreamOffset, to: StreamOffset) {
        while let Some((start, cut)) = self.cut_at(from).or_else(|| {
            self.cuts
                .range(from..to)
                .next()
                .map(|(at, cut)| (*at, *cut))
        }) {
            self.cuts.remove(&start);
            self.cost -= RUN_OVERHEAD;
            self.add_cut(start, from, cut.since, cut.known);
            self.add_cut(to, start + cut.len, cut.since, cut.known);
        }
    }

    #[cfg(test)]
    pub(super) fn runs(&self) -> usize {
        self.runs.len()
    }

    #[cfg(test)]
    pub(super) fn cuts(&self) -> usize {
        self.cuts.len()
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        let mut things: Vec<(StreamOffset, StreamOffset, Timestamp)> = Vec::new();
        let mut cost = 0;
        for (at, run) in &self.runs {
            assert_eq!(*at, run.start(), "a run is not where it says");
            assert!(!run.data.is_empty(), "an empty run at {at:?}");
            assert!(run.fits(0, 0) || run.marks.len() == 1, "a run is too large");
            cost += run.cost();
            let ends = run.marks.iter().skip(1).map(|m| m.at).chain([run.end()]);
            things.extend(
                run.marks
                    .iter()
                    .zip(ends)
                    .map(|(m, end)| (m.at, end, m.known)),
            );
        }
        for (at, cut) in &self.cuts {
            cost += RUN_OVERHEAD;
            assert!(cut.known <= cut.since);
            things.push((*at, *at + cut.len, cut.known));
        }
        things.sort();
        for (from, to, _) in &things {
            assert!(from < to, "nothing at {from:?}");
        }
        for pair in things.windows(2) {
            if let [(_, end, known), (at, _, later)] = pair {
                assert!(end <= at, "two things overlap at {at:?}");
                assert!(known <= later, "known goes back at {at:?}");
            }
        }
        assert_eq!(self.cost, cost);
    }
}

/// Compares the run with the segment in `from..to`, marks what disagrees, and counts the bytes that do.
fn compare(run: &mut Run, new: &Arrival<'_>, from: StreamOffset, to: StreamOffset) -> u64 {
    let start = run.start();
    let (from, to) = (from.max(start).max(new.at), to.min(run.end()));
    if slice(new.bytes, new.at, from, to) == slice(&run.data, start, from, to) {
        return 0;
    }
    let mut all = 0;
    for at in run.marks_in(from, to) {
        let end = run.end_of(at);
        let Some(mark) = run.marks.get_mut(at) else {
            break;
        };
        let (lap, lap_end) = (mark.at.max(from), end.min(to));
        let ours = slice(new.bytes, new.at, lap, lap_end);
        let theirs = slice(&run.data, start, lap, lap_end);
        let conflicting = len64(ours.iter().zip(theirs).filter(|(a, b)| a != b).count());
        mark.conflict |= conflicting > 0;
        all += conflicting;
    }
    all
}

/// The bytes `from..to` of `data`, which begins at `at`; empty where the range is none.
pub(super) fn slice(data: &[u8], at: StreamOffset, from: StreamOffset, to: StreamOffset) -> &[u8] {
    data.get(index(from.since(at))..index(to.since(at)))
        .unwrap_or_default()
}
