//! What one call of each stage takes: `cargo bench -p rebuilder-benches`, or one of them: `cargo bench -p rebuilder-benches -- decode`.
//!
//! Everything that is looked at lies in the processor's caches, and nothing else competes for them: these figures tell
//! whether a change made a stage slower, not what a packet costs (`tests/bench` does).

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "criterion's macros write functions without documentation; a bench that cannot go on fails"
)]

#[path = "../tests/wire/mod.rs"]
mod wire;

use std::hint::black_box;
use std::net::SocketAddr;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rebuilder::decode::{DecodeOptions, Decoder, Segment, Seq, TcpFlags};
use rebuilder::http::{Extractor, HttpOptions};
use rebuilder::receive::{Frame, LinkType};
use rebuilder::stream::{Chunk, DirectionId, Endpoints, Interest, Sink, StreamOptions, Streams};
use rebuilder::time::Timestamp;

/// Payload of a full segment where the MTU is 1500, and TCP has time stamps.
const MSS: usize = 1448;
const BEGIN: u64 = 1_800_000_000_000_000_000;

/// A datagram of the mirror each: a full segment and an acknowledgement, IPv4 and IPv6, as it comes from a ring.
fn decode(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(1));
    for (family, src, dst) in [
        ("ipv4", "192.0.2.10:40000", "10.1.2.3:80"),
        ("ipv6", "[2001:db8::1]:40000", "[2001:db8::2]:80"),
    ] {
        for (what, payload) in [("full segment", MSS), ("acknowledgement", 0)] {
            let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
            let segment = wire::tcp(src, dst, 1, wire::ACK, &vec![b'x'; payload]);
            let datagram = wire::vxlan(1, &segment);
            let mut decoder = Decoder::new(DecodeOptions::default());
            group.bench_function(BenchmarkId::new(family, what), |b| {
                b.iter(|| {
                    let frame = Frame {
                        ts: Timestamp(BEGIN),
                        link: LinkType::Vxlan,
                        data: black_box(&datagram),
                    };
                    decoder.decode(&frame).unwrap().payload.len()
                });
            });
        }
    }
}

/// Takes everything.
struct Bin;

impl Sink for Bin {
    fn chunk(&mut self, _: DirectionId, _: &Endpoints, chunk: Chunk<'_>) -> Interest {
        black_box(chunk);
        Interest::Wanted
    }
}

fn segment(n: u32, seq: u32, flags: TcpFlags, payload: &[u8]) -> Segment<'_> {
    let [a, b, c, d] = n.to_be_bytes();
    Segment {
        ts: Timestamp(BEGIN),
        vni: None,
        src: SocketAddr::from(([10, b | a, c, d], 40_000)),
        dst: SocketAddr::from(([10, 0, 0, 1], 80)),
        seq: Seq(seq),
        ack: Seq(1),
        flags,
        urgent: 0,
        payload,
        cut: 0,
    }
}

/// So many connections whose client has sent its SYN and a byte.
fn connections(count: u32) -> Streams {
    let mut streams = Streams::new(StreamOptions {
        total_cap: 1 << 30,
        ..StreamOptions::default()
    });
    for n in 0..count {
        streams.push(&segment(n, 0, TcpFlags::SYN, b""), &mut Bin);
        streams.push(&segment(n, 1, TcpFlags::ACK, b"x"), &mut Bin);
    }
    assert_eq!(u32::try_from(streams.flows()), Ok(count));
    streams
}

/// An acknowledgement, which changes nothing, of one connection after the other, in no order.
fn look_up(c: &mut Criterion) {
    let mut group = c.benchmark_group("flow look-up");
    group.throughput(Throughput::Elements(1));
    for count in [1, 5_000, 100_000] {
        let mut streams = connections(count);
        let mut n = 0;
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| {
                // Coprime to each count, and far from the last one.
                n = (n + 77_773) % count;
                streams.push(&segment(n, 2, TcpFlags::ACK, b""), &mut Bin)
            });
        });
    }
}

/// Full segments: in order, and each second one before the first.
fn reassembly(c: &mut Criterion) {
    let payload = vec![b'x'; MSS];
    let mut group = c.benchmark_group("reassembly");
    group.throughput(Throughput::Elements(2));
    for (what, first, second) in [("in order", 0, 1), ("swapped", 1, 0)] {
        let mut streams = connections(1);
        let mut seq = 2_u32;
        group.bench_function(what, |b| {
            b.iter(|| {
                for n in [first, second] {
                    let seq = seq.wrapping_add(n * 1448);
                    streams.push(&segment(0, seq, TcpFlags::ACK, &payload), &mut Bin);
                }
                seq = seq.wrapping_add(2 * 1448);
            });
        });
    }
}

const FIELDS: &str = "Host: shop.example\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n";

/// A request in one segment each.
fn head(c: &mut Criterion) {
    let mut group = c.benchmark_group("head");
    group.throughput(Throughput::Elements(1));
    for (what, request) in [
        (
            "plain",
            format!("GET /catalogue?page=3 HTTP/1.1\r\n{FIELDS}\r\n"),
        ),
        // What httparse would refuse.
        (
            "folded",
            format!("GET /catalogue?page=3 HTTP/1.1\r\n{FIELDS}X: a\r\n b\r\n\r\n"),
        ),
        (
            "with a body",
            format!(
                "POST /catalogue HTTP/1.1\r\n{FIELDS}Content-Length: 300\r\n\r\n{}",
                "b".repeat(300)
            ),
        ),
        (
            "chunked",
            format!(
                "POST /catalogue HTTP/1.1\r\n{FIELDS}Transfer-Encoding: chunked\r\n\r\n12c\r\n{}\r\n0\r\n\r\n",
                "b".repeat(300)
            ),
        ),
    ] {
        let ends = Endpoints {
            vni: None,
            src: "192.0.2.10:40000".parse().unwrap(),
            dst: "10.1.2.3:80".parse().unwrap(),
        };
        let mut extractor = Extractor::new(HttpOptions::default());
        let mut found = 0_u64;
        let mut given = 0_u64;
        let open = Chunk::Open { midstream: false };
        extractor.chunk(DirectionId::new(1, 1), &ends, open, &mut |_| {});
        group.bench_function(what, |b| {
            b.iter(|| {
                let chunk = Chunk::Data {
                    bytes: black_box(request.as_bytes()),
                    ts: Timestamp(BEGIN),
                    segment_start: true,
                    conflict: false,
                };
                given += 1;
                extractor.chunk(DirectionId::new(1, 1), &ends, chunk, &mut |request| {
                    black_box(&request);
                    found += 1;
                })
            });
        });
        assert_eq!(found, given, "{what}");
    }
}

criterion_group!(stages, decode, look_up, reassembly, head);
criterion_main!(stages);
