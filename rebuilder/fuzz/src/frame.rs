//! One frame through the decoder: raw bytes under every link type, and frames that were built.

use std::net::IpAddr;

use etherparse::{LaxSlicedPacket, TransportSlice};
use rebuilder::decode::{ChecksumPolicy, DecodeOptions, Decoder, Segment, Vni};
use rebuilder::receive::{Frame, LinkType};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::input::Input;
use crate::wire::{self, Ends, Piece, Tcp};

/// The outcomes in which a frame may end before it is a segment.
pub(crate) const DECODE_OUTCOMES: [&str; 11] = [
    "not_tcp",
    "not_ip",
    "fragment",
    "link_type",
    "vni_excluded",
    "bad_vxlan",
    "bad_link",
    "bad_ip",
    "bad_tcp",
    // Of pieces of a packet.
    "duplicate",
    "over_cap",
];

const LINKS: [LinkType; 10] = [
    LinkType::Ethernet,
    LinkType::Null,
    LinkType::Raw,
    LinkType::Ipv4,
    LinkType::Ipv6,
    LinkType::LinuxSll,
    LinkType::LinuxSll2,
    LinkType::Vxlan,
    LinkType::Other(9),
    LinkType::Geneve,
];

/// The first byte chooses: a link type, behind which the frame is all the rest, or a frame that is built of the rest.
///
/// Asserts: the frame ends as a segment or in an outcome of the decoder; a segment's payload lies inside the frame; it
/// is the segment that `etherparse` sees where that sees one; a built frame gives the segment that it was built of,
/// padded, cut or wrapped in VXLAN and GENEVE; the filters leave out what they name, and a wrong checksum is seen.
pub fn frame(data: &[u8]) {
    let Some((mode, rest)) = data.split_first() else {
        return;
    };
    match LINKS.get(usize::from(*mode)) {
        Some(link) => raw(*link, rest),
        None => built(&mut Input::new(rest)),
    }
}

/// The payload of one datagram to the VXLAN port, as the UDP socket gives it; see [`frame`] for what is asserted.
pub fn vxlan(data: &[u8]) {
    raw(LinkType::Vxlan, data);
    for port in [4789, 8472, 6081] {
        let outer = wire::ip(Ends::v4(1, 2), wire::UDP, None, &wire::udp(port, data));
        raw(LinkType::Ipv4, &outer);
    }
}

fn raw(link: LinkType, data: &[u8]) {
    let mut decoder = Decoder::new(DecodeOptions::default());
    let frame = Frame {
        ts: Timestamp(5),
        link,
        data,
    };
    let mut general = Decoder::new(DecodeOptions::default());
    general.never_plain = true;
    let other = format!("{:?}", general.decode(&frame));
    let decoded = decoder.decode(&frame);
    assert_eq!(format!("{decoded:?}"), other, "two ways, two results");
    match decoded {
        Ok(segment) => {
            assert_inside(&segment, data);
            if link == LinkType::Ethernet {
                assert_as_etherparse(&segment, data);
            }
        }
        Err(outcome) => assert!(DECODE_OUTCOMES.contains(&outcome.label()), "{outcome}"),
    }
}

fn assert_inside(segment: &Segment<'_>, data: &[u8]) {
    assert_eq!(segment.ts, Timestamp(5));
    assert!(segment.payload.len() <= data.len());
    if !segment.payload.is_empty() {
        let (outer, inner) = (data.as_ptr_range(), segment.payload.as_ptr_range());
        assert!(
            outer.start <= inner.start && inner.end <= outer.end,
            "payload from elsewhere"
        );
    }
}

/// Of a frame that is not wrapped, both read the same.
fn assert_as_etherparse(segment: &Segment<'_>, data: &[u8]) {
    let Ok(packet) = LaxSlicedPacket::from_ethernet(data) else {
        return;
    };
    let (Some(TransportSlice::Tcp(tcp)), None) = (packet.transport, segment.vni) else {
        return;
    };
    assert_eq!(segment.src.port(), tcp.source_port());
    assert_eq!(segment.dst.port(), tcp.destination_port());
    assert_eq!(segment.seq.0, tcp.sequence_number());
    assert_eq!(segment.ack.0, tcp.acknowledgment_number());
    assert_eq!(segment.flags.bits() & 0x3f, tcp.header_slice()[13] & 0x3f);
    assert_eq!(segment.payload, tcp.payload());
}

/// What a built frame must give.
struct Truth {
    ends: Ends,
    tcp: Tcp,
    payload: Vec<u8>,
    vni: Option<u32>,
    /// Not deeper than the decoder goes.
    plain: bool,
}

