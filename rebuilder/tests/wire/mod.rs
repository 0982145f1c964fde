//! Frames written byte by byte, with sound checksums: what the tests send is not made by the code under test.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::net::{IpAddr, SocketAddr};

/// TCP flags (RFC 9293 §3.1).
pub(crate) const FIN: u8 = 0x01;
/// See [`FIN`].
pub(crate) const SYN: u8 = 0x02;
/// See [`FIN`].
pub(crate) const RST: u8 = 0x04;
/// See [`FIN`].
pub(crate) const ACK: u8 = 0x10;

/// An Ethernet frame that holds one TCP segment without options.
#[must_use]
pub(crate) fn tcp(
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap();
    let mut pseudo = Vec::new();
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame.extend([0x08, 0x00]);
            let mut ip = vec![0x45, 0];
            ip.extend((20 + len).to_be_bytes());
            ip.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(ip);
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
            pseudo.extend([0, 6]);
            pseudo.extend(len.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            pseudo.extend(from.octets());
            pseudo.extend(to.octets());
            pseudo.extend(u32::from(len).to_be_bytes());
            pseudo.extend([0, 0, 0, 6]);
        }
        _ => panic!("one family"),
    }
    let mut segment = Vec::new();
    segment.extend(src.port().to_be_bytes());
    segment.extend(dst.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    frame.extend(segment);
    frame
}

/// RFC 1071.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// A VXLAN header (RFC 7348 §5) before the frame: the payload of a datagram to port 4789.
#[must_use]
pub(crate) fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut datagram = vec![8, 0, 0, 0, a, b, c, 0];
    datagram.extend(frame);
    datagram
}

/// The outer Ethernet, IPv4 and UDP headers of a mirrored packet, UDP checksum 0 as AWS sends it.
#[must_use]
pub(crate) fn mirrored(vni: u32, frame: &[u8]) -> Vec<u8> {
    let datagram = vxlan(vni, frame);
    let len = u16::try_from(8 + datagram.len()).unwrap();
    let mut outer = vec![2, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 3, 0x08, 0x00];
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 255, 17, 0, 0, 10, 0, 9, 1, 10, 0, 9, 2]);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    outer.extend(ip);
    outer.extend(65_408_u16.to_be_bytes());
    outer.extend(4789_u16.to_be_bytes());
    outer.extend(len.to_be_bytes());
    outer.extend([0, 0]);
    outer.extend(datagram);
    outer
}

/// One direction of a connection as its frames.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    /// Where it sends from.
    pub(crate) src: SocketAddr,
    /// Where to.
    pub(crate) dst: SocketAddr,
    /// Of the next byte.
    pub(crate) seq: u32,
}

impl Sender {
    /// `src` and `dst`: `ip:port` each.
    #[must_use]
    pub(crate) fn new(src: &str, dst: &str) -> Self {
        Self {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            seq: 1000,
        }
    }

    /// A SYN.
    pub(crate) fn syn(&mut self) -> Vec<u8> {
        let frame = tcp(self.src, self.dst, self.seq, SYN, &[]);
        self.seq = self.seq.wrapping_add(1);
        frame
    }

    /// The next bytes.
    pub(crate) fn data(&mut self, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let payload = payload.as_ref();
        let frame = tcp(self.src, self.dst, self.seq, ACK, payload);
        self.seq = self.seq.wrapping_add(u32::try_from(payload.len()).unwrap());
        frame
    }

    /// Bytes that nobody captures.
    pub(crate) fn lose(&mut self, len: u32) {
        self.seq = self.seq.wrapping_add(len);
    }

    /// A FIN.
    pub(crate) fn fin(&mut self) -> Vec<u8> {
        tcp(self.src, self.dst, self.seq, FIN | ACK, &[])
    }
}

/// A packet of a capture file.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// In nanoseconds.
    pub(crate) ts: u64,
    /// As captured.
    pub(crate) frame: Vec<u8>,
    /// On the wire.
    pub(crate) len: usize,
}

/// A whole frame.
#[must_use]
pub(crate) fn at(ts: u64, frame: Vec<u8>) -> Record {
    Record {
        ts,
        len: frame.len(),
        frame,
    }
}

/// The frames a second apart, the first at 1,700,000,000 s.
#[must_use]
pub(crate) fn a_second_apart(frames: Vec<Vec<u8>>) -> Vec<Record> {
    let times = (1_700_000_000u64..).map(|s| s * 1_000_000_000);
    times.zip(frames).map(|(ts, frame)| at(ts, frame)).collect()
}

/// A pcap file (little-endian, nanoseconds, Ethernet).
#[must_use]
pub(crate) fn pcap(records: &[Record]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_3c4d_u32, 0x0004_0002, 0, 0, 262_144, 1] {
        file.extend(word.to_le_bytes());
    }
    for record in records {
        let nanos = 1_000_000_000;
        for word in [
            u32::try_from(record.ts / nanos).unwrap(),
            u32::try_from(record.ts % nanos).unwrap(),
            u32::try_from(record.frame.len()).unwrap(),
            u32::try_from(record.len).unwrap(),
        ] {
            file.extend(word.to_le_bytes());
        }
        file.extend(&record.frame);
    }
    file
}
