//! The classic-BPF program by which the kernel picks the packets that are copied into a ring.
//!
//! A packet socket of type `SOCK_DGRAM` shows a packet from its IP header; what the link header says, the kernel tells
//! beside it: to whom the packet was sent, and the EtherType. It has also taken one VLAN tag off by then, whether the
//! card or the kernel did it; a second one is still before the IP header.

use std::net::{IpAddr, SocketAddr};

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K, BPF_LD,
    BPF_LDX, BPF_MSH, BPF_RET, SKF_AD_PKTTYPE, SKF_AD_PROTOCOL, sock_filter,
};

use crate::receive::bpf::{BPF_JA, jump, load_ancillary, load_byte, load_half, load_word, op};

const UDP: u32 = 17;
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;
/// Bytes of a VLAN tag.
const TAG: u32 = 4;

/// How many bytes of a packet are wanted: all, whatever its length.
const WHOLE: u32 = 0x4_0000;

/// Takes nothing. For a packet socket that is not ready yet, and for a UDP socket that only holds its port.
pub(in super::super) fn nothing() -> Vec<sock_filter> {
    vec![op(BPF_RET | BPF_K, 0)]
}

/// Takes UDP datagrams to `listen` that were sent to this machine: to any of its addresses where that one is
/// unspecified (of both families for `[::]`, as a UDP socket does). Pieces are left out: the kernel puts those of IPv4
/// together first.
pub(super) fn datagrams(listen: SocketAddr) -> Vec<sock_filter> {
    let body = ip_behind(listen, 0);
    let tagged = {
        // The tag that is left: its number, then the EtherType behind it.
        let mut program = vec![load_half(2)];
        program.extend(ip_behind(listen, TAG));
        program
    };
    let over = u32::try_from(tagged.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        load_ancillary(SKF_AD_PKTTYPE),
        jump(
            BPF_JMP | BPF_JEQ | BPF_K,
            u32::from(libc::PACKET_HOST),
            1,
            0,
        ),
        op(BPF_RET | BPF_K, 0),
        load_ancillary(SKF_AD_PROTOCOL),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x8100, 2, 0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x88a8, 1, 0),
        op(BPF_JMP | BPF_JA, over),
    ];
    program.extend(tagged);
    program.extend(body);
    program
}

/// With the EtherType loaded, and an IP header at `base`.
fn ip_behind(listen: SocketAddr, base: u32) -> Vec<sock_filter> {
    let port = u32::from(listen.port());
    let address = match listen.ip() {
        IpAddr::V6(ip) => ip.to_ipv4_mapped().map_or(IpAddr::V6(ip), IpAddr::V4),
        ip => ip,
    };
    let (v4, v6) = match address {
        IpAddr::V4(ip) if ip.is_unspecified() => (ipv4(base, port, None), nothing()),
        IpAddr::V4(ip) => (ipv4(base, port, Some(ip.to_bits())), nothing()),
        IpAddr::V6(ip) if ip.is_unspecified() => (ipv4(base, port, None), ipv6(base, port, &[])),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let (words, _) = octets.as_chunks::<4>();
            let words: Vec<u32> = words.iter().map(|w| u32::from_be_bytes(*w)).collect();
            (nothing(), ipv6(base, port, &words))
        }
    };
    let mut program = vec![jump(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IPV4, 0, v4.len())];
    program.extend(v4);
    program.push(jump(BPF_JMP | BPF_JEQ | BPF_K, ETHERTYPE_IPV6, 1, 0));
    program.push(op(BPF_RET | BPF_K, 0));
    program.extend(v6);
    program
}

/// Goes on only where what is loaded is `wanted`.
fn must_be(wanted: u32) -> [sock_filter; 2] {
    [
        jump(BPF_JMP | BPF_JEQ | BPF_K, wanted, 1, 0),
        op(BPF_RET | BPF_K, 0),
    ]
}

/// RFC 791 §3.1.
fn ipv4(base: u32, port: u32, address: Option<u32>) -> Vec<sock_filter> {
    let mut program = vec![load_byte(base), op(BPF_ALU | BPF_AND | BPF_K, 0xf0)];
    program.extend(must_be(0x40));
    program.push(load_byte(base + 9));
    program.extend(must_be(UDP));
    program.push(load_half(base + 6));
    program.push(jump(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, 0, 1));
    program.push(op(BPF_RET | BPF_K, 0));
    if let Some(address) = address {
        program.push(load_word(base + 16));
        program.extend(must_be(address));
    }
    program.push(op(BPF_LDX | BPF_B | BPF_MSH, base));
    program.push(op(BPF_LD | BPF_H | BPF_IND, base + 2));
    program.extend(must_be(port));
    program.push(op(BPF_RET | BPF_K, WHOLE));
    program
}

/// RFC 8200 §3.
fn ipv6(base: u32, port: u32, address: &[u32]) -> Vec<sock_filter> {
    let mut program = vec![op(BPF_LD | BPF_B | BPF_ABS, base + 6)];
    program.extend(must_be(UDP));
    for (at, word) in (base + 24..).step_by(4).zip(address) {
        program.push(load_word(at));
        program.extend(must_be(*word));
    }
    program.push(load_half(base + 40 + 2));
    program.extend(must_be(port));
    program.push(op(BPF_RET | BPF_K, WHOLE));
    program
}
