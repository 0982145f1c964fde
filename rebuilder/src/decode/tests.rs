mod agreement;
mod checksum;
mod corpus;
mod fragments;
mod kernel;
mod lax;
mod outcomes;
mod tshark;

use etherparse::PacketBuilder;

use super::*;

/// An Ethernet frame of an IPv4 TCP segment: 10.0.0.1:1234 to 10.0.0.2:80, sequence number 7, acknowledging 9.
fn v4_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1234, 80, 7, 1_000)
        .ack(9)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// The same over IPv6, from 0101:... to 0202:....
fn v6_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv6([1; 16], [2; 16], 64)
        .tcp(1234, 80, 7, 1_000)
        .ack(9)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// A UDP datagram to `port` in Ethernet and IPv4.
fn datagram(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([172, 31, 0, 1], [172, 31, 0, 2], 255)
        .udp(65_500, port)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

/// A VXLAN header before `frame`.
fn vxlan(vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut out = vec![0x08, 0, 0, 0];
    out.extend((vni << 8).to_be_bytes());
    out.extend(frame);
    out
}

/// What a segment holds, owned.
#[derive(Debug, PartialEq, Eq)]
struct Got {
    vni: Option<u32>,
    src: SocketAddr,
    dst: SocketAddr,
    seq: u32,
    ack: u32,
    flags: u8,
    payload: Vec<u8>,
    cut: u32,
}

fn decode_as(link: LinkType, data: &[u8]) -> Result<Got, PacketOutcome> {
    decode_with(&[], link, data)
}

/// By the short way, where the frame is one for it, and by the general one: they come to the same.
fn decode_with(vnis: &[u32], link: LinkType, data: &[u8]) -> Result<Got, PacketOutcome> {
    let vnis: Vec<_> = vnis.iter().copied().map(Vni).collect();
    let ts = Timestamp(5);
    let decoder = || {
        Decoder::new(DecodeOptions {
            vnis: vnis.clone(),
            ..DecodeOptions::default()
        })
    };
    let mut general = decoder();
    general.never_plain = true;
    assert_eq!(
        format!("{:?}", decoder().decode(&Frame { ts, link, data })),
        format!("{:?}", general.decode(&Frame { ts, link, data })),
    );
    decoder().decode(&Frame { ts, link, data }).map(|s| {
        assert_eq!(s.ts, ts);
        Got {
            vni: s.vni.map(|v| v.0),
            src: s.src,
            dst: s.dst,
            seq: s.seq.0,
            ack: s.ack.0,
            flags: s.flags.bits(),
            payload: s.payload.to_vec(),
            cut: s.cut,
        }
    })
}

fn decode(data: &[u8]) -> Result<Got, PacketOutcome> {
    decode_as(LinkType::Ethernet, data)
}

#[test]
fn the_short_way_is_taken_and_comes_to_the_same() {
    let bare = v4_frame(b"GET / HTTP/1.1");
    let wrapped = datagram(4789, &vxlan(7, &bare));
    let frames = [
        (LinkType::Ethernet, &bare[..]),
        (LinkType::Ethernet, &wrapped),
        (LinkType::Vxlan, &vxlan(7, &bare)),
    ];
    for (link, data) in frames {
        let frame = |data| Frame {
            ts: Timestamp(5),
            link,
            data,
        };
        assert!(plain::open(&frame(data)).is_some(), "{link:?}");
        // Each byte changed in each bit, and each length: both ways are asked.
        for at in 0..data.len() {
            for bit in 0..8 {
                let mut changed = data.to_vec();
                changed[at] ^= 1 << bit;
                let _ = decode_as(link, &changed);
            }
            let _ = decode_as(link, &data[..at]);
        }
        let _ = decode_as(link, &[data, &[0; 9]].concat());
    }
    assert!(
        plain::open(&Frame {
            ts: Timestamp(5),
            link: LinkType::Ethernet,
            data: &v6_frame(b"x")
        })
        .is_none()
    );
}
