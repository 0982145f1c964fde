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
use std::io::{self, BufReader, Cursor, Read};
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

/// One of the three record layouts of pcap: seconds, fraction, captured length and length on the wire, 32 bits each, then
/// what only the modified layout has.
#[derive(Clone, Copy)]
struct PcapRecord {
    order: Order,
    /// Bytes before the packet's.
    header: usize,
}

enum Format {
    Pcap {
        record: PcapRecord,
        link: LinkType,
        /// Nanoseconds in a unit of the time stamp's second half.
        nanos: u64,
    },
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
        Self::from_reader(path, BufReader::new(file))
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
        let zipped = magic == [0x1f, 0x8b];
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
        if self.done {
            return Ok(None);
        }
        let found = match &mut self.format {
            Format::Pcap {
                record,
                link,
                nanos,
            } => next_pcap(&mut self.window, *record, *link, *nanos),
            Format::PcapNg(section) => section.next(&mut self.window, self.last),
        };
        match found {
            Ok(Some(Located { ts, link, data })) => {
                self.last = ts;
                Ok(Some(Frame {
                    ts,
                    link,
                    // What was consumed stays in place until the next call.
                    data: self.window.buf.get(data).unwrap_or_default(),
                }))
            }
            Ok(None) => {
                self.done = true;
                Ok(None)
            }
            Err(e) => {
                self.done = true;
                Err(e)
            }
        }
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
        while self.few.len() < max && !self.done {
            let found = match &mut self.format {
                Format::Pcap {
                    record,
                    link,
                    nanos,
                    // Reading on would move what was found before.
                } if self.few.is_empty() || is_there(&self.window, *record) => {
                    next_pcap(&mut self.window, *record, *link, *nanos)
                }
                Format::PcapNg(section) if self.few.is_empty() => {
                    section.next(&mut self.window, self.last)
                }
                _ => break,
            };
            match found {
                Ok(Some(located)) => {
                    self.last = located.ts;
                    self.few.push(located);
                }
                Ok(None) => self.done = true,
                Err(e) => {
                    self.done = true;
                    return Err(e);
                }
            }
        }
        // What was consumed stays in place until the next call.
        let window = &self.window.buf;
        Ok(self.few.iter().map(|located| Frame {
            ts: located.ts,
            link: located.link,
            data: window.get(located.data.clone()).unwrap_or_default(),
        }))
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
    let record = PcapRecord {
        // Nobody has seen the modified layout in the other order.
        order: if header.is_bigendian() && !modified {
            Order::Big
        } else {
            Order::Little
        },
        header: if modified { 24 } else { 16 },
    };
    Ok(Format::Pcap {
        record,
        // The upper bits tell of frame check sequences, which the IP length cuts off anyway.
        link: LinkType::from_number(header.network.0.cast_unsigned() & 0x03ff_ffff),
        nanos: if header.is_nanosecond_precision() {
            1
        } else {
            1_000
        },
    })
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

/// Whether a whole record is in memory, so that the next one is found without reading on and without an error.
fn is_there(window: &Window, record: PcapRecord) -> bool {
    window.array::<12>(0).is_some_and(|[.., a, b, c, d]| {
        let len = record.order.u32([a, b, c, d]) as usize;
        len <= MAX_RECORD && window.available() >= record.header + len
    })
}

fn next_pcap(
    window: &mut Window,
    record: PcapRecord,
    link: LinkType,
    nanos: u64,
) -> Result<Option<Located>, CaptureError> {
    if !window.fill(record.header)? {
        return if window.at_end()? {
            Ok(None)
        } else {
            Err(window.ends_inside(window.offset))
        };
    }
    let Some([s0, s1, s2, s3, f0, f1, f2, f3, l0, l1, l2, l3]) = window.array::<12>(0) else {
        return Err(window.ends_inside(window.offset));
    };
    let len = record.order.u32([l0, l1, l2, l3]) as usize;
    if len > MAX_RECORD {
        return Err(window.corrupt(format!(
            "it claims {len} bytes, more than any packet holds (at most {MAX_RECORD} are read)"
        )));
    }
    if !window.fill(record.header + len)? {
        return Err(window.ends_inside(window.offset));
    }
    let seconds = u64::from(record.order.u32([s0, s1, s2, s3]));
    let fraction = u64::from(record.order.u32([f0, f1, f2, f3]));
    let start = window.start + record.header;
    window.consume(record.header + len);
    Ok(Some(Located {
        ts: Timestamp(seconds * 1_000_000_000 + fraction * nanos),
        link,
        data: start..start + len,
    }))
}

#[cfg(test)]
mod tests;
