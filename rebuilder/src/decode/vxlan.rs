//! VXLAN (RFC 7348).

use super::{Vni, link, split};
use crate::receive::LinkType;
use crate::telemetry::PacketOutcome;

/// Registered with IANA.
pub(super) const PORT: u16 = 4789;
/// What Linux used before.
pub(super) const OLD_PORT: u16 = 8472;

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

/// Exactly the header of RFC 7348, and an Ethernet frame with IP behind it.
pub(super) fn plausible(data: &[u8]) -> bool {
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
