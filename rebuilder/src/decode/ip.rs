//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::link::Network;
use super::split;
use crate::telemetry::PacketOutcome;

/// The most IPv6 extension headers in front of the transport header.
pub(super) const MAX_EXTENSION_HEADERS: usize = 16;

/// Protocol numbers (IANA).
pub(super) const TCP: u8 = 6;
/// See [`TCP`].
pub(super) const UDP: u8 = 17;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

/// A whole IP packet, its headers gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    /// What was captured of it; link padding is cut off by the IP length.
    pub(super) payload: &'a [u8],
    /// Payload bytes that the IP length promises and the capture does not hold.
    pub(super) missing: u32,
}

pub(super) fn open(network: Network<'_>) -> Result<IpPacket<'_>, PacketOutcome> {
    match network {
        Network::V4(data) => v4(data),
        Network::V6(data) => v6(data),
    }
}

/// `data` up to the `promised` length, and how many bytes of that are not there.
fn limit(data: &[u8], promised: usize) -> (&[u8], u32) {
    match data.get(..promised) {
        Some(whole) => (whole, 0),
        None => (
            data,
            u32::try_from(promised - data.len()).unwrap_or(u32::MAX),
        ),
    }
}

fn v4(data: &[u8]) -> Result<IpPacket<'_>, PacketOutcome> {
    let (header, _) = split::<20>(data).ok_or(PacketOutcome::BadIp)?;
    let [
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
    ] = header;
    let [s0, s1, s2, s3, d0, d1, d2, d3] = addresses;
    let header_len = usize::from(version_ihl & 0x0f) * 4;
    if version_ihl >> 4 != 4 || header_len < 20 {
        return Err(PacketOutcome::BadIp);
    }
    let behind = data.get(header_len..).ok_or(PacketOutcome::BadIp)?;
    let (payload, missing) = match usize::from(u16::from_be_bytes([*l0, *l1])) {
        // Written by segmentation offload, before the card knows better (and by BIG TCP, where 16 bits do not
        // suffice): the rest is the length.
        0 => (behind, 0),
        total => limit(
            behind,
            total.checked_sub(header_len).ok_or(PacketOutcome::BadIp)?,
        ),
    };
    // More fragments, or an offset.
    if u16::from_be_bytes([*f0, *f1]) & 0x3fff != 0 {
        return Err(fragment_of(*protocol));
    }
    let (protocol, payload) = if *protocol == AUTHENTICATION {
        behind_extension(AUTHENTICATION, payload)?
    } else {
        (*protocol, payload)
    };
    Ok(IpPacket {
        src: IpAddr::V4(Ipv4Addr::new(*s0, *s1, *s2, *s3)),
        dst: IpAddr::V4(Ipv4Addr::new(*d0, *d1, *d2, *d3)),
        protocol,
        payload,
        missing,
    })
}

fn v6(data: &[u8]) -> Result<IpPacket<'_>, PacketOutcome> {
    let (header, behind) = split::<40>(data).ok_or(PacketOutcome::BadIp)?;
    let ([version, _, _, _, l0, l1, next, _], addresses) =
        split::<8>(header).ok_or(PacketOutcome::BadIp)?;
    let (src, dst) = split::<16>(addresses).ok_or(PacketOutcome::BadIp)?;
    let (dst, _) = split::<16>(dst).ok_or(PacketOutcome::BadIp)?;
    if version >> 4 != 6 {
        return Err(PacketOutcome::BadIp);
    }
    let (mut payload, missing) = match usize::from(u16::from_be_bytes([*l0, *l1])) {
        // A jumbogram (RFC 2675), or BIG TCP: the rest is the length.
        0 => (behind, 0),
        len => limit(behind, len),
    };
    let mut protocol = *next;
    for _ in 0..=MAX_EXTENSION_HEADERS {
        match protocol {
            FRAGMENT => {
                let ([next, _, o0, o1, ..], _) = split::<8>(payload).ok_or(PacketOutcome::BadIp)?;
                // An offset, or more fragments. Neither: an atomic fragment is whole (RFC 6946).
                if u16::from_be_bytes([*o0, *o1]) & 0xfff9 != 0 {
                    return Err(fragment_of(*next));
                }
            }
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
            | HOST_IDENTITY | SHIM6 => {}
            _ => {
                return Ok(IpPacket {
                    src: IpAddr::V6(Ipv6Addr::from(*src)),
                    dst: IpAddr::V6(Ipv6Addr::from(*dst)),
                    protocol,
                    payload,
                    missing,
                });
            }
        }
        (protocol, payload) = behind_extension(protocol, payload)?;
    }
    Err(PacketOutcome::BadIp)
}

/// Takes an extension header off: the protocol of what follows, and that.
fn behind_extension(header: u8, data: &[u8]) -> Result<(u8, &[u8]), PacketOutcome> {
    let ([next, len], _) = split::<2>(data).ok_or(PacketOutcome::BadIp)?;
    let len = match header {
        FRAGMENT => 8,
        // RFC 4302 §2.2: counted in 32-bit words, less two.
        AUTHENTICATION => (usize::from(*len) + 2) * 4,
        // RFC 8200 §4: counted in 64-bit words, less one.
        _ => (usize::from(*len) + 1) * 8,
    };
    Ok((*next, data.get(len..).ok_or(PacketOutcome::BadIp)?))
}

/// How a fragment ends: one that cannot be TCP, nor VXLAN around TCP, is no loss of a fragment.
fn fragment_of(protocol: u8) -> PacketOutcome {
    match protocol {
        TCP | UDP | HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        | MOBILITY | HOST_IDENTITY | SHIM6 => PacketOutcome::Fragment,
        _ => PacketOutcome::NotTcp,
    }
}
