//! The chunked coding (RFC 9112 §7.1), followed byte by byte as it arrives.

use super::head::{is_token, is_value};

/// A size may have this many digits, leading zeros included; more is a bad size.
const MAX_DIGITS: usize = 256;

/// More digits than that, leading zeros included, no client writes, and some readers count them: 64 bits have 16.
const PLAIN_DIGITS: usize = 16;

/// How a piece of a chunked body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All of the piece belongs to the body, and more is to come.
    More,
    /// The body ends behind this many bytes of the piece.
    End(usize),
    /// The byte at this offset of the piece breaks the coding.
    Bad(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a chunk's size.
    Size,
    /// Behind the size, in blanks, an extension or the line end.
    Extension,
    /// In the data of a chunk.
    Data,
    /// Behind the data of a chunk, before its line end.
    DataCr,
    /// In the line end behind the data.
    DataLf,
    /// At the beginning of a trailer line, or of the empty line that ends the body.
    Trailer,
    /// Behind a CR at the beginning of a trailer line.
    TrailerCr,
    /// Inside a trailer line.
    TrailerLine,
}

enum Took {
    Byte,
    Last,
    Nothing,
}

/// Where in a chunked body the next byte stands. All counts are in bytes.
#[derive(Clone, Debug)]
pub(super) struct Chunked {
    state: State,
    /// Of the current chunk, as far as read.
    size: u64,
    /// Data of the current chunk still to come.
    left: u64,
    /// The current size line, or all trailers.
    line: usize,
    max_line: usize,
    last: u8,
    /// Whether the current trailer line has had its colon.
    colon: bool,
    taken: u64,
    data: u64,
    whole: u64,
    odd: bool,
}

impl Chunked {
    /// `max_line`: the longest size line, and the most bytes of trailers.
    pub(super) fn new(max_line: usize) -> Self {
        Self {
            state: State::Size,
            size: 0,
            left: 0,
            line: 0,
            max_line,
            last: 0,
            colon: false,
            taken: 0,
            data: 0,
            whole: 0,
            odd: false,
        }
    }

    /// Bytes of data so far, chunk framing removed.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// Whether a strict reader refuses what was seen.
    pub(super) fn odd(&self) -> bool {
        self.odd
    }

    /// How much of the body ends with the last whole chunk; the zero chunk does not count.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// How much of the body is sound when the next byte breaks the coding: up to the last whole chunk, or up to the end
    /// of a chunk's data that lacks its line end.
    pub(super) fn sound(&self) -> u64 {
        match self.state {
            State::DataCr => self.taken,
            State::DataLf => self.taken.saturating_sub(1),
            _ => self.whole,
        }
    }

    /// How many of the bytes taken would have to be read anew, as something else than this body, were the next one bad.
    pub(super) fn doubtful(&self) -> Option<usize> {
        match self.state {
            State::Size => Some(self.line),
            State::DataCr => Some(0),
            State::DataLf => Some(1),
            _ => None,
        }
    }

    /// `len` bytes will never come. True when all of them are data of the current chunk, so that the framing is kept.
    pub(super) fn gap(&mut self, len: u64) -> bool {
        let known = self.state == State::Data && len <= self.left;
        if known {
            self.skip_data(len);
        }
        known
    }

    fn skip_data(&mut self, len: u64) {
        self.taken = self.taken.saturating_add(len);
        self.left -= len;
        if self.left == 0 {
            self.state = State::DataCr;
        }
    }

    /// Takes the next bytes of the body.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Step {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            if self.state == State::Data {
                let rest = bytes.len() - at;
                let take = usize::try_from(self.left).map_or(rest, |left| left.min(rest));
                self.data += take as u64;
                self.skip_data(take as u64);
                at += take;
                continue;
            }
            match self.byte(byte) {
                Took::Nothing => return Step::Bad(at),
                Took::Last => return Step::End(at + 1),
                Took::Byte => at += 1,
            }
        }
        Step::More
    }

    /// One byte outside of chunk data.
    fn byte(&mut self, byte: u8) -> Took {
        if self.line >= self.max_line {
            return Took::Nothing;
        }
        let after_cr = self.last == b'\r';
        let mut next = self.state;
        match (self.state, byte) {
            (State::Size, _) if byte.is_ascii_hexdigit() => {
                // Above i64::MAX a server's own counter overflows; so far, the size is a bad one.
                if self.line >= MAX_DIGITS || self.size > (i64::MAX as u64) >> 4 {
                    return Took::Nothing;
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                self.odd |= self.line >= PLAIN_DIGITS;
            }
            (State::Size, _) if self.line == 0 => return Took::Nothing,
            (State::Size, b';' | b'\r') => next = State::Extension,
            (State::Size, b' ' | b'\t') => {
                self.odd = true;
                next = State::Extension;
            }
            (State::Size | State::Extension, b'\n') => {
                self.odd |= !after_cr;
                next = if self.size == 0 {
                    State::Trailer
                } else {
                    State::Data
                };
            }
            (State::Size, _) => return Took::Nothing,
            (State::Extension, b'\r' | b';' | b'=') => {
                // A name or value is missing before it.
                self.odd |= after_cr || matches!(self.last, b';' | b'=');
            }
            (State::Extension, _) => self.odd |= after_cr || !is_token(byte),
            (State::DataCr, b'\r') => next = State::DataLf,
            (State::DataCr, b'\n') => {
                self.odd = true;
                next = State::Size;
            }
            (State::DataLf, b'\n') => next = State::Size,
            (State::DataCr | State::DataLf | State::Data, _) => return Took::Nothing,
            (State::Trailer, b'\r') => next = State::TrailerCr,
            (State::Trailer | State::TrailerCr, b'\n') => {
                self.odd |= !after_cr || self.state == State::Trailer;
                return Took::Last;
            }
            (State::Trailer, _) => {
                self.colon = false;
                self.odd |= !is_token(byte);
                next = State::TrailerLine;
            }
            (State::TrailerCr, _) => {
                self.colon = false;
                self.odd = true;
                next = State::TrailerLine;
            }
            (State::TrailerLine, b'\n') => {
                self.odd |= !after_cr || !self.colon;
                next = State::Trailer;
            }
            (State::TrailerLine, b':') => self.colon = true,
            (State::TrailerLine, b'\r') => self.odd |= after_cr,
            (State::TrailerLine, _) => {
                self.odd |= after_cr
                    || !(if self.colon {
                        is_value(byte)
                    } else {
                        is_token(byte)
                    });
            }
        }
        self.taken = self.taken.saturating_add(1);
        self.last = byte;
        self.line += 1;
        if next != self.state {
            match next {
                State::Size => {
                    self.whole = self.taken;
                    self.line = 0;
                    self.size = 0;
                }
                State::Data => self.left = self.size,
                State::Trailer if self.state != State::TrailerLine => self.line = 0,
                State::DataLf => self.line = 0,
                _ => {}
            }
            self.state = next;
        }
        Took::Byte
    }
}
