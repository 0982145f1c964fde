//! pcapng (draft-ietf-opsawg-pcapng): blocks, sections, interfaces.

use pcap_parser::{
    EnhancedPacketBlock, InterfaceDescriptionBlock, OptionCode, PcapError, SimplePacketBlock, nom,
    parse_enhancedpacketblock_be, parse_enhancedpacketblock_le, parse_interfacedescriptionblock_be,
    parse_interfacedescriptionblock_le, parse_simplepacketblock_be, parse_simplepacketblock_le,
};

use super::window::Window;
use super::{CaptureError, Located, MAX_RECORD};
use crate::receive::LinkType;
use crate::time::Timestamp;

/// The most interfaces that one pcapng section may declare; it bounds what their list takes.
pub const MAX_INTERFACES: usize = 65_536;

pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
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

type Parsed<'a, T> = nom::IResult<&'a [u8], T, PcapError<&'a [u8]>>;

/// Byte order of a pcapng section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    Little,
    Big,
}

impl Order {
    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
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

/// The byte order of the section header block at the start of the window; `None` when its magic is wrong.
pub(super) fn section_order(window: &Window) -> Option<Order> {
    match window.array::<4>(8)? {
        [0x4d, 0x3c, 0x2b, 0x1a] => Some(Order::Little),
        [0x1a, 0x2b, 0x3c, 0x4d] => Some(Order::Big),
        _ => None,
    }
}

/// What is known of the section that is being read.
#[derive(Default)]
pub(super) struct Section {
    order: Order,
    interfaces: Vec<Interface>,
}

impl Section {
    /// The next packet. One without a time of its own gets `last`.
    pub(super) fn next(
        &mut self,
        window: &mut Window,
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
                self.order = section_order(window).ok_or_else(|| {
                    window.corrupt("a section header without its byte-order magic")
                })?;
                // Interfaces are numbered anew in each section.
                self.interfaces.clear();
            }
            let kind = self.order.u32(kind);
            let block_len = self.order.u32(len);
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
                    let interface = interface(block, self.order).ok_or_else(|| {
                        window.corrupt("an interface description that makes no sense")
                    })?;
                    if self.interfaces.len() == MAX_INTERFACES {
                        return Err(
                            window.corrupt(format!("more than {MAX_INTERFACES} interfaces"))
                        );
                    }
                    self.interfaces.push(interface);
                    None
                }
                ENHANCED_PACKET => {
                    let packet = enhanced(block, self.order)
                        .ok_or_else(|| window.corrupt("its packet is longer than its block"))?;
                    Some((packet, PACKET_AT))
                }
                OBSOLETE_PACKET => {
                    let packet = obsolete(block, self.order)
                        .ok_or_else(|| window.corrupt("its packet is longer than its block"))?;
                    Some((packet, PACKET_AT))
                }
                _ => {
                    let packet = simple(block, self.order, self.interfaces.first())
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
                .and_then(|i| self.interfaces.get(i));
            let Some(interface) = interface else {
                return Err(window.corrupt(format!(
                    "its packet is of interface {}, but the section describes {}",
                    packet.interface,
                    self.interfaces.len()
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
