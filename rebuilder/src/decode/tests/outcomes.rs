//! One case after the other, as the RFCs draw them.

use super::super::{ip, link};
use super::*;

/// The segment of [`v4_frame`].
fn v4(payload: &[u8]) -> Got {
    Got {
        vni: None,
        src: "10.0.0.1:1234".parse().unwrap(),
        dst: "10.0.0.2:80".parse().unwrap(),
        seq: 7,
        ack: 9,
        flags: 0x10,
        payload: payload.to_vec(),
        cut: 0,
    }
}

/// The segment of [`v6_frame`].
fn v6(payload: &[u8]) -> Got {
    Got {
        src: "[101:101:101:101:101:101:101:101]:1234".parse().unwrap(),
        dst: "[202:202:202:202:202:202:202:202]:80".parse().unwrap(),
        ..v4(payload)
    }
}

fn within(vni: u32, inner: Got) -> Got {
    Got {
        vni: Some(vni),
        ..inner
    }
}

/// `frame` with `bytes` put in at `at`.
pub(super) fn insert(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    [&frame[..at], bytes, &frame[at..]].concat()
}

/// `frame` with the bytes at `at` replaced.
pub(super) fn patch(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

#[test]
fn an_ethernet_frame_gives_its_segment() {
    assert_eq!(decode(&v4_frame(b"GET /")), Ok(v4(b"GET /")));
    assert_eq!(decode(&v6_frame(b"GET /")), Ok(v6(b"GET /")));
    assert_eq!(decode(&v4_frame(b"")), Ok(v4(b"")));
}

#[test]
fn vlan_tags_are_taken_off_up_to_the_cap() {
    for tag in [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00], [0x92, 0x00]] {
        let tag = [&tag[..], &[0x0f, 0xff]].concat();
        for depth in [1, 2, link::MAX_VLAN_TAGS] {
            let frame = insert(&v4_frame(b"x"), 12, &tag.repeat(depth));
            assert_eq!(decode(&frame), Ok(v4(b"x")));
        }
        let frame = insert(&v4_frame(b"x"), 12, &tag.repeat(link::MAX_VLAN_TAGS + 1));
        assert_eq!(decode(&frame), Err(PacketOutcome::BadLink));
    }
}

#[test]
fn an_llc_snap_header_with_an_ip_type_is_taken_off_and_other_llc_is_no_ip() {
    let frame = v6_frame(b"x");
    let len = u16::try_from(frame.len() - 14 + 8).unwrap().to_be_bytes();
    let snap = [0xaa, 0xaa, 3, 0, 0, 0, 0x86, 0xdd];
    let frame = insert(&patch(frame, 12, &len), 14, &snap);
    assert_eq!(decode(&frame), Ok(v6(b"x")));
    for (at, byte) in [(14, 0x42), (17, 1), (20, 0x88)] {
        let other = patch(frame.clone(), at, &[byte]);
        assert_eq!(decode(&other), Err(PacketOutcome::NotIp));
    }
    assert_eq!(decode(&frame[..21]), Err(PacketOutcome::BadLink));
    assert_eq!(decode(&frame[..16]), Err(PacketOutcome::BadLink));
}

#[test]
fn what_is_no_ip_says_so() {
    // ARP, LLDP, MPLS, a PPPoE session.
    for ethertype in [[0x08, 0x06], [0x88, 0xcc], [0x88, 0x47], [0x88, 0x64]] {
        let frame = patch(v4_frame(b"x"), 12, &ethertype);
        assert_eq!(decode(&frame), Err(PacketOutcome::NotIp));
    }
}

#[test]
fn a_frame_that_ends_inside_its_link_header_is_bad() {
    let tagged = insert(&v4_frame(b"x"), 12, &[0x81, 0, 0, 1]);
    for len in [0, 13, 14, 17] {
        assert_eq!(decode(&tagged[..len]), Err(PacketOutcome::BadLink));
    }
    let short = [
        (LinkType::Null, 3),
        (LinkType::LinuxSll, 15),
        (LinkType::LinuxSll2, 19),
    ];
    for (link, len) in short {
        let outcome = decode_as(link, &vec![0; len]);
        assert_eq!(outcome, Err(PacketOutcome::BadLink));
    }
}

