//! Agreement with `etherparse` on generated frames; and what must hold for any bytes at all.

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, LaxSlicedPacket, TcpHeader, TransportSlice,
    VlanId,
};
use proptest::prelude::*;

use super::*;

/// What etherparse sees: source and destination port, numbers, control bits (without the two that we leave out),
/// payload.
type Seen = (u16, u16, u32, u32, u8, Vec<u8>);

fn etherparse(frame: &[u8]) -> Option<Seen> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    match packet.transport? {
        TransportSlice::Tcp(tcp) => Some((
            tcp.source_port(),
            tcp.destination_port(),
            tcp.sequence_number(),
            tcp.acknowledgment_number(),
            tcp.header_slice()[13] & 0x3f,
            tcp.payload().to_vec(),
        )),
        _ => None,
    }
}

fn seen(got: &Got) -> Seen {
    (
        got.src.port(),
        got.dst.port(),
        got.seq,
        got.ack,
        got.flags,
        got.payload.clone(),
    )
}

prop_compose! {
    fn tcp()(
        ports in any::<(u16, u16)>(),
        numbers in any::<(u32, u32)>(),
        flags in any::<[bool; 6]>(),
        options in 0usize..=10,
    ) -> TcpHeader {
        let mut tcp = TcpHeader::new(ports.0, ports.1, numbers.0, 1_000);
        tcp.acknowledgment_number = numbers.1;
        let [fin, syn, rst, psh, ack, urg] = flags;
        (tcp.fin, tcp.syn, tcp.rst, tcp.psh, tcp.ack, tcp.urg) = (fin, syn, rst, psh, ack, urg);
        tcp.set_options_raw(&vec![1; options * 4]).unwrap();
        tcp
    }
}

prop_compose! {
    fn ipv4()(
        src in any::<[u8; 4]>(),
        dst in any::<[u8; 4]>(),
        options in 0usize..=10,
        auth in proptest::option::of(1usize..8),
    ) -> IpHeaders {
        let mut header = Ipv4Header::new(0, 64, IpNumber::TCP, src, dst).unwrap();
        header.options = vec![1; options * 4][..].try_into().unwrap();
        let auth = auth.map(|n| IpAuthHeader::new(IpNumber::TCP, 1, 2, &vec![0; n * 4]).unwrap());
        if auth.is_some() {
            header.protocol = IpNumber::AUTHENTICATION_HEADER;
        }
        IpHeaders::Ipv4(header, Ipv4Extensions { auth })
    }
}

prop_compose! {
    fn ipv6()(
        src in any::<[u8; 16]>(),
        dst in any::<[u8; 16]>(),
        hop in proptest::option::of(0usize..4),
        destination in proptest::option::of(0usize..4),
        atomic in any::<bool>(),
        auth in proptest::option::of(1usize..8),
    ) -> IpHeaders {
        let raw = |n: usize| Ipv6RawExtHeader::new_raw(IpNumber::TCP, &vec![0; 6 + n * 8]).unwrap();
        let mut extensions = Ipv6Extensions {
            hop_by_hop_options: hop.map(raw),
            destination_options: destination.map(raw),
            routing: None,
            fragment: atomic.then(|| {
                Ipv6FragmentHeader::new(IpNumber::TCP, IpFragOffset::try_new(0).unwrap(), false, 9)
            }),
            auth: auth.map(|n| IpAuthHeader::new(IpNumber::TCP, 1, 2, &vec![0; n * 4]).unwrap()),
        };
        let header = Ipv6Header {
            source: src,
            destination: dst,
            next_header: extensions.set_next_headers(IpNumber::TCP),
            hop_limit: 64,
            ..Default::default()
        };
        IpHeaders::Ipv6(header, extensions)
    }
}

