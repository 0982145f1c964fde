//! VXLAN (RFC 7348) over UDP.
//!
//! A datagram to port 4789 is VXLAN, whatever its reserved bits hold, and even without the I flag: that is where AWS
//! sends mirrored packets, and a mirror must not be blinded by one bit. Port 8472, the Linux default before the
//! registration and still that of flannel and Cilium, is not registered for VXLAN; there a datagram counts only when
//! its header is exactly as RFC 7348 writes it and a plausible Ethernet frame follows. So the traffic between pods
//! of different nodes is seen inside the nodes' own mirrored packets.

use super::{Vni, ip, link, split};
use crate::receive::{Frame, LinkType};
use crate::telemetry::PacketOutcome;

/// How many VXLAN headers are taken off one frame: the mirror's, an overlay's, and one for the unforeseen. A packet
/// that nests deeper ends in `not_tcp`, as the UDP that it is.
pub const MAX_VXLAN_DEPTH: usize = 3;

/// Registered with IANA.
const PORT: u16 = 4789;
/// What Linux used before.
const OLD_PORT: u16 = 8472;

/// The "I" flag: the network identifier counts.
const HAS_VNI: u8 = 0x08;

/// The VXLAN header of a frame that we wrap ourselves.
pub(crate) fn header(vni: Vni) -> [u8; 8] {
    let [_, v0, v1, v2] = vni.0.to_be_bytes();
    [HAS_VNI, 0, 0, 0, v0, v1, v2, 0]
}

/// Takes the VXLAN header off; an Ethernet frame follows.
pub(super) fn open(data: &[u8]) -> Result<(Vni, &[u8]), PacketOutcome> {
    let ([_, _, _, _, v0, v1, v2, _], inner) = split::<8>(data).ok_or(PacketOutcome::BadVxlan)?;
    Ok((Vni(u32::from_be_bytes([0, *v0, *v1, *v2])), inner))
}

/// The payload of a UDP datagram (its header included in `udp`) when it is VXLAN.
pub(super) fn payload(udp: &[u8]) -> Option<Result<&[u8], PacketOutcome>> {
    let ([_, _, d0, d1], _) = split::<4>(udp)?;
    let port = u16::from_be_bytes([*d0, *d1]);
    if port != PORT && port != OLD_PORT {
        return None;
    }
    let Some(([.., l0, l1, _, _], rest)) = split::<8>(udp) else {
        return (port == PORT).then_some(Err(PacketOutcome::BadVxlan));
    };
    // Zero is BIG TCP's way to say that 16 bits do not suffice.
    let rest = match usize::from(u16::from_be_bytes([*l0, *l1])) {
        0 => rest,
        len @ 8.. => rest.get(..len - 8).unwrap_or(rest),
        _ if port == PORT => return Some(Err(PacketOutcome::BadVxlan)),
        _ => return None,
    };
    (port == PORT || plausible(rest)).then_some(Ok(rest))
}

/// Exactly the header of RFC 7348, and an Ethernet frame with IP behind it.
fn plausible(data: &[u8]) -> bool {
    let Some(([HAS_VNI, 0, 0, 0, _, _, _, 0], inner)) = split::<8>(data) else {
        return false;
    };
    let version = match link::network(LinkType::Ethernet, inner) {
        Ok(link::Network::V4(packet)) => packet.first().map(|b| b >> 4 == 4),
        Ok(link::Network::V6(packet)) => packet.first().map(|b| b >> 4 == 6),
        Err(_) => None,
    };
    version.unwrap_or(false)
}

/// The outermost VXLAN header of a frame and all behind it; `None` when the frame is bare.
pub(crate) fn outermost<'a>(frame: &Frame<'a>) -> Option<&'a [u8]> {
    let vxlan = if frame.link == LinkType::Vxlan {
        frame.data
    } else {
        let opened = link::network(frame.link, frame.data).and_then(ip::open);
        let Ok(ip::Opened::Whole(packet)) = opened else {
            return None;
        };
        if packet.protocol != ip::UDP {
            return None;
        }
        payload(packet.payload)?.ok()?
    };
    open(vxlan).is_ok().then_some(vxlan)
}
