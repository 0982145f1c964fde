//! Where each answer ends, and what it says about delivery.
//!
//! Reads just enough: the status, whether the connection stays, how long the body is. Bodies are thrown away as they
//! come; of a header line no more than its first [`LINE_BYTES_MAX`] bytes are kept, which holds every field that
//! frames (RFC 9112 §6.3). Tolerant where a server may be sloppy and nothing hangs on it; where two readings would
//! give two ends, an error: the connection is then closed, and what was not answered on it is sent again.
//!
//! Pure and incremental: any split of the bytes gives the same answers.

use super::bytes::{is_word, parse_length};

/// Bytes kept of one line; more are counted, not stored.
pub const LINE_BYTES_MAX: usize = 512;
/// Bytes of a head that is remembered, because the next one is often the same.
const KNOWN_BYTES_MAX: usize = 1024;
/// Bytes of a whole head, all interim answers before it included.
pub const HEAD_BYTES_MAX: usize = 256 * 1024;

/// What the end of an answer depends on beside its own head (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTo {
    /// HEAD: no body, whatever the head says.
    Head,
    /// CONNECT: a 2xx answer ends HTTP on the connection.
    Connect,
    /// Any other method.
    Other,
}

impl AnswerTo {
    /// By the method's bytes; methods are case-sensitive (RFC 9110 §9.1).
    #[must_use]
    pub fn method(method: &[u8]) -> Self {
        match method {
            b"HEAD" => Self::Head,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// The final head of an answer: the request was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// 200–999, or 101.
    pub status: u16,
    /// `Server: awselb/…`: a load balancer answered itself.
    pub balancer: bool,
    /// No other answer will follow on the connection.
    pub last: bool,
}

/// What one call of [`AnswerReader::read`] came upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Bytes consumed.
    pub used: usize,
    /// The head became whole.
    pub head: Option<Head>,
    /// The answer became whole; `true` when another request may follow on the connection.
    pub end: Option<bool>,
}

/// Why a connection cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// Not HTTP/1.
    #[error("the answer does not begin with an HTTP/1 status line")]
    NotHttp,
    /// See [`HEAD_BYTES_MAX`].
    #[error("the answer's head is longer than 256 KiB")]
    HeadTooLong,
    /// Two lengths, or one that is no number.
    #[error("the answer's Content-Length is not one number")]
    BadLength,
    /// A chunk size that is no number, or data that is longer than its size.
    #[error("the answer's chunked body is malformed")]
    BadChunk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Status,
    Field,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailer,
    UntilClose,
}

/// What a head says.
#[derive(Clone, Copy, Debug)]
struct Said {
    status: u16,
    reusable: bool,
    length: Option<u64>,
    chunked: bool,
    coded: bool,
    balancer: bool,
}

impl Said {
    /// Nothing yet.
    const fn new(status: u16, reusable: bool) -> Self {
        Self {
            status,
            reusable,
            length: None,
            chunked: false,
            coded: false,
            balancer: false,
        }
    }
}

/// Reads the answers of one connection, one after the other.
///
/// An analyser that lets requests pass says the same most of the time, the date included within a second. So the last head
/// that came in one piece is remembered with what it says: the same bytes say the same.
#[derive(Debug)]
pub struct AnswerReader {
    state: State,
    line: Vec<u8>,
    /// Bytes of the current line, those not kept included.
    line_len: usize,
    head_len: usize,
    said: Said,
    /// The head that is remembered; empty where there is none.
    known: Vec<u8>,
    known_says: Said,
}

impl Default for AnswerReader {
    fn default() -> Self {
        Self {
            state: State::Status,
            line: Vec::new(),
            line_len: 0,
            head_len: 0,
            said: Said::new(0, true),
            known: Vec::new(),
            known_says: Said::new(0, true),
        }
    }
}