/// An Ethernet frame, the length of its TCP payload, and its two addresses.
pub(super) fn frame() -> impl Strategy<Value = (Vec<u8>, usize, [std::net::IpAddr; 2])> {
    let payload = prop::collection::vec(any::<u8>(), 0..200);
    let ip = prop_oneof![ipv4(), ipv6()];
    (ip, tcp(), payload, 0u8..3).prop_map(|(ip, tcp, payload, tags)| {
        let addresses = match &ip {
            IpHeaders::Ipv4(h, _) => [h.source.into(), h.destination.into()],
            IpHeaders::Ipv6(h, _) => [h.source.into(), h.destination.into()],
        };
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let id = VlanId::try_new(5).unwrap();
        let builder = match tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(id).ip(ip),
            _ => builder.double_vlan(id, id).ip(ip),
        };
        let mut frame = Vec::new();
        builder.tcp_header(tcp).write(&mut frame, &payload).unwrap();
        (frame, payload.len(), addresses)
    })
}

fn links() -> impl Strategy<Value = LinkType> {
    prop::sample::select(vec![
        LinkType::Ethernet,
        LinkType::Null,
        LinkType::Raw,
        LinkType::Ipv4,
        LinkType::Ipv6,
        LinkType::LinuxSll,
        LinkType::LinuxSll2,
        LinkType::Vxlan,
        LinkType::Other(9),
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn a_generated_frame_is_what_etherparse_sees_padded_cut_or_wrapped(
        (frame, payload, addresses) in frame(),
        padding in 0usize..20,
        cut in 0usize..200,
        vni in 0u32..1 << 24,
    ) {
        let padded = [&frame[..], &vec![0xee; padding]].concat();
        let got = decode(&padded).unwrap();
        prop_assert_eq!(Some(seen(&got)), etherparse(&padded));
        prop_assert_eq!([got.src.ip(), got.dst.ip()], addresses);
        prop_assert_eq!((got.payload.len(), got.cut, got.vni), (payload, 0, None));

        let cut = cut.min(payload);
        let shorter = &frame[..frame.len() - cut];
        let got = decode(shorter).unwrap();
        prop_assert_eq!(Some(seen(&got)), etherparse(shorter));
        prop_assert_eq!(got.payload.len() + cut, payload);
        prop_assert_eq!(got.cut, u32::try_from(cut).unwrap());

        let wrapped = decode(&datagram(4789, &vxlan(vni, shorter))).unwrap();
        prop_assert_eq!(wrapped, Got { vni: Some(vni), ..got });
    }

    #[test]
    fn a_segment_out_of_a_mutated_frame_is_the_one_that_etherparse_sees(
        (mut frame, ..) in frame(),
        flips in prop::collection::vec((0usize..120, any::<u8>()), 1..4),
        keep in 0usize..300,
    ) {
        for (at, value) in flips {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(keep);
        if let (Ok(got), Some(seen_by_etherparse)) = (decode(&frame), etherparse(&frame)) {
            prop_assert_eq!(seen(&got), seen_by_etherparse);
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_and_nothing_is_made_up(
        link in links(),
        (frame, ..) in frame(),
        random in prop::collection::vec(any::<u8>(), 0..120),
        mutate in any::<bool>(),
        wrap in any::<bool>(),
        flips in prop::collection::vec((0usize..200, any::<u8>()), 0..6),
        keep in 0usize..400,
        vnis in prop::collection::vec(0u32..3, 0..2),
    ) {
        let mut data = if mutate { frame } else { random };
        if wrap {
            data = datagram(if keep % 2 == 0 { 4789 } else { 8472 }, &vxlan(1, &data));
        }
        for (at, value) in flips {
            if let Some(byte) = data.get_mut(at) {
                *byte = value;
            }
        }
        data.truncate(keep);
        for link in [link, LinkType::Ethernet] {
            if let Ok(got) = decode_with(&vnis, link, &data) {
                // Not always at the end, even when cut: an outer length may end the packet before its inner one.
                let len = got.payload.len();
                prop_assert!(len == 0 || data.windows(len).any(|w| w == got.payload));
                prop_assert!(vnis.is_empty() || got.vni.is_some_and(|vni| vnis.contains(&vni)));
            }
        }
    }
}
