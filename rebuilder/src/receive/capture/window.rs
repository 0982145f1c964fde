//! The part of the file that is in memory.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{CaptureError, MAX_RECORD};

/// What the window starts with, in bytes; it doubles as records need it. What is read at once stays in the cache that a
/// core has to itself until it is looked at.
pub(super) const FIRST_WINDOW: usize = 512 << 10;

/// What it never exceeds: the largest record with its header, and room to read on.
pub(super) const LARGEST_WINDOW: usize = MAX_RECORD + FIRST_WINDOW;

/// The bytes of the file from `offset` on, as far as they are read.
pub(super) struct Window {
    pub(super) path: PathBuf,
    input: Box<dyn Read + Send>,
    zipped: bool,
    pub(super) buf: Vec<u8>,
    pub(super) start: usize,
    end: usize,
    /// Where `buf[start]` stands in the (unzipped) file.
    pub(super) offset: u64,
    ended: bool,
    /// The gzip stream stopped before its own end.
    pub(super) cut: bool,
}

impl Window {
    pub(super) fn new(path: &Path, input: Box<dyn Read + Send>, zipped: bool) -> Self {
        Self {
            path: path.to_owned(),
            input,
            zipped,
            buf: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            ended: false,
            cut: false,
        }
    }

    pub(super) fn available(&self) -> usize {
        self.end - self.start
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// The `N` bytes that stand `at` bytes behind the start, when they are there.
    pub(super) fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes().get(at..)?.first_chunk::<N>().copied()
    }

    /// Reads until `need` bytes are there; `false` when the file ends before. `need` is at most [`MAX_RECORD`] and a header;
    /// the buffer grows with what was really read, so a lying length in a short file costs nothing.
    #[inline]
    pub(super) fn fill(&mut self, need: usize) -> Result<bool, CaptureError> {
        if self.available() >= need {
            return Ok(true);
        }
        self.read_on(need)
    }

    #[cold]
    fn read_on(&mut self, need: usize) -> Result<bool, CaptureError> {
        if self.available() == 0 {
            self.start = 0;
            self.end = 0;
        }
        while self.available() < need {
            if self.ended {
                return Ok(false);
            }
            if self.end == self.buf.len() {
                if self.start > 0 {
                    self.buf.copy_within(self.start..self.end, 0);
                    self.end -= self.start;
                    self.start = 0;
                } else {
                    let larger = (self.buf.len() * 2).clamp(FIRST_WINDOW, LARGEST_WINDOW);
                    self.buf.resize(larger, 0);
                }
            }
            let space = self.buf.get_mut(self.end..).unwrap_or_default();
            match self.input.read(space) {
                Ok(0) => self.ended = true,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if self.zipped && e.kind() == io::ErrorKind::UnexpectedEof => {
                    self.ended = true;
                    self.cut = true;
                }
                Err(e)
                    if self.zipped
                        && matches!(
                            e.kind(),
                            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
                        ) =>
                {
                    return Err(CaptureError::Corrupt {
                        path: self.path.clone(),
                        offset: self.offset + self.available() as u64,
                        what: format!("the gzip stream is damaged behind it ({e})"),
                    });
                }
                Err(e) => {
                    return Err(CaptureError::Unreadable {
                        path: self.path.clone(),
                        source: e,
                    });
                }
            }
        }
        Ok(true)
    }

    /// Moves past `len` bytes, which are there.
    pub(super) fn consume(&mut self, len: usize) {
        let len = len.min(self.available());
        self.start += len;
        self.offset += len as u64;
    }

    /// Moves past `len` bytes, reading them as far as needed; `false` when the file ends before.
    pub(super) fn skip(&mut self, mut len: u64) -> Result<bool, CaptureError> {
        while len > 0 {
            if !self.fill(1)? {
                return Ok(false);
            }
            let step = usize::try_from(len).map_or(self.available(), |l| l.min(self.available()));
            self.consume(step);
            len -= step as u64;
        }
        Ok(true)
    }

    pub(super) fn ends_inside(&self, offset: u64) -> CaptureError {
        CaptureError::EndsInside {
            path: self.path.clone(),
            offset,
            end: self.offset + self.available() as u64,
        }
    }

    pub(super) fn corrupt(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::Corrupt {
            path: self.path.clone(),
            offset: self.offset,
            what: what.into(),
        }
    }

    /// Whether the file ends here as it should: between two records.
    pub(super) fn at_end(&mut self) -> Result<bool, CaptureError> {
        if self.fill(1)? {
            return Ok(false);
        }
        if self.cut {
            return Err(self.ends_inside(self.offset));
        }
        Ok(true)
    }
}