#[test]
fn null_and_loop_take_every_known_family_in_both_byte_orders() {
    let packet4 = &v4_frame(b"x")[14..];
    let packet6 = &v6_frame(b"x")[14..];
    for order in [u32::to_be_bytes, u32::to_le_bytes] {
        let frame = [&order(2), packet4].concat();
        assert_eq!(decode_as(LinkType::Null, &frame), Ok(v4(b"x")));
        for family in [10, 24, 28, 30] {
            let frame = [&order(family), packet6].concat();
            assert_eq!(decode_as(LinkType::Null, &frame), Ok(v6(b"x")));
        }
        let frame = [&order(7), packet4].concat();
        let outcome = decode_as(LinkType::Null, &frame);
        assert_eq!(outcome, Err(PacketOutcome::NotIp));
    }
}

#[test]
fn raw_ip_goes_by_its_first_nibble_and_ipv4_and_ipv6_by_their_name() {
    let packet4 = &v4_frame(b"x")[14..];
    let packet6 = &v6_frame(b"x")[14..];
    assert_eq!(decode_as(LinkType::Raw, packet4), Ok(v4(b"x")));
    assert_eq!(decode_as(LinkType::Raw, packet6), Ok(v6(b"x")));
    assert_eq!(decode_as(LinkType::Ipv4, packet4), Ok(v4(b"x")));
    assert_eq!(decode_as(LinkType::Ipv6, packet6), Ok(v6(b"x")));
    let bad = [
        (LinkType::Ipv4, packet6, PacketOutcome::BadIp),
        (LinkType::Ipv6, packet4, PacketOutcome::BadIp),
        (LinkType::Raw, b"", PacketOutcome::BadIp),
        (LinkType::Raw, b"\x20", PacketOutcome::NotIp),
        (LinkType::Other(127), packet4, PacketOutcome::LinkType),
    ];
    for (link, data, outcome) in bad {
        assert_eq!(decode_as(link, data), Err(outcome));
    }
}

