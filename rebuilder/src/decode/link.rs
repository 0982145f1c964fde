//! Link headers: what stands before the IP header.

use super::split;
use crate::receive::LinkType;
use crate::telemetry::PacketOutcome;

/// The most VLAN tags that one frame may stack. Real networks stack two, captures of odd ones three.
pub(super) const MAX_VLAN_TAGS: usize = 8;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// 802.1Q, 802.1ad, and two numbers that switches used for stacked tags before it.
const VLAN_TAGS: [u16; 4] = [0x8100, 0x88a8, 0x9100, 0x9200];

/// Values below are not types but IEEE 802.3 lengths, and an LLC header follows.
const LOWEST_ETHERTYPE: u16 = 0x0600;

/// The SLL protocol number of frames that begin with an LLC header (`LINUX_SLL_P_802_2`).
const SLL_LLC: u16 = 4;

/// IP, as the link layer names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network<'a> {
    /// IPv4, padding included.
    V4(&'a [u8]),
    /// IPv6, padding included.
    V6(&'a [u8]),
}

/// Takes the link header off. [`LinkType::Vxlan`] and
/// [`LinkType::Geneve`] are tunnels and not for this function.
pub(crate) fn network(link: LinkType, data: &[u8]) -> Result<Network<'_>, PacketOutcome> {
    match link {
        LinkType::Ethernet => {
            let ([_addresses @ .., hi, lo], rest) =
                split::<14>(data).ok_or(PacketOutcome::BadLink)?;
            by_ethertype(u16::from_be_bytes([*hi, *lo]), rest)
        }
        LinkType::Null => {
            let (family, rest) = split::<4>(data).ok_or(PacketOutcome::BadLink)?;
            // Host order, and nobody wrote down of which host: the families are small, so the right order shows.
            let family = u32::from_be_bytes(*family).min(u32::from_le_bytes(*family));
            match family {
                2 => Ok(Network::V4(rest)),
                // AF_INET6 of Linux, NetBSD and OpenBSD, FreeBSD, macOS.
                10 | 24 | 28 | 30 => Ok(Network::V6(rest)),
                _ => Err(PacketOutcome::NotIp),
            }
        }
        LinkType::Raw => match data.first().ok_or(PacketOutcome::BadIp)? >> 4 {
            4 => Ok(Network::V4(data)),
            6 => Ok(Network::V6(data)),
            _ => Err(PacketOutcome::NotIp),
        },
        LinkType::Ipv4 => Ok(Network::V4(data)),
        LinkType::Ipv6 => Ok(Network::V6(data)),
        LinkType::LinuxSll => {
            let ([_about @ .., hi, lo], rest) = split::<16>(data).ok_or(PacketOutcome::BadLink)?;
            by_sll_protocol(u16::from_be_bytes([*hi, *lo]), rest)
        }
        LinkType::LinuxSll2 => {
            let ([hi, lo, ..], rest) = split::<20>(data).ok_or(PacketOutcome::BadLink)?;
            by_sll_protocol(u16::from_be_bytes([*hi, *lo]), rest)
        }
        LinkType::Vxlan | LinkType::Geneve | LinkType::Other(_) => Err(PacketOutcome::LinkType),
    }
}

/// Who sends to whom on the link, as far as its header tells: in Ethernet both addresses; in a cooked capture the
/// sender and whether the packet came in or went out; else nothing, that is zeros.
pub(super) fn ends(link: LinkType, data: &[u8]) -> [u8; 12] {
    let mut ends = [0; 12];
    let (into_ends, from): (&mut [u8], _) = match link {
        LinkType::Ethernet => (&mut ends, data.get(..12)),
        // Packet type (2 bytes), ARPHRD, address length, address.
        LinkType::LinuxSll => {
            if let Some(direction) = data.get(..2) {
                ends[..2].copy_from_slice(direction);
            }
            (&mut ends[4..], data.get(6..14))
        }
        // Protocol, reserved, interface index, ARPHRD, packet type (1 byte), address length (1), address.
        LinkType::LinuxSll2 => {
            if let Some(direction) = data.get(10) {
                ends[0] = *direction;
            }
            (&mut ends[4..], data.get(12..20))
        }
        _ => return ends,
    };
    if let Some(from) = from {
        into_ends.copy_from_slice(from);
    }
    ends
}

fn by_sll_protocol(protocol: u16, rest: &[u8]) -> Result<Network<'_>, PacketOutcome> {
    if protocol == SLL_LLC {
        return llc(rest);
    }
    by_ethertype(protocol, rest)
}

fn by_ethertype(mut ethertype: u16, mut rest: &[u8]) -> Result<Network<'_>, PacketOutcome> {
    for _ in 0..=MAX_VLAN_TAGS {
        if !VLAN_TAGS.contains(&ethertype) {
            return match ethertype {
                IPV4 => Ok(Network::V4(rest)),
                IPV6 => Ok(Network::V6(rest)),
                0..LOWEST_ETHERTYPE => llc(rest),
                _ => Err(PacketOutcome::NotIp),
            };
        }
        let ([_control @ .., hi, lo], behind) = split::<4>(rest).ok_or(PacketOutcome::BadLink)?;
        ethertype = u16::from_be_bytes([*hi, *lo]);
        rest = behind;
    }
    Err(PacketOutcome::BadLink)
}

/// An LLC header with SNAP (RFC 1042); any other LLC carries no IP.
fn llc(data: &[u8]) -> Result<Network<'_>, PacketOutcome> {
    let (llc, rest) = split::<3>(data).ok_or(PacketOutcome::BadLink)?;
    if *llc != [0xaa, 0xaa, 0x03] {
        return Err(PacketOutcome::NotIp);
    }
    let ([organisation @ .., hi, lo], rest) = split::<5>(rest).ok_or(PacketOutcome::BadLink)?;
    match (organisation, u16::from_be_bytes([*hi, *lo])) {
        ([0, 0, 0], IPV4) => Ok(Network::V4(rest)),
        ([0, 0, 0], IPV6) => Ok(Network::V6(rest)),
        _ => Err(PacketOutcome::NotIp),
    }
}
