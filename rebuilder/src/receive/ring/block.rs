//! What the kernel writes into a block of a ring (`struct tpacket_block_desc` and `struct tpacket3_hdr` of
//! `linux/if_packet.h`; Documentation/networking/packet_mmap.rst).
//!
//! Pure: bytes in, packets out. Nothing here believes the kernel: every offset is checked, each step goes forward, so
//! that no content makes the walk panic, read elsewhere, or go on for ever.

use crate::prefetch::prefetch;
use crate::time::Timestamp;

/// Where `block_status` stands in a block: whose the block is.
pub(super) const STATUS_AT: usize = 8;
/// Where `num_pkts` stands in a block: how many packets are in it so far.
pub(super) const COUNT_AT: usize = 12;
/// Where `offset_to_first_pkt` stands in a block.
const FIRST_AT: usize = 16;

/// Bytes of a `tpacket3_hdr`; the `sockaddr_ll` is behind it, as both are multiples of 16.
const HEADER: usize = 48;

/// In `tp_status`: a segment of TCP that was not cut to the size of the link yet, or was put together from several. Not
/// among `libc`'s.
const TP_STATUS_GSO_TCP: u32 = 1 << 8;

/// A packet in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    /// When the kernel took it.
    pub(super) ts: Timestamp,
    /// Its EtherType, behind the one VLAN tag that the kernel takes off, or behind two (see `datagram.rs`).
    pub(super) ethertype: u16,
    /// It stands for several segments of TCP.
    pub(super) segmented: bool,
    /// How long it was, in bytes; `data` may be shorter.
    pub(super) len: usize,
    /// From its network header.
    pub(super) data: &'a [u8],
}

/// How far a block has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    at: usize,
    left: u32,
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn size(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

impl Cursor {
    /// Before the first packet.
    pub(super) fn new(block: &[u8]) -> Self {
        match (size(block, FIRST_AT), word(block, COUNT_AT)) {
            (Some(at), Some(left)) => Self { at, left },
            _ => Self::default(),
        }
    }

    /// Packets that the block has beyond this place. Behind the end of the walk: those that could not be read, none
    /// unless the kernel wrote what it never writes.
    pub(super) fn left(&self) -> u32 {
        self.left
    }

    /// The packet at this place, and on to the one behind it.
    pub(super) fn next<'a>(&mut self, block: &'a [u8]) -> Option<Packet<'a>> {
        if self.left == 0 {
            return None;
        }
        let frame = block.get(self.at..)?;
        let packet = packet(frame)?;
        let step = size(frame, 0)?;
        if self.left > 1 && step < HEADER {
            // The chain ends before the packets do: this one is the last that can be read.
            self.at = block.len();
        } else {
            self.at = self.at.saturating_add(step);
        }
        self.left -= 1;
        // It was written by another core a while ago, so it is far from this one. Where the next packet begins stands in
        // this one: whoever asked for packets one by one would wait for each.
        let from = self.at.saturating_add(AHEAD);
        let to = from.saturating_add(step).min(block.len());
        prefetch(block.get(from..to).unwrap_or_default(), usize::MAX);
        Some(packet)
    }
}

/// How far ahead of the packet that is read memory is asked for the bytes of a block.
const AHEAD: usize = 8 << 10;

