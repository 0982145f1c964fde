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

/// An IP packet, its headers gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct IpPacket<'a> {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    /// What was captured of it; link padding is cut off by the IP length.
    pub(super) payload: &'a [u8],
    /// Payload bytes that the IP length promises and the capture does not hold.
    pub(super) missing: u32,
    /// Whether the IP header said how long it is; else it was taken to be as long as what was captured.
    pub(super) sized: bool,
    /// The header, of an IPv4 packet that was sent in one; else empty.
    pub(super) v4_header: &'a [u8],
}

impl IpPacket<'_> {
    /// Whether all that was sent was captured, so that a checksum over it means something.
    pub(super) fn is_whole(&self) -> bool {
        self.sized && self.missing == 0
    }

    /// The same packet, its payload in `buffer`; for one in pieces, which has no header.
    pub(super) fn moved_to(self, buffer: &mut Vec<u8>) -> IpPacket<'_> {
        buffer.clear();
        buffer.extend_from_slice(self.payload);
        IpPacket {
            payload: buffer,
            v4_header: &[],
            ..self
        }
    }
}

/// A piece of an IP packet that was sent in several.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    /// What all pieces of the packet share, with both addresses and, in IPv4, the protocol.
    pub(super) id: u32,
    /// Where `packet.payload` begins in the whole payload, in bytes.
    pub(super) offset: usize,
    /// Whether it is not the last piece.
    pub(super) more: bool,
    /// The piece; its protocol is the whole one's where `offset` is zero.
    pub(super) packet: IpPacket<'a>,
}

/// What an IP header stands before.
#[derive(Clone, Copy, Debug)]
pub(super) enum Opened<'a> {
    Whole(IpPacket<'a>),
    Fragment(Fragment<'a>),
}

/// Takes the IP header and its extensions off.
pub(super) fn open(network: Network<'_>) -> Result<Opened<'_>, PacketOutcome> {
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

fn v4(data: &[u8]) -> Result<Opened<'_>, PacketOutcome> {
    let (header, _) = split::<20>(data).ok_or(PacketOutcome::BadIp)?;
    let [
        version_ihl,
        _,
        l0,
        l1,
        i0,
        i1,
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
    let (v4_header, behind) = data
        .split_at_checked(header_len)
        .ok_or(PacketOutcome::BadIp)?;
    let total = usize::from(u16::from_be_bytes([*l0, *l1]));
    let (payload, missing) = match total {
        // Written by segmentation offload, before the card knows better (and by BIG TCP, where 16 bits do not
        // suffice): the rest is the length.
        0 => (behind, 0),
        total => limit(
            behind,
            total.checked_sub(header_len).ok_or(PacketOutcome::BadIp)?,
        ),
    };
    let packet = IpPacket {
        src: IpAddr::V4(Ipv4Addr::new(*s0, *s1, *s2, *s3)),
        dst: IpAddr::V4(Ipv4Addr::new(*d0, *d1, *d2, *d3)),
        protocol: *protocol,
        payload,
        missing,
        sized: total != 0,
        v4_header,
    };
    let bits = u16::from_be_bytes([*f0, *f1]);
    let (more, offset) = (bits & 0x2000 != 0, bits & 0x1fff);
    if more || offset != 0 {
        return fragment(Fragment {
            id: u16::from_be_bytes([*i0, *i1]).into(),
            offset: usize::from(offset) * 8,
            more,
            packet,
        });
    }
    walk(packet)
}

fn v6(data: &[u8]) -> Result<Opened<'_>, PacketOutcome> {
    let (header, behind) = split::<40>(data).ok_or(PacketOutcome::BadIp)?;
    let ([version, _, _, _, l0, l1, next, _], addresses) =
        split::<8>(header).ok_or(PacketOutcome::BadIp)?;
    let (src, dst) = split::<16>(addresses).ok_or(PacketOutcome::BadIp)?;
    let (dst, _) = split::<16>(dst).ok_or(PacketOutcome::BadIp)?;
    if version >> 4 != 6 {
        return Err(PacketOutcome::BadIp);
    }
    let len = usize::from(u16::from_be_bytes([*l0, *l1]));
    let (payload, missing) = match len {
        // A jumbogram (RFC 2675), or BIG TCP: the rest is the length.
        0 => (behind, 0),
        len => limit(behind, len),
    };
    walk(IpPacket {
        src: IpAddr::V6(Ipv6Addr::from(*src)),
        dst: IpAddr::V6(Ipv6Addr::from(*dst)),
        protocol: *next,
        payload,
        missing,
        sized: len != 0,
        v4_header: &[],
    })
}

/// Takes extension headers off, until what follows is none or a piece of something.
pub(super) fn walk(mut packet: IpPacket<'_>) -> Result<Opened<'_>, PacketOutcome> {
    for _ in 0..=MAX_EXTENSION_HEADERS {
        // IPv4 knows one of them only.
        if !is_extension(packet.protocol)
            || (packet.src.is_ipv4() && packet.protocol != AUTHENTICATION)
        {
            return Ok(Opened::Whole(packet));
        }
        let header = packet.protocol;
        let at = packet.payload;
        let ([next, len], _) = split::<2>(at).ok_or(PacketOutcome::BadIp)?;
        let len = match header {
            FRAGMENT => 8,
            // RFC 4302 §2.2: counted in 32-bit words, less two.
            AUTHENTICATION => (usize::from(*len) + 2) * 4,
            // RFC 8200 §4: counted in 64-bit words, less one.
            _ => (usize::from(*len) + 1) * 8,
        };
        packet.protocol = *next;
        packet.payload = at.get(len..).ok_or(PacketOutcome::BadIp)?;
        if header == FRAGMENT {
            let ([_, _, o0, o1, id @ ..], _) = split::<8>(at).ok_or(PacketOutcome::BadIp)?;
            let bits = u16::from_be_bytes([*o0, *o1]);
            let (more, offset) = (bits & 1 != 0, bits & 0xfff8);
            // Neither: an atomic fragment is whole (RFC 6946).
            if more || offset != 0 {
                return fragment(Fragment {
                    id: u32::from_be_bytes(*id),
                    offset: usize::from(offset),
                    more,
                    packet,
                });
            }
        }
    }
    Err(PacketOutcome::BadIp)
}

fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HOST_IDENTITY
            | SHIM6
    )
}

/// A fragment that cannot be TCP, nor VXLAN around TCP, ends as what it is.
fn fragment(piece: Fragment<'_>) -> Result<Opened<'_>, PacketOutcome> {
    let protocol = piece.packet.protocol;
    if protocol == TCP || protocol == UDP || is_extension(protocol) {
        Ok(Opened::Fragment(piece))
    } else {
        Err(PacketOutcome::NotTcp)
    }
}
