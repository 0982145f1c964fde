//! The head of a request, from its first byte to the empty line: found in pieces, then split.
//!
//! Tolerant on purpose: an analyser must see what a lenient server would have taken. What a strict reader would refuse is
//! split as if tolerated and marked odd, which makes the request `disputed`. Nothing here panics on any input, and no
//! byte is looked at more than a fixed number of times, however the head was cut into segments.
//!
//! This path takes every head. Most are found and split by [`super::plain`] before it is asked; httparse in front of it
//! would not do instead, because it takes bare LF, so the bytes would have to be looked at again to tell what is disputed.
//! It is the oracle of the tests: wherever it accepts, both agree.

use std::ops::Range;

use memchr::memchr;

use super::{Header, methods};

/// Bytes of a `token` (RFC 9110 §5.6.2): method names and field names.
pub(crate) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// Bytes that a field value may hold (RFC 9110 §5.5): no control but HTAB.
pub(super) const fn is_value(byte: u8) -> bool {
    (byte == b'\t') | ((byte >= 0x20) & (byte != 0x7f))
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte < 0x80 {
        table[byte as usize] = is_token(byte);
        byte += 1;
    }
    table
};

fn all_tokens(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| TOKEN[usize::from(*b)])
}

/// No early exit: without one the compiler takes 16 bytes at a time, and almost every value is sound.
fn all_values(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |sound, b| sound & is_value(*b))
}

pub(super) const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Without SP and HTAB at either end; where it stands in what `range` counts in.
fn trim(bytes: &[u8], range: Range<usize>) -> Range<usize> {
    let slice = bytes.get(range.clone()).unwrap_or_default();
    let Some(first) = slice.iter().position(|b| !is_blank(*b)) else {
        return range.end..range.end;
    };
    let behind = slice
        .iter()
        .rposition(|b| !is_blank(*b))
        .map_or(0, |p| p + 1);
    range.start + first..range.start + behind
}

/// What the bytes at a message boundary turned out to be, when they are not a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reject {
    /// A status line: this is the answering direction.
    Status,
    /// A TLS record.
    Tls,
    /// A request line other than CONNECT where only CONNECT counts, or no request line at all there.
    NotConnect,
    /// No request line.
    Garbage,
    /// No request line, but a line that means HTTP: some server may take it for one (tabs for spaces, `http/1.1`).
    Nearly,
    /// Empty lines without end.
    Flood,
    /// A request line, but no empty line within `max_head`.
    TooLong,
}

/// How far a head was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// Not yet decided, or the empty line is still to come.
    More,
    /// The head ends before this offset.
    Complete(usize),
    /// This is not a request.
    Reject(Reject),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Empty lines before the request line (RFC 9112 §2.2).
    Empty,
    /// Inside the first token.
    Method,
    /// Behind the first blank of the line.
    Line,
    /// Behind the request line.
    Fields,
}

/// How many bytes of empty lines are kept before a request line. nginx skips any number of CR and LF there, so they must not
/// hide the request behind them; but nobody means anything by more than one.
pub(super) const MAX_EMPTY: usize = 4 << 10;

/// Finds the end of a head in bytes that arrive in pieces, and remembers how far it has looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadScan {
    phase: Phase,
    /// The first byte not looked at.
    pos: usize,
    /// Where the line that `pos` is in begins.
    line: usize,
    /// Where the request line begins.
    line_start: usize,
    /// Where the line behind the request line begins.
    fields: usize,
    /// After a CONNECT nothing but another one is a request.
    only_connect: bool,
}

impl HeadScan {
    pub(super) fn new(only_connect: bool) -> Self {
        Self {
            phase: Phase::Empty,
            pos: 0,
            line: 0,
            line_start: 0,
            fields: 0,
            only_connect,
        }
    }

    /// Whether nothing was looked at, and any request counts.
    pub(super) fn fresh(&self) -> bool {
        self.pos == 0 && !self.only_connect
    }

    /// Where the request line begins; meaningful once the head is complete.
    pub(super) fn line_start(&self) -> usize {
        self.line_start
    }

    /// Whether anything but empty lines was seen.
    pub(super) fn begun(&self) -> bool {
        self.phase != Phase::Empty
    }

    /// `data`: all bytes since the previous message, those already looked at included. `max_head`: the longest head, empty
    /// lines before it not counted.
    pub(super) fn scan(&mut self, data: &[u8], max_head: usize) -> Scan {
        let found = self.run(data);
        let empty = if self.begun() {
            self.line_start
        } else {
            self.pos
        };
        if empty > MAX_EMPTY {
            return Scan::Reject(Reject::Flood);
        }
        let longer = |end: usize| end.saturating_sub(empty) > max_head;
        match found {
            Scan::More if longer(data.len()) => Scan::Reject(self.too_long(max_head)),
            Scan::Complete(end) if longer(end) => Scan::Reject(self.too_long(max_head)),
            // In pieces, so long a line is given up before it is known what it was to be.
            Scan::Reject(Reject::Nearly) if longer(self.pos.saturating_sub(1)) => {
                Scan::Reject(self.too_long(max_head))
            }
            Scan::Reject(Reject::Garbage | Reject::Nearly) if self.only_connect => {
                Scan::Reject(Reject::NotConnect)
            }
            found => found,
        }
    }

