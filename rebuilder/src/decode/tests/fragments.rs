//! Packets in pieces.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use proptest::prelude::*;

use super::super::fragments::{FRAGMENT_TIMEOUT, MAX_FRAGMENT_BYTES};
use super::*;

/// A piece of an IP payload: where it begins, its bytes, whether more follow.
type Piece = (u16, Vec<u8>, bool);

/// The pieces of `payload`, each `size` bytes (of 8) but the last.
fn pieces(payload: &[u8], size: usize) -> Vec<Piece> {
    let count = payload.len().div_ceil(size);
    let chunks = payload.chunks(size).enumerate();
    chunks
        .map(|(n, chunk)| {
            let offset = u16::try_from(n * size).unwrap();
            (offset, chunk.to_vec(), n + 1 < count)
        })
        .collect()
}

/// An IPv4 packet (link type `Raw`) of one piece; etherparse writes the header.
fn v4_piece(id: u16, protocol: u8, (offset, data, more): &Piece) -> Vec<u8> {
    let len = u16::try_from(data.len()).unwrap();
    let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let mut header = Ipv4Header::new(len, 64, IpNumber(protocol), src, dst).unwrap();
    header.identification = id;
    header.dont_fragment = false;
    header.more_fragments = *more;
    header.fragment_offset = IpFragOffset::try_new(offset / 8).unwrap();
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], data].concat()
}

fn v6_piece(id: u32, protocol: u8, (offset, data, more): &Piece) -> Vec<u8> {
    let offset = IpFragOffset::try_new(offset / 8).unwrap();
    let fragment = Ipv6FragmentHeader::new(IpNumber(protocol), offset, *more, id);
    let header = Ipv6Header {
        payload_length: u16::try_from(data.len() + 8).unwrap(),
        next_header: IpNumber::IPV6_FRAGMENTATION_HEADER,
        hop_limit: 64,
        source: [1; 16],
        destination: [2; 16],
        ..Default::default()
    };
    [&header.to_bytes()[..], &fragment.to_bytes(), data].concat()
}

/// TCP header and payload, as in [`v4_frame`].
fn tcp(payload: &[u8]) -> Vec<u8> {
    v4_frame(payload)[34..].to_vec()
}

/// A decoder, and what it is asked.
struct Bench(Decoder);

impl Bench {
    fn new() -> Self {
        Self(Decoder::new(DecodeOptions::default()))
    }

    /// Payload and missing bytes of the segment that `data`, at `seconds`, completes.
    fn at(
        &mut self,
        seconds: u64,
        link: LinkType,
        data: &[u8],
    ) -> Result<(Vec<u8>, u32), PacketOutcome> {
        let ts = Timestamp(seconds * 1_000_000_000);
        let got = self.0.decode(&Frame { ts, link, data });
        let got = got.map(|s| {
            assert_eq!((s.src.port(), s.dst.port(), s.seq), (1234, 80, Seq(7)));
            (s.payload.to_vec(), s.cut)
        });
        assert!(self.0.fragments.bytes() <= MAX_FRAGMENT_BYTES);
        got
    }

    fn raw(&mut self, data: &[u8]) -> Result<(Vec<u8>, u32), PacketOutcome> {
        self.at(1, LinkType::Raw, data)
    }
}

const WAIT: Result<(Vec<u8>, u32), PacketOutcome> = Err(PacketOutcome::Fragment);

#[test]
fn pieces_in_any_order_make_the_packet_at_the_last_one() {
    let payload: Vec<u8> = (0..100).collect();
    let packet = tcp(&payload);
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let pieces = pieces(&packet, 40);
        let [a, b, c] = order.map(|n| v4_piece(9, 6, &pieces[n]));
        let mut bench = Bench::new();
        assert_eq!(bench.raw(&a), WAIT);
        assert_eq!(bench.raw(&b), WAIT);
        // A copy of what is there already.
        assert_eq!(bench.raw(&b), WAIT);
        assert_eq!(bench.raw(&c), Ok((payload.clone(), 0)));
        assert_eq!(bench.0.fragments.bytes(), 0);

        let [a, b, c] = order.map(|n| v6_piece(9, 6, &pieces[n]));
        assert_eq!(bench.raw(&a), WAIT);
        assert_eq!(bench.raw(&b), WAIT);
        assert_eq!(bench.raw(&c), Ok((payload.clone(), 0)));
    }
}

