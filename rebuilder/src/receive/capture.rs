//! Capture files: pcap and pcapng, either one gzipped, read as a stream.
//!
//! The parsers of pcapng's blocks and of pcap's file header are those of `pcap-parser`; the window they look at is ours.
//! Its own readers cannot grow their buffer by themselves, take one `read` for a whole header (a gzip stream gives less),
//! and do not tell a block whose inner length lies from one that is not there yet. Here every record is framed first,
//! then parsed, so that an error always knows its byte offset. A pcap record is four numbers and its bytes; they are
//! read in place, for there is one a packet.
//!
//! Formats: pcap (draft-ietf-opsawg-pcap) with the magic numbers of both byte orders, microseconds and nanoseconds,
//! and Kuznetsov's "modified" one; pcapng (draft-ietf-opsawg-pcapng) with any number of sections and interfaces.
//!
//! No input panics.

mod pcapng;
mod window;

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use pcap_parser::{PcapHeader, parse_pcap_header};

pub use self::pcapng::MAX_INTERFACES;
use self::pcapng::{Order, Section};
use self::window::Window;
use super::{Frame, LinkType};
use crate::time::Timestamp;

/// The largest record that is read, in bytes; one that claims more is corrupt. (libpcap's own largest snapshot is
/// 256 KiB; the rest is room for pcapng options.)
pub const MAX_RECORD: usize = 64 << 20;

/// What a gzip member begins with (RFC 1952 §2.3.1).
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Why a capture file gave no further packet. Each is one line: the file, the place, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The operating system refuses it.
    #[error("{}: cannot be read: {source}; check the path and its permissions", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Its first bytes are none of the known magic numbers.
    #[error(
        "{}: not a capture file: it begins with {begins}; give a pcap or pcapng file, plain or gzipped",
        path.display()
    )]
    NotACapture {
        /// The file.
        path: PathBuf,
        /// Its first bytes (after unzipping), in hexadecimal.
        begins: String,
    },
    /// It stops inside a record; every record before it was delivered.
    #[error(
        "{}: ends inside a record: the one at byte {offset} is cut at byte {end}; everything before it was read, \
         copy or capture the file again for the rest",
        path.display()
    )]
    EndsInside {
        /// The file.
        path: PathBuf,
        /// Where the cut record begins (after unzipping).
        offset: u64,
        /// Where the file ends (after unzipping).
        end: u64,
    },
    /// A record contradicts itself; every record before it was delivered.
    #[error(
        "{}: corrupt record at byte {offset}: {what}; everything before it was read, copy or capture the file again \
         for the rest",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where the record begins (after unzipping).
        offset: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// A pcap file. A record is seconds, fraction, captured length and length on the wire, 32 bits each, then what only the
/// modified layout has, then the packet.
#[derive(Clone, Copy)]
struct Pcap {
    order: Order,
    /// Bytes before the packet's.
    header: usize,
    link: LinkType,
    /// Nanoseconds in a unit of the time stamp's second half.
    nanos: u64,
}

enum Format {
    Pcap(Pcap),
    PcapNg(Section),
}

/// A packet, its bytes named by their place in the window.
struct Located {
    ts: Timestamp,
    link: LinkType,
    data: Range<usize>,
}

/// Reads the packets of one capture file, in file order, holding no more of it than a record needs.
pub struct CaptureReader {
    window: Window,
    format: Format,
    /// Of the last packet that had a time: what a Simple Packet Block, which has none, is given.
    last: Timestamp,
    done: bool,
    /// Those of the last [`CaptureReader::next_few`].
    few: Vec<Located>,
}

impl std::fmt::Debug for CaptureReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CaptureReader")
            .field("path", &self.window.path)
            .field("offset", &self.window.offset)
            .finish_non_exhaustive()
    }
}

impl CaptureReader {
    /// Opens a capture file and reads its header. Gzip and the format are recognised by content, never by name.
    ///
    /// # Errors
    /// The file cannot be read, is no capture, or ends inside its header.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = File::open(path).map_err(|source| CaptureError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::from_reader(path, file)
    }

    /// The same from any source of bytes; errors name it `path`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_reader(
        path: &Path,
        mut source: impl Read + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let mut magic = Vec::with_capacity(2);
        source
            .by_ref()
            .take(2)
            .read_to_end(&mut magic)
            .map_err(|source| CaptureError::Unreadable {
                path: path.to_owned(),
                source,
            })?;
        let zipped = magic == GZIP;
        let whole = Cursor::new(magic).chain(source);
        let input: Box<dyn Read + Send> = if zipped {
            Box::new(MultiGzDecoder::new(whole))
        } else {
            Box::new(whole)
        };
        let mut window = Window::new(path, input, zipped);
        let format = read_header(&mut window)?;
        Ok(Self {
            window,
            format,
            last: Timestamp::default(),
            done: false,
            few: Vec::new(),
        })
    }

    /// The next packet; `None` at the end of the file, and after an error.
    ///
    /// # Errors
    /// The file ends inside a record, a record is corrupt, or the system refuses to read on. Every packet before it
    /// has been given.
    #[allow(
        clippy::should_implement_trait,
        reason = "the frame borrows from the reader, which Iterator cannot say"
    )]
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        Ok(self.next_few(1)?.next())
    }

    /// The next packets that are in memory together, `max` at most; none at the end of the file, and after an error.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub fn next_few(
        &mut self,
        max: usize,
    ) -> Result<impl ExactSizeIterator<Item = Frame<'_>> + Clone, CaptureError> {
        self.few.clear();
        if !self.done {
            let found = self.find(max);
            self.done = !matches!(found, Ok(true));
            found?;
        }
        // What was consumed stays in place until the next call.
        let memory = &self.window.buf;
        Ok(self.few.iter().map(|located| Frame {
            ts: located.ts,
            link: located.link,
            data: memory.get(located.data.clone()).unwrap_or_default(),
        }))
    }

    /// Finds the next packets, `max` at most; `false` at the end of the file.
    fn find(&mut self, max: usize) -> Result<bool, CaptureError> {
        let first = match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.window),
            Format::PcapNg(section) => section.next(&mut self.window, self.last),
        }?;
        let Some(first) = first else {
            return Ok(false);
        };
        self.few.push(first);
        // Reading on would move what was found: the others are taken as far as they are there.
        if let Format::Pcap(pcap) = &self.format {
            pcap.next_there(&mut self.window, max, &mut self.few);
        }
        if let Some(located) = self.few.last() {
            self.last = located.ts;
        }
        Ok(true)
    }

    /// Bytes of the (unzipped) file that are behind the packets given so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.window.offset
    }
}