    fn too_long(&self, max_head: usize) -> Reject {
        match self.phase {
            Phase::Fields if self.fields - self.line_start <= max_head => Reject::TooLong,
            _ if self.only_connect => Reject::NotConnect,
            _ => Reject::Garbage,
        }
    }

    fn run(&mut self, data: &[u8]) -> Scan {
        if self.phase == Phase::Empty {
            // Any mixture, as nginx does it; `split` finds what is odd.
            let rest = data.get(self.pos..).unwrap_or_default();
            let empty = rest.iter().position(|b| !matches!(b, b'\r' | b'\n'));
            self.pos += empty.unwrap_or(rest.len());
            if empty.is_none() {
                return Scan::More;
            }
            self.phase = Phase::Method;
            self.line_start = self.pos;
            self.line = self.pos;
        }
        if self.phase == Phase::Method {
            let rest = data.get(self.pos..).unwrap_or_default();
            match rest.iter().position(|b| !TOKEN[usize::from(*b)]) {
                None => {
                    self.pos = data.len();
                    return Scan::More;
                }
                // Blanks of any kind, for `not_a_request` to see the whole line.
                Some(at) if matches!(rest.get(at), Some(b' ' | b'\t' | 0x0b | 0x0c)) => {
                    self.pos += at + 1;
                    self.phase = Phase::Line;
                }
                Some(at) => {
                    self.pos += at;
                    return not_a_method(data.get(self.line_start..).unwrap_or_default());
                }
            }
        }
        if self.phase == Phase::Line {
            let Some(lf) = self.next_lf(data) else {
                return Scan::More;
            };
            let line = without_cr(data.get(self.line_start..lf).unwrap_or_default());
            match request_line(line) {
                None => return Scan::Reject(not_a_request(line)),
                Some(_) if self.only_connect && !line.starts_with(b"CONNECT ") => {
                    return Scan::Reject(Reject::NotConnect);
                }
                Some(_) => {}
            }
            self.line = lf + 1;
            self.fields = lf + 1;
            self.phase = Phase::Fields;
        }
        while let Some(lf) = self.next_lf(data) {
            if without_cr(data.get(self.line..lf).unwrap_or_default()).is_empty() {
                return Scan::Complete(lf + 1);
            }
            self.line = lf + 1;
        }
        Scan::More
    }

    /// The next line feed at or behind `pos`; moves `pos` behind it, or to the end.
    fn next_lf(&mut self, data: &[u8]) -> Option<usize> {
        let found = memchr(b'\n', data.get(self.pos..).unwrap_or_default()).map(|at| self.pos + at);
        self.pos = found.map_or(data.len(), |lf| lf + 1);
        found
    }
}

/// What a line that is no request line is.
fn not_a_request(line: &[u8]) -> Reject {
    let means_http = line
        .windows(5)
        .any(|word| word.eq_ignore_ascii_case(b"HTTP/"));
    if means_http {
        Reject::Nearly
    } else {
        Reject::Garbage
    }
}

/// Bytes at a boundary whose first token does not end in a blank.
fn not_a_method(bytes: &[u8]) -> Scan {
    match bytes {
        [0x16] => Scan::More,
        [0x16, 0x03, ..] => Scan::Reject(Reject::Tls),
        _ if looks_like_status(bytes) => Scan::Reject(Reject::Status),
        _ if bytes.len() < 9 && bytes.iter().zip(b"HTTP/").all(|(a, b)| a == b) => Scan::More,
        _ => Scan::Reject(Reject::Garbage),
    }
}

/// `HTTP/`d`.`d SP: the beginning of an answer (RFC 9112 §4).
pub(super) fn looks_like_status(bytes: &[u8]) -> bool {
    bytes.get(8) == Some(&b' ') && bytes.get(..8).and_then(version).is_some()
}

/// `HTTP/`d`.`d (RFC 9112 §2.3).
fn version(bytes: &[u8]) -> Option<(u8, u8)> {
    match bytes.strip_prefix(b"HTTP/")? {
        [major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] => Some((major - b'0', minor - b'0')),
        _ => None,
    }
}