impl AnswerReader {
    /// Consumes bytes up to the next event at most; call again with the rest while there is one.
    ///
    /// # Errors
    /// [`AnswerError`]; the reader must not be used again.
    pub fn read(&mut self, bytes: &[u8], to: AnswerTo) -> Result<Step, AnswerError> {
        let mut step = Step::default();
        let begins = self.is_between_answers();
        if begins && !self.known.is_empty() && bytes.starts_with(&self.known) {
            step.used = self.known.len();
            self.said = self.known_says;
            self.end_of_head(to, &mut step);
            return Ok(step);
        }
        while let Some(rest) = bytes.get(step.used..).filter(|rest| !rest.is_empty()) {
            match self.state {
                State::UntilClose => {
                    step.used = bytes.len();
                    return Ok(step);
                }
                State::Length(left) => {
                    let (taken, left) = take(rest, left);
                    step.used += taken;
                    self.state = State::Length(left);
                    if left == 0 {
                        step.end = Some(self.finish());
                        return Ok(step);
                    }
                }
                State::ChunkData(left) => {
                    let (taken, left) = take(rest, left);
                    step.used += taken;
                    self.state = if left == 0 {
                        State::ChunkEnd
                    } else {
                        State::ChunkData(left)
                    };
                }
                State::Status
                | State::Field
                | State::ChunkSize
                | State::ChunkEnd
                | State::Trailer => {
                    let end = memchr::memchr(b'\n', rest).map(|lf| lf + 1);
                    let part = rest.get(..end.unwrap_or(rest.len())).unwrap_or(rest);
                    step.used += part.len();
                    self.count(part.len())?;
                    if self.line.is_empty() && end.is_some() {
                        // Nearly every line: it is read where it lies.
                        if self.state != State::Field || !says_nothing(part) {
                            let line = part.get(..LINE_BYTES_MAX).unwrap_or(part);
                            self.line(line.trim_ascii_end(), to, &mut step)?;
                        }
                    } else {
                        self.keep(part);
                        if end.is_none() {
                            return Ok(step);
                        }
                        let line = std::mem::take(&mut self.line);
                        let event = self.line(line.trim_ascii_end(), to, &mut step);
                        // The buffer is kept, so that a long-lived connection allocates once.
                        self.line = line;
                        self.line.clear();
                        event?;
                    }
                    self.line_len = 0;
                    if begins
                        && step.head.is_some_and(|head| !head.last)
                        && let Some(head) = bytes.get(..step.used)
                    {
                        self.remember(head);
                    }
                    if step.head.is_some() || step.end.is_some() {
                        return Ok(step);
                    }
                }
            }
        }
        Ok(step)
    }

    /// The peer closed its side: `true` when that ends the answer whose body had no other end.
    #[must_use]
    pub const fn ends_at_close(&self) -> bool {
        matches!(self.state, State::UntilClose)
    }

    /// Whether nothing of the next answer has come yet.
    #[must_use]
    pub fn is_between_answers(&self) -> bool {
        self.state == State::Status && self.line_len == 0 && self.head_len == 0
    }

    /// A head that came whole, behind which the connection stays.
    fn remember(&mut self, head: &[u8]) {
        if head.len() <= KNOWN_BYTES_MAX {
            self.known.clear();
            self.known.extend_from_slice(head);
            self.known_says = self.said;
        }
    }

    /// So many bytes more of a line.
    fn count(&mut self, bytes: usize) -> Result<(), AnswerError> {
        self.line_len = self.line_len.saturating_add(bytes);
        self.head_len = self.head_len.saturating_add(bytes);
        if self.head_len > HEAD_BYTES_MAX {
            return Err(AnswerError::HeadTooLong);
        }
        Ok(())
    }

    /// Gathers a part of a line.
    fn keep(&mut self, part: &[u8]) {
        let room = LINE_BYTES_MAX.saturating_sub(self.line.len());
        let kept = part.get(..room).unwrap_or(part);
        self.line.extend_from_slice(kept);
    }

