//! The table against a dumb oracle: a map with one cell a byte, and a list of times.

use proptest::prelude::*;

use crate::keyed::Keyed;
use crate::telemetry::PacketOutcome;

use super::*;

/// What the dumb reader knows of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    Unknown,
    /// A cut frame proves that it is missing; since when anything is known of it, and since when that.
    Cut(u64, u64),
    Have {
        byte: u8,
        since: u64,
        conflict: bool,
    },
}

/// Reads the way the rules say it, one byte at a time.
struct Oracle {
    cells: Vec<Cell>,
    next: usize,
    /// When the last new byte in order came.
    progress: u64,
    /// `None` is a missing byte; the flag is whether copies disagreed.
    out: Vec<Option<(u8, bool)>>,
}

impl Oracle {
    fn new(len: usize) -> Self {
        Self {
            cells: vec![Cell::Unknown; len],
            next: 0,
            progress: 0,
            out: Vec::new(),
        }
    }

    fn known(cell: Cell) -> Option<u64> {
        match cell {
            Cell::Unknown => None,
            Cell::Cut(since, _) | Cell::Have { since, .. } => Some(since),
        }
    }

    fn run(&mut self) {
        while let Some(Cell::Have { byte, conflict, .. }) = self.cells.get(self.next) {
            self.out.push(Some((*byte, *conflict)));
            self.next += 1;
        }
    }

    /// When the hole at `next` is given up, if there is one: rule 3a, and a tenth of a second for what is cut.
    fn due(&self) -> Option<u64> {
        let behind = &self.cells[self.next..];
        let since = behind.iter().filter_map(|c| Self::known(*c)).min()?;
        let by_age = since.max(self.progress) + SECOND + 1;
        Some(match behind[0] {
            Cell::Cut(_, cut) => by_age.min(cut + 100 * MS),
            _ => by_age,
        })
    }

    fn time(&mut self, now: u64) {
        while self.due().is_some_and(|due| due <= now) {
            self.skip_hole();
        }
    }

    fn skip_hole(&mut self) {
        let first = self.cells[self.next];
        while self.cells.get(self.next) == Some(&first) {
            self.out.push(None);
            self.next += 1;
        }
        self.run();
    }

    fn segment(&mut self, at: usize, payload: &[u8], cut: usize, now: u64) {
        self.time(now);
        if at <= self.next && self.next < at + payload.len() {
            self.progress = now;
        }
        for (i, byte) in payload.iter().enumerate() {
            let at = at + i;
            if at < self.next {
                continue;
            }
            match &mut self.cells[at] {
                Cell::Have {
                    byte: first,
                    conflict,
                    ..
                } => *conflict |= first != byte,
                cell => {
                    let since = Self::known(*cell).unwrap_or(now);
                    *cell = Cell::Have {
                        byte: *byte,
                        since,
                        conflict: false,
                    };
                }
            }
        }
        for cell in &mut self.cells[at + payload.len()..][..cut] {
            if *cell == Cell::Unknown {
                *cell = Cell::Cut(now, now);
            }
        }
        self.run();
    }

    /// The end of the file; the stream is known to be `len` long.
    fn finish(&mut self, len: usize) {
        while self.next < len {
            self.skip_hole();
        }
    }
}

/// The bytes of a log with their conflict flag; `None` is a missing byte.
pub(super) fn cells(log: &[Event]) -> Vec<Option<(u8, bool)>> {
    let mut out = Vec::new();
    for event in log {
        match event {
            Event::Data {
                bytes, conflict, ..
            } => out.extend(bytes.iter().map(|b| Some((*b, *conflict)))),
            Event::Gap(len) => out.resize(out.len() + usize::try_from(*len).unwrap(), None),
            Event::Open { .. } | Event::Closed(_) => {}
        }
    }
    out
}

fn bytes(cells: &[Option<(u8, bool)>]) -> Vec<Option<u8>> {
    cells.iter().map(|c| c.map(|(byte, _)| byte)).collect()
}

/// A piece of the stream: offset and length.
pub(super) type Span = (usize, usize);

/// All of a stream of `len` bytes in consecutive spans, and some spans again, in any order.
pub(super) fn shuffled_spans(len: usize) -> impl Strategy<Value = Vec<Span>> {
    let cuts = prop::collection::btree_set(1..len.max(2), 0..20);
    let copies = prop::collection::vec((0..len, 1..40_usize), 0..12);
    (cuts, copies)
        .prop_map(move |(cuts, copies)| {
            let mut spans = Vec::new();
            let mut from = 0;
            for to in cuts.into_iter().filter(|to| *to < len).chain([len]) {
                spans.push((from, to - from));
                from = to;
            }
            spans.extend(copies.into_iter().map(|(at, n)| (at, n.min(len - at))));
            spans
        })
        .prop_shuffle()
}

