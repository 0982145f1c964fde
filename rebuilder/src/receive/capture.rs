//! Capture files: pcap and pcapng, either one gzipped, read as a stream.
//!
//! The record parsers are those of `pcap-parser`; the window they look at is ours. Its own readers cannot grow their
//! buffer by themselves, take one `read` for a whole header (a gzip stream gives less), and do not tell a block
//! whose inner length lies from one that is not there yet. Here every record is framed first, then parsed, so that
//! an error always knows its byte offset.
//!
//! Formats: pcap (draft-ietf-opsawg-pcap) with the magic numbers of both byte orders, microseconds and nanoseconds,
//! and Kuznetsov's "modified" one; pcapng (draft-ietf-opsawg-pcapng) with any number of sections and interfaces.
//!
//! No input panics.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use pcap_parser::nom;
use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, LegacyPcapBlock, OptionCode, PcapError,
    PcapHeader, SimplePacketBlock, parse_enhancedpacketblock_be, parse_enhancedpacketblock_le,
    parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le, parse_pcap_frame,
    parse_pcap_frame_be, parse_pcap_frame_modified, parse_pcap_header, parse_simplepacketblock_be,
    parse_simplepacketblock_le,
};

use super::{Frame, LinkType};
use crate::time::Timestamp;

/// The largest record that is read, in bytes; one that claims more is corrupt. (libpcap's own largest snapshot is
/// 256 KiB; the rest is room for pcapng options.)
pub const MAX_RECORD: usize = 64 << 20;

/// The most interfaces that one pcapng section may declare; it bounds what their list takes.
pub const MAX_INTERFACES: usize = 65_536;

/// What the window starts with; it doubles as records need it, never beyond [`MAX_RECORD`] and a header.
const FIRST_WINDOW: usize = 256 << 10;

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

/// Byte order of a pcapng section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    fn i64(self, bytes: [u8; 8]) -> i64 {
        match self {
            Self::Little => i64::from_le_bytes(bytes),
            Self::Big => i64::from_be_bytes(bytes),
        }
    }
}

type Parsed<'a, T> = nom::IResult<&'a [u8], T, PcapError<&'a [u8]>>;

/// One of the three record layouts of pcap.
#[derive(Clone, Copy)]
struct PcapRecord {
    parse: for<'a> fn(&'a [u8]) -> Parsed<'a, LegacyPcapBlock<'a>>,
    header: usize,
}

/// A pcapng interface.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: LinkType,
    /// Zero means no limit.
    snaplen: u32,
    /// Time stamp units in a second.
    units: u128,
    /// Seconds to add to each time stamp.
    offset: i64,
}

enum Format {
    Pcap {
        record: PcapRecord,
        link: LinkType,
        /// Nanoseconds in a unit of the time stamp's second half.
        nanos: u64,
    },
    PcapNg {
        order: Order,
        interfaces: Vec<Interface>,
    },
}

/// A packet, its bytes named by their place in the window.
struct Located {
    ts: Timestamp,
    link: LinkType,
    data: Range<usize>,
}

/// The bytes of the file from `offset` on, as far as they are read.
struct Window {
    path: PathBuf,
    input: Box<dyn Read + Send>,
    zipped: bool,
    buf: Vec<u8>,
    start: usize,
    end: usize,
    /// Where `buf[start]` stands in the (unzipped) file.
    offset: u64,
    ended: bool,
    /// The gzip stream stopped before its own end.
    cut: bool,
}

impl Window {
    fn available(&self) -> usize {
        self.end - self.start
    }

    fn bytes(&self) -> &[u8] {
        self.buf.get(self.start..self.end).unwrap_or_default()
    }

