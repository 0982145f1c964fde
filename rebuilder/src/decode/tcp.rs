//! The TCP header (RFC 9293 §3.1).

use super::{Seq, TcpFlags, split};
use crate::telemetry::PacketOutcome;

/// A TCP header's fields and what follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tcp<'a> {
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: TcpFlags,
    /// 0 where the flags say that it does not count.
    pub(super) urgent: u16,
    pub(super) payload: &'a [u8],
}

/// Takes the header off. A header that is cut, options included, is bad: without it no byte behind has a place.
pub(super) fn open(data: &[u8]) -> Result<Tcp<'_>, PacketOutcome> {
    let (header, _) = split::<20>(data).ok_or(PacketOutcome::BadTcp)?;
    let [
        s0,
        s1,
        d0,
        d1,
        q0,
        q1,
        q2,
        q3,
        a0,
        a1,
        a2,
        a3,
        offset,
        flags,
        _,
        _,
        _,
        _,
        u0,
        u1,
    ] = header;
    let header_len = usize::from(offset >> 4) * 4;
    if header_len < 20 {
        return Err(PacketOutcome::BadTcp);
    }
    let flags = TcpFlags::from_bits_truncate(*flags);
    let urgent = if flags.contains(TcpFlags::URG) {
        u16::from_be_bytes([*u0, *u1])
    } else {
        0
    };
    Ok(Tcp {
        src_port: u16::from_be_bytes([*s0, *s1]),
        dst_port: u16::from_be_bytes([*d0, *d1]),
        seq: Seq(u32::from_be_bytes([*q0, *q1, *q2, *q3])),
        ack: Seq(u32::from_be_bytes([*a0, *a1, *a2, *a3])),
        flags,
        urgent,
        payload: data.get(header_len..).ok_or(PacketOutcome::BadTcp)?,
    })
}