fn read_header(window: &mut Window) -> Result<Format, CaptureError> {
    window.fill(4)?;
    let Some(magic) = window.array::<4>(0) else {
        // A file too short for a magic number; a zipped one may just be cut.
        if window.cut {
            return Err(window.ends_inside(0));
        }
        return Err(not_a_capture(window));
    };
    if u32::from_le_bytes(magic) == pcapng::SECTION_HEADER {
        // Read as the first block of the file. A text file with odd line ends must not pass for one: the byte order
        // magic stands behind the length.
        if window.fill(12)? && pcapng::section_order(window).is_none() {
            return Err(not_a_capture(window));
        }
        return Ok(Format::PcapNg(Section::default()));
    }
    if !window.fill(PcapHeader::new().size())? {
        return match parse_pcap_header(window.bytes()) {
            Err(pcap_parser::nom::Err::Incomplete(_)) => Err(window.ends_inside(0)),
            _ => Err(not_a_capture(window)),
        };
    }
    let Ok((_, header)) = parse_pcap_header(window.bytes()) else {
        return Err(not_a_capture(window));
    };
    window.consume(header.size());
    let modified = header.is_modified_format();
    Ok(Format::Pcap(Pcap {
        // Nobody has seen the modified layout in the other order.
        order: if header.is_bigendian() && !modified {
            Order::Big
        } else {
            Order::Little
        },
        header: if modified { 24 } else { 16 },
        // The upper bits tell of frame check sequences, which the IP length cuts off anyway.
        link: LinkType::from_number(header.network.0.cast_unsigned() & 0x03ff_ffff),
        nanos: if header.is_nanosecond_precision() {
            1
        } else {
            1_000
        },
    }))
}

fn not_a_capture(window: &Window) -> CaptureError {
    let begins = window.bytes().get(..window.available().min(4));
    let begins: Vec<_> = begins
        .unwrap_or_default()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    CaptureError::NotACapture {
        path: window.path.clone(),
        begins: if begins.is_empty() {
            "nothing (it is empty)".to_owned()
        } else {
            begins.join(" ")
        },
    }
}

impl Pcap {
    /// The time and the captured length that a record begins with.
    #[inline]
    fn head(self, record: &[u8]) -> Option<(Timestamp, usize)> {
        let &[s0, s1, s2, s3, f0, f1, f2, f3, l0, l1, l2, l3] = record.first_chunk()?;
        let seconds = u64::from(self.order.u32([s0, s1, s2, s3]));
        let fraction = u64::from(self.order.u32([f0, f1, f2, f3]));
        let ts = Timestamp(seconds * 1_000_000_000 + fraction * self.nanos);
        Some((ts, self.order.u32([l0, l1, l2, l3]) as usize))
    }

    fn next(self, window: &mut Window) -> Result<Option<Located>, CaptureError> {
        if !window.fill(self.header)? {
            return if window.at_end()? {
                Ok(None)
            } else {
                Err(window.ends_inside(window.offset))
            };
        }
        let Some((ts, len)) = self.head(window.bytes()) else {
            return Err(window.ends_inside(window.offset));
        };
        if len > MAX_RECORD {
            return Err(window.corrupt(format!(
                "it claims {len} bytes, more than any packet holds (at most {MAX_RECORD} are read)"
            )));
        }
        if !window.fill(self.header + len)? {
            return Err(window.ends_inside(window.offset));
        }
        let start = window.start + self.header;
        window.consume(self.header + len);
        Ok(Some(Located {
            ts,
            link: self.link,
            data: start..start + len,
        }))
    }

    /// The packets of which all is in memory, until there are `max`. What is not whole, or claims too much, is left for
    /// [`Pcap::next`].
    fn next_there(self, window: &mut Window, max: usize, few: &mut Vec<Located>) {
        let mut rest = window.bytes();
        let mut at = window.start;
        while few.len() < max
            && let Some((ts, len)) = self.head(rest)
            && len <= MAX_RECORD
            && let Some(behind) = rest.get(self.header + len..)
        {
            let start = at + self.header;
            at = start + len;
            rest = behind;
            few.push(Located {
                ts,
                link: self.link,
                data: start..at,
            });
        }
        window.consume(at - window.start);
    }
}

#[cfg(test)]
mod tests;
