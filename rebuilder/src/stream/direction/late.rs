//! Bytes of which there is more than one reading: late copies that disagree, and urgent bytes.

use crate::decode::Seq;

use super::super::held::Piece;
use super::super::offset::{StreamOffset, index, len64};
use super::super::{Compared, Sink};
use super::{Direction, Env, Part};

/// So many delivered segments are remembered by their hash.
const REMEMBERED: usize = 4;

/// A segment that was handed on; of no bytes where there was none.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    /// A keyed hash: whoever sends the segment cannot choose another one with the same.
    hash: u64,
    /// The lower half of its [`StreamOffset`].
    at: u32,
    len: u32,
}

/// The segments that were handed on last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recent {
    given: [Given; REMEMBERED],
    turn: u8,
}

impl Direction {
    /// Remembers what is handed on.
    pub(super) fn remember(&mut self, piece: &Piece<'_>, env: &Env<'_>) {
        // Differences of places are far below 2³², so the lower half tells them.
        #[allow(clippy::cast_possible_truncation)]
        let given = Given {
            hash: env.hash(piece.data),
            at: self.next.0 as u32,
            len: u32::try_from(piece.data.len()).unwrap_or(0),
        };
        let turn = usize::from(self.recent.turn) % REMEMBERED;
        if let Some(place) = self.recent.given.get_mut(turn) {
            *place = given;
        }
        self.recent.turn = self.recent.turn.wrapping_add(1);
    }

    /// Compares the front of a payload, which lies before the next byte, with what was handed on: byte by byte where
    /// the sink still holds it, by hash where the payload covers a whole segment that is remembered. The bytes of a
    /// copy that agrees with neither bounds are not compared.
    pub(super) fn compare_late(
        &mut self,
        part: &Part<'_>,
        env: &mut Env<'_>,
        sink: &mut impl Sink,
    ) {
        let at = self.place(part.seq);
        let end = at.saturating_add_unsigned(len64(part.payload.len()));
        let next = i64::try_from(self.next.0).unwrap_or(i64::MAX);
        if self.is_waiting() || self.opaque.is_some() || at >= next {
            return;
        }
        if matches!(part.payload, [0]) && end == next {
            // A keep-alive probe repeats the last byte's place with an octet of no meaning (RFC 9293 §3.8.4); senders
            // that put one there choose zero.
            return;
        }
        let behind = next.saturating_sub(end).max(0).unsigned_abs();
        let late = end.min(next).saturating_sub(at).unsigned_abs();
        let copy = part.payload.get(..index(late)).unwrap_or_default();
        let Compared { held, conflicting } = sink.compare(self.id, behind, copy);
        env.stats.conflicting_bytes += conflicting;
        let mut conflict = conflicting > 0;
        if !conflict && held < late {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let start = at as u32;
            conflict = self.recent.given.iter().any(|given| {
                let from = index(u64::from(given.at.wrapping_sub(start)));
                let to = from.saturating_add(index(u64::from(given.len)));
                given.len > 0
                    && copy
                        .get(from..to)
                        .is_some_and(|copy| env.hash(copy) != given.hash)
            });
        }
        env.stats.late_conflicts += u64::from(conflict);
    }

    /// Takes the urgent pointer of a segment at `seq`.
    pub(in crate::stream) fn note_urgent(&mut self, seq: Seq, pointer: u16) {
        // It points behind the urgent byte, as every stack reads it (RFC 6093 §2.1); zero is read as one.
        let at = self
            .place(seq)
            .saturating_add(i64::from(pointer.max(1)) - 1);
        if let Ok(at) = u64::try_from(at)
            && StreamOffset(at) >= self.next
        {
            self.urgent = Some(StreamOffset(at));
        }
    }

    /// Whether the urgent byte lies in the payload: the receiver takes it out of the stream, unless it asked for it in
    /// line (`SO_OOBINLINE`), and nobody can tell from outside.
    pub(super) fn is_urgent(&self, part: &Part<'_>) -> bool {
        let Some(urgent) = self.urgent else {
            return false;
        };
        let at = self.place(part.seq);
        let end = at.saturating_add_unsigned(len64(part.payload.len()));
        (at..end).contains(&i64::try_from(urgent.0).unwrap_or(i64::MAX))
    }
}
