//! The flow table and the extractor with room for hardly anything: whoever gives way, each byte has a number, and no more
//! is held than the cap says.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use rebuilder::decode::{Segment, Seq, TcpFlags};
use rebuilder::http::{Extractor, Flags, HttpOptions};
use rebuilder::stream::{
    Chunk, DirectionId, End, Endpoints, Interest, Sink, StreamOptions, Streams,
};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

/// Requests of every framing, one behind the other.
fn text(n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    for r in 0..4 {
        let body = format!("GET /not/{n}/{r} HTTP/1.1\r\n\r\n{}", "z".repeat(900 * r));
        let head = format!(
            "/{n}/{r} HTTP/1.1\r\nHost: h{n}\r\nCookie: {}",
            "c".repeat(n * 300)
        );
        out.extend_from_slice(
            match (n + r) % 3 {
                0 => format!("GET {head}\r\n\r\n"),
                1 => format!(
                    "POST {head}\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                ),
                _ => format!(
                    "PUT {head}\r\nTransfer-Encoding: chunked\r\n\r\n{:x};{}\r\n{body}\r\n0\r\n\r\n",
                    body.len(),
                    "e".repeat(n * 200)
                ),
            }
            .as_bytes(),
        );
    }
    out
}

fn ends(n: usize) -> Endpoints {
    Endpoints {
        vni: None,
        // Every two are one sender.
        src: (
            [192, 0, 2, u8::try_from(n / 2).unwrap()],
            40_000 + u16::try_from(n).unwrap(),
        )
            .into(),
        dst: ([10, 0, 0, 2], 80).into(),
    }
}

fn cases() -> u32 {
    std::env::var("PROOF_CASES").map_or(200, |n| n.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn every_byte_is_in_a_request_or_counted_whoever_gives_way(
        turns in prop::collection::vec((0..8_usize, 1..1_500_usize, 0..40_u64), 1..150),
        max_held in 500..20_000_usize,
    ) {
        let texts: Vec<Vec<u8>> = (0..8).map(text).collect();
        let mut at = [0; 8];
        let mut extractor = Extractor::new(HttpOptions { max_held, ..HttpOptions::default() });
        let (mut raw, mut given, mut fed) = (0, Vec::new(), 0);
        for n in 0..8 {
            let open = Chunk::Open { midstream: false };
            extractor.chunk(DirectionId::new(n as u64, n), &ends(n), open, &mut |_| {});
        }
        let mut out = Vec::new();
        for (n, len, gap) in turns {
            let rest = &texts[n][at[n]..];
            let bytes = &rest[..len.min(rest.len())];
            at[n] += bytes.len();
            fed += bytes.len();
            if bytes.is_empty() {
                continue;
            }
            let data = Chunk::Data { bytes, ts: Timestamp(1), segment_start: true, conflict: false };
            extractor.chunk(DirectionId::new(n as u64, n), &ends(n), data, &mut |r| out.push(r.into_owned()));
            prop_assert!(extractor.held_bytes() <= max_held, "{} held", extractor.held_bytes());
            // Now and then bytes are missing.
            let missing = usize::try_from(gap).unwrap();
            if gap < 5 && missing > 0 && at[n] + missing <= texts[n].len() {
                at[n] += missing;
                let gap = Chunk::Gap { len: gap };
                extractor.chunk(DirectionId::new(n as u64, n), &ends(n), gap, &mut |r| out.push(r.into_owned()));
            }
        }
        for n in 0..8 {
            extractor.chunk(DirectionId::new(n as u64, n), &ends(n), Chunk::Closed(End::Eof), &mut |r| out.push(r.into_owned()));
        }
        for request in out {
            raw += request.raw.len();
            // What was cut for want of room says so.
            let n = usize::from(request.endpoints.src.port()) - 40_000;
            let sent = memchr::memmem::find(&texts[n], &request.raw);
            prop_assert!(sent.is_some(), "made up: {}", request.raw.escape_ascii());
            given.push(request.flags.contains(Flags::TRUNCATED));
        }
        let counters = extractor.counters();
        prop_assert_eq!(extractor.held_bytes(), 0);
        prop_assert_eq!(raw as u64 + counters.skipped_bytes, fed as u64, "{:?}", counters);
        let truncated = given.iter().filter(|truncated| **truncated).count() as u64;
        prop_assert!(counters.shed_requests <= truncated);
        prop_assert_eq!(counters.requests, given.len() as u64);
    }

    /// Segments are whole tiles of their stream, so that what is old of one is all of it.
    #[test]
    fn every_payload_byte_has_a_number_whatever_is_shed(
        turns in prop::collection::vec((0..14_usize, 0..40_u32, 0..20_u8, 0..30_u64), 1..300),
        total_cap in 8_000..60_000_usize,
        flow_cap in 500..20_000_usize,
    ) {
        const TILE: u32 = 700;
        let mut streams = Streams::new(StreamOptions {
            total_cap,
            flow_cap,
            gap_after: Duration::from_millis(300),
            ..StreamOptions::default()
        });
        let mut sink = Given::default();
        let mut now = 1_000_000_000;
        let mut by_outcome: BTreeMap<PacketOutcome, u64> = BTreeMap::new();
        let payload = [b'x'; TILE as usize];
        for (n, tile, what, pause) in turns {
            now += pause * 1_000_000;
            let ends = ends(n);
            let segment = |seq, flags, payload| Segment {
                ts: Timestamp(now),
                vni: None,
                src: ends.src,
                dst: ends.dst,
                seq: Seq(seq),
                ack: Seq(1),
                flags,
                payload,
                cut: 0,
                urgent: 0,
            };
            let isn = u32::MAX - 5_000;
            let at = isn.wrapping_add(1 + tile * TILE);
            let segment = match what {
                0 | 1 => segment(isn, TcpFlags::SYN, &[]),
                2 => segment(at, TcpFlags::FIN | TcpFlags::ACK, &[]),
                3 => segment(at, TcpFlags::RST, &[]),
                4 => segment(at, TcpFlags::FIN | TcpFlags::ACK, &payload),
                _ => segment(at, TcpFlags::ACK, &payload),
            };
            let outcome = streams.push(&segment, &mut sink);
            *by_outcome.entry(outcome).or_default() += segment.payload.len() as u64;
            prop_assert!(streams.held_bytes() <= total_cap);
        }
        streams.finish(End::Eof, &mut sink);
        let stats = streams.stats();
        let of = |outcome| by_outcome.get(&outcome).copied().unwrap_or(0);
        let taken = of(PacketOutcome::Stream) + of(PacketOutcome::OverCap);
        prop_assert_eq!(taken, stats.delivered_bytes + stats.shed_bytes, "{:?} {:?}", by_outcome, stats);
        prop_assert!(of(PacketOutcome::OverCap) <= stats.shed_bytes);
        prop_assert_eq!((sink.bytes, sink.missing), (stats.delivered_bytes, stats.gap_bytes));
        prop_assert_eq!(streams.held_bytes(), 0);
        let known = [PacketOutcome::Stream, PacketOutcome::OverCap, PacketOutcome::Duplicate,
            PacketOutcome::OutOfWindow, PacketOutcome::Control];
        prop_assert!(by_outcome.keys().all(|outcome| known.contains(outcome)), "{:?}", by_outcome);
        prop_assert_eq!(of(PacketOutcome::Control), 0, "payload that counts as none");
    }
}

/// What the next stage got.
#[derive(Default)]
struct Given {
    bytes: u64,
    missing: u64,
}

impl Sink for Given {
    fn chunk(&mut self, _: DirectionId, _: &Endpoints, chunk: Chunk<'_>) -> Interest {
        match chunk {
            Chunk::Data { bytes, .. } => self.bytes += bytes.len() as u64,
            Chunk::Gap { len } => self.missing += len,
            Chunk::Open { .. } | Chunk::Closed(_) => {}
        }
        Interest::Wanted
    }
}
