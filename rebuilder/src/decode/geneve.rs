//! GENEVE (RFC 8926): what a Gateway Load Balancer wraps mirrored packets in, and some pod networks theirs.
//!
//! ```text
//!  Ver(2) Opt Len(6) | O C Rsvd(6) | Protocol Type (16)
//!  Virtual Network Identifier (24)          | Reserved (8)
//!  options, Opt Len times 4 bytes
//! ```
//!
//! Its network identifier is not a mirror session's and is not looked at: between a Gateway Load Balancer's header and
//! the mirrored frame there is still VXLAN. Options are passed over, the critical ones (C) too: an observer need not
//! understand what it does not act on.

use super::split;
use crate::receive::LinkType;
use crate::telemetry::PacketOutcome;

/// Registered with IANA.
pub(super) const PORT: u16 = 6081;

/// Protocol types (§3.4): the ethertype of what follows.
const ETHERNET: u16 = 0x6558;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// The O bit: what follows is a control message and no packet.
const CONTROL: u8 = 0x80;

/// Takes the header off. `None` where what follows is not for us: another version, a control message, another
/// protocol.
pub(super) fn open(data: &[u8]) -> Result<Option<(LinkType, &[u8])>, PacketOutcome> {
    let ([version_len, flags, p0, p1, ..], rest) =
        split::<8>(data).ok_or(PacketOutcome::BadVxlan)?;
    let link = match u16::from_be_bytes([*p0, *p1]) {
        ETHERNET => LinkType::Ethernet,
        IPV4 => LinkType::Ipv4,
        IPV6 => LinkType::Ipv6,
        _ => return Ok(None),
    };
    if version_len >> 6 != 0 || flags & CONTROL != 0 {
        return Ok(None);
    }
    let options = usize::from(version_len & 0x3f) * 4;
    let inner = rest.get(options..).ok_or(PacketOutcome::BadVxlan)?;
    Ok(Some((link, inner)))
}