pub(super) fn body() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..300)
}

pub(super) fn body_and_spans() -> impl Strategy<Value = (Vec<u8>, Vec<Span>)> {
    body().prop_flat_map(|body| {
        let spans = shuffled_spans(body.len());
        (Just(body), spans)
    })
}

/// Initial sequence numbers, with many near the wrap.
pub(super) fn isn() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        (0..400_u32).prop_map(|n| u32::MAX - n),
        prop_oneof![Just(0), Just(1), Just(u32::MAX), Just(u32::MAX - 10)],
    ]
}

pub(super) fn at(isn: u32, offset: usize) -> u32 {
    isn.wrapping_add(1)
        .wrapping_add(u32::try_from(offset).unwrap())
}

proptest! {
    /// Rules 1, 5 and 11: neither the order, nor copies, nor what the other side acknowledges, nor what others send
    /// changes the bytes, while nothing is later than the times of rule 3.
    #[test]
    fn any_order_and_any_copies_give_the_bytes_once_in_order(
        (body, spans) in body_and_spans(),
        isn in isn(),
        syn_at in prop::option::of(0..30_usize),
        fin in any::<bool>(),
        acks in prop::collection::vec(prop::option::of(0..400_usize), 40),
        noise in prop::collection::vec(prop::option::of(arbitrary_segment()), 40),
    ) {
        let mut lab = Lab::new();
        for (i, (from, len)) in spans.iter().enumerate() {
            if syn_at == Some(i) {
                lab.push(&seg(isn, b"").syn());
            }
            let mut s = seg(at(isn, *from), &body[*from..from + len]);
            if fin && from + len == body.len() {
                s = s.fin();
            }
            let outcome = lab.push(&s);
            prop_assert!(matches!(outcome, PacketOutcome::Stream | PacketOutcome::Duplicate));
            if let Some(Some(acked)) = acks.get(i) {
                lab.push(&reply(7, b"").ack(at(isn, *acked)));
            }
            if let Some(Some((other, _))) = noise.get(i) {
                lab.push(other);
            }
            lab.now += 100_000; // far from 50 ms in all
        }
        lab.wait(50 * MS);
        let syn_seen = syn_at.is_some_and(|i| i < spans.len());
        prop_assert_eq!(&lab.log()[0], &Event::Open { midstream: !syn_seen });
        prop_assert_eq!(text(lab.log()), body);
        let clean = cells(lab.log()).iter().all(|cell| cell.is_some_and(|(_, conflict)| !conflict));
        prop_assert!(clean, "a gap or a conflict");
        lab.finish();
        let end = if fin { End::Fin } else { End::Eof };
        prop_assert_eq!(lab.log().last(), Some(&Event::Closed(end)));
    }

    /// Rule 3: what is lost is told in its exact length, and time alone decides when.
    #[test]
    fn losses_cuts_and_conflicts_come_out_as_the_oracle_says(
        (body, spans) in body_and_spans(),
        isn in isn(),
        fates in prop::collection::vec((0..10_u8, 0..40_u32, prop_oneof![Just(0), Just(1), Just(400), Just(999), Just(1001)]), 40),
    ) {
        let mut lab = Lab::new();
        lab.push(&seg(isn, b"").syn());
        let mut oracle = Oracle::new(body.len());
        let mut high = 0;
        for ((from, len), (fate, cut, ms)) in spans.into_iter().zip(fates) {
            lab.now += ms * MS;
            let mut payload = body[from..from + len].to_vec();
            let mut missing = 0;
            match fate {
                // The segment is lost.
                0..=2 => continue,
                // The frame is cut.
                3 | 4 => {
                    missing = cut.min(u32::try_from(len - 1).unwrap());
                    payload.truncate(len - usize::try_from(missing).unwrap());
                }
                // A copy disagrees.
                5 => payload[0] ^= 1,
                _ => {}
            }
            high = high.max(from + len);
            lab.push(&seg(at(isn, from), &payload).cut(missing));
            oracle.segment(from, &payload, usize::try_from(missing).unwrap(), lab.now);
            if high > 0 && !lab.sink.dirs.is_empty() {
                prop_assert_eq!(bytes(&cells(lab.log())), bytes(&oracle.out));
            }
        }
        if high == 0 {
            return Ok(());
        }
        lab.finish();
        oracle.finish(high);
        let got = cells(lab.log());
        prop_assert_eq!(bytes(&got), bytes(&oracle.out));
        // A mark covers the piece in which the copies disagreed, which may be more than the byte.
        for (ours, dumb) in got.iter().zip(&oracle.out) {
            if let (Some((_, ours)), Some((_, dumb))) = (ours, dumb) {
                prop_assert!(*ours || !*dumb, "a conflict is not marked");
            }
        }
        let any = |cells: &[Option<(u8, bool)>]| cells.iter().flatten().any(|(_, conflict)| *conflict);
        prop_assert_eq!(any(&got), any(&oracle.out));
    }

    /// The short way of plain segments is one: what comes of it is what the full way gives, in every respect.
    #[test]
    fn the_short_way_of_plain_segments_comes_to_the_same(
        segs in prop::collection::vec((arbitrary_segment(), 0..10_u8), 1..120),
        opaque in any::<bool>(),
        answers in any::<bool>(),
        roomy in any::<bool>(),
    ) {
        let mut labs = [false, true].map(|never_plain| {
            let mut options = StreamOptions {
                hash: Keyed::FIXED,
                ..StreamOptions::default()
            };
            if !roomy {
                (options.flow_cap, options.total_cap, options.max_flows) = (4000, 9000, 3);
            }
            let mut lab = Lab::with(options);
            lab.streams.never_plain = never_plain;
            lab.sink.answers = answers.then(|| b"\x06\x06".to_vec());
            if opaque {
                lab.sink.uninteresting = Some((b"\x07\x07".to_vec(), PacketOutcome::NotHttp));
            }
            lab
        });
        // Where each sender goes on. Most segments are the next ones.
        let mut next = BTreeMap::new();
        for ((mut s, mut step), odd) in segs {
            if odd < 9 {
                s.seq = *next.entry(s.src).or_insert(7_u32);
                let back = u32::from(odd % 3);
                s.ack = Some(next.entry(s.dst).or_insert(7_u32).wrapping_sub(back));
            }
            if odd < 8 {
                (s.cut, s.flags) = (0, TcpFlags::ACK);
                s.flags.set(TcpFlags::URG, odd == 7 && step % 3 == 0);
                step %= 100 * i64::try_from(MS).unwrap();
            }
            s.urgent = u16::try_from(step.unsigned_abs() % 3000).unwrap();
            // Behind a FIN at its own place, as where it was forged.
            let taken = u32::try_from(s.payload.len()).unwrap();
            next.insert(s.src, s.seq.wrapping_add(taken + u32::from(s.flags.contains(TcpFlags::SYN))));
            let [(outcome, state), (full, full_state)] = labs.each_mut().map(|lab| {
                lab.now = lab.now.saturating_add_signed(step);
                let outcome = lab.push(&s);
                let streams = &lab.streams;
                (outcome, (streams.flows(), streams.held_bytes(), streams.flow_bytes(), streams.stats()))
            });
            prop_assert_eq!(outcome, full);
            prop_assert_eq!(state, full_state);
        }
        for lab in &mut labs {
            lab.finish();
        }
        let [short, full] = labs;
        prop_assert_eq!(short.sink.dirs, full.sink.dirs);
    }

    /// Rules 9, 10 and 12: whatever comes, nothing panics, the caps hold, and each packet has an outcome of this stage.
    #[test]
    fn arbitrary_segments_never_break_an_invariant(
        segs in prop::collection::vec(arbitrary_segment(), 1..300),
        policy in prop_oneof![Just(crate::stream::OverlapPolicy::First), Just(crate::stream::OverlapPolicy::Linux)],
        opaque in any::<bool>(),
    ) {
        let mut lab = Lab::with(StreamOptions {
            overlap: policy,
            flow_cap: 4000,
            total_cap: 9000,
            max_flows: 3,
            isn_entries: 8,
            ..StreamOptions::default()
        });
        if opaque {
            lab.sink.uninteresting = Some((b"\x07\x07".to_vec(), PacketOutcome::NotHttp));
        }
        let mut delivered = 0;
        for (s, step) in &segs {
            lab.now = lab.now.saturating_add_signed(*step);
            let outcome = lab.push(s);
            prop_assert!(lab.streams.held_bytes() <= 9000);
            if s.payload.is_empty() || s.flags.contains(TcpFlags::RST) {
                prop_assert_eq!(outcome, PacketOutcome::Control);
            } else {
                prop_assert!(matches!(
                    outcome,
                    PacketOutcome::Stream
                        | PacketOutcome::Duplicate
                        | PacketOutcome::OutOfWindow
                        | PacketOutcome::OverCap
                        | PacketOutcome::NotHttp
                ));
            }
            if matches!(outcome, PacketOutcome::Stream | PacketOutcome::NotHttp) {
                delivered += s.payload.len();
            }
        }
        lab.finish();
        let out: usize = lab
            .sink
            .dirs
            .values()
            .flat_map(|(_, log)| log)
            .map(|e| if let Event::Data { bytes, .. } = e { bytes.len() } else { 0 })
            .sum();
        prop_assert!(out <= delivered, "bytes were invented");
    }
}

