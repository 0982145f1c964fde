//! The short way of most frames: TCP over IPv4 without options, whole and in one piece, behind Ethernet without tags; bare,
//! or in one VXLAN header whose own packet is of the same kind. Everything else goes the general way, and what goes here
//! comes to the same there (`the_short_way_is_taken_and_comes_to_the_same`): this one only has nothing to decide on.

use std::net::{IpAddr, Ipv4Addr};

use super::ip::{self, IpPacket};
use super::tcp::{self, Tcp};
use super::{Vni, split, vxlan};
use crate::receive::{Frame, LinkType};

/// A frame taken apart.
pub(super) struct Plain<'a> {
    pub(super) vni: Option<Vni>,
    /// The frame that the mirrored interface sent or got.
    pub(super) mirrored: (LinkType, &'a [u8]),
    pub(super) packet: IpPacket<'a>,
    pub(super) tcp: Tcp<'a>,
}

/// `None` where the frame is not of this kind.
#[inline]
pub(super) fn open<'a>(frame: &Frame<'a>) -> Option<Plain<'a>> {
    let (mut vni, mut data) = match frame.link {
        LinkType::Ethernet => (None, frame.data),
        LinkType::Vxlan => {
            let (vni, inner) = vxlan::open(frame.data).ok()?;
            (Some(vni), inner)
        }
        _ => return None,
    };
    let mut packet = whole_v4(data)?;
    if packet.protocol == ip::UDP && vni.is_none() {
        let ([_, _, d0, d1, l0, l1, _, _], rest) = split::<8>(packet.payload)?;
        let len = usize::from(u16::from_be_bytes([*l0, *l1]));
        if u16::from_be_bytes([*d0, *d1]) != vxlan::PORT || len != packet.payload.len() {
            return None;
        }
        let (outer, inner) = vxlan::open(rest).ok()?;
        (vni, data) = (Some(outer), inner);
        packet = whole_v4(data)?;
    }
    if packet.protocol != ip::TCP {
        return None;
    }
    Some(Plain {
        vni,
        mirrored: (LinkType::Ethernet, data),
        tcp: tcp::open(packet.payload).ok()?,
        packet,
    })
}

/// The packet in an Ethernet frame without tags, where that is an IPv4 one without options that was captured whole.
#[inline]
fn whole_v4(frame: &[u8]) -> Option<IpPacket<'_>> {
    let ([_addresses @ .., t0, t1], data) = split::<14>(frame)?;
    let (
        [
            version_ihl,
            _,
            l0,
            l1,
            _,
            _,
            f0,
            f1,
            _,
            protocol,
            _,
            _,
            addresses @ ..,
        ],
        _,
    ) = split::<20>(data)?;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let len = usize::from(u16::from_be_bytes([*l0, *l1]));
    // Neither "more fragments" nor an offset.
    let in_one = u16::from_be_bytes([*f0, *f1]) & 0x3fff == 0;
    if [*t0, *t1] != [0x08, 0x00] || *version_ihl != 0x45 || !in_one {
        return None;
    }
    let (v4_header, payload) = data.get(..len)?.split_at_checked(20)?;
    Some(IpPacket {
        src: IpAddr::V4(Ipv4Addr::new(*s0, *s1, *s2, *s3)),
        dst: IpAddr::V4(Ipv4Addr::new(*d0, *d1, *d2, *d3)),
        protocol: *protocol,
        payload,
        missing: 0,
        sized: true,
        v4_header,
    })
}
