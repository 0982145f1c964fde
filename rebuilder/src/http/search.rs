//! Where framing is lost, a request line at the beginning of a captured segment finds it again.
//!
//! The shape is strict, because there is no other evidence: TOKEN SP TARGET SP `HTTP/`d`.`d CR LF, no byte of the target
//! being a space or a control. Segments can be one byte long, so several candidates may be alive at once; two that stand
//! at the same place of the grammar have the same future, so of those only the earlier is kept, and no byte is looked
//! at more than once per place of the grammar.

use super::head::is_token;
use crate::time::Timestamp;

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
            self.merge();
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
    /// They are in order of `start`, so of two at one place the later goes. At most 14 places, so this is cheap.
    fn merge(&mut self) {
        let mut index = 0;
        while index + 1 < self.live.len() {
            let (earlier, later) = self.live.split_at(index + 1);
            let twin = later
                .first()
                .is_some_and(|c| earlier.iter().any(|e| e.place == c.place));
            if twin {
                self.live.remove(index + 1);
            } else {
                index += 1;
            }
        }
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