/// The same with more digits, which nginx takes: `HTTP/1.10` and `HTTP/1.01` are 1.1 to it. Numbers beyond 255 are 255.
fn long_version(bytes: &[u8]) -> Option<(u8, u8)> {
    let text = bytes.strip_prefix(b"HTTP/")?;
    let (major, minor) = text.split_at_checked(memchr(b'.', text)?)?;
    let number = |digits: &[u8]| {
        let sound = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
        sound.then(|| {
            digits.iter().fold(0u8, |sum, digit| {
                sum.saturating_mul(10).saturating_add(digit - b'0')
            })
        })
    };
    Some((number(major)?, number(minor.get(1..)?)?))
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The parts of a request line, as offsets into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RequestLine {
    pub(super) method: Range<usize>,
    pub(super) target: Range<usize>,
    pub(super) version: (u8, u8),
    /// The version has more digits than two.
    pub(super) long_version: bool,
    /// A strict reader refuses it, and what follows may be framed differently.
    pub(super) odd: bool,
    /// A strict reader refuses it, but whoever does not frames it like everybody.
    pub(super) refused: bool,
}

/// TOKEN SP TARGET SP `HTTP/`d`.`d, or more digits, the target being everything between the first and the last space. `line` has no line
/// end. Spaces behind the version are tolerated as nginx does, and odd: a reader that stops there must not hide a request.
pub(super) fn request_line(line: &[u8]) -> Option<RequestLine> {
    let end = line.iter().rposition(|b| *b != b' ')? + 1;
    let stripped = line.get(..end)?;
    let first = memchr(b' ', stripped)?;
    let last = memchr::memrchr(b' ', stripped)?;
    let method = stripped.get(..first)?;
    let target = stripped.get(first + 1..last)?;
    let text = stripped.get(last + 1..)?;
    let plain = version(text);
    let version = plain.or_else(|| long_version(text))?;
    if method.is_empty() || target.is_empty() || !all_tokens(method) {
        return None;
    }
    let odd = end != line.len()
        || plain.is_none()
        || !matches!(version, (1, 0 | 1))
        || target.iter().any(|b| *b <= b' ');
    let refused = !methods::is_known(method, b"")
        || !target
            .iter()
            .fold(true, |sound, b| sound & b.is_ascii_graphic());
    Some(RequestLine {
        method: 0..first,
        target: first + 1..last,
        version,
        long_version: plain.is_none(),
        odd,
        refused,
    })
}

/// A head in its parts; all ranges count from the beginning of the bytes it was split from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) method: Range<usize>,
    pub(super) target: Range<usize>,
    pub(super) version: (u8, u8),
    pub(super) long_version: bool,
    pub(super) headers: Vec<Header>,
    /// A strict reader refuses something in it, and what follows may be framed differently.
    pub(super) odd: bool,
    /// A strict reader refuses something in it, but whoever does not frames it like everybody.
    pub(super) refused: bool,
}

/// Splits a complete head: `bytes` ends with the empty line, and the request line begins at `line_start`.
pub(super) fn split(bytes: &[u8], line_start: usize) -> Option<Head> {
    // Empty lines before the request line are in order (RFC 9112 §2.2); a bare LF is not.
    let mut odd = bytes
        .get(..line_start)?
        .chunks(2)
        .any(|pair| pair != b"\r\n");
    let mut lines = Lines {
        bytes,
        pos: line_start,
    };
    let (range, bare) = lines.next()?;
    let line = request_line(bytes.get(range)?)?;
    odd |= line.odd | bare;
    let mut refused = line.refused;
    let mut headers: Vec<Header> = Vec::with_capacity(16);
    for (range, bare) in lines {
        odd |= bare;
        let text = bytes.get(range.clone())?;
        if text.is_empty() {
            break;
        }
        if text.first().is_some_and(|b| is_blank(*b)) {
            // A fold (RFC 9112 §5.2) belongs to the field before it; with none before it, it is a line like others.
            odd = true;
            if let Some(last) = headers.last_mut() {
                match &mut last.value {
                    Some(value) => *value = trim(bytes, value.start..range.end),
                    None => last.name.end = range.end,
                }
                continue;
            }
        }
        let Some(colon) = memchr(b':', text) else {
            odd = true;
            headers.push(Header {
                name: range,
                value: None,
            });
            continue;
        };
        let (name, value) = text.split_at(colon);
        if name.is_empty() || !all_tokens(name) {
            // A control or blank in it may hide a name from some readers; a bracket or an umlaut only makes it none.
            refused = true;
            odd |= name.is_empty() || name.iter().any(|b| *b <= b' ' || *b == 0x7f);
        }
        if !all_values(value) {
            refused = true;
            odd |= value.iter().any(|b| matches!(b, b'\0' | b'\r'));
        }
        headers.push(Header {
            name: range.start..range.start + colon,
            value: Some(trim(bytes, range.start + colon + 1..range.end)),
        });
    }
    let shift = |r: Range<usize>| line_start + r.start..line_start + r.end;
    Some(Head {
        method: shift(line.method),
        target: shift(line.target),
        version: line.version,
        long_version: line.long_version,
        headers,
        odd,
        refused,
    })
}

/// Lines that end in LF, with or without CR before it.
struct Lines<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl Iterator for Lines<'_> {
    /// Where the line stands without its end, and whether that was a bare LF.
    type Item = (Range<usize>, bool);

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.pos..)?;
        let lf = memchr(b'\n', rest)?;
        let line = without_cr(rest.get(..lf)?);
        let range = self.pos..self.pos + line.len();
        self.pos += lf + 1;
        Some((range, line.len() == lf))
    }
}
