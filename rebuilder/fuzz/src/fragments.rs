//! Packets in pieces, against a map with one cell a byte.

use rebuilder::decode::{DecodeOptions, Decoder, MAX_FRAGMENT_BYTES};
use rebuilder::receive::{Frame, LinkType};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::bytemap::ByteMap;
use crate::frame::DECODE_OUTCOMES;
use crate::input::Input;
use crate::wire::{self, Ends, Piece, Tcp};

const SECOND: u64 = 1_000_000_000;

/// A packet that is sent in pieces.
struct Packet {
    ends: Ends,
    protocol: u8,
    id: u32,
    /// What IP carries: TCP, or VXLAN around TCP.
    bytes: Vec<u8>,
    /// Where the TCP payload begins in it.
    payload_at: usize,
    seq: u32,
    /// How long its pieces are, a multiple of 8; the last may be shorter.
    step: usize,
    /// It was whole, and copies of its pieces are known as such.
    done: bool,
    /// Of the pieces that were sent since it was whole last, which values each byte had.
    sent: ByteMap,
    /// No piece was cut, changed or put in a wrong place.
    honest: bool,
    last_sent: bool,
}

impl Packet {
    fn new(input: &mut Input<'_>, n: u8) -> Self {
        let ends = if n & 1 == 0 {
            Ends::v4(n, 9)
        } else {
            Ends::v6(n, 9)
        };
        let size = match input.get::<u8>() {
            255 => 60_000,
            250..255 => 9_000,
            n => 40 + usize::from(n) * 8,
        } + usize::from(input.below(8));
        let seq = 1000 + u32::from(n);
        let header = Tcp {
            ports: (4000 + u16::from(n), 80),
            seq,
            ack: 7,
            flags: wire::ACK,
            options: 0,
        };
        let payload: Vec<u8> = (0..size).map(|i| content(i, n)).collect();
        let segment = wire::tcp(ends, &header, &payload);
        let (protocol, bytes, payload_at) = if n < 2 {
            (wire::TCP, segment, 20)
        } else {
            let inner = Ends::v4(n, 8);
            let packet = wire::ip(inner, wire::TCP, None, &wire::tcp(inner, &header, &payload));
            let frame = wire::ethernet(&[], wire::IPV4, &packet);
            let datagram = wire::udp(4789, &wire::vxlan(u32::from(n), &frame));
            (wire::UDP, datagram, 8 + 8 + 14 + 20 + 20)
        };
        Self {
            ends,
            protocol,
            id: input.get::<u16>().into(),
            bytes,
            payload_at,
            seq,
            // An IPv6 packet's first piece must hold the TCP or UDP header.
            step: match input.below(4) {
                0 => 1480,
                1 => 8 * (3 + usize::from(input.below(8))),
                _ => 8 * (3 + usize::from(input.get::<u8>())),
            },
            done: false,
            sent: ByteMap::default(),
            honest: true,
            last_sent: false,
        }
    }

    fn is_whole(&self) -> bool {
        self.last_sent && self.sent.len() == self.bytes.len()
    }

    fn forget(&mut self) {
        self.sent = ByteMap::default();
        self.honest = true;
        self.last_sent = false;
    }
}

fn content(i: usize, n: u8) -> u8 {
    let [low, high, ..] = i.to_le_bytes();
    low.wrapping_mul(31) ^ high ^ n
}

/// A script of pieces of four packets (TCP and VXLAN around it, IPv4 and IPv6) in any order, doubled, overlapping,
/// cut, with other bytes, lying about where they stand, never complete.
///
/// Asserts: the store stays within its cap and its invariants hold; a packet that becomes whole consists of bytes that
/// its pieces had at those places; where all pieces were honest it is the packet that was sent, it becomes whole with
/// exactly that piece that completes it, and further copies of its pieces are known as such.
pub fn fragments(data: &[u8]) {
    let mut input = Input::new(data);
    let calm = input.get::<bool>();
    let mut packets: Vec<Packet> = (0..4).map(|n| Packet::new(&mut input, n)).collect();
    let mut decoder = Decoder::new(DecodeOptions::default());
    let mut now = 1_000 * SECOND;
    // Older packets may have been given up: then a whole one need not come out.
    let mut crowded = !calm;
    let mut flooded = false;
    let mut left = 200;
    while !input.is_empty() && left > 0 {
        left -= 1;
        let kind = input.get::<u8>();
        if !calm && kind < 8 {
            now += u64::from(input.pick(&[1u8, 29, 30, 31, 60])) * SECOND;
            continue;
        }
        if !calm && kind == 8 {
            now -= 5 * SECOND;
            continue;
        }
        if !calm && kind == 9 {
            // It takes as long as all the others together.
            if !std::mem::replace(&mut flooded, true) {
                flood(&mut decoder, now);
            }
            continue;
        }
        let n = usize::from(kind & 3);
        crowded |= !piece(
            &mut input,
            &mut decoder,
            &mut packets[n],
            now,
            calm,
            crowded,
        );
        assert!(decoder.fragment_bytes() <= MAX_FRAGMENT_BYTES);
    }
}