    /// The `N` bytes that stand `at` bytes behind the start, when they are there.
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.bytes().get(at..)?.first_chunk::<N>().copied()
    }

    /// Reads until `need` bytes are there; `false` when the file ends before. `need` is at most [`MAX_RECORD`] and a
    /// header; the buffer grows with what was really read, so a lying length in a short file costs nothing.
    fn fill(&mut self, need: usize) -> Result<bool, CaptureError> {
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
                    let larger = (self.buf.len() * 2).max(FIRST_WINDOW);
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
    fn consume(&mut self, len: usize) {
        let len = len.min(self.available());
        self.start += len;
        self.offset += len as u64;
    }

    /// Moves past `len` bytes, reading them as far as needed; `false` when the file ends before.
    fn skip(&mut self, mut len: u64) -> Result<bool, CaptureError> {
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

    fn ends_inside(&self, offset: u64) -> CaptureError {
        CaptureError::EndsInside {
            path: self.path.clone(),
            offset,
            end: self.offset + self.available() as u64,
        }
    }

    fn corrupt(&self, what: impl Into<String>) -> CaptureError {
        CaptureError::Corrupt {
            path: self.path.clone(),
            offset: self.offset,
            what: what.into(),
        }
    }

    /// Whether the file ends here as it should: between two records.
    fn at_end(&mut self) -> Result<bool, CaptureError> {
        if self.fill(1)? {
            return Ok(false);
        }
        if self.cut {
            return Err(self.ends_inside(self.offset));
        }
        Ok(true)
    }
}

/// Reads the packets of one capture file, in file order, holding no more of it than a record needs.
pub struct CaptureReader {
    window: Window,
    format: Format,
    /// Of the last packet that had a time: what a Simple Packet Block, which has none, is given.
    last: Timestamp,
    done: bool,
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
        let unreadable = |source| CaptureError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
        let mut magic = Vec::with_capacity(2);
        file.by_ref()
            .take(2)
            .read_to_end(&mut magic)
            .map_err(unreadable)?;
        let zipped = magic == [0x1f, 0x8b];
        let whole = Cursor::new(magic).chain(file);
        let input: Box<dyn Read + Send> = if zipped {
            Box::new(MultiGzDecoder::new(whole))
        } else {
            Box::new(whole)
        };
        let mut window = Window {
            path: path.to_owned(),
            input,
            zipped,
            buf: Vec::new(),
            start: 0,
            end: 0,
            offset: 0,
            ended: false,
            cut: false,
        };
        let format = read_header(&mut window)?;
        Ok(Self {
            window,
            format,
            last: Timestamp::default(),
            done: false,
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
            Format::PcapNg { order, interfaces } => {
                next_pcapng(&mut self.window, order, interfaces, self.last)
            }
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

    /// Bytes of the (unzipped) file that are behind the packets given so far.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.window.offset
    }
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
/// "Packet Block", obsolete since 2009 (draft-ietf-opsawg-pcapng appendix A); `pcap-parser` does not know it.
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type, length, and the length again.
const MIN_BLOCK: usize = 12;
/// Where the packet begins in an enhanced and in an obsolete packet block.
const PACKET_AT: usize = 28;
/// Where the packet begins in a simple packet block.
const SIMPLE_PACKET_AT: usize = 12;

fn read_header(window: &mut Window) -> Result<Format, CaptureError> {
    window.fill(4)?;
    let Some(magic) = window.array::<4>(0) else {
        // A file too short for a magic number; a zipped one may just be cut.
        if window.cut {
            return Err(window.ends_inside(0));
        }
        return Err(not_a_capture(window));
    };
    if u32::from_le_bytes(magic) == SECTION_HEADER {
        // Read as the first block of the file. A text file with odd line ends must not pass for one: the byte order
        // magic stands behind the length.
        if window.fill(12)? && section_order(window).is_none() {
            return Err(not_a_capture(window));
        }
        return Ok(Format::PcapNg {
            order: Order::Little,
            interfaces: Vec::new(),
        });
    }
    if !window.fill(PcapHeader::new().size())? {
        return match parse_pcap_header(window.bytes()) {
            Err(nom::Err::Incomplete(_)) => Err(window.ends_inside(0)),
            _ => Err(not_a_capture(window)),
        };
    }
    let Ok((_, header)) = parse_pcap_header(window.bytes()) else {
        return Err(not_a_capture(window));
    };
    window.consume(header.size());
    let record = if header.is_modified_format() {
        PcapRecord {
            parse: parse_pcap_frame_modified,
            header: 24,
        }
    } else if header.is_bigendian() {
        PcapRecord {
            parse: parse_pcap_frame_be,
            header: 16,
        }
    } else {
        PcapRecord {
            parse: parse_pcap_frame,
            header: 16,
        }
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

fn next_pcap(
    window: &mut Window,
    record: PcapRecord,
    link: LinkType,
    nanos: u64,
) -> Result<Option<Located>, CaptureError> {
    if window.at_end()? {
        return Ok(None);
    }
    let mut need = record.header;
    loop {
        if !window.fill(need)? {
            return Err(window.ends_inside(window.offset));
        }
        let (ts, len) = match (record.parse)(window.bytes()) {
            Ok((_, block)) => {
                let ts = u64::from(block.ts_sec) * 1_000_000_000 + u64::from(block.ts_usec) * nanos;
                (Timestamp(ts), block.data.len())
            }
            Err(nom::Err::Incomplete(nom::Needed::Size(more))) => {
                // The record's own length is in its header, so one round more is the last.
                need = window.available().saturating_add(more.get());
                if need > MAX_RECORD + record.header {
                    return Err(window.corrupt(format!(
                        "it claims {} bytes, more than any packet holds (at most {MAX_RECORD} are read)",
                        need - record.header
                    )));
                }
                continue;
            }
            Err(_) => return Err(window.corrupt("its header makes no sense")),
        };
        let start = window.start + record.header;
        window.consume(record.header + len);
        return Ok(Some(Located {
            ts,
            link,
            data: start..start + len,
        }));
    }
}

/// The byte order of the section header block at the start of the window; `None` when its magic is wrong.
fn section_order(window: &Window) -> Option<Order> {
    match window.array::<4>(8)? {
        [0x4d, 0x3c, 0x2b, 0x1a] => Some(Order::Little),
        [0x1a, 0x2b, 0x3c, 0x4d] => Some(Order::Big),
        _ => None,
    }
}

fn next_pcapng(
    window: &mut Window,
    order: &mut Order,
    interfaces: &mut Vec<Interface>,
    last: Timestamp,
) -> Result<Option<Located>, CaptureError> {
    loop {
        if window.at_end()? {
            return Ok(None);
        }
        let began = window.offset;
        window.fill(MIN_BLOCK)?;
        let (Some(kind), Some(len)) = (window.array(0), window.array(4)) else {
            return Err(window.ends_inside(began));
        };
        if u32::from_le_bytes(kind) == SECTION_HEADER {
            if window.available() < MIN_BLOCK {
                return Err(window.ends_inside(began));
            }
            *order = section_order(window)
                .ok_or_else(|| window.corrupt("a section header without its byte-order magic"))?;
            // Interfaces are numbered anew in each section.
            interfaces.clear();
        }
        let kind = order.u32(kind);
        let block_len = order.u32(len);
        let total = usize::try_from(block_len).unwrap_or(usize::MAX);
        if total < MIN_BLOCK {
            return Err(window.corrupt(format!(
                "a block of {block_len} bytes, less than a block's own frame"
            )));
        }
        if !matches!(
            kind,
            INTERFACE_DESCRIPTION | OBSOLETE_PACKET | SIMPLE_PACKET | ENHANCED_PACKET
        ) {
            // Nothing that we need is in it, so it is not held either.
            if !window.skip(u64::from(block_len))? {
                return Err(window.ends_inside(began));
            }
            continue;
        }
        if total > MAX_RECORD {
            return Err(window.corrupt(format!(
                "a block of {block_len} bytes (at most {MAX_RECORD} are read)"
            )));
        }
        if !window.fill(total)? {
            return Err(window.ends_inside(began));
        }
        if window.array::<4>(total - 4) != Some(len) {
            return Err(window.corrupt("the block's two lengths differ"));
        }
        let block = window.bytes().get(..total).unwrap_or_default();
        let located = match kind {
            INTERFACE_DESCRIPTION => {
                let interface = interface(block, *order).ok_or_else(|| {
                    window.corrupt("an interface description that makes no sense")
                })?;
                if interfaces.len() == MAX_INTERFACES {
                    return Err(window.corrupt(format!("more than {MAX_INTERFACES} interfaces")));
                }
                interfaces.push(interface);
                None
            }
            ENHANCED_PACKET => {
                let packet = enhanced(block, *order)
                    .ok_or_else(|| window.corrupt("its packet is longer than its block"))?;
                Some((packet, PACKET_AT))
            }
            OBSOLETE_PACKET => {
                let packet = obsolete(block, *order)
                    .ok_or_else(|| window.corrupt("its packet is longer than its block"))?;
                Some((packet, PACKET_AT))
            }
            _ => {
                let packet = simple(block, *order, interfaces.first())
                    .ok_or_else(|| window.corrupt("its packet is longer than its block"))?;
                Some((packet, SIMPLE_PACKET_AT))
            }
        };
        let Some((packet, at)) = located else {
            window.consume(total);
            continue;
        };
        let interface = usize::try_from(packet.interface)
            .ok()
            .and_then(|i| interfaces.get(i));
        let Some(interface) = interface else {
            return Err(window.corrupt(format!(
                "its packet is of interface {}, but the section describes {}",
                packet.interface,
                interfaces.len()
            )));
        };
        let ts = packet.stamp.map_or(last, |units| interface.time(units));
        let link = interface.link;
        let start = window.start + at;
        window.consume(total);
        return Ok(Some(Located {
            ts,
            link,
            data: start..start + packet.len,
        }));
    }
}

/// What the three kinds of packet block have in common.
struct Packet {
    interface: u32,
    /// Units since the epoch.
    stamp: Option<u64>,
    /// Captured bytes.
    len: usize,
}

fn stamp(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn enhanced(block: &[u8], order: Order) -> Option<Packet> {
    let parsed: Parsed<'_, EnhancedPacketBlock<'_>> = match order {
        Order::Little => parse_enhancedpacketblock_le(block),
        Order::Big => parse_enhancedpacketblock_be(block),
    };
    let (_, block) = parsed.ok()?;
    Some(Packet {
        interface: block.if_id,
        stamp: Some(stamp(block.ts_high, block.ts_low)),
        len: usize::try_from(block.caplen).ok()?,
    })
}

/// Interface and drop count of 16 bits each, then as the enhanced one.
fn obsolete(block: &[u8], order: Order) -> Option<Packet> {
    let word = |at: usize| Some(order.u32(*block.get(at..)?.first_chunk()?));
    let interface = order.u16(*block.get(8..)?.first_chunk()?);
    let len = usize::try_from(word(20)?).ok()?;
    // The packet and the block's second length must have room.
    if block.len() < PACKET_AT.checked_add(len)?.checked_add(4)? {
        return None;
    }
    Some(Packet {
        interface: interface.into(),
        stamp: Some(stamp(word(12)?, word(16)?)),
        len,
    })
}

fn simple(block: &[u8], order: Order, interface: Option<&Interface>) -> Option<Packet> {
    let parsed: Parsed<'_, SimplePacketBlock<'_>> = match order {
        Order::Little => parse_simplepacketblock_le(block),
        Order::Big => parse_simplepacketblock_be(block),
    };
    let (_, block) = parsed.ok()?;
    // The captured length is not written down: it is the original one, as far as the interface's limit let it.
    let captured = match interface.map_or(0, |i| i.snaplen) {
        0 => block.origlen,
        limit => block.origlen.min(limit),
    };
    let len = usize::try_from(captured).ok()?;
    (len <= block.data.len()).then_some(Packet {
        interface: 0,
        stamp: None,
        len,
    })
}

fn interface(block: &[u8], order: Order) -> Option<Interface> {
    let parsed: Parsed<'_, InterfaceDescriptionBlock<'_>> = match order {
        Order::Little => parse_interfacedescriptionblock_le(block),
        Order::Big => parse_interfacedescriptionblock_be(block),
    };
    let (_, block) = parsed.ok()?;
    // The options are read here: `pcap-parser` 0.17 knows no binary resolution and reads the offset as little-endian
    // in big-endian sections too.
    let mut units = 1_000_000;
    let mut offset = 0;
    for option in &block.options {
        match option.code {
            OptionCode::EndOfOpt => break,
            OptionCode::IfTsresol => {
                let resolution = *option.as_bytes().ok()?.first()?;
                let exponent = u32::from(resolution & 0x7f);
                let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
                // 10^39 is beyond 128 bits, and 2^127 within.
                units = base.checked_pow(exponent)?;
            }
            OptionCode::IfTsoffset => {
                offset = order.i64(*option.as_bytes().ok()?.first_chunk()?);
            }
            _ => {}
        }
    }
    Some(Interface {
        link: LinkType::from_number(u32::try_from(block.linktype.0).ok()?),
        snaplen: block.snaplen,
        units,
        offset,
    })
}

impl Interface {
    fn time(&self, stamp: u64) -> Timestamp {
        let whole = u128::from(stamp) / self.units;
        let rest = u128::from(stamp) % self.units;
        // `rest` is below 2^64, so the product fits.
        let nanos = whole * 1_000_000_000 + rest * 1_000_000_000 / self.units;
        let nanos = i128::try_from(nanos).unwrap_or(i128::MAX);
        let nanos = nanos.saturating_add(i128::from(self.offset) * 1_000_000_000);
        // Infinity means the end of the file; no packet may claim it.
        let latest = Timestamp::INFINITY.0 - 1;
        Timestamp(u64::try_from(nanos.max(0)).map_or(latest, |n| n.min(latest)))
    }
}

#[cfg(test)]
mod tests;
