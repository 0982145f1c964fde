//! A file in memory, a piece at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::window::FIRST_WINDOW;
use crate::receive::mapping::{Mapping, page};

/// Bytes of a piece, unless a record needs more: neither address space nor resident memory grows with the file. Tests have
/// small ones, so that records straddle them.
pub(super) const PIECE: usize = if cfg!(test) { 4 << 10 } else { 4 << 20 };

/// From this size on a file is mapped; a smaller one is read at once.
const SMALLEST: u64 = if cfg!(test) { 1 } else { FIRST_WINDOW as u64 };

/// A file of which a piece is mapped.
pub(super) struct Pieces {
    pub(super) file: File,
    pub(super) piece: Option<Mapping>,
    /// Where the piece begins in the file.
    from: u64,
    /// How far the file reached, as far as was looked.
    seen: u64,
}

/// What came of going on.
pub(super) enum Went {
    /// The bytes asked for begin here in [`Pieces::bytes`]; they may be fewer.
    To(usize),
    /// The file ends here, or where it did before.
    Nowhere,
    /// From this byte of the file on, what was there is gone.
    Lost(u64),
}

impl Pieces {
    /// Of a plain file that is worth it; else it is given back, to be read from its beginning.
    pub(super) fn of(file: File) -> Result<Self, File> {
        let worth = file
            .metadata()
            .is_ok_and(|m| m.is_file() && m.len() >= SMALLEST);
        let mut magic = [0; 2];
        if !worth || file.read_exact_at(&mut magic, 0).is_err() || magic == super::GZIP {
            return Err(file);
        }
        Ok(Self {
            file,
            piece: None,
            from: 0,
            seen: 0,
        })
    }

    /// Those of the piece; none before the first.
    #[inline]
    pub(super) fn bytes(&self) -> &[u8] {
        self.piece.as_ref().map_or(&[], Mapping::bytes)
    }

    /// The first byte of the file that is gone, with zeros in [`Pieces::bytes`] instead of it and all behind it.
    #[inline]
    pub(super) fn lost(&self) -> Option<u64> {
        let piece = self.piece.as_ref()?;
        piece.lost().map(|lost| self.end(lost))
    }

    /// The same, also where nobody has come yet to a page that is gone: what is left of the last page ends in zeros.
    #[cold]
    pub(super) fn looked_for_lost(&self) -> Option<u64> {
        let len = self.bytes().len();
        let end = self.end(self.piece.as_ref()?.lost().unwrap_or(len));
        (end < self.from + len as u64).then_some(end)
    }

    /// Zeros begin with a page; where the file was shortened, its size says it to the byte.
    #[cold]
    fn end(&self, zeros: usize) -> u64 {
        let page = self.from + zeros as u64;
        self.size().map_or(page, |size| page.min(size))
    }

    /// Of the file now.
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Maps the piece that begins with the byte at `offset` of the file and has `need` of them, where there are so many.
    ///
    /// # Errors
    /// The kernel refuses; then nothing is mapped.
    pub(super) fn go(&mut self, offset: u64, need: usize) -> io::Result<Went> {
        if let Some(lost) = self.lost() {
            return Ok(Went::Lost(lost));
        }
        let size = self.size()?;
        if offset + need as u64 > size {
            if size < self.seen {
                return Ok(Went::Lost(size));
            }
            if self.from + self.bytes().len() as u64 == size {
                return Ok(Went::Nowhere);
            }
        }
        self.seen = self.seen.max(size);
        let inside = offset % page() as u64;
        let from = offset - inside;
        let inside = usize::try_from(inside).map_err(io::Error::other)?;
        let whole = (inside + need).max(PIECE);
        let len = usize::try_from(size - from).map_or(whole, |rest| rest.min(whole));
        // What was read is dropped first, so that there is one piece at a time.
        self.piece = None;
        self.piece = Some(Mapping::new(&self.file, from, len)?);
        self.from = from;
        Ok(Went::To(inside))
    }
}
