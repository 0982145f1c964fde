//! The classic-BPF program by which the kernel picks the worker of a datagram.
//!
//! Workers share nothing, so both directions of an inner connection, and every further mirrored copy of it, must
//! reach the same one. The outer header cannot tell (two copies of a connection, mirrored at its two ends, have
//! different outer sources), so the inner addresses and ports are hashed, symmetrically: addresses and ports of both
//! ends are XORed, the result is mixed and reduced to the number of workers.
//!
//! The program sees the UDP payload, from its first byte or behind the outer headers: a VXLAN header (on the port of GENEVE, behind what a Gateway
//! Load Balancer writes), an Ethernet frame with up to two VLAN tags, IP. Inner packets that are
//! not TCP, and fragments, are spread by their addresses alone; whatever is not IP, or too short, goes to worker 0. What
//! is a TCP segment all the same, once it is decoded, goes on to the worker that [`owner`] names (`handover.rs`).

use std::net::{IpAddr, SocketAddr};

use libc::{
    BPF_A, BPF_ABS, BPF_ALU, BPF_AND, BPF_B, BPF_H, BPF_IND, BPF_JEQ, BPF_JMP, BPF_JSET, BPF_K,
    BPF_LD, BPF_LDX, BPF_MEM, BPF_MISC, BPF_MOD, BPF_MSH, BPF_MUL, BPF_RET, BPF_RSH, BPF_ST,
    BPF_TAX, BPF_W, BPF_X, BPF_XOR, SKF_AD_PROTOCOL, sock_filter,
};

use super::LinkType;
use super::bpf::{BPF_JA, jump, load_ancillary, load_byte, load_half, load_word, op};

/// From the VXLAN header on: behind it (8) and both MAC addresses (12).
const ETHERTYPE: u32 = 20;
/// From the VXLAN header on, where the inner IP header begins.
const IP: u32 = 22;
const TCP: u32 = 6;
const UDP: u32 = 17;

/// Where a Gateway Load Balancer puts the VXLAN header: behind GENEVE (8) with its three options (12, 12 and 8), IPv4
/// without options (20) and UDP (8).
const BEHIND_GATEWAY: u32 = 68;

/// Bytes of a VLAN tag.
const TAG: u32 = 4;

/// 2^32 over the golden ratio: multiplying by it carries every low bit upwards (Knuth, TAOCP 3, §6.4).
const MIX: u32 = 0x9e37_79b1;

/// Memory words of the program.
const HASH: u32 = 0;
const PORT: u32 = 1;

/// XORs the words at `from`, `from + 4`, ... into the hash.
fn hash_words(from: u32, words: u32) -> Vec<sock_filter> {
    let mut program = vec![load_word(from)];
    for n in 1..words {
        program.push(op(BPF_MISC | BPF_TAX, 0));
        program.push(load_word(from + 4 * n));
        program.push(op(BPF_ALU | BPF_XOR | BPF_X, 0));
    }
    program.push(op(BPF_ST, HASH));
    program
}

/// XORs both ports into the hash; they are loaded in `mode` from `at` and the two bytes behind.
fn hash_ports(mode: u32, at: u32) -> Vec<sock_filter> {
    vec![
        op(BPF_LD | BPF_H | mode, at),
        op(BPF_ST, PORT),
        op(BPF_LD | BPF_H | mode, at + 2),
        op(BPF_LDX | BPF_W | BPF_MEM, PORT),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
        op(BPF_LDX | BPF_W | BPF_MEM, HASH),
        op(BPF_ALU | BPF_XOR | BPF_X, 0),
        op(BPF_ST, HASH),
    ]
}

/// The worker of a connection: what [`program`] computes of a TCP segment that it can read.
pub(crate) fn owner(src: SocketAddr, dst: SocketAddr, workers: usize) -> usize {
    let words = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.to_bits(),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            let (words, _) = octets.as_chunks::<4>();
            words
                .iter()
                .fold(0, |hash, word| hash ^ u32::from_be_bytes(*word))
        }
    };
    let ports = u32::from(src.port() ^ dst.port());
    of_hash(words(src.ip()) ^ words(dst.ip()) ^ ports, workers)
}

/// The same of IPv4 addresses and ports.
#[inline]
pub(crate) fn owner_of_plain(
    ([src, dst], [src_port, dst_port]): &([u32; 2], [u16; 2]),
    workers: usize,
) -> usize {
    of_hash(src ^ dst ^ u32::from(src_port ^ dst_port), workers)
}

#[inline]
fn of_hash(hash: u32, workers: usize) -> usize {
    let mixed = hash.wrapping_mul(MIX) >> 16;
    usize::try_from(mixed).map_or(0, |mixed| mixed % workers.max(1))
}

/// The program for a group of `workers` sockets (at least one) that take datagrams of this kind; it returns the index
/// of one of them.
///
/// Of GENEVE it reads what a Gateway Load Balancer writes around a mirrored packet; anything else goes to worker 0.
pub(super) fn program(workers: u32, link: LinkType) -> Vec<sock_filter> {
    program_at(workers, link, 0)
}