fn packet(frame: &[u8]) -> Option<Packet<'_>> {
    let seconds = u64::from(word(frame, 4)?);
    let nanos = u64::from(word(frame, 8)?);
    let kept = size(frame, 12)?;
    let len = size(frame, 16)?;
    let status = word(frame, 20)?;
    let start = usize::from(half(frame, 24)?);
    let ethertype = u16::from_be(half(frame, HEADER + 2)?);
    Some(Packet {
        ts: Timestamp(seconds * 1_000_000_000 + nanos),
        ethertype,
        segmented: status & TP_STATUS_GSO_TCP != 0,
        len,
        data: frame.get(start..start.checked_add(kept)?)?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte by byte after `linux/if_packet.h`: status, count, offset of the first packet; then the packets, each
    /// aligned to 16.
    fn block(packets: &[(u32, &[u8])]) -> Vec<u8> {
        let mut out = vec![0; 48];
        out[..4].copy_from_slice(&1_u32.to_ne_bytes());
        out[4..8].copy_from_slice(&48_u32.to_ne_bytes());
        out[8..12].copy_from_slice(&1_u32.to_ne_bytes());
        out[12..16].copy_from_slice(&u32::try_from(packets.len()).unwrap().to_ne_bytes());
        out[16..20].copy_from_slice(&48_u32.to_ne_bytes());
        for (n, (status, data)) in packets.iter().enumerate() {
            let len = u32::try_from(data.len()).unwrap();
            let last = n + 1 == packets.len();
            let step = (80 + len).next_multiple_of(16);
            let words = [if last { 0 } else { step }, 7, 9, len, len + 5, *status];
            let mut frame: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            frame.extend(80_u16.to_ne_bytes());
            frame.extend(80_u16.to_ne_bytes());
            frame.resize(48, 0xaa);
            // sockaddr_ll: AF_PACKET, the protocol in network order.
            frame.extend(17_u16.to_ne_bytes());
            frame.extend([0x86, 0xdd]);
            frame.resize(80, 0);
            frame.extend(*data);
            frame.resize(usize::try_from(step).unwrap(), 0);
            out.extend(frame);
        }
        out
    }

    fn read(block: &[u8]) -> (Vec<Packet<'_>>, u32) {
        let mut cursor = Cursor::new(block);
        let mut packets = Vec::new();
        while let Some(packet) = cursor.next(block) {
            packets.push(packet);
        }
        (packets, cursor.left())
    }

    #[test]
    fn packets_come_in_order_with_what_the_kernel_says_of_them() {
        let block = block(&[(1, b"first"), (1 | 1 << 8, b""), (1, &[3; 33])]);
        let (packets, left) = read(&block);
        assert_eq!(left, 0);
        let data: Vec<&[u8]> = packets.iter().map(|p| p.data).collect();
        assert_eq!(data, [&b"first"[..], b"", &[3; 33]]);
        let segmented: Vec<bool> = packets.iter().map(|p| p.segmented).collect();
        assert_eq!(segmented, [false, true, false]);
        let first = packets[0];
        assert_eq!((first.ethertype, first.len), (0x86dd, 10));
        assert_eq!(first.ts, Timestamp(7_000_000_009));
    }

    #[test]
    fn a_walk_goes_on_where_it_stopped() {
        let block = block(&[(1, b"a"), (1, b"b"), (1, b"c")]);
        let mut cursor = Cursor::new(&block);
        assert_eq!(cursor.next(&block).unwrap().data, b"a");
        let mut later = cursor;
        assert_eq!(later.left(), 2);
        assert_eq!(later.next(&block).unwrap().data, b"b");
        assert_eq!(later.next(&block).unwrap().data, b"c");
        assert_eq!(later.next(&block), None);
        assert_eq!(later.left(), 0);
    }

    #[test]
    fn an_empty_block_has_no_packet() {
        assert_eq!(read(&block(&[])), (vec![], 0));
        assert_eq!(read(&[]), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_read_is_counted() {
        let whole = block(&[(1, b"a"), (1, b"b"), (1, b"c")]);
        // A chain that ends early, one that stands still, one that leads out of the block.
        for step in [0_u32, 16, 1 << 20, u32::MAX] {
            let mut broken = whole.clone();
            broken[48..52].copy_from_slice(&step.to_ne_bytes());
            let (packets, left) = read(&broken);
            assert_eq!((packets.len(), left), (1, 2), "{step}");
        }
        // The first packet says that it is longer than the block.
        let mut broken = whole.clone();
        broken[60..64].copy_from_slice(&u32::MAX.to_ne_bytes());
        let (packets, left) = read(&broken);
        assert_eq!((packets.len(), left), (0, 3));
        // The block is cut.
        let (packets, left) = read(&whole[..whole.len() - 20]);
        assert_eq!((packets.len(), left), (2, 1));
    }

    proptest! {
        #[test]
        fn no_block_makes_the_walk_panic_or_lose_count(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            first in 0_u32..600,
            count in 0_u32..50,
            steps in proptest::collection::vec((0_usize..140, 0_u32..200), 0..8),
        ) {
            for (at, value) in [(COUNT_AT, count), (FIRST_AT, first)]
                .into_iter()
                .chain(steps.into_iter().map(|(at, value)| (at * 4, value)))
            {
                if let Some(place) = bytes.get_mut(at..at + 4) {
                    place.copy_from_slice(&value.to_ne_bytes());
                }
            }
            let claimed = word(&bytes, COUNT_AT).filter(|_| bytes.len() >= FIRST_AT + 4);
            let (packets, left) = read(&bytes);
            let read = u32::try_from(packets.len()).unwrap();
            prop_assert_eq!(read + left, claimed.unwrap_or(0));
            // Each header has a place of its own.
            prop_assert!(packets.len() <= bytes.len() / HEADER + 1);
        }
    }
}
