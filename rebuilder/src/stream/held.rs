//! What has arrived ahead of its turn in one direction: an ordered map of pieces that never overlap.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::time::Timestamp;

use super::OverlapPolicy;
use super::offset::{StreamOffset, index, len64};

/// What a piece costs beyond its bytes: its share of a half-filled tree node and the
/// allocator's least block. Charged like bytes, so
/// that a million one-byte segments cannot hold more memory than the cap says.
pub(super) const PIECE_OVERHEAD: usize = 160;

/// Captured bytes that wait.
#[derive(Debug)]
pub(super) struct Bytes {
    /// Never empty.
    pub(super) data: Box<[u8]>,
    /// Capture time of the segment they came in.
    pub(super) ts: Timestamp,
    /// They begin where that segment's payload began.
    pub(super) segment_start: bool,
    /// Another copy disagreed with some of them.
    pub(super) conflict: bool,
}

#[derive(Debug)]
pub(super) enum What {
    Bytes(Bytes),
    /// So many bytes that a cut frame proves to be missing from the capture. A copy that comes in time still fills it.
    Cut(u64),
}

#[derive(Debug)]
pub(super) struct Piece {
    pub(super) what: What,
    /// Flow time at which anything at or behind this piece first arrived: since then, a hole just before it is known.
    pub(super) known: Timestamp,
}

impl Piece {
    fn len(&self) -> u64 {
        match &self.what {
            What::Bytes(bytes) => len64(bytes.data.len()),
            What::Cut(len) => *len,
        }
    }

    /// Bytes of memory charged for it.
    fn cost(&self) -> usize {
        PIECE_OVERHEAD
            + match &self.what {
                What::Bytes(bytes) => bytes.data.len(),
                What::Cut(_) => 0,
            }
    }
}

/// What became of the bytes of one insertion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Inserted {
    /// Bytes that were stored; the others are held already.
    pub(super) stored: u64,
    /// Bytes on which this copy and a held one disagreed.
    pub(super) conflicting: u64,
}

/// Invariants: pieces are never empty, never overlap, `cost` is the sum of their costs, and `known` never decreases
/// along the stream.
#[derive(Debug, Default)]
pub(super) struct Held {
    pieces: BTreeMap<StreamOffset, Piece>,
    cost: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes of memory, bookkeeping included.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// Where the first piece lies, and since when a hole before it is known.
    pub(super) fn first(&self) -> Option<(StreamOffset, Timestamp)> {
        self.pieces
            .first_key_value()
            .map(|(at, piece)| (*at, piece.known))
    }

    /// The end of the last piece.
    pub(super) fn end(&self) -> Option<StreamOffset> {
        self.pieces
            .last_key_value()
            .map(|(at, piece)| *at + piece.len())
    }

    pub(super) fn pop_first(&mut self) -> Option<(StreamOffset, Piece)> {
        let (at, piece) = self.pieces.pop_first()?;
        self.cost -= piece.cost();
        Some((at, piece))
    }

    pub(super) fn pop_last(&mut self) -> Option<(StreamOffset, Piece)> {
        let (at, piece) = self.pieces.pop_last()?;
        self.cost -= piece.cost();
        Some((at, piece))
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.cost = 0;
    }

    fn add(&mut self, at: StreamOffset, piece: Piece) {
        self.cost += piece.cost();
        let before = self.pieces.insert(at, piece);
        debug_assert!(before.is_none(), "two pieces at {at:?}");
    }

    fn remove(&mut self, at: StreamOffset) -> Option<Piece> {
        let piece = self.pieces.remove(&at)?;
        self.cost -= piece.cost();
        Some(piece)
    }

    /// Since when it is known that something lies at or behind `at`, given that something arrives there now. Arrivals
    /// are in order of flow time, so what is there already came no later.
    fn known_since(&self, at: StreamOffset, now: Timestamp) -> Timestamp {
        self.pieces
            .range(at..)
            .next()
            .map_or(now, |(_, piece)| piece.known.min(now))
    }

    /// The pieces that share a byte with `at..end`, in order.
    fn overlapping(&self, at: StreamOffset, end: StreamOffset) -> Vec<StreamOffset> {
        let before = self
            .pieces
            .range((Bound::Unbounded, Bound::Excluded(at)))
            .next_back()
            .filter(|(start, piece)| **start + piece.len() > at);
        before
            .into_iter()
            .chain(self.pieces.range(at..end))
            .map(|(start, _)| *start)
            .collect()
    }

