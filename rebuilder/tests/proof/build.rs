//! Frames built from nothing: Ethernet, IPv4 or IPv6, TCP.

use std::net::{IpAddr, SocketAddr};

use rebuilder::receive::LinkType;
use rebuilder::time::Timestamp;

use crate::wire::{Owned, sum16};

/// What a segment says beside its ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Says<'a> {
    pub(crate) seq: u32,
    /// `None`: without the ACK bit.
    pub(crate) ack: Option<u32>,
    /// Bits of [`crate::wire`], ACK aside.
    pub(crate) flags: u8,
    pub(crate) payload: &'a [u8],
}

/// An Ethernet frame with one TCP segment, its checksums right.
pub(crate) fn segment(ts: u64, src: SocketAddr, dst: SocketAddr, says: Says<'_>) -> Owned {
    let mut tcp = Vec::with_capacity(20 + says.payload.len());
    tcp.extend_from_slice(&src.port().to_be_bytes());
    tcp.extend_from_slice(&dst.port().to_be_bytes());
    tcp.extend_from_slice(&says.seq.to_be_bytes());
    tcp.extend_from_slice(&says.ack.unwrap_or(0).to_be_bytes());
    let ack = if says.ack.is_some() {
        crate::wire::ACK
    } else {
        0
    };
    tcp.extend_from_slice(&[0x50, says.flags | ack, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend_from_slice(says.payload);
    packet(ts, src.ip(), dst.ip(), 6, Place::Whole, &tcp, true)
}

/// Which part of a packet this is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Whole,
    Fragment { id: u32, offset: u16, more: bool },
}

/// An Ethernet frame with an IP packet of this protocol; `sealed` writes TCP's checksum.
pub(crate) fn packet(
    ts: u64,
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    place: Place,
    body: &[u8],
    sealed: bool,
) -> Owned {
    let mut data = Vec::with_capacity(62 + body.len());
    data.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let len = |extra: usize| u16::try_from(body.len() + extra).unwrap().to_be_bytes();
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [l0, l1] = len(20);
            let (id, bits) = match place {
                Place::Whole => (0, 0x4000),
                Place::Fragment { id, offset, more } => {
                    let more = if more { 0x2000 } else { 0 };
                    (u16::try_from(id).unwrap(), (offset / 8) | more)
                }
            };
            let [i0, i1] = id.to_be_bytes();
            let [f0, f1] = bits.to_be_bytes();
            data.extend_from_slice(&[8, 0, 0x45, 0, l0, l1, i0, i1, f0, f1, 64, protocol, 0, 0]);
            data.extend_from_slice(&src.octets());
            data.extend_from_slice(&dst.octets());
            let field = !sum16(&data[14..34], 0);
            data[24..26].copy_from_slice(&field.to_be_bytes());
            26..34
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let (next, extra) = match place {
                Place::Whole => (protocol, 0),
                Place::Fragment { .. } => (44, 8),
            };
            let [l0, l1] = len(extra);
            data.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, l0, l1, next, 64]);
            data.extend_from_slice(&src.octets());
            data.extend_from_slice(&dst.octets());
            if let Place::Fragment { id, offset, more } = place {
                let [o0, o1] = (offset | u16::from(more)).to_be_bytes();
                data.extend_from_slice(&[protocol, 0, o0, o1]);
                data.extend_from_slice(&id.to_be_bytes());
            }
            22..54
        }
        _ => panic!("two families in one packet"),
    };
    let at = data.len();
    data.extend_from_slice(body);
    if sealed {
        let length = u32::try_from(body.len()).unwrap();
        let pseudo = sum16(&data[addresses], 6 + length);
        let field = !sum16(&data[at..], u32::from(pseudo));
        data[at + 16..at + 18].copy_from_slice(&field.to_be_bytes());
    }
    Owned {
        ts: Timestamp(ts),
        link: LinkType::Ethernet,
        data,
    }
}
