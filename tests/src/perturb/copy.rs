//! A mirrored copy: what is in it, and how it is changed. Written for the lab's own frames, independent of the
//! rebuilder's decoder, which it helps to test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

const ETHERNET: usize = 14;
const UDP: usize = 8;
const VXLAN: usize = 8;
const VXLAN_PORT: u16 = 4789;

/// The TCP segment in a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) syn: bool,
    /// Bytes of payload, by the IP header.
    pub(super) on_wire: u32,
    /// Bytes of payload that are in the copy: fewer where the mirror has cut it.
    pub(super) captured: u32,
}

/// What stands between the Ethernet addresses and the type of an inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tag {
    /// One 802.1Q tag.
    Vlan,
    /// An 802.1ad tag and an 802.1Q tag behind it.
    QinQ,
}

impl Tag {
    const fn length(self) -> u16 {
        match self {
            Self::Vlan => 4,
            Self::QinQ => 8,
        }
    }

    fn bytes(self) -> &'static [u8] {
        match self {
            Self::Vlan => &[0x81, 0x00, 0x20, 0x07],
            Self::QinQ => &[0x88, 0xa8, 0x00, 0x63, 0x81, 0x00, 0x20, 0x07],
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// Where the inner frame begins, when this is a VXLAN packet over IPv4.
fn inner(frame: &[u8]) -> Option<usize> {
    let header = usize::from(frame.get(ETHERNET)? & 0x0f) * 4;
    let udp = ETHERNET + header;
    let vxlan = be16(frame, 12)? == 0x0800
        && frame.get(ETHERNET)? >> 4 == 4
        && *frame.get(ETHERNET + 9)? == 17
        && be16(frame, udp + 2)? == VXLAN_PORT;
    vxlan.then_some(udp + UDP + VXLAN)
}

/// The TCP segment in a mirrored copy, if there is one.
pub(super) fn segment(frame: &[u8]) -> Option<Segment> {
    let inner = frame.get(inner(frame)?..)?;
    let (ip, kind) = (inner.get(ETHERNET..)?, be16(inner, 12)?);
    let (header, length, from, to): (usize, usize, IpAddr, IpAddr) = match kind {
        0x0800 if *ip.get(9)? == 6 => {
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 4] = ip.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(bytes).into())
            };
            let header = usize::from(ip.first()? & 0x0f) * 4;
            (
                header,
                usize::from(be16(ip, 2)?),
                address(12)?,
                address(16)?,
            )
        }
        0x86dd if *ip.get(6)? == 6 => {
            let address = |at: usize| -> Option<IpAddr> {
                let bytes: [u8; 16] = ip.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(bytes).into())
            };
            (
                40,
                40 + usize::from(be16(ip, 4)?),
                address(8)?,
                address(24)?,
            )
        }
        _ => return None,
    };
    let tcp = ip.get(header..)?;
    let payload = header + usize::from(tcp.get(12)? >> 4) * 4;
    let seq: [u8; 4] = tcp.get(4..8)?.try_into().ok()?;
    // Ethernet pads a short frame, and a mirror may cut a long one.
    let captured = ip.len().min(length).checked_sub(payload)?;
    Some(Segment {
        from: SocketAddr::new(from, be16(tcp, 0)?),
        to: SocketAddr::new(to, be16(tcp, 2)?),
        seq: u32::from_be_bytes(seq),
        syn: tcp.get(13)? & 0x02 != 0,
        on_wire: u32::try_from(length.checked_sub(payload)?).ok()?,
        captured: u32::try_from(captured).ok()?,
    })
}

/// Writes another VXLAN network identifier into a copy.
pub(super) fn set_vni(frame: &mut [u8], vni: u32) {
    if let Some(at) = inner(frame)
        && let Some(field) = frame.get_mut(at - 4..at - 1)
        && let [_, bytes @ ..] = vni.to_be_bytes()
    {
        field.copy_from_slice(&bytes);
    }
}

