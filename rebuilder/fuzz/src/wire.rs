//! Writes frames, layer by layer from the inside out. Written from the RFCs and not from the decoder, so that the two
//! can disagree.

use std::net::IpAddr;

/// Ethertypes.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const IPV6: u16 = 0x86dd;

/// Protocol numbers.
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Control bits of TCP.
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;

/// Of a TCP header; its ports are those of the addresses that it is written with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tcp {
    pub(crate) ports: (u16, u16),
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// In 32-bit words of no-operations, at most 10.
    pub(crate) options: u8,
}

/// Source and destination, both of one family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
}

impl Ends {
    pub(crate) fn v4(src: u8, dst: u8) -> Self {
        Self {
            src: IpAddr::from([10, 0, 0, src]),
            dst: IpAddr::from([10, 0, 0, dst]),
        }
    }

    pub(crate) fn v6(src: u8, dst: u8) -> Self {
        let of = |last| {
            let mut octets = [0; 16];
            (octets[0], octets[1], octets[15]) = (0x20, 0x01, last);
            IpAddr::from(octets)
        };
        Self {
            src: of(src),
            dst: of(dst),
        }
    }

    fn octets(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32);
        for ip in [self.src, self.dst] {
            match ip {
                IpAddr::V4(ip) => out.extend(ip.octets()),
                IpAddr::V6(ip) => out.extend(ip.octets()),
            }
        }
        out
    }
}

/// The low 16 bits.
pub(crate) fn low16(n: usize) -> [u8; 2] {
    let [.., hi, lo] = n.to_be_bytes();
    [hi, lo]
}

/// The one's complement sum of RFC 1071, not yet complemented.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .chunks(2)
        .map(|pair| match pair {
            [hi, lo] => u64::from(u16::from_be_bytes([*hi, *lo])),
            [hi] => u64::from(u16::from_be_bytes([*hi, 0])),
            _ => 0,
        })
        .sum()
}

fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., hi, lo] = (!sum).to_be_bytes();
    [hi, lo]
}

/// A TCP segment with the right checksum (RFC 9293 §3.1).
pub(crate) fn tcp(ends: Ends, tcp: &Tcp, payload: &[u8]) -> Vec<u8> {
    let options = usize::from(tcp.options.min(10)) * 4;
    let mut out = Vec::with_capacity(20 + options + payload.len());
    out.extend(tcp.ports.0.to_be_bytes());
    out.extend(tcp.ports.1.to_be_bytes());
    out.extend(tcp.seq.to_be_bytes());
    out.extend(tcp.ack.to_be_bytes());
    out.push(((5 + tcp.options.min(10)) << 4) & 0xf0);
    out.push(tcp.flags);
    out.extend([0x20, 0, 0, 0, 0, 0]);
    out.resize(20 + options, 1);
    out.extend(payload);
    let pseudo = sum(&ends.octets()) + u64::from(TCP) + out.len() as u64;
    let check = checksum(pseudo + sum(&out));
    out[16..18].copy_from_slice(&check);
    out
}

/// A UDP datagram without checksum, as AWS sends mirrored frames.
pub(crate) fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0xff, 0xdc];
    out.extend(port.to_be_bytes());
    out.extend(low16(payload.len() + 8));
    out.extend([0, 0]);
    out.extend(payload);
    out
}

/// What of an IP packet a header does not have by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    /// In bytes, a multiple of eight.
    pub(crate) offset: usize,
    pub(crate) more: bool,
}

/// An IPv4 or IPv6 packet; `piece` makes a fragment of it.
pub(crate) fn ip(ends: Ends, protocol: u8, piece: Option<Piece>, payload: &[u8]) -> Vec<u8> {
    match ends.src {
        IpAddr::V4(_) => ipv4(ends, protocol, piece, 0, payload),
        IpAddr::V6(_) => match piece {
            None => ipv6(ends, protocol, payload),
            Some(piece) => {
                let mut behind = fragment_header(protocol, piece);
                behind.extend(payload);
                ipv6(ends, 44, &behind)
            }
        },
    }
}

/// RFC 791 §3.1, with `options` 32-bit words of no-operations.
pub(crate) fn ipv4(
    ends: Ends,
    protocol: u8,
    piece: Option<Piece>,
    options: u8,
    payload: &[u8],
) -> Vec<u8> {
    let options = options.min(10);
    let len = 20 + usize::from(options) * 4;
    let piece = piece.unwrap_or_default();
    let mut out = vec![0x45 + options, 0];
    out.extend(low16(len + payload.len()));
    let [_, _, i0, i1] = piece.id.to_be_bytes();
    out.extend([i0, i1]);
    let [hi, lo] = low16(piece.offset / 8);
    out.extend([(hi & 0x1f) | if piece.more { 0x20 } else { 0 }, lo]);
    out.extend([64, protocol, 0, 0]);
    out.extend(ends.octets());
    out.resize(len, 1);
    let check = checksum(sum(&out));
    out[10..12].copy_from_slice(&check);
    out.extend(payload);
    out
}

/// RFC 8200 §3.
pub(crate) fn ipv6(ends: Ends, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend(low16(payload.len()));
    out.extend([next, 64]);
    out.extend(ends.octets());
    out.extend(payload);
    out
}

/// RFC 8200 §4.5.
pub(crate) fn fragment_header(next: u8, piece: Piece) -> Vec<u8> {
    let [hi, lo] = low16(piece.offset & 0xfff8);
    let mut out = vec![next, 0, hi, lo | u8::from(piece.more)];
    out.extend(piece.id.to_be_bytes());
    out
}

/// An Ethernet frame whose VLAN tags are `tags`, outermost first.
pub(crate) fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        out.extend(tag.to_be_bytes());
        out.extend([0x20, 5]);
    }
    out.extend(ethertype.to_be_bytes());
    out.extend(payload);
    out
}

/// RFC 7348 §5.
pub(crate) fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, v0, v1, v2] = vni.to_be_bytes();
    let mut out = vec![0x08, 0, 0, 0, v0, v1, v2, 0];
    out.extend(frame);
    out
}

/// RFC 8926 §3.4, with options of so many 32-bit words, at most 63.
pub(crate) fn geneve(options: u8, protocol: u16, packet: &[u8]) -> Vec<u8> {
    let options = options.min(63);
    let mut out = vec![options, 0];
    out.extend(protocol.to_be_bytes());
    out.extend([0, 0, 9, 0]);
    out.resize(8 + usize::from(options) * 4, 0);
    out.extend(packet);
    out
}

/// The ethertype of an address's family.
pub(crate) fn ethertype(ip: IpAddr) -> u16 {
    match ip {
        IpAddr::V4(_) => IPV4,
        IpAddr::V6(_) => IPV6,
    }
}