fn built(input: &mut Input<'_>) {
    let v6 = input.get::<bool>();
    let ends = if v6 {
        Ends::v6(input.get(), input.get())
    } else {
        Ends::v4(input.get(), input.get())
    };
    let tcp = Tcp {
        ports: (input.get(), input.get()),
        seq: input.get(),
        ack: input.get(),
        flags: input.get::<u8>() & 0x3f,
        options: input.below(11),
    };
    let len = input.len(2000);
    let payload = input.bytes(len).to_vec();
    let segment = wire::tcp(ends, &tcp, &payload);
    let mut truth = Truth {
        ends,
        tcp,
        payload,
        vni: None,
        plain: true,
    };
    let packet = network(input, ends, wire::TCP, &segment, &mut truth.plain);
    let (mut link, mut frame) = link(input, ends.src, packet, &mut truth.plain);
    let mut depth = 0;
    while link == LinkType::Ethernet && depth < 5 && input.below(3) == 0 {
        if input.below(4) == 0 {
            // A pod network's GENEVE.
            depth += 1;
            let datagram = wire::geneve(input.below(64), 0x6558, &frame);
            let packet = wire::ip(Ends::v4(3, 4), wire::UDP, None, &wire::udp(6081, &datagram));
            frame = wire::ethernet(&[], wire::IPV4, &packet);
            continue;
        }
        let vni = input.get::<u32>() & 0x00ff_ffff;
        truth.vni = Some(vni);
        depth += 1;
        let datagram = wire::vxlan(vni, &frame);
        if input.get::<bool>() {
            (link, frame) = (LinkType::Vxlan, datagram);
            break;
        }
        let outer = if input.get::<bool>() {
            Ends::v6(1, 2)
        } else {
            Ends::v4(1, 2)
        };
        let port = input.pick(&[4789, 8472]);
        let mut packet = wire::ip(outer, wire::UDP, None, &wire::udp(port, &datagram));
        let mut ethertype = wire::ethertype(outer.src);
        if input.below(4) == 0 {
            // Mirrored through a Gateway Load Balancer: GENEVE around the packet.
            depth += 1;
            let datagram = wire::geneve(input.below(64), ethertype, &packet);
            packet = wire::ip(Ends::v4(5, 6), wire::UDP, None, &wire::udp(6081, &datagram));
            ethertype = wire::IPV4;
        }
        frame = wire::ethernet(&[], ethertype, &packet);
    }
    truth.plain &= depth <= rebuilder::decode::MAX_TUNNEL_DEPTH;
    check(link, &frame, &truth, 0);
    filters(input, link, &frame, &truth);

    // The mirror cuts frames short. As long as the header of TCP is there, the segment is, with a hole behind it.
    let cut = input.len(truth.payload.len());
    check(link, &frame[..frame.len() - cut], &truth, cut);

    // Ethernet pads them. Where a length says where the packet ends, that changes nothing.
    let padding = vec![0xee; usize::from(input.below(50))];
    check(link, &[&frame[..], &padding].concat(), &truth, 0);

    // Anything at all.
    for _ in 0..input.below(4) {
        let at = usize::from(input.get::<u16>());
        let byte = input.get();
        if let Some(place) = frame.get_mut(at) {
            *place = byte;
        }
    }
    raw(link, &frame);
    let keep = input.len(frame.len());
    raw(link, &frame[..keep]);
}

/// An IP packet, with options and extension headers.
fn network(
    input: &mut Input<'_>,
    ends: Ends,
    protocol: u8,
    payload: &[u8],
    plain: &mut bool,
) -> Vec<u8> {
    let mut next = protocol;
    let mut behind = payload.to_vec();
    if ends.src.is_ipv4() {
        let options = input.below(11);
        if input.below(8) == 0 {
            behind = authentication(next, &behind);
            next = 51;
        }
        return wire::ipv4(ends, next, None, options, &behind);
    }
    let extensions = input.below(20);
    // The decoder takes 16 of them.
    *plain &= extensions <= 16;
    for _ in 0..extensions {
        let kind = input.pick(&[0, 43, 44, 51, 60, 135, 139, 140]);
        behind = match kind {
            // An atomic fragment (RFC 6946).
            44 => {
                let piece = Piece {
                    id: input.get(),
                    ..Piece::default()
                };
                [wire::fragment_header(next, piece), behind].concat()
            }
            51 => authentication(next, &behind),
            _ => {
                let words = input.below(4);
                let mut header = vec![next, words];
                header.resize(8 * (usize::from(words) + 1), 0);
                header.extend(behind);
                header
            }
        };
        next = kind;
    }
    wire::ipv6(ends, next, &behind)
}

/// RFC 4302, with an integrity check value of 12 bytes.
fn authentication(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![next, 4];
    out.resize(24, 0);
    out.extend(payload);
    out
}

