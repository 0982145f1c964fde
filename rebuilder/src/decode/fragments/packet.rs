//! One packet of which pieces have come; and one that is whole.

use std::collections::BTreeMap;

/// What a piece (and its runs) costs beyond its bytes: map entries and an allocation, rounded up.
const PIECE_COST: usize = 160;

/// A piece whose place is sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    /// Where it begins in the packet's payload.
    pub(super) start: usize,
    /// Where it ends, as its IP length says.
    pub(super) end: usize,
    /// Whether no more follow.
    pub(super) last: bool,
    /// What was captured of it: `end - start` bytes, or fewer where the mirror cut it.
    pub(super) bytes: &'a [u8],
    /// The packet's protocol, where it begins the packet.
    pub(super) protocol: u8,
    /// Whether its IP header said how long it is.
    pub(super) sized: bool,
}

/// Pieces that do not overlap, joined as Linux joins them: one that begins where the last run ends belongs to it.
#[derive(Debug, Default)]
struct Runs(BTreeMap<usize, usize>);

/// How a piece lies to those that came before.
enum Fit {
    New,
    /// Wholly within a run: a copy.
    Known,
    Overlap,
}

impl Runs {
    fn fit(&self, start: usize, end: usize) -> Fit {
        if let Some((_, run_end)) = self.0.range(..=start).next_back()
            && start < *run_end
        {
            return if end <= *run_end {
                Fit::Known
            } else {
                Fit::Overlap
            };
        }
        match self.0.range(start..).next() {
            Some((next, _)) if *next < end => Fit::Overlap,
            _ => Fit::New,
        }
    }

    /// Takes a piece that fits as new.
    fn add(&mut self, start: usize, end: usize) {
        match self.0.last_entry() {
            Some(mut last) if *last.get() == start => {
                last.insert(end);
            }
            _ => {
                self.0.insert(start, end);
            }
        }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    fn len(&self) -> usize {
        self.0.iter().map(|(start, end)| end - start).sum()
    }
}

/// A piece that proves that the packet as a whole is unsound: the receiver throws all of it away.
#[derive(Debug)]
pub(super) struct Unsound;

/// What became of a sound piece.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Taken {
    /// How many of its bytes were not there.
    pub(super) new: usize,
    /// How many of its bytes are not as they had come before.
    pub(super) conflicts: usize,
    /// Whether it makes the packet whole. A copy never does, not even one that tells where the packet ends.
    pub(super) completes: bool,
}

/// A packet that waits for pieces.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Captured bytes by offset; they do not overlap, and none is empty.
    bytes: BTreeMap<usize, Vec<u8>>,
    /// The sum of their lengths.
    held: usize,
    /// What the pieces' IP lengths say that was sent.
    runs: Runs,
    /// The sum of their lengths.
    sent: usize,
    /// How far the pieces reach.
    end: usize,
    /// Whether the last one is among them.
    last: bool,
    /// As the first piece says.
    protocol: Option<u8>,
    /// Whether some piece did not say how long it is.
    unsized_piece: bool,
}

impl Waiting {
    /// Takes a piece, by the rules of Linux (`ip_frag_queue`, `ip6_frag_queue`, `inet_frag_queue_insert`).
    pub(super) fn take(&mut self, piece: &Piece<'_>) -> Result<Taken, Unsound> {
        let Piece { start, end, .. } = *piece;
        if start >= end {
            return Err(Unsound);
        }
        if piece.last {
            if end < self.end || (self.last && end != self.end) {
                return Err(Unsound);
            }
            self.last = true;
            self.end = end;
        } else if end > self.end {
            if self.last {
                return Err(Unsound);
            }
            self.end = end;
        }
        let is_new = match self.runs.fit(start, end) {
            Fit::Overlap => return Err(Unsound),
            Fit::Known => false,
            Fit::New => {
                self.runs.add(start, end);
                self.sent += end - start;
                true
            }
        };
        self.unsized_piece |= !piece.sized;
        if start == 0 {
            self.protocol.get_or_insert(piece.protocol);
        }
        Ok(Taken {
            completes: is_new && self.last && self.protocol.is_some() && self.sent == self.end,
            ..self.fill(start, piece.bytes)
        })
    }