#[test]
fn extension_headers_among_the_pieces_are_taken_off() {
    let options = [6, 0, 1, 4, 0, 0, 0, 0];
    let packet = [&options[..], &tcp(b"GET / HTTP/1.1")].concat();
    let mut bench = Bench::new();
    let pieces = pieces(&packet, 16);
    let (last, first) = pieces.split_last().unwrap();
    for piece in first {
        assert_eq!(bench.raw(&v6_piece(1, 60, piece)), WAIT);
    }
    let whole = Ok((b"GET / HTTP/1.1".to_vec(), 0));
    assert_eq!(bench.raw(&v6_piece(1, 60, last)), whole);
}

#[test]
fn a_vxlan_datagram_in_pieces_is_opened() {
    let udp = datagram(4789, &vxlan(77, &v4_frame(b"GET / HTTP/1.1")))[34..].to_vec();
    let pieces = pieces(&udp, 48);
    let mut decoder = Decoder::new(DecodeOptions {
        vnis: vec![Vni(77)],
        ..DecodeOptions::default()
    });
    for (n, piece) in pieces.iter().enumerate() {
        let data = &v4_piece(1, 17, piece);
        let (ts, link) = (Timestamp(1), LinkType::Raw);
        let got = decoder.decode(&Frame { ts, link, data });
        if n + 1 < pieces.len() {
            assert_eq!(got.map(|_| ()), Err(PacketOutcome::Fragment));
        } else {
            let segment = got.unwrap();
            assert_eq!(segment.vni, Some(Vni(77)));
            assert_eq!(segment.payload, b"GET / HTTP/1.1");
        }
    }
}

#[test]
fn pieces_of_other_packets_do_not_mix() {
    let (one, two) = (tcp(&[b'1'; 80]), tcp(&[b'2'; 80]));
    let (one, two) = (pieces(&one, 64), pieces(&two, 64));
    let mut bench = Bench::new();
    // Another number; another protocol; mirrored elsewhere.
    assert_eq!(bench.raw(&v4_piece(1, 6, &one[0])), WAIT);
    assert_eq!(bench.raw(&v4_piece(2, 6, &two[1])), WAIT);
    assert_eq!(bench.raw(&v4_piece(1, 17, &two[1])), WAIT);
    let wrapped = |vni, piece: &[u8]| vxlan(vni, &[&v4_frame(b"")[..14], piece].concat());
    for vni in [1, 2] {
        let data = wrapped(vni, &v4_piece(1, 6, &two[1]));
        assert_eq!(bench.at(1, LinkType::Vxlan, &data), WAIT);
    }
    assert_eq!(bench.raw(&v4_piece(1, 6, &one[1])), Ok((vec![b'1'; 80], 0)));
    let data = wrapped(2, &v4_piece(1, 6, &two[0]));
    assert_eq!(bench.at(1, LinkType::Vxlan, &data), Ok((vec![b'2'; 80], 0)));
}

#[test]
fn where_pieces_disagree_the_bytes_that_came_first_stay() {
    let head = tcp(b"");
    let at = |offset: u16, bytes: &[u8], more| (offset, bytes.to_vec(), more);
    let mut bench = Bench::new();
    let first = [&head[..], b"AAAA"].concat();
    assert_eq!(bench.raw(&v4_piece(1, 6, &at(32, b"CCCCCCCC", true))), WAIT);
    assert_eq!(bench.raw(&v4_piece(1, 6, &at(0, &first, true))), WAIT);
    // Reaches into both neighbours and beyond.
    let wide = [b'x'; 32];
    assert_eq!(bench.raw(&v4_piece(1, 6, &at(16, &wide, true))), WAIT);
    let whole = b"AAAAxxxxxxxxCCCCCCCCxxxxxxxxZZ";
    let last = v4_piece(1, 6, &at(48, b"ZZ", false));
    assert_eq!(bench.raw(&last), Ok((whole.to_vec(), 0)));
}

