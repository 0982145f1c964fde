//! Blocks of a packet ring: what the kernel writes, and what it never does.

use rebuilder::receive::ring::walk;
use rebuilder::receive::{Frame, LinkType};
use rebuilder::time::Timestamp;

use crate::input::Input;
use crate::wire::{self, Ends};

const PORT: u16 = 4789;
/// `struct tpacket3_hdr` (linux/if_packet.h).
const PACKET_HEADER: usize = 48;
/// Behind it a `sockaddr_ll`: 20 bytes, filled up to a multiple of 16.
const ADDRESS: usize = 32;
const TP_STATUS_USER: u32 = 1;
const TP_STATUS_GSO_TCP: u32 = 1 << 8;

/// A datagram as it must come out.
#[derive(Debug, PartialEq, Eq)]
struct Given<'a> {
    nanos: u64,
    data: &'a [u8],
    super_frame: bool,
}

/// Any bytes as a block, and blocks that are built as the kernel builds them, then damaged in places.
///
/// Holds the walk to: no panic; a datagram lies within its block; what was read and what is said to be unreadable are
/// together what the block says that it has; a second reading, written from the kernel's header, gives the same. Of a
/// block without damage each datagram that was put into it comes out, and nothing else.
///
/// # Panics
/// Where one of these does not hold.
pub fn ring(data: &[u8]) {
    let mut input = Input::new(data);
    if input.get::<u8>() & 1 == 0 {
        let rest = input.bytes(usize::MAX);
        check(rest);
        return;
    }
    let packets = packets(&mut input);
    let mut block = block(&packets);
    {
        let given: Vec<Given<'_>> = packets.iter().map(Packet::given).collect();
        let (read, left) = read(&block);
        assert_eq!((&read, left), (&given, 0));
    }
    while !input.is_empty() {
        let at = usize::from(input.get::<u16>());
        // A word of a header, mostly.
        let at = if input.get() { at } else { at * 4 };
        let value = match input.below(4) {
            0 => input.get::<u8>().into(),
            1 => input.get(),
            2 => u32::MAX - u32::from(input.get::<u8>()),
            _ => input.get::<u16>().into(),
        };
        if let Some(place) = at
            .checked_rem(block.len())
            .and_then(|at| block.get_mut(at..))
        {
            for (byte, new) in place.iter_mut().zip(value.to_ne_bytes()) {
                *byte = new;
            }
        }
        check(&block);
    }
    let cut = usize::from(input.get::<u16>()).min(block.len());
    check(&block[..cut]);
}

/// All that the walk gives.
fn read(block: &[u8]) -> (Vec<Given<'_>>, u32) {
    let mut all = Vec::new();
    let left = walk(block, PORT, |frame: Frame<'_>, super_frame| {
        assert_eq!(frame.link, LinkType::Vxlan);
        let Timestamp(nanos) = frame.ts;
        all.push(Given {
            nanos,
            data: frame.data,
            super_frame,
        });
    });
    (all, left)
}

fn check(block: &[u8]) {
    let (given, left) = read(block);
    let bounds = block.as_ptr_range();
    for datagram in &given {
        let inside = datagram.data.as_ptr_range();
        assert!(
            datagram.data.is_empty() || bounds.start <= inside.start && inside.end <= bounds.end
        );
    }
    // `num_pkts`, where the block is long enough to say where its first packet is.
    let claimed = if block.len() < 20 { 0 } else { word(block, 12) };
    let read = u32::try_from(given.len()).unwrap_or(u32::MAX);
    assert_eq!(u64::from(read) + u64::from(left), u64::from(claimed));
    assert_eq!(given, second_reading(block, claimed));
}

/// The chain of headers by `tp_next_offset`, which ends with what is not whole.
fn second_reading(block: &[u8], claimed: u32) -> Vec<Given<'_>> {
    let mut all = Vec::new();
    // `offset_to_first_pkt`. Wide enough for any sum of offsets.
    let mut at = if block.len() < 20 {
        0
    } else {
        u64::from(word(block, 16))
    };
    for n in 0..claimed {
        // The EtherType stands in the `sockaddr_ll`.
        let Some(header) = slice(block, at, PACKET_HEADER as u64 + 4) else {
            break;
        };
        let kept = u64::from(word(header, 12));
        let Some(data) = slice(block, at + u64::from(half(header, 24)), kept) else {
            break;
        };
        let len = word(header, 16);
        let ethertype = u16::from_be(half(header, PACKET_HEADER + 2));
        all.push(Given {
            nanos: u64::from(word(header, 4)) * 1_000_000_000 + u64::from(word(header, 8)),
            data: datagram(ethertype, data),
            super_frame: word(header, 20) & TP_STATUS_GSO_TCP != 0 || len > 65_507 + 100,
        });
        let step = word(header, 0);
        if n + 1 < claimed && usize::try_from(step).is_ok_and(|step| step < PACKET_HEADER) {
            break;
        }
        at += u64::from(step);
    }
    all
}

fn slice(bytes: &[u8], at: u64, len: u64) -> Option<&[u8]> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at + len).ok()?);
    bytes.get(at..end)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