    fn line(&mut self, line: &[u8], to: AnswerTo, step: &mut Step) -> Result<(), AnswerError> {
        match self.state {
            // Some servers send an empty line behind a body (RFC 9112 §2.2 says the same of clients).
            State::Status if line.is_empty() => {}
            State::Status => self.status_line(line)?,
            State::Field if line.is_empty() => self.end_of_head(to, step),
            State::Field => self.field(line)?,
            State::ChunkSize => {
                self.head_len = 0;
                match chunk_size(line)? {
                    0 => self.state = State::Trailer,
                    size => self.state = State::ChunkData(size),
                }
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(AnswerError::BadChunk),
            State::Trailer if line.is_empty() => step.end = Some(self.finish()),
            State::Trailer | State::Length(_) | State::ChunkData(_) | State::UntilClose => {}
        }
        Ok(())
    }

    fn status_line(&mut self, line: &[u8]) -> Result<(), AnswerError> {
        let rest = line.strip_prefix(b"HTTP/1.").ok_or(AnswerError::NotHttp)?;
        let (minor, code) = match rest {
            [minor @ b'0'..=b'9', b' ', code @ ..] => (*minor, code),
            _ => return Err(AnswerError::NotHttp),
        };
        let digits = match code {
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => [a, b, c],
            [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', b' ', ..] => [a, b, c],
            _ => return Err(AnswerError::NotHttp),
        };
        let status = digits
            .iter()
            .fold(0, |status, &&digit| status * 10 + u16::from(digit - b'0'));
        self.said = Said::new(status, minor != b'0');
        self.state = State::Field;
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), AnswerError> {
        if says_nothing(line) {
            return Ok(());
        }
        let Some(colon) = line.iter().position(|&b| b == b':') else {
            return Ok(());
        };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let name = name.trim_ascii();
        if is_word(name, b"Content-Length") {
            if self.line_len > LINE_BYTES_MAX {
                return Err(AnswerError::BadLength);
            }
            for item in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                let length = parse_length(item).ok_or(AnswerError::BadLength)?;
                if self.said.length.is_some_and(|before| before != length) {
                    return Err(AnswerError::BadLength);
                }
                self.said.length = Some(length);
            }
        } else if is_word(name, b"Transfer-Encoding") {
            if self.line_len > LINE_BYTES_MAX {
                return Err(AnswerError::BadChunk);
            }
            let last = value.rsplit(|&b| b == b',').next().unwrap_or_default();
            self.said.coded = true;
            self.said.chunked = is_word(last.trim_ascii(), b"chunked");
        } else if is_word(name, b"Connection") {
            for token in value.split(|&b| b == b',').map(<[u8]>::trim_ascii) {
                if is_word(token, b"close") {
                    self.said.reusable = false;
                } else if is_word(token, b"keep-alive") {
                    // Only HTTP/1.0 needs to say it; no server says both.
                    self.said.reusable = true;
                }
            }
        } else if is_word(name, b"Server") {
            self.said.balancer = value.starts_with(b"awselb/");
        }
        Ok(())
    }

    fn end_of_head(&mut self, to: AnswerTo, step: &mut Step) {
        if (100..200).contains(&self.said.status) && self.said.status != 101 {
            // Interim: the final head of the same answer follows. Its bytes stay counted, so that a server cannot
            // send interim heads for ever.
            self.state = State::Status;
            return;
        }
        self.head_len = 0;
        let tunnel = self.said.status == 101
            || (to == AnswerTo::Connect && (200..300).contains(&self.said.status));
        if tunnel {
            self.said.reusable = false;
            self.state = State::Length(0);
        } else if to == AnswerTo::Head || matches!(self.said.status, 204 | 304) {
            self.state = State::Length(0);
        } else if self.said.chunked {
            self.state = State::ChunkSize;
        } else if self.said.coded {
            self.state = State::UntilClose;
        } else {
            self.state = self.said.length.map_or(State::UntilClose, State::Length);
        }
        if self.state == State::UntilClose {
            self.said.reusable = false;
        }
        step.head = Some(Head {
            status: self.said.status,
            balancer: self.said.balancer,
            last: !self.said.reusable,
        });
        if self.state == State::Length(0) {
            step.end = Some(self.finish());
        }
    }

    /// Ready for the next answer; says whether there may be one.
    fn finish(&mut self) -> bool {
        self.state = State::Status;
        self.head_len = 0;
        self.said.reusable
    }
}

/// Whether a header line is none of those that are looked at, by its first letter: nearly every one.
fn says_nothing(line: &[u8]) -> bool {
    line.first().is_some_and(|first| {
        first.is_ascii_alphabetic() && !matches!(first.to_ascii_lowercase(), b'c' | b't' | b's')
    })
}

/// How many of `bytes` belong to a body that has `left` to come, and what is left behind them.
fn take(bytes: &[u8], left: u64) -> (usize, u64) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (taken, left - taken as u64)
}

/// `1*HEXDIG`, with whatever stands behind a semicolon or a space.
fn chunk_size(line: &[u8]) -> Result<u64, AnswerError> {
    let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at(digits);
    if !matches!(rest.first(), None | Some(b';' | b' ' | b'\t')) {
        return Err(AnswerError::BadChunk);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| AnswerError::BadChunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| AnswerError::BadChunk)
}

#[cfg(test)]
mod tests;
