//! Packets in pieces.

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header};
use proptest::prelude::*;

use super::super::fragments::{FRAGMENT_TIMEOUT_V4, FRAGMENT_TIMEOUT_V6, MAX_FRAGMENT_BYTES};
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

type Outcome = Result<(Vec<u8>, u32), PacketOutcome>;

const WAIT: Outcome = Err(PacketOutcome::Fragment);
const COPY: Outcome = Err(PacketOutcome::Duplicate);
const BAD: Outcome = Err(PacketOutcome::BadIp);

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
        assert_eq!(bench.raw(&b), COPY);
        assert_eq!(bench.raw(&c), Ok((payload.clone(), 0)));
        // Copies of what is whole.
        for copy in [&c, &a, &a, &b] {
            assert_eq!(bench.raw(copy), COPY);
        }

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
    let pieces = pieces(&packet, 32);
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
fn pieces_within_packets_that_came_in_pieces_are_put_together() {
    // A pod's packet in two pieces, each in a packet of its node; the node's MTU cuts the first of those up, too.
    let inner = tcp(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let inner = pieces(&inner, 32).into_iter().map(|piece| {
        let frame = [&v4_frame(b"")[..14], &v4_piece(5, 6, &piece)].concat();
        datagram(8472, &vxlan(9, &frame))
    });
    let [first, second] = inner.collect::<Vec<_>>().try_into().unwrap();
    let mut bench = Bench::new();
    for piece in pieces(&first[34..], 48) {
        assert_eq!(bench.raw(&v4_piece(6, 17, &piece)), WAIT);
    }
    let whole = Ok((b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), 0));
    assert_eq!(bench.at(1, LinkType::Ethernet, &second), whole);
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

/// A piece of so many bytes of one value at `offset`.
fn at(offset: u16, byte: u8, len: usize, more: bool) -> Piece {
    (offset, vec![byte; len], more)
}

/// A piece of the packet that [`tcp`] makes of `payload`.
fn part(packet: &[u8], from: u16, to: usize) -> Piece {
    let data = packet[usize::from(from)..to].to_vec();
    (from, data, to < packet.len())
}

#[test]
fn of_a_copy_that_disagrees_the_bytes_that_came_first_stay_and_the_others_are_counted() {
    let packet = tcp(&[b'a'; 60]);
    for v6 in [false, true] {
        let mut bench = Bench::new();
        let mut give = |piece: &Piece| bench.raw(&any_piece(v6, piece));
        assert_eq!(give(&part(&packet, 0, 40)), WAIT);
        assert_eq!(give(&part(&packet, 40, 64)), WAIT);
        // Within the run of both.
        assert_eq!(give(&at(32, b'!', 16, true)), COPY);
        assert_eq!(give(&part(&packet, 64, 80)), Ok((vec![b'a'; 60], 0)));
        assert_eq!(bench.0.fragment_conflict_bytes(), 16);
    }
}

#[test]
fn a_piece_that_overlaps_others_makes_the_packet_be_thrown_away() {
    let packet = tcp(&[b'a'; 60]);
    for v6 in [false, true] {
        for overlap in [part(&packet, 32, 56), part(&packet, 24, 80)] {
            let mut bench = Bench::new();
            let mut give = |piece: &Piece| bench.raw(&any_piece(v6, piece));
            assert_eq!(give(&part(&packet, 0, 40)), WAIT);
            // That it says the same there does not help it.
            assert_eq!(give(&overlap), BAD);
            assert_eq!(give(&part(&packet, 40, 80)), WAIT);
            let lost = 40 + overlap.1.len() as u64;
            // The receiver begins anew with the next one, and so do we.
            assert_eq!(give(&part(&packet, 0, 40)), Ok((vec![b'a'; 60], 0)));
            assert_eq!(bench.0.lost_fragment_bytes(), lost);
        }
    }
}

#[test]
fn pieces_without_bytes_or_beyond_the_end_or_of_another_end_throw_the_packet_away() {
    let packet = tcp(&[b'a'; 60]);
    let unsound: [(&[Piece], Piece); 5] = [
        (&[part(&packet, 0, 40)], at(40, 0, 0, false)),
        (&[part(&packet, 40, 80)], at(80, b'!', 8, true)),
        (&[part(&packet, 40, 80)], at(80, b'!', 8, false)),
        (&[part(&packet, 40, 80)], at(40, b'a', 32, false)),
        (&[at(80, b'!', 8, true)], part(&packet, 40, 80)),
    ];
    for v6 in [false, true] {
        for (before, piece) in &unsound {
            let mut bench = Bench::new();
            for piece in *before {
                assert_eq!(bench.raw(&any_piece(v6, piece)), WAIT);
            }
            assert_eq!(bench.raw(&any_piece(v6, piece)), BAD);
            assert_eq!(bench.0.fragments.bytes(), 0);
        }
    }
}

#[test]
fn a_middle_piece_of_odd_length_is_shortened_in_ipv4_and_refused_in_ipv6() {
    let packet = tcp(&[b'a'; 60]);
    let odd = (0, [&packet[..40], b"!!!"].concat(), true);
    let mut bench = Bench::new();
    assert_eq!(bench.raw(&v4_piece(1, 6, &odd)), WAIT);
    let rest = part(&packet, 40, 80);
    assert_eq!(bench.raw(&v4_piece(1, 6, &rest)), Ok((vec![b'a'; 60], 0)));
    let mut bench = Bench::new();
    assert_eq!(bench.raw(&v6_piece(1, 6, &odd)), BAD);
    assert_eq!(bench.0.fragments.bytes(), 0);
}

#[test]
fn an_ipv6_packet_whose_first_piece_ends_inside_the_tcp_header_is_not_made() {
    let packet = tcp(&[b'a'; 60]);
    let mut bench = Bench::new();
    assert_eq!(bench.raw(&v6_piece(1, 6, &part(&packet, 0, 16))), BAD);
    assert_eq!(bench.raw(&v6_piece(1, 6, &part(&packet, 16, 80))), WAIT);
    // In IPv4, nothing forbids it.
    assert_eq!(bench.raw(&v4_piece(1, 6, &part(&packet, 0, 16))), WAIT);
    let rest = v4_piece(1, 6, &part(&packet, 16, 80));
    assert_eq!(bench.raw(&rest), Ok((vec![b'a'; 60], 0)));
}

#[test]
fn late_copies_do_not_become_part_of_the_next_packet_of_the_same_name() {
    let first = tcp(&[b'1'; 60]);
    let second = tcp(&[b'2'; 60]);
    for v6 in [false, true] {
        let mut bench = Bench::new();
        let mut give = |piece: &Piece| bench.raw(&any_piece(v6, piece));
        assert_eq!(give(&part(&first, 0, 40)), WAIT);
        assert_eq!(give(&part(&first, 40, 80)), Ok((vec![b'1'; 60], 0)));
        assert_eq!(give(&part(&first, 40, 80)), COPY);
        assert_eq!(give(&part(&first, 0, 40)), COPY);
        // Those made one set of copies. This one begins with a piece of its own:
        assert_eq!(give(&part(&second, 0, 40)), WAIT);
        assert_eq!(give(&part(&second, 40, 80)), Ok((vec![b'2'; 60], 0)));
    }
}

#[test]
fn the_next_packet_of_the_same_name_may_begin_like_the_last_one() {
    let first = tcp(&[b'1'; 60]);
    let longer = tcp(&[&[b'1'; 60][..], &[b'2'; 40]].concat());
    assert_eq!(first[..16], longer[..16]);
    let mut bench = Bench::new();
    let mut give = |piece: &Piece| bench.raw(&v4_piece(1, 6, piece));
    assert_eq!(give(&part(&first, 0, 16)), WAIT);
    assert_eq!(give(&part(&first, 16, 80)), Ok((vec![b'1'; 60], 0)));
    // Just like a copy, and yet the beginning of another one.
    assert_eq!(give(&part(&longer, 0, 16)), COPY);
    assert_eq!(give(&part(&longer, 16, 80)), WAIT);
    let whole = [&[b'1'; 60][..], &[b'2'; 40]].concat();
    assert_eq!(give(&part(&longer, 80, 120)), Ok((whole, 0)));
}

#[test]
fn a_whole_packet_is_remembered_for_two_seconds() {
    let packet = tcp(&[b'a'; 60]);
    let pieces = [part(&packet, 0, 40), part(&packet, 40, 80)].map(|p| v4_piece(1, 6, &p));
    let give = |bench: &mut Bench, second, n: usize| bench.at(second, LinkType::Raw, &pieces[n]);
    for (second, outcome) in [(102, COPY), (103, WAIT)] {
        let mut bench = Bench::new();
        assert_eq!(give(&mut bench, 100, 0), WAIT);
        assert!(give(&mut bench, 100, 1).is_ok());
        assert_eq!(give(&mut bench, second, 0), outcome);
    }
}

#[test]
fn pieces_that_the_mirror_cut_are_a_gap_of_known_length() {
    let packet = tcp(&[b'a'; 60]);
    let [first, middle, last] =
        [(0, 40), (40, 64), (64, 80)].map(|(from, to)| v4_piece(1, 6, &part(&packet, from, to)));
    let cut = |piece: &[u8], by: usize| piece[..piece.len() - by].to_vec();
    let give = |frames: &[&[u8]]| {
        let mut bench = Bench::new();
        let (end, before) = frames.split_last().unwrap();
        for frame in before {
            assert_eq!(bench.raw(frame), WAIT);
        }
        let got = bench.raw(end);
        (got, bench)
    };
    // The last one: a hole at the end.
    let (got, mut bench) = give(&[&first, &middle, &cut(&last, 15)]);
    assert_eq!(got, Ok((vec![b'a'; 45], 15)));
    // The same again says nothing; a better copy gives the packet again.
    assert_eq!(bench.raw(&cut(&last, 15)), COPY);
    assert_eq!(bench.raw(&middle), COPY);
    assert_eq!(bench.raw(&cut(&last, 5)), WAIT);
    assert_eq!(bench.raw(&first), Ok((vec![b'a'; 55], 5)));
    // One in the middle: what stands behind the hole has no place in one segment, and is counted.
    let (got, bench) = give(&[&last, &cut(&middle, 10), &first]);
    assert_eq!(got, Ok((vec![b'a'; 34], 26)));
    assert_eq!(bench.0.lost_fragment_bytes(), 16);
    // A better copy that comes in time fills the hole.
    let (got, _) = give(&[&last, &cut(&middle, 10), &cut(&middle, 3), &middle, &first]);
    assert_eq!(got, Ok((vec![b'a'; 60], 0)));
    // A first one that ends inside the TCP header holds no segment.
    let (got, _) = give(&[&last, &middle, &cut(&first, 21)]);
    assert_eq!(got, Err(PacketOutcome::BadTcp));
}

#[test]
fn a_piece_that_lies_about_its_place_is_bad() {
    let mut bench = Bench::new();
    // Beyond the longest packet.
    let far = (65_528, vec![0; 8], false);
    assert_eq!(bench.raw(&v4_piece(1, 6, &far)), BAD);
    assert_eq!(bench.raw(&v6_piece(1, 6, &far)), BAD);
    assert_eq!(bench.0.fragments.bytes(), 0);
    let longest = (65_528, vec![0; 7], false);
    assert_eq!(bench.raw(&v6_piece(1, 6, &longest)), WAIT);
}

#[test]
fn a_packet_waits_for_its_pieces_so_long_and_no_longer() {
    let packet = tcp(&[b'a'; 60]);
    let parts = [part(&packet, 0, 40), part(&packet, 40, 80)];
    for (v6, timeout) in [(false, FRAGMENT_TIMEOUT_V4), (true, FRAGMENT_TIMEOUT_V6)] {
        for (wait, whole) in [(timeout.as_secs(), true), (timeout.as_secs() + 1, false)] {
            let mut bench = Bench::new();
            let [first, last] = parts.each_ref().map(|piece| any_piece(v6, piece));
            assert_eq!(bench.at(100, LinkType::Raw, &first), WAIT);
            // Waits longer than the other kind does; must not be in its way.
            let other = any_piece(!v6, &at(8, 0, 8, true));
            assert_eq!(bench.at(100, LinkType::Raw, &other), WAIT);
            let got = bench.at(100 + wait, LinkType::Raw, &last);
            assert_eq!(got.is_ok(), whole);
        }
    }
}

#[test]
fn a_packet_times_out_also_behind_one_with_a_later_time_stamp() {
    let packet = tcp(&[b'a'; 60]);
    let mut bench = Bench::new();
    let later = v4_piece(2, 6, &part(&packet, 0, 40));
    assert_eq!(bench.at(200, LinkType::Raw, &later), WAIT);
    let first = v4_piece(1, 6, &part(&packet, 0, 40));
    assert_eq!(bench.at(100, LinkType::Raw, &first), WAIT);
    let last = v4_piece(1, 6, &part(&packet, 40, 80));
    assert_eq!(bench.at(131, LinkType::Raw, &last), WAIT);
}

/// A first piece of 1,480 bytes of packet `id`, from 10.0.`sender`.1.
fn never_completed(sender: u8, id: u16) -> Vec<u8> {
    let mut frame = v4_piece(id, 6, &part(&tcp(&[b'a'; 3_000]), 0, 1_480));
    let [_, src @ ..] = &mut frame[11..16] else {
        unreachable!()
    };
    src[..2].copy_from_slice(&[0, 0]);
    frame[14] = sender;
    let header: [u8; 20] = frame[..20].try_into().unwrap();
    let sum = Ipv4Header::from_slice(&header)
        .unwrap()
        .0
        .calc_header_checksum();
    frame[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn the_cap_is_reached_and_kept_and_what_waits_longest_makes_room() {
    let mut bench = Bench::new();
    let mut most = 0;
    let mut last = 0;
    // From so many senders that none holds a quarter.
    for n in 0..4_000_u16 {
        let [_, sender] = n.to_be_bytes();
        let frame = never_completed(sender, n);
        let (ts, link) = (Timestamp(1_000_000_000), LinkType::Raw);
        let got = bench.0.decode(&Frame {
            ts,
            link,
            data: &frame,
        });
        assert!(matches!(got, Err(PacketOutcome::Fragment)));
        last = n;
        // Counting anew takes a while.
        if n % 100 == 99 {
            let held = bench.0.fragments.bytes();
            assert!(held <= MAX_FRAGMENT_BYTES);
            most = most.max(held);
        }
    }
    assert!(most > MAX_FRAGMENT_BYTES - 4_000);
    let kept = most / (512 + 320 + 1_480);
    assert!(bench.0.lost_fragment_bytes() >= (4_000 - kept as u64 - 10) * 1_480);
    let copy = |n: u16| never_completed(n.to_be_bytes()[1], n);
    assert_eq!(bench.raw(&copy(last)), COPY);
    assert_eq!(bench.raw(&copy(0)), WAIT);
}

#[test]
fn a_sender_of_pieces_that_never_complete_pushes_out_nobody() {
    let mut bench = Bench::new();
    let parts = pieces(&tcp(&[b'a'; 3_000]), 1_480);
    for n in 0..20 {
        assert_eq!(bench.raw(&v4_piece(n, 6, &parts[0])), WAIT);
    }
    let mut refused = 0;
    for n in 0..8_000_u16 {
        let data = &never_completed(7, n);
        let (ts, link) = (Timestamp(1_000_000_000), LinkType::Raw);
        match bench.0.decode(&Frame { ts, link, data }) {
            Err(PacketOutcome::Fragment) => assert_eq!(refused, 0),
            Err(PacketOutcome::OverCap) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    // It held half of the cap while there was room, and was refused from then on; each byte is counted.
    let held = bench.0.fragments.bytes();
    assert!((MAX_FRAGMENT_BYTES / 2 - 4_000..=MAX_FRAGMENT_BYTES / 2).contains(&held));
    assert_eq!(bench.0.lost_fragment_bytes(), refused * 1_480);
    for n in 0..20 {
        assert_eq!(bench.raw(&v4_piece(n, 6, &parts[1])), WAIT);
        assert!(bench.raw(&v4_piece(n, 6, &parts[2])).is_ok());
    }
    // Nor do others' packets lack room.
    for n in 100..2_000 {
        assert_eq!(bench.raw(&v4_piece(n, 6, &parts[0])), WAIT);
        assert_eq!(bench.raw(&v4_piece(n, 6, &parts[1])), WAIT);
        assert!(bench.raw(&v4_piece(n, 6, &parts[2])).is_ok());
    }
}

#[test]
fn what_waited_at_the_end_is_counted() {
    let mut bench = Bench::new();
    assert_eq!(bench.raw(&never_completed(1, 1)), WAIT);
    bench.0.finish();
    assert_eq!(bench.0.lost_fragment_bytes(), 1_480);
    assert_eq!(bench.0.fragments.bytes(), 0);
}

#[test]
fn many_packets_that_became_whole_leave_nothing_behind() {
    let mut bench = Bench::new();
    let parts = pieces(&tcp(&[b'a'; 60]), 40);
    for id in 0..5_000 {
        let second = 1 + u64::from(id / 50);
        let first = v4_piece(id, 6, &parts[0]);
        assert_eq!(bench.at(second, LinkType::Raw, &first), WAIT);
        let last = v4_piece(id, 6, &parts[1]);
        assert!(bench.at(second, LinkType::Raw, &last).is_ok());
        // Three seconds' worth of whole ones, and what is swept together.
        assert!(bench.0.fragments.queued() <= 2 * (2 * 150 + 64));
    }
    assert_eq!(bench.0.lost_fragment_bytes(), 0);
    assert_eq!(
        bench.at(200, LinkType::Raw, &v4_piece(1, 6, &parts[0])),
        WAIT
    );
    assert_eq!(bench.0.fragments.bytes(), 512 + 40 + 320);
}

fn any_piece(v6: bool, piece: &Piece) -> Vec<u8> {
    if v6 {
        v6_piece(3, 6, piece)
    } else {
        v4_piece(3, 6, piece)
    }
}

proptest! {
    #[test]
    fn any_order_and_number_of_copies_of_a_packets_pieces_give_it_once(
        payload in prop::collection::vec(any::<u8>(), 40..600),
        size in 3usize..20,
        v6 in any::<bool>(),
        copies in prop::collection::vec(1usize..4, 80),
        shuffle in any::<u64>(),
    ) {
        let packet = tcp(&payload);
        // At least two pieces.
        let size = size.min((packet.len() - 1) / 8);
        let mut all: Vec<_> = pieces(&packet, size * 8)
            .into_iter()
            .zip(&copies)
            .flat_map(|(piece, copies)| vec![piece; *copies])
            .collect();
        let mut state = shuffle | 1;
        for n in (1..all.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            all.swap(n, usize::try_from(state >> 33).unwrap() % (n + 1));
        }
        let mut bench = Bench::new();
        let mut came = std::collections::BTreeSet::new();
        let needed = pieces(&packet, size * 8).len();
        for piece in &all {
            let got = bench.raw(&any_piece(v6, piece));
            let expected = match (came.insert(piece.0), came.len() == needed) {
                (true, true) => Ok((payload.clone(), 0)),
                (true, false) => WAIT,
                (false, _) => COPY,
            };
            prop_assert_eq!(got, expected);
        }
        prop_assert_eq!(bench.0.lost_fragment_bytes(), 0);
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
            // `bytes`, called by `at`, checks the store's invariants. No tunnel's port, no TCP: nothing comes out.
            let got = bench.at(second, LinkType::Raw, data);
            prop_assert!(got.is_err());
        }
    }
}