/// Sends one piece. `false` when it was not an honest one.
fn piece(
    input: &mut Input<'_>,
    decoder: &mut Decoder,
    packet: &mut Packet,
    now: u64,
    calm: bool,
    crowded: bool,
) -> bool {
    if packet.done && input.below(4) == 0 {
        // The sender's next one.
        packet.id = (packet.id + 1) & 0xffff;
        packet.done = false;
        packet.forget();
    }
    let size = packet.bytes.len();
    let count = size.div_ceil(packet.step);
    let mut offset = usize::from(input.get::<u16>()) % count * packet.step;
    let mut end = (offset + packet.step).min(size);
    let fate = if calm { 0 } else { input.below(12) };
    if fate == 5 {
        // It overlaps others: Linux throws the packet away, and begins anew with what follows.
        offset = usize::from(input.get::<u16>()) % (size / 8) * 8;
        end = (offset + 8 * (1 + usize::from(input.get::<u8>()))).min(size);
    }
    let mut piece = Piece {
        id: packet.id,
        offset,
        more: end < size,
    };
    let mut bytes = packet.bytes[offset..end].to_vec();
    let mut variant = 0;
    match fate {
        // Another sender's bytes.
        1 => {
            variant = 1 + input.below(3);
            bytes.iter_mut().for_each(|b| *b ^= variant);
        }
        // It lies.
        2 => piece.more = !piece.more,
        3 => piece.offset = usize::from(input.get::<u16>()) & 0xfff8,
        _ => {}
    }
    let mut frame = wire::ip(packet.ends, packet.protocol, Some(piece), &bytes);
    let honest = fate == 0 || fate > 5;
    if piece.offset == 0 && !piece.more {
        // No piece at all: the store never sees it.
        let frame = Frame {
            ts: Timestamp(now),
            link: LinkType::Raw,
            data: &frame,
        };
        match decoder.decode(&frame) {
            Ok(segment) if honest => {
                assert_eq!(segment.payload, &packet.bytes[packet.payload_at..]);
            }
            Err(outcome) => assert!(!honest, "{outcome} for a packet that is in order"),
            Ok(_) => {}
        }
        return honest;
    }
    if fate == 4 {
        let cut = usize::from(input.get::<u8>()).min(bytes.len());
        frame.truncate(frame.len() - cut);
        bytes.truncate(bytes.len() - cut);
    }
    packet.honest &= honest;
    let place = u32::try_from(piece.offset).unwrap_or(u32::MAX);
    let own = piece.offset == offset;
    // Number 4 is any value; in their own place the bytes are the packet's, changed by the variant.
    let values = vec![if own { variant } else { 4 }; bytes.len()];
    packet.sent.note(place, &values);
    packet.last_sent |= !piece.more;

    let frame = Frame {
        ts: Timestamp(now),
        link: LinkType::Raw,
        data: &frame,
    };
    match decoder.decode(&frame) {
        Ok(segment) => {
            assert_eq!(segment.ts, Timestamp(now));
            if packet.sent.all(0, packet.payload_at, |_, seen| seen == 1) {
                assert_eq!(segment.seq.0, packet.seq);
                assert_eq!(segment.dst.port(), 80);
                let place = packet.payload_at;
                let from = u32::try_from(place).unwrap_or(0);
                let sent = packet.sent.all(from, segment.payload.len(), |i, seen| {
                    let original = packet.bytes.get(place + i).copied().unwrap_or(0);
                    let variant = original ^ segment.payload[i];
                    seen & 0x10 != 0 || (variant < 4 && seen & 1 << variant != 0)
                });
                assert!(sent, "bytes were invented");
            }
            if packet.honest {
                assert_eq!(segment.payload, &packet.bytes[packet.payload_at..]);
                assert_eq!(segment.cut, 0);
                assert!(packet.is_whole(), "whole before it was");
            }
            packet.forget();
            packet.done = true;
        }
        Err(outcome) => {
            assert!(DECODE_OUTCOMES.contains(&outcome.label()), "{outcome}");
            if packet.done {
                let is_copy = outcome == PacketOutcome::Duplicate;
                assert!(crowded || !packet.honest || is_copy, "{outcome}");
            } else {
                assert!(
                    crowded || !packet.honest || !packet.is_whole(),
                    "all of it was sent, and it is not whole"
                );
            }
            if !matches!(
                outcome.label(),
                "fragment" | "duplicate" | "over_cap" | "bad_ip"
            ) {
                // It became whole, and turned out to be nothing.
                packet.forget();
                packet.done = true;
            }
        }
    }
    honest
}

/// More than the store may hold, in packets that are never whole.
fn flood(decoder: &mut Decoder, now: u64) {
    let bytes = vec![0; 32_000];
    for id in 0..150 {
        let piece = Piece {
            id,
            offset: 0,
            more: true,
        };
        let packet = wire::ip(Ends::v4(200, 9), wire::TCP, Some(piece), &bytes);
        let frame = Frame {
            ts: Timestamp(now),
            link: LinkType::Ipv4,
            data: &packet,
        };
        assert!(decoder.decode(&frame).is_err());
        assert!(decoder.fragment_bytes() <= MAX_FRAGMENT_BYTES);
    }
}