/// Puts tags into the inner frame of a copy, and their length into the outer headers. Whether that could be done.
pub(super) fn add_tags(frame: &mut Vec<u8>, tag: Tag) -> bool {
    let Some(at) = inner(frame)
        .map(|inner| inner + 12)
        .filter(|&at| at <= frame.len())
    else {
        return false;
    };
    let bytes = tag.bytes();
    frame.splice(at..at, bytes.iter().copied());
    let udp = at - 12 - VXLAN - UDP;
    for field in [ETHERNET + 2, udp + 4] {
        if let Some(length) = be16(frame, field).map(|length| length + tag.length())
            && let Some(field) = frame.get_mut(field..field + 2)
        {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }
    write_checksum(frame, ETHERNET..udp);
    true
}

/// The IPv4 header checksum (RFC 791 §3.1, RFC 1071).
fn write_checksum(frame: &mut [u8], header: Range<usize>) {
    let Some(header) = frame.get_mut(header) else {
        return;
    };
    if let Some(field) = header.get_mut(10..12) {
        field.fill(0);
    }
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let [_, _, sum @ ..] = (!((folded & 0xffff) + (folded >> 16))).to_be_bytes();
    if let Some(field) = header.get_mut(10..12) {
        field.copy_from_slice(&sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mirrored copy as this kernel's VXLAN device makes it (captured in the lab): a TCP segment from
    /// 172.31.240.10:54321 to 172.31.0.1:80 that carries `GET `.
    fn copied() -> Vec<u8> {
        let mut frame = vec![2, 0, 0x64, 0x40, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        frame.extend_from_slice(&[
            0x45, 0, 0, 108, 0, 0, 0, 0, 255, 17, 0, 0, 172, 31, 0, 1, 100, 64, 0, 2,
        ]);
        frame.extend_from_slice(&[0xff, 0x90, 0x12, 0xb5, 0, 88, 0, 0]);
        frame.extend_from_slice(&[8, 0, 0, 0, 0, 0x12, 0xb5, 0]);
        frame.extend_from_slice(&[2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4, 8, 0]);
        frame.extend_from_slice(&[
            0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 172, 31, 240, 10, 172, 31, 0, 1,
        ]);
        frame.extend_from_slice(&[
            0xd4, 0x31, 0, 80, 0, 0, 1, 0, 0, 0, 0, 0, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
        ]);
        frame.extend_from_slice(b"GET ");
        // Padding, as Ethernet has it.
        frame.extend_from_slice(&[0; 14]);
        frame
    }

    #[test]
    fn padding_is_no_payload() {
        assert_eq!(
            segment(&copied()),
            Some(Segment {
                from: "172.31.240.10:54321".parse().unwrap(),
                to: "172.31.0.1:80".parse().unwrap(),
                seq: 256,
                syn: false,
                on_wire: 4,
                captured: 4,
            })
        );
    }

    #[test]
    fn a_cut_copy_has_less_than_its_ip_header_says() {
        let mut frame = copied();
        frame.truncate(frame.len() - 14 - 3);
        let segment = segment(&frame).unwrap();
        assert_eq!((segment.on_wire, segment.captured), (4, 1));
    }

    #[test]
    fn tags_lie_behind_the_inner_addresses_and_the_outer_lengths_count_them() {
        for tag in [Tag::Vlan, Tag::QinQ] {
            let (before, mut frame) = (copied(), copied());
            assert!(add_tags(&mut frame, tag));
            let more = tag.bytes().len();
            assert_eq!(usize::from(tag.length()), more);
            assert_eq!(frame[50 + 12..50 + 12 + more], *tag.bytes());
            assert_eq!(frame[50 + 12 + more..], before[50 + 12..]);
            assert_eq!(usize::from(be16(&frame, 16).unwrap()), 108 + more);
            assert_eq!(usize::from(be16(&frame, 38).unwrap()), 88 + more);
            // The sum over a header with its checksum is all ones (RFC 1071 §1).
            let sum: u32 = (14..34)
                .step_by(2)
                .map(|at| u32::from(be16(&frame, at).unwrap()))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
    }

    #[test]
    fn another_vni_changes_three_bytes() {
        let mut frame = copied();
        set_vni(&mut frame, 0x01_02_03);
        assert_eq!(frame[46..49], [1, 2, 3]);
        frame[46..49].copy_from_slice(&[0, 0x12, 0xb5]);
        assert_eq!(frame, copied());
    }

    #[test]
    fn what_is_no_mirrored_segment_is_none() {
        assert_eq!(segment(b""), None);
        for length in 0..copied().len() {
            let _ = segment(&copied()[..length]);
        }
        let mut arp = copied();
        arp[12..14].copy_from_slice(&[8, 6]);
        assert_eq!(segment(&arp), None);
    }
}
