//! Every frame of every capture of the corpus, as `etherparse`'s lax parser sees it; skipped where the captures are not
//! laid beside the checkout.
//!
//! There is no class of difference left. One would be a piece that completes a packet, since etherparse keeps nothing
//! from one frame to the next; the corpus has none that Linux would accept.

use std::net::IpAddr;

use etherparse::{EtherType, LaxNetSlice, LaxSlicedPacket, TransportSlice};

use super::*;
use crate::receive::capture::CaptureReader;

/// Addresses, ports, numbers, the six control bits, the length of the payload.
type Fields = (IpAddr, IpAddr, u16, u16, u32, u32, u8, usize);

fn fields(packet: &LaxSlicedPacket<'_>) -> Option<Fields> {
    let TransportSlice::Tcp(tcp) = packet.transport.as_ref()? else {
        return None;
    };
    let (src, dst) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Ipv6(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        LaxNetSlice::Arp(_) => return None,
    };
    Some((
        src,
        dst,
        tcp.source_port(),
        tcp.destination_port(),
        tcp.sequence_number(),
        tcp.acknowledgment_number(),
        tcp.header_slice()[13] & 0x3f,
        tcp.payload().len(),
    ))
}

fn lax(link: LinkType, data: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    let by_type = |at: usize, rest: usize| {
        let number = u16::from_be_bytes(data.get(at..at + 2)?.try_into().ok()?);
        Some(LaxSlicedPacket::from_ether_type(
            EtherType(number),
            data.get(rest..)?,
        ))
    };
    match link {
        LinkType::Ethernet => LaxSlicedPacket::from_ethernet(data).ok(),
        LinkType::Raw | LinkType::Ipv4 | LinkType::Ipv6 => LaxSlicedPacket::from_ip(data).ok(),
        LinkType::Null => LaxSlicedPacket::from_ip(data.get(4..)?).ok(),
        LinkType::LinuxSll => by_type(14, 16),
        LinkType::LinuxSll2 => by_type(0, 20),
        LinkType::Vxlan | LinkType::Geneve | LinkType::Other(_) => None,
    }
}

/// The innermost packet: etherparse knows no tunnels, so that the headers of RFC 7348 and RFC 8926 are taken off here.
fn innermost(link: LinkType, data: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    let mut packet = lax(link, data);
    loop {
        let inner = packet.as_ref().and_then(|packet| {
            let Some(TransportSlice::Udp(udp)) = &packet.transport else {
                return None;
            };
            let inside = udp.payload();
            match udp.destination_port() {
                4789 | 8472 => lax(LinkType::Ethernet, inside.get(8..)?),
                6081 => {
                    let options = usize::from(inside.first()? & 0x3f) * 4;
                    lax(LinkType::Ethernet, inside.get(8 + options..)?)
                }
                _ => None,
            }
        });
        if inner.is_none() {
            return packet;
        }
        packet = inner;
    }
}

#[test]
fn every_frame_of_the_corpus_is_what_etherparse_sees() {
    let Some(files) = corpus::captures() else {
        return;
    };
    let mut same = 0;
    let mut neither = 0;
    for file in files {
        let mut reader = CaptureReader::open(&file).unwrap();
        // What is dropped for its checksum is another matter.
        let mut decoder = Decoder::new(DecodeOptions {
            checksum: ChecksumPolicy::Count,
            ..DecodeOptions::default()
        });
        let mut number = 0;
        while let Ok(Some(frame)) = reader.next() {
            number += 1;
            let packet = innermost(frame.link, frame.data);
            let theirs = packet.as_ref().and_then(fields);
            let ours = decoder.decode(&frame).ok().map(|s| {
                (
                    s.src.ip(),
                    s.dst.ip(),
                    s.src.port(),
                    s.dst.port(),
                    s.seq.0,
                    s.ack.0,
                    s.flags.bits(),
                    s.payload.len(),
                )
            });
            assert_eq!(ours, theirs, "{}: packet {number}", file.display());
            if ours.is_some() {
                same += 1;
            } else {
                neither += 1;
            }
        }
    }
    println!("{same} segments the same, {neither} frames no segment to either");
    assert!(same > 12_000, "{same}");
}