/// The same for a group of packet sockets: it sees the datagram from its outer IP header, which may be without options
/// only; whatever has some goes to worker 0.
pub(super) fn packet_program(workers: u32, link: LinkType) -> Vec<sock_filter> {
    let v6 = {
        let mut program = Vec::new();
        check(&mut program, BPF_B, 6, 0xff, UDP);
        program.extend(program_at(workers, link, 40 + 8));
        program
    };
    let v4 = {
        let mut program = Vec::new();
        check(&mut program, BPF_B, 0, 0xff, 0x45);
        check(&mut program, BPF_B, 9, 0xff, UDP);
        program.extend(program_at(workers, link, 20 + 8));
        program
    };
    let over = u32::try_from(v6.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        load_ancillary(SKF_AD_PROTOCOL),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x0800, 2, 0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x86dd, 2, 0),
        op(BPF_RET | BPF_K, 0),
        op(BPF_JMP | BPF_JA, over),
    ];
    program.extend(v6);
    program.extend(v4);
    program
}

/// Worker 0 unless the value at `at`, of a size, under `mask`, is the `wanted` one.
fn check(program: &mut Vec<sock_filter>, size: u32, at: u32, mask: u32, wanted: u32) {
    program.extend([
        op(BPF_LD | size | BPF_ABS, at),
        op(BPF_ALU | BPF_AND | BPF_K, mask),
        jump(BPF_JMP | BPF_JEQ | BPF_K, wanted, 1, 0),
        op(BPF_RET | BPF_K, 0),
    ]);
}

/// The program for a datagram whose payload begins at `base`.
fn program_at(workers: u32, link: LinkType, base: u32) -> Vec<sock_filter> {
    if link != LinkType::Geneve {
        return steer(workers, base);
    }
    let mut program = Vec::new();
    let mut check = |size, at, mask, wanted| check(&mut program, size, base + at, mask, wanted);
    // GENEVE: version 0, 32 bytes of options, IPv4 in it.
    check(BPF_B, 0, 0xff, 8);
    check(BPF_H, 2, 0xffff, 0x0800);
    // IPv4: no options, no piece, UDP.
    check(BPF_B, 40, 0xff, 0x45);
    check(BPF_H, 46, 0x3fff, 0);
    check(BPF_B, 49, 0xff, UDP);
    check(BPF_H, 62, 0xffff, 4789);
    program.extend(steer(workers, base + BEHIND_GATEWAY));
    program
}

/// The part behind all checks; `base` is where the VXLAN header begins. The frame may have two VLAN tags.
fn steer(workers: u32, base: u32) -> Vec<sock_filter> {
    let behind = |tags: u32| untagged(workers, base + tags * TAG);
    let tagged = if_tagged(base + ETHERTYPE + TAG, behind(2), behind(1));
    if_tagged(base + ETHERTYPE, tagged, behind(0))
}

/// One of two programs, each of which ends by itself: `yes` where the type at `at` is that of a VLAN tag.
fn if_tagged(at: u32, yes: Vec<sock_filter>, no: Vec<sock_filter>) -> Vec<sock_filter> {
    let over = u32::try_from(yes.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        load_half(at),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x8100, 2, 0),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x88a8, 1, 0),
        op(BPF_JMP | BPF_JA, over),
    ];
    program.extend(yes);
    program.extend(no);
    program
}

/// The part behind the tags, whose lengths are in `base`.
fn untagged(workers: u32, base: u32) -> Vec<sock_filter> {
    let (ethertype, ip) = (base + ETHERTYPE, base + IP);
    let mix = [
        op(BPF_LD | BPF_W | BPF_MEM, HASH),
        op(BPF_ALU | BPF_MUL | BPF_K, MIX),
        op(BPF_ALU | BPF_RSH | BPF_K, 16),
        op(BPF_ALU | BPF_MOD | BPF_K, workers.max(1)),
        op(BPF_RET | BPF_A, 0),
    ];

    // IPv6: next header at 6, addresses at 8. Extension headers are not walked: such a packet is hashed by its
    // addresses alone.
    let ports = hash_ports(BPF_ABS, ip + 40);
    let mut v6 = hash_words(ip + 8, 8);
    v6.push(load_byte(ip + 6));
    v6.push(jump(BPF_JMP | BPF_JEQ | BPF_K, TCP, 0, ports.len()));
    v6.extend(ports);

    // IPv4: flags and fragment offset at 6, protocol at 9, addresses at 12, ports behind the options.
    let ports = hash_ports(BPF_IND, ip);
    let mut v4 = hash_words(ip + 12, 2);
    v4.push(load_byte(ip + 9));
    v4.push(jump(BPF_JMP | BPF_JEQ | BPF_K, TCP, 0, ports.len() + 3));
    v4.push(load_half(ip + 6));
    v4.push(jump(BPF_JMP | BPF_JSET | BPF_K, 0x3fff, ports.len() + 1, 0));
    v4.push(op(BPF_LDX | BPF_B | BPF_MSH, ip));
    v4.extend(ports);
    // Over the IPv6 block and the test before it.
    v4.push(op(
        BPF_JMP | BPF_JA,
        u32::try_from(v6.len() + 1).unwrap_or(u32::MAX),
    ));

    let mut program = vec![
        load_half(ethertype),
        jump(BPF_JMP | BPF_JEQ | BPF_K, 0x0800, 0, v4.len()),
    ];
    program.extend(v4);
    program.push(jump(
        BPF_JMP | BPF_JEQ | BPF_K,
        0x86dd,
        0,
        v6.len() + mix.len(),
    ));
    program.extend(v6);
    program.extend(mix);
    program.push(op(BPF_RET | BPF_K, 0));
    program
}