#[test]
fn what_lies_beyond_the_last_piece_does_not_count() {
    let packet = tcp(b"12345678");
    let parts = pieces(&packet, 16);
    let mut bench = Bench::new();
    let beyond = (24, vec![b'!'; 64], true);
    assert_eq!(bench.raw(&v4_piece(1, 6, &beyond)), WAIT);
    assert_eq!(bench.raw(&v4_piece(1, 6, &parts[1])), WAIT);
    // Another end, behind the first one.
    let other_end = (88, vec![b'!'; 8], false);
    assert_eq!(bench.raw(&v4_piece(1, 6, &other_end)), WAIT);
    let got = bench.raw(&v4_piece(1, 6, &parts[0])).unwrap();
    // The bytes at 24 came first from the other piece; the length is the last piece's.
    assert_eq!(got, (b"1234!!!!".to_vec(), 0));
}

#[test]
fn a_last_piece_that_the_mirror_cut_is_a_gap_of_known_length() {
    let packet = tcp(&[b'a'; 60]);
    let parts = pieces(&packet, 40);
    let mut bench = Bench::new();
    let last = v4_piece(1, 6, &parts[1]);
    assert_eq!(bench.raw(&last[..last.len() - 15]), WAIT);
    assert_eq!(
        bench.raw(&v4_piece(1, 6, &parts[0])),
        Ok((vec![b'a'; 45], 15))
    );
    // Another copy of it, less cut, fills what it can.
    assert_eq!(bench.raw(&last[..last.len() - 15]), WAIT);
    assert_eq!(bench.raw(&last[..last.len() - 5]), WAIT);
    assert_eq!(
        bench.raw(&v4_piece(1, 6, &parts[0])),
        Ok((vec![b'a'; 55], 5))
    );
    // A cut one that is not the last: the packet waits for another copy.
    let first = v4_piece(1, 6, &parts[0]);
    assert_eq!(bench.raw(&first[..first.len() - 1]), WAIT);
    assert_eq!(bench.raw(&last), WAIT);
    assert_eq!(bench.raw(&first), Ok((vec![b'a'; 60], 0)));
}

#[test]
fn a_piece_that_lies_about_its_place_is_bad() {
    let mut bench = Bench::new();
    // Not a multiple of 8, yet more follow; beyond the longest packet.
    let odd = (0, vec![0; 9], true);
    let far = (65_528, vec![0; 8], false);
    for piece in [odd, far] {
        let bad = Err(PacketOutcome::BadIp);
        assert_eq!(bench.raw(&v4_piece(1, 6, &piece)), bad);
        assert_eq!(bench.raw(&v6_piece(1, 6, &piece)), bad);
    }
    assert_eq!(bench.0.fragments.bytes(), 0);
    let longest = (65_528, vec![0; 7], false);
    assert_eq!(bench.raw(&v6_piece(1, 6, &longest)), WAIT);
}

#[test]
fn a_packet_waits_for_its_pieces_so_long_and_no_longer() {
    let packet = tcp(&[b'a'; 60]);
    let parts = pieces(&packet, 40);
    let timeout = FRAGMENT_TIMEOUT.as_secs();
    for (wait, whole) in [(timeout, true), (timeout + 1, false)] {
        let mut bench = Bench::new();
        let (first, last) = (v4_piece(1, 6, &parts[0]), v4_piece(1, 6, &parts[1]));
        assert_eq!(bench.at(100, LinkType::Raw, &first), WAIT);
        let got = bench.at(100 + wait, LinkType::Raw, &last);
        assert_eq!(got.is_ok(), whole);
    }
}