/// The payload of UDP to [`PORT`], behind one VLAN tag more where the type is not that of what follows.
fn datagram(ethertype: u16, packet: &[u8]) -> &[u8] {
    let untagged = || {
        let inner = u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]);
        behind_ip(inner, packet.get(4..)?)
    };
    behind_ip(ethertype, packet)
        .or_else(untagged)
        .unwrap_or(&[])
}

fn behind_ip(ethertype: u16, packet: &[u8]) -> Option<&[u8]> {
    let first = *packet.first()?;
    let header = match (ethertype, first >> 4) {
        (wire::IPV4, 4) => usize::from(first & 15) * 4,
        (wire::IPV6, 6) => 40,
        _ => return None,
    };
    let udp = packet.get(header..)?;
    let payload = udp.get(8..)?;
    let field = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
    if field(2) != PORT || field(4) < 8 {
        return None;
    }
    Some(&payload[..payload.len().min(usize::from(field(4)) - 8)])
}

/// What the kernel has taken from the wire.
struct Packet {
    seconds: u32,
    nanos: u32,
    status: u32,
    ethertype: u16,
    /// On the wire, in bytes.
    len: u32,
    /// From its network header, as far as it was kept.
    bytes: Vec<u8>,
    /// Where the datagram's payload lies in `bytes`.
    payload: std::ops::Range<usize>,
    /// Bytes between its header and its data, as the kernel leaves some for alignment.
    room: usize,
}

impl Packet {
    fn given(&self) -> Given<'_> {
        Given {
            nanos: u64::from(self.seconds) * 1_000_000_000 + u64::from(self.nanos),
            data: &self.bytes[self.payload.clone()],
            super_frame: self.status & TP_STATUS_GSO_TCP != 0 || self.len > 65_607,
        }
    }
}

fn packets(input: &mut Input<'_>) -> Vec<Packet> {
    (0..input.below(12)).map(|_| packet(input)).collect()
}

fn packet(input: &mut Input<'_>) -> Packet {
    let kind = input.get::<u8>();
    let size = input.len(9_000);
    let payload: Vec<u8> = (0..size).map(|n| wire::low16(n)[1]).collect();
    let udp = wire::udp(PORT, &payload);
    let (ends, options) = (Ends::v4(1, 2), kind >> 5);
    let (mut ethertype, mut bytes) = if kind & 1 == 0 {
        (wire::IPV4, wire::ipv4(ends, wire::UDP, None, options, &udp))
    } else {
        (wire::IPV6, wire::ipv6(Ends::v6(1, 2), wire::UDP, &udp))
    };
    if kind & 2 != 0 {
        // A second VLAN tag: its number, and what stands behind it. Linux before 6.10 names the tag's type.
        let [hi, lo] = ethertype.to_be_bytes();
        bytes.splice(..0, [0x20, 5, hi, lo]);
        if kind & 4 != 0 {
            ethertype = 0x8100;
        }
    }
    let at = bytes.len() - size;
    // What fills up a short Ethernet frame.
    bytes.resize(bytes.len().max(usize::from(kind & 8) * 6), 0);
    Packet {
        seconds: input.get(),
        nanos: input.get::<u32>() % 1_000_000_000,
        status: TP_STATUS_USER | if kind & 16 == 0 { 0 } else { TP_STATUS_GSO_TCP },
        ethertype,
        len: if input.get() {
            70_000
        } else {
            u32::try_from(bytes.len()).unwrap_or(0)
        },
        bytes,
        payload: at..at + size,
        room: 16 * usize::from(input.below(3)),
    }
}

/// As `net/packet/af_packet.c` fills one: packets one behind the other, each aligned to 16 bytes, the last without an
/// offset to a next.
fn block(packets: &[Packet]) -> Vec<u8> {
    let count = u32::try_from(packets.len()).unwrap_or(0);
    // `struct tpacket_block_desc` with the one header that there is: version, own size; status, packets, the first one.
    let mut out: Vec<u8> = [1, 48, TP_STATUS_USER, count, 48]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    out.resize(48, 0);
    for (n, packet) in packets.iter().enumerate() {
        let start = PACKET_HEADER + ADDRESS + packet.room;
        let step = (start + packet.bytes.len()).next_multiple_of(16);
        let next = if n + 1 == packets.len() { 0 } else { step };
        let kept = u32::try_from(packet.bytes.len()).unwrap_or(0);
        let next = u32::try_from(next).unwrap_or(0);
        let begun = out.len();
        for word in [
            next,
            packet.seconds,
            packet.nanos,
            kept,
            packet.len,
            packet.status,
        ] {
            out.extend(word.to_ne_bytes());
        }
        let [.., hi, lo] = start.to_be_bytes();
        let start_field = u16::from_be_bytes([hi, lo]).to_ne_bytes();
        out.extend([start_field, start_field].concat());
        out.resize(begun + PACKET_HEADER, 0);
        // `sll_family`, then `sll_protocol` in network order.
        out.extend(17_u16.to_ne_bytes());
        out.extend(packet.ethertype.to_be_bytes());
        out.resize(begun + start, 0);
        out.extend(&packet.bytes);
        out.resize(begun + step, 0);
    }
    out
}