pub(super) fn arbitrary_segment() -> impl Strategy<Value = (Seg, i64)> {
    let seq = || {
        prop_oneof![
            6 => (0..6000_u32).prop_map(|n| n.wrapping_sub(3000)),
            1 => (0..6000_u32).prop_map(|n| n.wrapping_add(1 << 31)),
            1 => any::<u32>(),
        ]
    };
    let second = 1_000_000_000_i64;
    let step = prop_oneof![
        6 => 0..second / 100,
        2 => 0..3 * second,
        1 => -10 * second..0,
        1 => Just(100 * second),
        1 => Just(10_000 * second),
    ];
    let payload = prop_oneof![
        1 => Just(Vec::new()),
        5 => (0..8_u8, 1..1500_usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let cut = prop_oneof![6 => Just(0), 2 => 0..2000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![4 => Just(0x10_u8), 1 => Just(0x02), 1 => Just(0x12), 1 => Just(0x11), 1 => Just(0x04), 1 => any::<u8>()];
    (
        1..4_u16,
        any::<bool>(),
        seq(),
        seq(),
        flags,
        payload,
        cut,
        step,
    )
        .prop_map(|(port, client, seq, ack, flags, payload, cut, step)| {
            let flags = TcpFlags::from_bits_truncate(flags);
            let s = if client {
                super::seg(seq, &payload)
            } else {
                reply(seq, &payload)
            };
            let mut s = s.cut(cut).ack(ack);
            s.flags = flags;
            if !flags.contains(TcpFlags::ACK) {
                s.ack = None;
            }
            let end = if client { &mut s.src } else { &mut s.dst };
            end.set_port(port);
            (s, step)
        })
}

/// A quarter of a million segments of a thousand flows, ten in a hundred out of order, lost or doubled: bounded in memory and time.
#[test]
fn many_segments_stay_within_memory_and_time() {
    const SEGMENTS: u64 = 250_000;
    struct Count(u64);
    impl Sink for Count {
        fn chunk(&mut self, _: DirectionId, _: &Endpoints, chunk: Chunk<'_>) -> Interest {
            if let Chunk::Data { bytes, .. } = chunk {
                self.0 += bytes.len() as u64;
            }
            Interest::Wanted
        }
    }
    let opts = StreamOptions {
        total_cap: 3 << 20,
        ..StreamOptions::default()
    };
    let cap = opts.total_cap;
    let mut streams = Streams::new(opts);
    let mut sink = Count(0);
    let payload = [b'x'; 600];
    let mut next = vec![1_u32; 1000];
    // A linear congruential generator (Knuth's MMIX): the same segments in every run.
    let mut random = 1_u64;
    let mut roll = move |below: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    let started = std::time::Instant::now();
    let mut most = 0;
    for n in 0..SEGMENTS {
        let flow = usize::try_from(roll(1000)).unwrap();
        let here = next[flow];
        let (seq, step) = match roll(100) {
            0..=3 => (here.wrapping_add(600), 600), // overtakes its predecessor, which is lost
            4..=6 => (here.wrapping_sub(600), 0),   // again
            7..=9 => (here.wrapping_add(100_000), 0), // far ahead
            _ => (here, 600),
        };
        next[flow] = here.wrapping_add(step);
        let segment = Segment {
            ts: Timestamp(START + n * 10_000),
            vni: None,
            src: SocketAddr::from((
                [10, 0, 1, u8::try_from(flow % 250).unwrap()],
                1 + u16::try_from(flow).unwrap(),
            )),
            dst: SocketAddr::from(([10, 0, 0, 2], 80)),
            seq: Seq(seq),
            ack: Seq(0),
            flags: TcpFlags::ACK,
            urgent: 0,
            payload: &payload,
            cut: 0,
        };
        streams.push(&segment, &mut sink);
        let all = streams.held_bytes() + streams.flow_bytes();
        most = most.max(all);
        assert!(all <= cap);
    }
    let took = started.elapsed();
    streams.check();
    streams.finish(End::Eof, &mut sink);
    assert!(most > cap - cap / 10, "the cap was never near: {most}");
    assert!(sink.0 > 0);
    // An unoptimised build on a busy machine takes a few seconds; quadratic behaviour takes minutes.
    assert!(took.as_secs() < 60, "{took:?}");
    eprintln!(
        "1,000,000 segments in {took:?}, at most {most} bytes held, {:?}",
        streams.stats()
    );
}
