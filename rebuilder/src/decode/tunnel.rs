//! Packets within packets: which UDP datagrams are VXLAN or GENEVE.
//!
//! A datagram to a registered port is of that kind, whatever its reserved bits hold: that is where mirrored packets
//! are sent, and a mirror must not be blinded by one bit. Port 8472, the Linux default for VXLAN before the
//! registration and still that of flannel and Cilium, is not registered for it; there a datagram counts only when its
//! header is exactly as RFC 7348 writes it and a plausible Ethernet frame follows. So the traffic between pods of
//! different nodes is seen inside the nodes' own mirrored packets.

use super::{Vni, geneve, ip, link, split, vxlan};
use crate::receive::{Frame, LinkType};
use crate::telemetry::PacketOutcome;

/// How many tunnel headers are taken off one frame: a Gateway Load Balancer's, the mirror's, and an overlay's. A packet
/// that nests deeper ends in `not_tcp`, as the UDP that it is.
pub const MAX_TUNNEL_DEPTH: usize = 3;

/// A tunnel header's identifier, if it was VXLAN, and what stands behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel<'a> {
    pub(super) vni: Option<Vni>,
    pub(super) link: LinkType,
    pub(super) data: &'a [u8],
}

/// Takes off the header that stands at the beginning of `data`, by the frame's link type; `None` where it is a link
/// layer and no tunnel.
pub(super) fn open(link: LinkType, data: &[u8]) -> Option<Result<Tunnel<'_>, PacketOutcome>> {
    match link {
        LinkType::Vxlan => Some(open_vxlan(data)),
        LinkType::Geneve => Some(match geneve::open(data) {
            Ok(Some((link, data))) => Ok(Tunnel {
                vni: None,
                link,
                data,
            }),
            Ok(None) => Err(PacketOutcome::NotTcp),
            Err(outcome) => Err(outcome),
        }),
        _ => None,
    }
}

fn open_vxlan(data: &[u8]) -> Result<Tunnel<'_>, PacketOutcome> {
    let (vni, data) = vxlan::open(data)?;
    Ok(Tunnel {
        vni: Some(vni),
        link: LinkType::Ethernet,
        data,
    })
}

/// What a UDP datagram (its header included in `udp`) carries, when that is a tunnel that is opened: VXLAN or GENEVE,
/// from its header on.
fn payload(udp: &[u8]) -> Option<Result<(LinkType, &[u8]), PacketOutcome>> {
    let ([_, _, d0, d1], _) = split::<4>(udp)?;
    let port = u16::from_be_bytes([*d0, *d1]);
    let (link, registered) = match port {
        vxlan::PORT => (LinkType::Vxlan, true),
        vxlan::OLD_PORT => (LinkType::Vxlan, false),
        geneve::PORT => (LinkType::Geneve, true),
        _ => return None,
    };
    let bad = registered.then_some(Err(PacketOutcome::BadVxlan));
    let Some(([.., l0, l1, _, _], rest)) = split::<8>(udp) else {
        return bad;
    };
    let rest = match usize::from(u16::from_be_bytes([*l0, *l1])) {
        // BIG TCP's way to say that 16 bits do not suffice.
        0 => rest,
        len @ 8.. => rest.get(..len - 8).unwrap_or(rest),
        _ => return bad,
    };
    (registered || vxlan::plausible(rest)).then_some(Ok((link, rest)))
}

/// The tunnel that a UDP datagram (its header included in `udp`) is; `None` where it is just UDP.
pub(super) fn within(udp: &[u8]) -> Option<Result<Tunnel<'_>, PacketOutcome>> {
    match payload(udp)? {
        Ok((link, data)) => match open(link, data)? {
            Err(PacketOutcome::NotTcp) => None,
            tunnel => Some(tunnel),
        },
        Err(outcome) => Some(Err(outcome)),
    }
}

/// The outermost VXLAN header of a frame and all behind it; `None` when there is none.
pub(crate) fn outermost_vxlan<'a>(frame: &Frame<'a>) -> Option<&'a [u8]> {
    let (mut link, mut data) = (frame.link, frame.data);
    for _ in 0..MAX_TUNNEL_DEPTH {
        if link == LinkType::Vxlan {
            return vxlan::open(data).is_ok().then_some(data);
        }
        if link == LinkType::Geneve {
            (link, data) = geneve::open(data).ok()??;
        }
        let opened = link::network(link, data).and_then(ip::open);
        let Ok(ip::Opened::Whole(packet)) = opened else {
            return None;
        };
        if packet.protocol != ip::UDP {
            return None;
        }
        (link, data) = payload(packet.payload)?.ok()?;
    }
    None
}