    /// Takes what is new in the bytes at `offset`, and compares the rest.
    fn fill(&mut self, offset: usize, data: &[u8]) -> Taken {
        let mut taken = Taken::default();
        let end = offset + data.len();
        let mut at = offset;
        while at < end {
            // Those that reach over `at`, or else the next ones.
            let before = self.bytes.range(..=at).next_back();
            if let Some((start, known)) = before
                && at < start + known.len()
            {
                let until = end.min(start + known.len());
                let old = known.get(at - start..until - start).unwrap_or_default();
                let new = data.get(at - offset..until - offset).unwrap_or_default();
                taken.conflicts += old.iter().zip(new).filter(|(old, new)| old != new).count();
                at = until;
                continue;
            }
            let next = self.bytes.range(at..).next().map(|(start, _)| *start);
            let until = next.map_or(end, |next| next.min(end));
            let new = data.get(at - offset..until - offset).unwrap_or_default();
            self.bytes.insert(at, new.to_vec());
            taken.new += new.len();
            at = until;
        }
        self.held += taken.new;
        taken
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn cost(&self) -> usize {
        self.held + (self.bytes.len() + self.runs.0.len()) * PIECE_COST
    }

    /// The packet, as far as it was captured without a hole; and how many bytes were captured behind one.
    pub(super) fn into_whole(self) -> (Whole, usize) {
        let mut payload = Vec::with_capacity(self.held);
        for (start, bytes) in &self.bytes {
            if *start != payload.len() {
                break;
            }
            payload.extend_from_slice(bytes);
        }
        let beyond = self.held - payload.len();
        let whole = Whole {
            payload,
            len: self.end,
            protocol: self.protocol.unwrap_or_default(),
            sized: !self.unsized_piece,
            again: Waiting::default(),
        };
        (whole, beyond)
    }

    /// Panics where what is summed up is not the sum.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        let held: usize = self.bytes.values().map(Vec::len).sum();
        assert_eq!(held, self.held);
        assert_eq!(self.runs.len(), self.sent);
        let mut end = 0;
        for (start, bytes) in &self.bytes {
            assert!(*start >= end && !bytes.is_empty());
            end = start + bytes.len();
        }
        assert!(end <= self.end);
    }
}

/// A packet that became whole, kept so that late copies of its pieces are told from a new packet.
#[derive(Debug, Default)]
pub(super) struct Whole {
    /// What was captured of it up to the first hole.
    pub(super) payload: Vec<u8>,
    /// How long it was.
    pub(super) len: usize,
    pub(super) protocol: u8,
    /// Whether every piece said how long it is.
    pub(super) sized: bool,
    /// The copies that have come since, as far as they do not make the packet a second time. With their bytes, since
    /// they may turn out to be the beginning of another packet.
    again: Waiting,
}

impl Whole {
    /// Whether the piece only says again what is known.
    pub(super) fn repeats(&mut self, piece: &Piece<'_>) -> bool {
        let Piece { start, end, .. } = *piece;
        if start >= end
            || end > self.len
            || piece.last != (end == self.len)
            || (start == 0 && piece.protocol != self.protocol)
            || self.payload.get(start..start + piece.bytes.len()) != Some(piece.bytes)
        {
            return false;
        }
        match self.again.take(piece) {
            Err(Unsound) => return false,
            Ok(taken) if taken.completes => self.again = Waiting::default(),
            Ok(_) => {}
        }
        true
    }

    /// A packet under the same name that is not this one: it begins with the copies that have come since, which may as
    /// well have been its own.
    pub(super) fn into_next(self) -> Waiting {
        self.again
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self) {
        assert!(self.payload.len() <= self.len);
        self.again.check();
    }

    pub(super) fn cost(&self) -> usize {
        self.payload.len() + self.again.cost()
    }
}
