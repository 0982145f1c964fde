//! The short way of most frames: TCP over IPv4 without options, whole and in one piece, behind Ethernet without tags; bare,
//! or in one VXLAN header whose own packet is of the same kind. Everything else goes the general way, and what goes here
//! comes to the same there (`the_short_way_is_taken_and_comes_to_the_same`): this one only has nothing to decide on.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{Segment, Seq, TcpFlags, Vni, checksum, ip, split, vxlan};
use crate::receive::{Frame, LinkType};
use crate::time::Timestamp;

/// A [`Segment`] that came the short way: nothing of it is missing, and its data is not urgent. One line of memory, where
/// a segment takes two: many of these wait side by side.
#[derive(Clone, Copy, Debug)]
pub struct Plain<'a> {
    /// The payload.
    pub payload: &'a [u8],
    /// Capture time of the frame.
    pub ts: Timestamp,
    /// Of the first byte of `payload`, or of the SYN.
    pub seq: Seq,
    /// Meaningful when `flags` holds ACK.
    pub ack: Seq,
    /// Inner source and destination: addresses, then ports.
    pub(crate) ends: ([u32; 2], [u16; 2]),
    /// Of the outermost VXLAN header; `None` when the frame was bare.
    pub vni: Option<Vni>,
    /// Control bits.
    pub flags: TcpFlags,
}

const _: () = assert!(size_of::<Plain<'_>>() <= 64, "more than a line");

impl<'a> Plain<'a> {
    /// Nobody's, to be written over.
    pub const NONE: Self = Self {
        payload: &[],
        ts: Timestamp(0),
        seq: Seq(0),
        ack: Seq(0),
        ends: ([0; 2], [0; 2]),
        vni: None,
        flags: TcpFlags::empty(),
    };

    /// The same as a segment like any other.
    #[must_use]
    pub fn segment(&self) -> Segment<'a> {
        let ([src, dst], [src_port, dst_port]) = self.ends;
        let end = |ip, port| SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::from_bits(ip), port));
        Segment {
            ts: self.ts,
            vni: self.vni,
            src: end(src, src_port),
            dst: end(dst, dst_port),
            seq: self.seq,
            ack: self.ack,
            flags: self.flags,
            urgent: 0,
            payload: self.payload,
            cut: 0,
        }
    }
}

/// A frame taken apart.
pub(super) struct Opened<'a> {
    pub(super) vni: Option<Vni>,
    /// Who sends to whom on the link of the mirrored interface, as [`super::link::ends`] gives it.
    pub(super) path: &'a [u8; 12],
    header: &'a [u8; 20],
    /// All that the IP packet carries.
    packet: &'a [u8],
    tcp: &'a [u8; 20],
    payload: &'a [u8],
}

impl<'a> Opened<'a> {
    /// Source and destination port.
    #[inline]
    pub(super) fn ports(&self) -> [u16; 2] {
        let [s0, s1, d0, d1, ..] = self.tcp;
        [
            u16::from_be_bytes([*s0, *s1]),
            u16::from_be_bytes([*d0, *d1]),
        ]
    }

    /// Whether both checksums are right.
    #[inline]
    pub(super) fn is_right(&self) -> bool {
        let addresses = self.header.last_chunk::<8>().map_or(0, checksum::words);
        checksum::right(checksum::words(self.header))
            && checksum::right(addresses + checksum::of_tcp(self.packet))
    }

    #[inline]
    pub(super) fn plain(&self, ts: Timestamp) -> Plain<'a> {
        let [.., s0, s1, s2, s3, d0, d1, d2, d3] = self.header;
        let [_, _, _, _, q0, q1, q2, q3, a0, a1, a2, a3, _, flags, ..] = self.tcp;
        let word = |bytes: [&u8; 4]| u32::from_be_bytes(bytes.map(|byte| *byte));
        Plain {
            payload: self.payload,
            ts,
            seq: Seq(word([q0, q1, q2, q3])),
            ack: Seq(word([a0, a1, a2, a3])),
            ends: (
                [word([s0, s1, s2, s3]), word([d0, d1, d2, d3])],
                self.ports(),
            ),
            vni: self.vni,
            flags: TcpFlags::from_bits_truncate(*flags),
        }
    }
}

/// `None` where the frame is not of this kind.
#[inline]
pub(super) fn open<'a>(frame: &Frame<'a>) -> Option<Opened<'a>> {
    let (mut vni, mut data) = match frame.link {
        LinkType::Ethernet => (None, frame.data),
        LinkType::Vxlan => {
            let (vni, inner) = vxlan::open(frame.data).ok()?;
            (Some(vni), inner)
        }
        _ => return None,
    };
    let (mut header, mut packet) = whole_v4(data)?;
    if protocol(header) == ip::UDP && vni.is_none() {
        let ([_, _, d0, d1, l0, l1, _, _], rest) = split::<8>(packet)?;
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        if u16::from_be_bytes([*d0, *d1]) != vxlan::PORT || len != packet.len() {
            return None;
        }
        let (outer, inner) = vxlan::open(rest).ok()?;
        (vni, data) = (Some(outer), inner);
        (header, packet) = whole_v4(data)?;
    }
    if protocol(header) != ip::TCP {
        return None;
    }
    let (tcp, _) = split::<20>(packet)?;
    let [_, _, _, _, _, _, _, _, _, _, _, _, offset, flags, ..] = tcp;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < 20 || flags & TcpFlags::URG.bits() != 0 {
        return None;
    }
    Some(Opened {
        vni,
        path: data.first_chunk()?,
        header,
        payload: packet.get(header_len..)?,
        packet,
        tcp,
    })
}

const fn protocol(header: &[u8; 20]) -> u8 {
    header[9]
}

/// Header and payload of the packet in an Ethernet frame without tags, where that is an IPv4 one without options that was
/// captured whole.
#[allow(
    clippy::inline_always,
    reason = "called twice, and the shortest way of all packets"
)]
#[inline(always)]
fn whole_v4(frame: &[u8]) -> Option<(&[u8; 20], &[u8])> {
    let ([_addresses @ .., t0, t1], data) = split::<14>(frame)?;
    let (header, _) = split::<20>(data)?;
    let [version_ihl, _, l0, l1, _, _, f0, f1, ..] = header;
    let len = usize::from(u16::from_be_bytes([*l0, *l1]));
    // Neither "more fragments" nor an offset.
    let in_one = u16::from_be_bytes([*f0, *f1]) & 0x3fff == 0;
    if [*t0, *t1] != [0x08, 0x00] || *version_ihl != 0x45 || !in_one {
        return None;
    }
    Some((header, data.get(20..len)?))
}