#[test]
fn the_cap_is_reached_and_kept_and_the_newest_packets_survive() {
    let mut bench = Bench::new();
    let mut most = 0;
    let parts: Vec<_> = pieces(&tcp(&[b'a'; 3_000]), 1_480);
    for id in 0..4_000 {
        let (ts, link) = (Timestamp(1_000_000_000), LinkType::Raw);
        let data = &v4_piece(id, 6, &parts[0]);
        let got = bench.0.decode(&Frame { ts, link, data });
        assert!(matches!(got, Err(PacketOutcome::Fragment)));
        // Counting anew takes a while.
        if id % 100 == 99 {
            let held = bench.0.fragments.bytes();
            assert!(held <= MAX_FRAGMENT_BYTES);
            most = most.max(held);
        }
    }
    assert!(most > MAX_FRAGMENT_BYTES - 3_000);
    assert_eq!(bench.raw(&v4_piece(3_999, 6, &parts[1])), WAIT);
    assert!(bench.raw(&v4_piece(3_999, 6, &parts[2])).is_ok());
    // The oldest one has made room.
    assert_eq!(bench.raw(&v4_piece(0, 6, &parts[1])), WAIT);
    assert_eq!(bench.raw(&v4_piece(0, 6, &parts[2])), WAIT);
}

#[test]
fn many_packets_that_became_whole_leave_nothing_behind() {
    let mut bench = Bench::new();
    let parts = pieces(&tcp(&[b'a'; 60]), 40);
    for id in 0..5_000 {
        assert_eq!(bench.raw(&v4_piece(id, 6, &parts[0])), WAIT);
        assert!(bench.raw(&v4_piece(id, 6, &parts[1])).is_ok());
        assert!(bench.0.fragments.queued() <= 65);
    }
    assert_eq!(bench.0.fragments.bytes(), 0);
}

proptest! {
    #[test]
    fn any_pieces_of_a_packet_give_it_once_all_are_there(
        payload in prop::collection::vec(any::<u8>(), 0..600),
        // Overlapping pieces that agree, beside the plain ones.
        size in 1usize..20,
        extra in prop::collection::vec((0u16..80, 1usize..20), 0..8),
        order in any::<prop::sample::Index>(),
        v6 in any::<bool>(),
        shuffle in any::<u64>(),
    ) {
        let packet = tcp(&payload);
        // At least two pieces.
        let size = size.min((packet.len() - 1) / 8);
        let mut all = pieces(&packet, size * 8);
        let needed = all.len();
        for (at, len) in extra {
            let start = usize::from(at) * 8;
            let end = start + len * 8;
            if let Some(data) = packet.get(start..end) && end < packet.len() {
                let place = order.index(all.len());
                all.insert(place, (at * 8, data.to_vec(), true));
            }
        }
        let mut state = shuffle | 1;
        for n in (1..all.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            all.swap(n, usize::try_from(state >> 33).unwrap() % (n + 1));
        }
        let mut bench = Bench::new();
        let mut whole = 0;
        for (n, piece) in all.iter().enumerate() {
            let data = if v6 { v6_piece(3, 6, piece) } else { v4_piece(3, 6, piece) };
            match bench.raw(&data) {
                Ok(got) => {
                    prop_assert_eq!(got, (payload.clone(), 0));
                    prop_assert!(n < all.len());
                    whole += 1;
                }
                Err(outcome) => prop_assert_eq!(outcome, PacketOutcome::Fragment),
            }
        }
        prop_assert!(needed > 1 && whole == 1);
    }

    #[test]
    fn no_pieces_break_the_store(
        pieces in prop::collection::vec(
            (0u16..40, 0usize..200, any::<bool>(), 0u16..3, 0usize..60, 0u64..40),
            1..60,
        ),
    ) {
        let mut bench = Bench::new();
        for (at, len, more, id, cut, second) in pieces {
            let data = v4_piece(id, 17, &(at * 8, vec![0xaa; len], more));
            let data = &data[..data.len().saturating_sub(cut)];
            // `bytes`, called by `at`, checks the store's invariants. No port 4789, no TCP: nothing comes out.
            let got = bench.at(second, LinkType::Raw, data);
            prop_assert!(got.is_err());
        }
    }
}