fn link(
    input: &mut Input<'_>,
    ip: IpAddr,
    packet: Vec<u8>,
    plain: &mut bool,
) -> (LinkType, Vec<u8>) {
    let ethertype = wire::ethertype(ip);
    match input.below(12) {
        0 => (LinkType::Raw, packet),
        1 if ip.is_ipv4() => (LinkType::Ipv4, packet),
        1 => (LinkType::Ipv6, packet),
        2 => {
            let mut frame = vec![0; 14];
            frame.extend(ethertype.to_be_bytes());
            frame.extend(packet);
            (LinkType::LinuxSll, frame)
        }
        3 => {
            let mut frame = ethertype.to_be_bytes().to_vec();
            frame.resize(20, 0);
            frame.extend(packet);
            (LinkType::LinuxSll2, frame)
        }
        4 => {
            let family: u32 = if ip.is_ipv4() { 2 } else { 10 };
            let family = if input.get::<bool>() {
                family.to_le_bytes()
            } else {
                family.to_be_bytes()
            };
            (LinkType::Null, [&family[..], &packet].concat())
        }
        // IEEE 802.3 with LLC and SNAP.
        5 => {
            let mut behind = vec![0xaa, 0xaa, 0x03, 0, 0, 0];
            behind.extend(ethertype.to_be_bytes());
            behind.extend(packet);
            let length = u16::try_from(behind.len().min(0x05ff)).unwrap_or(0);
            (LinkType::Ethernet, wire::ethernet(&[], length, &behind))
        }
        tags => {
            let mut tags: Vec<u16> = (6..tags)
                .map(|_| input.pick(&[0x8100, 0x88a8, 0x9100, 0x9200]))
                .collect();
            let more = usize::from(input.below(8));
            tags.resize(tags.len() + more, 0x8100);
            // The decoder takes 8 of them.
            *plain &= tags.len() <= 8;
            (
                LinkType::Ethernet,
                wire::ethernet(&tags, ethertype, &packet),
            )
        }
    }
}

/// What `--vni`, `--port` and `--checksum` leave out.
fn filters(input: &mut Input<'_>, link: LinkType, data: &[u8], truth: &Truth) {
    if !truth.plain {
        return;
    }
    let outcome = |data: &[u8], options: DecodeOptions| {
        let frame = Frame {
            ts: Timestamp(5),
            link,
            data,
        };
        let place = |payload: &[u8]| payload.as_ptr().addr().wrapping_sub(data.as_ptr().addr());
        let mut decoder = Decoder::new(options);
        let segment = decoder.decode(&frame);
        segment
            .map(|s| place(s.payload))
            .map_err(PacketOutcome::label)
    };
    let vnis = |vni: u32| DecodeOptions {
        vnis: vec![Vni(vni)],
        ..DecodeOptions::default()
    };
    let other = truth.vni.map_or(1, |vni| vni ^ 1);
    assert_eq!(outcome(data, vnis(other)), Err("vni_excluded"));
    if let Some(vni) = truth.vni {
        assert!(outcome(data, vnis(vni)).is_ok());
    }
    let (src, dst) = truth.tcp.ports;
    let ports = |from: u16, to: u16| DecodeOptions {
        ports: vec![from..=to],
        ..DecodeOptions::default()
    };
    assert!(outcome(data, ports(src, src)).is_ok() && outcome(data, ports(0, dst)).is_ok());
    if let Some(above) = src.max(dst).checked_add(1) {
        let excluded = outcome(data, ports(above, u16::MAX));
        assert_eq!(excluded, Err("port_excluded"));
    }
    let strict = DecodeOptions {
        checksum: ChecksumPolicy::Drop,
        ..DecodeOptions::default()
    };
    let found = outcome(data, strict.clone());
    let Ok(place) = found else {
        panic!("{found:?} with the right checksums");
    };
    if !truth.payload.is_empty() {
        let mut changed = data.to_vec();
        let at = place + usize::from(input.get::<u16>()) % truth.payload.len();
        changed[at] ^= input.get::<u8>().max(1);
        assert_eq!(outcome(&changed, strict), Err("bad_checksum"));
    }
}

fn check(link: LinkType, data: &[u8], truth: &Truth, cut: usize) {
    let mut decoder = Decoder::new(DecodeOptions::default());
    let frame = Frame {
        ts: Timestamp(5),
        link,
        data,
    };
    let segment = match decoder.decode(&frame) {
        Ok(segment) => segment,
        Err(outcome) => {
            assert!(DECODE_OUTCOMES.contains(&outcome.label()), "{outcome}");
            assert!(!truth.plain, "{outcome} for a frame that is in order");
            return;
        }
    };
    assert!(
        truth.plain,
        "a segment out of a frame that is beyond the limits"
    );
    assert_inside(&segment, data);
    assert_eq!(segment.src.ip(), truth.ends.src);
    assert_eq!(segment.dst.ip(), truth.ends.dst);
    assert_eq!((segment.src.port(), segment.dst.port()), truth.tcp.ports);
    assert_eq!(
        (segment.seq.0, segment.ack.0),
        (truth.tcp.seq, truth.tcp.ack)
    );
    assert_eq!(segment.flags.bits(), truth.tcp.flags);
    assert_eq!(segment.vni.map(|vni| vni.0), truth.vni);
    let whole = truth.payload.len();
    assert_eq!(segment.payload, &truth.payload[..whole - cut]);
    assert_eq!(usize::try_from(segment.cut).ok(), Some(cut));
}