#[test]
fn linux_cooked_captures_are_read_with_vlan_tag_and_llc() {
    let packet = &v4_frame(b"x")[14..];
    let snap = [0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    let cases = [
        ([0x08, 0x00], packet.to_vec()),
        ([0x81, 0x00], [&[0, 1, 8, 0], packet].concat()),
        ([0x00, 0x04], [&snap, packet].concat()),
    ];
    for (protocol, rest) in cases {
        let v1 = [&[0; 14][..], &protocol, &rest].concat();
        assert_eq!(decode_as(LinkType::LinuxSll, &v1), Ok(v4(b"x")));
        let v2 = [&protocol[..], &[0; 18], &rest].concat();
        assert_eq!(decode_as(LinkType::LinuxSll2, &v2), Ok(v4(b"x")));
    }
}

#[test]
fn ethernet_padding_is_cut_off_by_the_ip_length() {
    for padding in [1, 6, 100] {
        let frame = [v4_frame(b"GET"), vec![0xee; padding]].concat();
        assert_eq!(decode(&frame), Ok(v4(b"GET")));
        let frame = [v6_frame(b"GET"), vec![0xee; padding]].concat();
        assert_eq!(decode(&frame), Ok(v6(b"GET")));
    }
}

#[test]
fn a_cut_frame_is_a_gap_of_known_length() {
    let payload = vec![b'a'; 1_400];
    for (frame, whole) in [
        (v4_frame(&payload), v4(&payload)),
        (v6_frame(&payload), v6(&payload)),
    ] {
        for cut in [1, 700, 1_400] {
            let expected = Got {
                payload: payload[cut..].to_vec(),
                cut: u32::try_from(cut).unwrap(),
                vni: None,
                ..whole
            };
            assert_eq!(decode(&frame[..frame.len() - cut]), Ok(expected));
        }
    }
}

#[test]
fn a_mirrored_frame_that_the_mirror_cut_is_a_gap_of_known_length() {
    let payload = vec![b'a'; 8_960];
    let inner = v4_frame(&payload);
    // What the default packet length of AWS leaves of a jumbo frame.
    let frame = datagram(4789, &vxlan(1, &inner[..8_500]));
    let kept = 8_500 - (inner.len() - payload.len());
    let expected = Got {
        vni: Some(1),
        cut: u32::try_from(payload.len() - kept).unwrap(),
        ..v4(&payload[..kept])
    };
    assert_eq!(decode(&frame), Ok(expected));
}

#[test]
fn an_ip_length_of_zero_means_the_rest() {
    let payload = vec![b'a'; 70_000];
    let frame = patch(v4_frame(b""), 16, &[0, 0]);
    let frame = [frame, payload.clone()].concat();
    assert_eq!(decode(&frame), Ok(v4(&payload)));
    let frame = patch(v6_frame(b""), 18, &[0, 0]);
    let frame = [frame, payload.clone()].concat();
    assert_eq!(decode(&frame), Ok(v6(&payload)));
    // A UDP length of zero around it, as BIG TCP through VXLAN writes it.
    let inner = patch(v4_frame(b""), 16, &[0, 0]);
    let inner = vxlan(3, &[inner, payload.clone()].concat());
    let frame = [datagram(4789, b""), inner].concat();
    let frame = patch(patch(frame, 16, &[0, 0]), 38, &[0, 0]);
    assert_eq!(decode(&frame), Ok(within(3, v4(&payload))));
}

#[test]
fn an_ip_header_that_lies_or_ends_early_is_bad() {
    let frame = v4_frame(b"x");
    for (at, byte) in [(14, 0x44), (14, 0x65), (17, 19)] {
        let lie = patch(frame.clone(), at, &[byte]);
        assert_eq!(decode(&lie), Err(PacketOutcome::BadIp), "{byte:#x} at {at}");
    }
    for len in 14..34 {
        assert_eq!(decode(&frame[..len]), Err(PacketOutcome::BadIp));
    }
    // Options that are not there.
    let cut = patch(frame[..36].to_vec(), 14, &[0x46]);
    assert_eq!(decode(&cut), Err(PacketOutcome::BadIp));
    let frame = v6_frame(b"x");
    for len in 14..54 {
        assert_eq!(decode(&frame[..len]), Err(PacketOutcome::BadIp));
    }
    let lie = patch(frame, 14, &[0x40]);
    assert_eq!(decode(&lie), Err(PacketOutcome::BadIp));
}

#[test]
fn a_tcp_header_that_lies_or_ends_early_is_bad() {
    let frame = v4_frame(b"");
    for len in 34..54 {
        assert_eq!(decode(&frame[..len]), Err(PacketOutcome::BadTcp));
    }
    // 16 bytes, and 60 of which 20 are there.
    for offset in [0x40, 0xf0] {
        let lie = patch(frame.clone(), 46, &[offset]);
        assert_eq!(decode(&lie), Err(PacketOutcome::BadTcp));
    }
    // The IP length ends the header although more was captured.
    let lie = [patch(frame, 17, &[39]), vec![0; 20]].concat();
    assert_eq!(decode(&lie), Err(PacketOutcome::BadTcp));
}

/// `v6_frame(b"xxxx")` with extension headers of 8 bytes of these kinds.
pub(super) fn extended(kinds: &[u8], fragment: u16) -> Vec<u8> {
    let mut headers = Vec::new();
    for (n, kind) in kinds.iter().enumerate() {
        let next = kinds.get(n + 1).copied().unwrap_or(6);
        let [f0, f1] = fragment.to_be_bytes();
        headers.extend(match kind {
            44 => vec![next, 0, f0, f1, 0, 0, 0, 1],
            // 12 bytes: three words, less two.
            51 => [&[next, 1], &[0; 10][..]].concat(),
            _ => vec![next, 0, 1, 4, 0, 0, 0, 0],
        });
    }
    let frame = v6_frame(b"xxxx");
    let len = u16::try_from(frame.len() - 54 + headers.len()).unwrap();
    let frame = patch(frame, 18, &len.to_be_bytes());
    insert(&patch(frame, 20, &[kinds[0]]), 54, &headers)
}

#[test]
fn ipv6_extension_headers_are_taken_off_and_an_atomic_fragment_is_whole() {
    for kind in [0, 43, 44, 51, 60, 135, 139, 140] {
        assert_eq!(decode(&extended(&[kind], 0)), Ok(v6(b"xxxx")), "{kind}");
    }
    assert_eq!(
        decode(&extended(&[0, 60, 43, 44, 51, 60], 0)),
        Ok(v6(b"xxxx"))
    );
    let frame = extended(&[60; ip::MAX_EXTENSION_HEADERS], 0);
    assert_eq!(decode(&frame), Ok(v6(b"xxxx")));
    let frame = extended(&[60; ip::MAX_EXTENSION_HEADERS + 1], 0);
    assert_eq!(decode(&frame), Err(PacketOutcome::BadIp));
    // Cut inside one; and one that claims to be longer than the packet.
    let frame = extended(&[60], 0);
    assert_eq!(decode(&frame[..58]), Err(PacketOutcome::BadIp));
    let lie = patch(frame, 55, &[200]);
    assert_eq!(decode(&lie), Err(PacketOutcome::BadIp));
    // ESP hides what is in it; 59 says that nothing is.
    for kind in [50, 59] {
        let frame = patch(v6_frame(b"xxxx"), 20, &[kind]);
        assert_eq!(decode(&frame), Err(PacketOutcome::NotTcp));
    }
}

#[test]
fn an_ipv4_authentication_header_is_taken_off() {
    let header = [6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let frame = insert(&v4_frame(b"x"), 34, &header);
    let frame = patch(patch(frame, 23, &[51]), 16, &[0, 53]);
    assert_eq!(decode(&frame), Ok(v4(b"x")));
}

#[test]
fn a_fragment_that_may_hold_tcp_is_a_fragment() {
    // More fragments; an offset; the "do not fragment" bit is neither.
    for (bits, fragment) in [(0x2000u16, true), (0x0001, true), (0x4000, false)] {
        let frame = patch(v4_frame(b"xxxx"), 20, &bits.to_be_bytes());
        let expected = if fragment {
            Err(PacketOutcome::Fragment)
        } else {
            Ok(v4(b"xxxx"))
        };
        assert_eq!(decode(&frame), expected);
    }
    for bits in [0x0001, 0x0008] {
        assert_eq!(decode(&extended(&[44], bits)), Err(PacketOutcome::Fragment));
    }
    // Two reserved bits.
    assert_eq!(decode(&extended(&[44], 6)), Ok(v6(b"xxxx")));
    // ICMP in fragments.
    let icmp = patch(patch(v4_frame(b"xxxx"), 20, &[0x20, 0]), 23, &[1]);
    assert_eq!(decode(&icmp), Err(PacketOutcome::NotTcp));
}

#[test]
fn tunnels_other_than_vxlan_and_other_protocols_are_not_tcp() {
    // ICMP, IP in IP, UDP, IPv6 in IP, GRE, SCTP.
    for protocol in [1, 4, 17, 41, 47, 132] {
        let frame = patch(v4_frame(b"x"), 23, &[protocol]);
        assert_eq!(decode(&frame), Err(PacketOutcome::NotTcp));
    }
}

#[test]
fn vxlan_is_taken_off_whatever_its_reserved_bits_hold() {
    let inner = v6_frame(b"x");
    let wrapped = vxlan(0x00ab_cdef, &inner);
    let expected = within(0x00ab_cdef, v6(b"x"));
    assert_eq!(
        decode(&datagram(4789, &wrapped)),
        Ok(within(0x00ab_cdef, v6(b"x")))
    );
    // Without the I flag; with every reserved bit set.
    for flags in [[0, 0, 0, 0], [0xff; 4]] {
        let odd = patch(patch(wrapped.clone(), 0, &flags), 7, &[0xff]);
        assert_eq!(decode(&datagram(4789, &odd)).as_ref(), Ok(&expected));
        assert_eq!(decode_as(LinkType::Vxlan, &odd).as_ref(), Ok(&expected));
    }
}

#[test]
fn the_identifier_is_the_outermost_and_nesting_has_a_cap() {
    let mut frame = v4_frame(b"x");
    for depth in 1..=MAX_TUNNEL_DEPTH + 1 {
        let vni = u32::try_from(depth).unwrap();
        let wrapped = vxlan(vni, &frame);
        frame = datagram(4789, &wrapped);
        let expected = if depth <= MAX_TUNNEL_DEPTH {
            Ok(within(vni, v4(b"x")))
        } else {
            Err(PacketOutcome::NotTcp)
        };
        assert_eq!(decode(&frame), expected);
        assert_eq!(decode_as(LinkType::Vxlan, &wrapped), expected);
    }
}

#[test]
fn a_vxlan_header_that_ends_early_is_bad() {
    let frame = datagram(4789, &vxlan(1, b""));
    // Inside the UDP header (its port is there), inside the VXLAN header.
    for len in [38, 42, 49] {
        assert_eq!(decode(&frame[..len]), Err(PacketOutcome::BadVxlan));
    }
    // Nothing in it; a UDP length shorter than the UDP header.
    assert_eq!(decode(&frame), Err(PacketOutcome::BadLink));
    let lie = patch(frame, 38, &[0, 7]);
    assert_eq!(decode(&lie), Err(PacketOutcome::BadVxlan));
    let outcome = decode_as(LinkType::Vxlan, &[8; 7]);
    assert_eq!(outcome, Err(PacketOutcome::BadVxlan));
}

#[test]
fn port_8472_counts_only_where_everything_fits() {
    let wrapped = vxlan(5, &v4_frame(b"x"));
    assert_eq!(decode(&datagram(8472, &wrapped)), Ok(within(5, v4(b"x"))));
    let wrapped6 = vxlan(5, &v6_frame(b"x"));
    assert_eq!(decode(&datagram(8472, &wrapped6)), Ok(within(5, v6(b"x"))));
    // A flag, a reserved bit, another ethertype, another IP version.
    for (at, byte) in [(0, 0x0c), (1, 1), (7, 1), (20, 9), (22, 0x65)] {
        let odd = patch(wrapped.clone(), at, &[byte]);
        let outcome = decode(&datagram(8472, &odd));
        assert_eq!(outcome, Err(PacketOutcome::NotTcp), "{at}");
    }
    for payload in [&b""[..], b"x", &wrapped[..22]] {
        let outcome = decode(&datagram(8472, payload));
        assert_eq!(outcome, Err(PacketOutcome::NotTcp));
    }
}

#[test]
fn a_pod_overlay_inside_a_mirrored_packet_is_opened_and_keeps_the_mirrors_identifier() {
    let pod = vxlan(1, &v4_frame(b"GET / HTTP/1.1"));
    let mirrored = vxlan(4_789, &datagram(8472, &pod));
    let expected = Ok(within(4_789, v4(b"GET / HTTP/1.1")));
    assert_eq!(decode_as(LinkType::Vxlan, &mirrored), expected);
}

/// A GENEVE header with these options before `inner` (RFC 8926 §3.4): version and length, flags, protocol, VNI.
pub(super) fn geneve(protocol: u16, options: &[u8], inner: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).unwrap();
    let [p0, p1] = protocol.to_be_bytes();
    let header = [words, 0, p0, p1, 0xaa, 0xbb, 0xcc, 0];
    [&header, options, inner].concat()
}

/// What a Gateway Load Balancer writes: class 0x0108; endpoint, attachment and flow cookie, 8, 8 and 4 bytes.
pub(super) fn gateway_options() -> Vec<u8> {
    let option = |kind: u8, len: u8| {
        let header = [0x01, 0x08, kind, len / 4];
        [&header[..], &vec![kind; usize::from(len)]].concat()
    };
    [option(1, 8), option(2, 8), option(3, 4)].concat()
}

#[test]
fn geneve_is_taken_off_around_ethernet_and_around_ip() {
    let (frame4, frame6) = (v4_frame(b"x"), v6_frame(b"x"));
    let cases = [
        (0x6558, &frame4[..], v4(b"x")),
        (0x6558, &frame6[..], v6(b"x")),
        (0x0800, &frame4[14..], v4(b"x")),
        (0x86dd, &frame6[14..], v6(b"x")),
    ];
    for (protocol, inner, expected) in cases {
        for options in [0, 4, 63 * 4] {
            let wrapped = geneve(protocol, &vec![0x80; options], inner);
            // Its identifier is no VXLAN's.
            assert_eq!(decode(&datagram(6081, &wrapped)).as_ref(), Ok(&expected));
            let socket = decode_as(LinkType::Geneve, &wrapped);
            assert_eq!(socket.as_ref(), Ok(&expected));
        }
    }
    // The C bit and the reserved ones say nothing about the packet.
    let odd = patch(geneve(0x0800, b"", &frame4[14..]), 1, &[0x7f]);
    assert_eq!(decode(&datagram(6081, &odd)), Ok(v4(b"x")));
}

#[test]
fn geneve_that_carries_no_packet_is_udp() {
    let whole = geneve(0x0800, b"", &v4_frame(b"x")[14..]);
    // Another version; a control message; MPLS, and TEB's neighbour.
    for (at, bytes) in [
        (0, &[0x40][..]),
        (1, &[0x80]),
        (2, &[0x88, 0x47]),
        (2, &[0x65, 0x59]),
    ] {
        let odd = patch(whole.clone(), at, bytes);
        let not_tcp = Err(PacketOutcome::NotTcp);
        assert_eq!(decode(&datagram(6081, &odd)), not_tcp);
        assert_eq!(decode_as(LinkType::Geneve, &odd), not_tcp);
    }
}

#[test]
fn a_geneve_header_that_ends_early_is_bad() {
    let wrapped = geneve(0x0800, &[0; 8], &v4_frame(b"x")[14..]);
    for len in 0..16 {
        let bad = Err(PacketOutcome::BadVxlan);
        assert_eq!(decode(&datagram(6081, &wrapped[..len])), bad, "{len}");
        assert_eq!(decode_as(LinkType::Geneve, &wrapped[..len]), bad);
    }
    let outcome = decode(&datagram(6081, &wrapped[..16]));
    assert_eq!(outcome, Err(PacketOutcome::BadIp));
}

#[test]
fn behind_a_gateway_load_balancer_the_identifier_is_that_of_the_vxlan_in_geneve() {
    let mirrored = datagram(4789, &vxlan(4_711, &v4_frame(b"GET / HTTP/1.1")));
    let wrapped = geneve(0x0800, &gateway_options(), &mirrored[14..]);
    let expected = within(4_711, v4(b"GET / HTTP/1.1"));
    assert_eq!(
        decode_as(LinkType::Geneve, &wrapped).as_ref(),
        Ok(&expected)
    );
    assert_eq!(decode(&datagram(6081, &wrapped)).as_ref(), Ok(&expected));
    let with = |vni| decode_with(&[vni], LinkType::Geneve, &wrapped);
    assert_eq!(with(4_711).as_ref(), Ok(&expected));
    // 0xaabbcc is GENEVE's own.
    assert_eq!(with(0x00aa_bbcc), Err(PacketOutcome::VniExcluded));
    // An overlay's packet inside the mirrored one is the third and last tunnel.
    let node = |pod: &[u8]| datagram(8472, &vxlan(1, pod));
    let gateway = |frame: &[u8]| {
        let mirrored = datagram(4789, &vxlan(7, frame));
        geneve(0x0800, &gateway_options(), &mirrored[14..])
    };
    let third = gateway(&node(&v4_frame(b"x")));
    assert_eq!(decode_as(LinkType::Geneve, &third), Ok(within(7, v4(b"x"))));
    let fourth = gateway(&node(&node(&v4_frame(b"x"))));
    let outcome = decode_as(LinkType::Geneve, &fourth);
    assert_eq!(outcome, Err(PacketOutcome::NotTcp));
}

#[test]
fn what_replay_sends_on_is_the_vxlan_within_geneve() {
    let payload = vxlan(7, &v4_frame(b"x"));
    let mirrored = datagram(4789, &payload);
    let gateway = datagram(6081, &geneve(0x0800, &gateway_options(), &mirrored[14..]));
    let pod = datagram(6081, &geneve(0x6558, b"", &v4_frame(b"x")));
    let ts = Timestamp(1);
    let link = LinkType::Ethernet;
    let outermost = |data| outermost_vxlan(&Frame { ts, link, data });
    assert_eq!(outermost(&mirrored), Some(&payload[..]));
    assert_eq!(outermost(&gateway), Some(&payload[..]));
    assert_eq!(outermost(&pod), None);
    assert_eq!(outermost(&v4_frame(b"x")), None);
}

#[test]
fn named_ports_exclude_connections_that_have_none_of_them() {
    let with = |ports: &[std::ops::RangeInclusive<u16>], frame: &[u8]| {
        let mut decoder = Decoder::new(DecodeOptions {
            ports: ports.to_vec(),
            ..DecodeOptions::default()
        });
        let (ts, link) = (Timestamp(1), LinkType::Ethernet);
        decoder
            .decode(&Frame {
                ts,
                link,
                data: frame,
            })
            .map(|_| ())
    };
    let excluded = Err(PacketOutcome::PortExcluded);
    // From 1234 to 80: either side counts.
    let frame = v4_frame(b"x");
    for ports in [
        &[][..],
        &[80..=80],
        &[1234..=1234],
        &[8080..=8090, 79..=81],
        &[1..=65_535],
    ] {
        assert_eq!(with(ports, &frame), Ok(()), "{ports:?}");
    }
    for ports in [&[81..=1233][..], &[79..=79, 81..=81, 1235..=1235]] {
        assert_eq!(with(ports, &frame), excluded, "{ports:?}");
    }
    // The inner connection's, not the tunnel's; and what has no port is what it is.
    let wrapped = datagram(4789, &vxlan(1, &frame));
    assert_eq!(with(&[80..=80], &wrapped), Ok(()));
    assert_eq!(with(&[4789..=4789], &wrapped), excluded);
    let udp = datagram(53, b"");
    assert_eq!(with(&[80..=80], &udp), Err(PacketOutcome::NotTcp));
}

#[test]
fn named_identifiers_exclude_all_others_and_bare_packets() {
    let bare = v4_frame(b"x");
    let arp = patch(bare.clone(), 12, &[8, 6]);
    let icmp = patch(bare.clone(), 23, &[1]);
    let wrapped = datagram(4789, &vxlan(7, &bare));
    let nested = datagram(4789, &vxlan(8, &wrapped));
    let excluded = Err(PacketOutcome::VniExcluded);
    let with = |vnis: &[u32], frame: &[u8]| decode_with(vnis, LinkType::Ethernet, frame);
    assert_eq!(with(&[6, 7], &wrapped), Ok(within(7, v4(b"x"))));
    assert_eq!(with(&[6, 8], &wrapped), excluded);
    assert_eq!(with(&[8], &nested), Ok(within(8, v4(b"x"))));
    assert_eq!(with(&[7], &nested), excluded);
    for frame in [&bare, &arp, &icmp] {
        assert_eq!(with(&[7], frame), excluded);
    }
    let outcome = decode_with(&[6], LinkType::Vxlan, &vxlan(7, &bare));
    assert_eq!(outcome, excluded);
    // Wrapped in a named one, an ARP message is what it is.
    let wrapped_arp = datagram(4789, &vxlan(7, &arp));
    assert_eq!(with(&[7], &wrapped_arp), Err(PacketOutcome::NotIp));
}
