//! Where framing is lost, a request line at the beginning of a captured segment finds it again.
//!
//! The shape is strict, because there is no other evidence: TOKEN SP TARGET SP `HTTP/`d`.`d CR LF, no byte of the target
//! being a space or a control. Segments can be one byte long, so several candidates may be alive at once. Two whose
//! methods end at the same space have the same future, so one is kept: the earliest with a known method (the tail
//! of a body, which may be all letters, must not become a part of the method behind it), else the earliest that is not
//! the tail of a known method: that is a head with a hole, which is never forwarded. A longer token than [`MAX_METHOD`] is no method. So no byte is looked at more than `MAX_METHOD` times and once per place of
//! the grammar.

use super::head::is_token;
use super::methods;
use crate::time::Timestamp;

/// The longest method that is looked for, in bytes; the longest registered one has 17.
const MAX_METHOD: usize = 32;

/// What every byte of a piece shares.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) ts: Timestamp,
    pub(super) segment_start: bool,
    pub(super) conflict: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing seen.
    Start,
    Token,
    /// Behind the first space.
    TargetStart,
    Target,
    /// Behind the second space: so many bytes of `HTTP/d.d\r\n` seen.
    Version(u8),
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    /// Where it begins in the buffer.
    start: usize,
    ts: Timestamp,
    conflict: bool,
    place: Place,
}

/// A request line was found.
#[derive(Debug)]
pub(super) struct Found {
    /// Bytes of the piece that belong to the line.
    pub(super) used: usize,
    /// The whole line.
    pub(super) line: Vec<u8>,
    /// Of its first byte.
    pub(super) ts: Timestamp,
    /// Copies of its bytes disagreed.
    pub(super) conflict: bool,
}

/// The candidates that are alive, and the bytes since the earliest of them.
#[derive(Debug, Default)]
pub(super) struct Search {
    buf: Vec<u8>,
    live: Vec<Candidate>,
}

impl Search {
    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.buf.capacity()
    }

    /// Bytes since the earliest candidate that is alive.
    pub(super) fn pending(&self) -> u64 {
        self.buf.len() as u64
    }

    /// Drops all candidates.
    pub(super) fn reset(&mut self) {
        // Not cleared: most directions that are searched never have a candidate again.
        self.buf = Vec::new();
        self.live.clear();
    }

    /// Looks through the next bytes. `max`: the longest line.
    pub(super) fn feed(&mut self, bytes: &[u8], origin: Origin, max: usize) -> Option<Found> {
        let held = self.buf.len();
        for (at, &byte) in bytes.iter().enumerate() {
            if at == 0 && origin.segment_start {
                self.live.push(Candidate {
                    start: held,
                    ts: origin.ts,
                    conflict: false,
                    place: Place::Start,
                });
            }
            if self.live.is_empty() {
                break;
            }
            let mut found = None;
            self.live.retain_mut(|candidate| {
                candidate.conflict |= origin.conflict;
                match advance(candidate.place, byte) {
                    Some(Place::Token) if held + at >= candidate.start + MAX_METHOD => false,
                    Some(place) => {
                        if place == Place::Version(10) {
                            found = found.or(Some(*candidate));
                        }
                        candidate.place = place;
                        true
                    }
                    None => false,
                }
            });
            if let Some(candidate) = found {
                let mut line = std::mem::take(&mut self.buf);
                line.extend_from_slice(bytes.get(..=at).unwrap_or_default());
                line.drain(..candidate.start.min(line.len()));
                self.reset();
                return Some(Found {
                    used: at + 1,
                    line,
                    ts: candidate.ts,
                    conflict: candidate.conflict,
                });
            }
            if byte == b' ' {
                self.merge(bytes.get(..at).unwrap_or_default());
            }
        }
        match self.live.first() {
            Some(first) if held + bytes.len() - first.start <= max => {
                let start = first.start;
                self.buf.extend_from_slice(bytes);
                self.buf.drain(..start);
                for candidate in &mut self.live {
                    candidate.start -= start;
                }
            }
            _ => self.reset(),
        }
        None
    }
}

impl Search {
    /// Of the candidates whose method has just ended, one is kept. `bytes`: those of the piece before the space.
    fn merge(&mut self, bytes: &[u8]) {
        let ended = |c: &Candidate| c.place == Place::TargetStart;
        let method = |c: &Candidate| {
            let (buf, piece) = match c.start.checked_sub(self.buf.len()) {
                Some(start) => (&[][..], bytes.get(start..)),
                None => (self.buf.get(c.start..).unwrap_or_default(), Some(bytes)),
            };
            (buf, piece.unwrap_or_default())
        };
        let known = |c: &&Candidate| {
            let (buf, piece) = method(c);
            methods::is_known(buf, piece)
        };
        // Where a hole ends inside of a method, the segment behind it begins with `ET /` or `OST /`.
        let whole = |c: &&Candidate| {
            let (buf, piece) = method(c);
            !methods::is_tail(buf, piece)
        };
        let mut candidates = self.live.iter().filter(|c| ended(c));
        let kept = candidates.clone().find(known);
        let kept = kept.or_else(|| candidates.find(whole)).map(|c| c.start);
        self.live.retain(|c| !ended(c) || Some(c.start) == kept);
    }
}

fn advance(place: Place, byte: u8) -> Option<Place> {
    match (place, byte) {
        (Place::Start | Place::Token, _) if is_token(byte) => Some(Place::Token),
        (Place::Token, b' ') => Some(Place::TargetStart),
        (Place::Target, b' ') => Some(Place::Version(0)),
        (Place::TargetStart | Place::Target, 0x21..=0x7e | 0x80..) => Some(Place::Target),
        (Place::Version(seen), _) => {
            let fits = match seen {
                0 => byte == b'H',
                1 | 2 => byte == b'T',
                3 => byte == b'P',
                4 => byte == b'/',
                5 | 7 => byte.is_ascii_digit(),
                6 => byte == b'.',
                8 => byte == b'\r',
                _ => byte == b'\n',
            };
            fits.then_some(Place::Version(seen + 1))
        }
        _ => None,
    }
}