    /// Stores `bytes` where nothing is held, and compares them where something is. `policy` says which copy stays
    /// where two overlap.
    pub(super) fn insert(
        &mut self,
        at: StreamOffset,
        bytes: &[u8],
        ts: Timestamp,
        now: Timestamp,
        segment_start: bool,
        policy: OverlapPolicy,
    ) -> Inserted {
        let end = at + len64(bytes.len());
        let mut done = Inserted::default();
        // Where a part begins that this copy provides.
        let mut from = at;
        let mut disagreed = false;
        // What a part takes the place of was evidence of a hole before it; the part inherits its age.
        let mut since = now;
        for start in self.overlapping(at, end) {
            let Some(piece) = self.pieces.get_mut(&start) else {
                continue;
            };
            let piece_end = start + piece.len();
            let (lap, lap_end) = (start.max(at), piece_end.min(end));
            match &mut piece.what {
                What::Cut(_) => {
                    since = since.min(piece.known);
                    self.uncut(start, at, end);
                }
                What::Bytes(old) => {
                    let ours = slice(bytes, at, lap, lap_end);
                    let theirs = slice(&old.data, start, lap, lap_end);
                    let conflicting = ours.iter().zip(theirs).filter(|(a, b)| a != b).count();
                    done.conflicting += len64(conflicting);
                    old.conflict |= conflicting > 0;
                    if policy.new_wins((at, end), (start, piece_end)) {
                        disagreed |= conflicting > 0;
                        since = since.min(piece.known);
                        self.drop_front(start, lap_end);
                    } else {
                        done.stored += self.store(
                            (at, bytes),
                            (from, start),
                            ts,
                            since,
                            segment_start,
                            disagreed,
                        );
                        disagreed = false;
                        since = now;
                        from = piece_end;
                    }
                }
            }
        }
        done.stored += self.store(
            (at, bytes),
            (from, end),
            ts,
            since,
            segment_start,
            disagreed,
        );
        done
    }

    /// Stores the part `range` of a segment's payload, which begins at `segment.0`.
    fn store(
        &mut self,
        segment: (StreamOffset, &[u8]),
        range: (StreamOffset, StreamOffset),
        ts: Timestamp,
        since: Timestamp,
        segment_start: bool,
        conflict: bool,
    ) -> u64 {
        let data = slice(segment.1, segment.0, range.0, range.1);
        if data.is_empty() {
            return 0;
        }
        let known = self.known_since(range.0, since);
        let bytes = Bytes {
            data: data.into(),
            ts,
            segment_start: segment_start && range.0 == segment.0,
            conflict,
        };
        self.add(
            range.0,
            Piece {
                what: What::Bytes(bytes),
                known,
            },
        );
        len64(data.len())
    }

    /// Notes that the `len` bytes at `at` are missing from the capture, except where a copy is held.
    pub(super) fn insert_cut(&mut self, at: StreamOffset, len: u64, now: Timestamp) {
        let end = at + len;
        let mut from = at;
        for start in self.overlapping(at, end) {
            let Some(piece_end) = self.pieces.get(&start).map(|piece| start + piece.len()) else {
                continue;
            };
            self.store_cut(from, start, now);
            from = piece_end;
        }
        self.store_cut(from, end, now);
    }

    fn store_cut(&mut self, from: StreamOffset, to: StreamOffset, now: Timestamp) {
        if from >= to {
            return;
        }
        let known = self.known_since(from, now);
        // Cuts that touch become one piece: copies of one frame, cut at different lengths, must not pile up.
        if let Some((start, before)) = self.pieces.range_mut(..from).next_back()
            && let What::Cut(len) = &mut before.what
            && *start + *len == from
        {
            *len += to.since(from);
            return;
        }
        self.add(
            from,
            Piece {
                what: What::Cut(to.since(from)),
                known,
            },
        );
    }

    /// Takes `at..end` out of the cut at `start`.
    fn uncut(&mut self, start: StreamOffset, at: StreamOffset, end: StreamOffset) {
        let Some(piece) = self.remove(start) else {
            return;
        };
        let piece_end = start + piece.len();
        for (from, to) in [(start, at), (end, piece_end)] {
            if from < to {
                let what = What::Cut(to.since(from));
                let known = piece.known;
                self.add(from, Piece { what, known });
            }
        }
    }

    /// Drops the bytes before `to` of the piece at `start`.
    fn drop_front(&mut self, start: StreamOffset, to: StreamOffset) {
        let Some(piece) = self.remove(start) else {
            return;
        };
        let What::Bytes(old) = piece.what else { return };
        let Some(rest) = old.data.get(index(to.since(start))..) else {
            return;
        };
        if rest.is_empty() {
            return;
        }
        let bytes = Bytes {
            data: rest.into(),
            ts: old.ts,
            segment_start: false,
            conflict: old.conflict,
        };
        let known = piece.known;
        self.add(
            to,
            Piece {
                what: What::Bytes(bytes),
                known,
            },
        );
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        let mut end = StreamOffset(0);
        let mut known = Timestamp(0);
        for (at, piece) in &self.pieces {
            assert!(piece.len() > 0, "an empty piece at {at:?}");
            assert!(*at >= end, "pieces overlap at {at:?}");
            assert!(piece.known >= known, "known goes back at {at:?}");
            end = *at + piece.len();
            known = piece.known;
        }
        assert_eq!(
            self.cost,
            self.pieces.values().map(Piece::cost).sum::<usize>()
        );
    }
}

/// The bytes `from..to` of `data`, which begins at `at`; empty where the range is none.
pub(super) fn slice(data: &[u8], at: StreamOffset, from: StreamOffset, to: StreamOffset) -> &[u8] {
    data.get(index(from.since(at))..index(to.since(at)))
        .unwrap_or_default()
}
