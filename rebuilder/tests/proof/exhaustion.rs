//! Whoever tries to exhaust the memory: resident memory stays below the configured cap and 64 MiB, the requests of
//! others stay exact, and every byte is accounted for. Each scenario runs in a process of its own, so that what the
//! kernel says about its memory is about this scenario.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;

use rebuilder::http::{Flags, HttpOptions, Request};
use rebuilder::pipeline::{Pipeline, PipelineOptions};
use rebuilder::stream::{End, StreamOptions};
use rebuilder::telemetry::PacketOutcome;

use crate::build::{self, Place, Says};
use crate::wire::{self, Owned};

const MIB: usize = 1 << 20;

/// What `--held-bytes` would say. Small, so that the scenarios reach it.
const CAP: usize = 64 * MIB;
/// What the program may take beside it.
const BESIDE: usize = 64 * MIB;

/// As `rebuilder run --held-bytes 64M --workers 1` sets it.
fn options() -> PipelineOptions {
    PipelineOptions {
        stream: StreamOptions {
            total_cap: CAP / 2,
            ..StreamOptions::default()
        },
        http: HttpOptions {
            max_held: CAP / 2,
            ..HttpOptions::default()
        },
        ..PipelineOptions::default()
    }
}

/// The most that was ever resident, in bytes (proc_pid_status(5)).
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

/// Runs a test's scenario in a new process of this test program.
fn alone(test: &str, scenario: impl FnOnce(&mut World)) {
    const VARIABLE: &str = "PROOF_SCENARIO";
    if std::env::var(VARIABLE).is_ok_and(|name| name == test) {
        let mut world = World::new();
        scenario(&mut world);
        world.settle();
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("exhaustion::{test}"), "--exact", "--nocapture"])
        .arg("--include-ignored")
        .env(VARIABLE, test)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let line = said.lines().find(|l| l.contains("resident"));
    println!("{test}: {}", line.unwrap_or("said nothing"));
    assert!(
        output.status.success() && line.is_some(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A client whose requests must come out as they went in, whatever others do meanwhile.
struct Honest {
    client: SocketAddr,
    next_seq: u32,
    /// What is left of the request that is being sent: offset from `next_seq`, bytes.
    segments: Vec<(u32, Vec<u8>)>,
    sent: Vec<Vec<u8>>,
    got: usize,
}

impl Honest {
    /// Begins another request: three segments, of which every third request's come out of order.
    fn begin(&mut self) {
        let n = self.sent.len();
        let body: String = (0..40).map(|i| format!("{n:04}-{i:03} ")).collect();
        let raw = format!(
            "POST /honest/{}/{n} HTTP/1.1\r\nHost: honest\r\nContent-Length: {}\r\n\r\n{body}",
            self.client.port(),
            body.len()
        )
        .into_bytes();
        let cuts = [0, 20, 20 + raw.len() / 3, raw.len()];
        self.segments = cuts
            .windows(2)
            .map(|w| (u32::try_from(w[0]).unwrap(), raw[w[0]..w[1]].to_vec()))
            .collect();
        if n % 3 == 2 {
            self.segments.swap(1, 2);
        }
        self.sent.push(raw);
    }
}

/// The pipeline, what went in, and what came out.
struct World {
    pipeline: Pipeline,
    /// Flow time in ns.
    now: u64,
    honest: Vec<Honest>,
    turn: usize,
    payload_in: u64,
    packets: u64,
    outcomes: BTreeMap<PacketOutcome, u64>,
    /// Payload bytes of packets that brought nothing new.
    duplicate: u64,
    raw_out: u64,
    requests: u64,
    most_flows: usize,
}

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 80)), 80);
/// Of every connection.
const ISN: u32 = 1_000;

impl World {
    fn new() -> Self {
        let mut world = Self {
            pipeline: Pipeline::new(options()),
            now: 1_000_000_000,
            honest: Vec::new(),
            turn: 0,
            payload_in: 0,
            packets: 0,
            outcomes: BTreeMap::new(),
            duplicate: 0,
            raw_out: 0,
            requests: 0,
            most_flows: 0,
        };
        for n in 0..20_u8 {
            let client = SocketAddr::from(([198, 51, 100, n], 40_000 + u16::from(n)));
            world.open(client);
            world.honest.push(Honest {
                client,
                next_seq: ISN + 1,
                segments: Vec::new(),
                sent: Vec::new(),
                got: 0,
            });
        }
        // Their data follows on their SYN, as it does: of a SYN alone the table remembers only so many.
        for _ in 0..world.honest.len() {
            world.pass(100_000);
        }
        world
    }

    fn take(&mut self, frame: &Owned) {
        let payload = wire::layout(frame.link, &frame.data).map_or(0, |at| at.end - at.payload);
        self.payload_in += payload as u64;
        let (honest, raw_out, requests) = (&mut self.honest, &mut self.raw_out, &mut self.requests);
        let outcome = self.pipeline.frame(&frame.frame(), &mut |request| {
            *raw_out += request.raw.len() as u64;
            *requests += 1;
            check(honest, &request);
        });
        self.packets += 1;
        if outcome == PacketOutcome::Duplicate {
            self.duplicate += payload as u64;
        }
        *self.outcomes.entry(outcome).or_default() += 1;
        self.most_flows = self.most_flows.max(self.pipeline.flows());
    }

    fn open(&mut self, client: SocketAddr) {
        self.send(client, ISN, wire::SYN, &[]);
    }

    fn send(&mut self, client: SocketAddr, seq: u32, flags: u8, payload: &[u8]) {
        let ack = (flags & wire::SYN == 0).then_some(1);
        let says = Says {
            seq,
            ack,
            flags,
            payload,
        };
        let frame = build::segment(self.now, client, SERVER, says);
        self.take(&frame);
    }

    /// Lets `ns` pass, and one honest client send one segment.
    fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.turn = (self.turn + 1) % self.honest.len();
        let one = &mut self.honest[self.turn];
        if one.segments.is_empty() {
            one.begin();
        }
        let (offset, bytes) = one.segments.remove(0);
        let (client, seq) = (one.client, one.next_seq + offset);
        if one.segments.is_empty() {
            one.next_seq += u32::try_from(one.sent.last().unwrap().len()).unwrap();
        }
        self.send(client, seq, 0, &bytes);
        if self.turn.is_multiple_of(4) {
            self.send(client, seq, 0, &bytes);
        }
    }

    /// The end: what must hold.
    fn settle(&mut self) {
        while self.honest.iter().any(|h| !h.segments.is_empty()) {
            self.pass(0);
        }
        let held = self.pipeline.held_bytes();
        let peak = peak();
        let (honest, raw_out, requests) = (&mut self.honest, &mut self.raw_out, &mut self.requests);
        self.pipeline.finish(End::Eof, &mut |request| {
            *raw_out += request.raw.len() as u64;
            *requests += 1;
            check(honest, &request);
        });
        let stats = self.pipeline.stream_stats();
        let http = self.pipeline.http_counters();
        println!(
            "{} MiB resident at most, {} MiB held at the end, {} flows at most, {} packets, {} MiB of payload; {stats:?} {http:?} {:?}",
            peak / MIB,
            held / MIB,
            self.most_flows,
            self.packets,
            self.payload_in >> 20,
            self.outcomes,
        );

        let mut exact = 0;
        for honest in &self.honest {
            assert_eq!(
                honest.got,
                honest.sent.len(),
                "requests of {} are lost",
                honest.client
            );
            exact += honest.got;
        }
        assert!(exact >= 100, "only {exact} honest requests");

        assert_eq!(self.outcomes.values().sum::<u64>(), self.packets);
        // Copies were whole segments, so each byte was given to the extractor, or is in a packet that brought nothing
        // new, or was shed.
        assert!(self.duplicate > 0);
        assert_eq!(
            self.payload_in,
            stats.delivered_bytes + self.duplicate + stats.shed_bytes,
            "payload bytes without a number"
        );
        assert_eq!(
            stats.delivered_bytes,
            self.raw_out + http.skipped_bytes,
            "delivered bytes without a number"
        );
        assert_eq!(http.requests, self.requests);
        assert_eq!(self.pipeline.held_bytes(), 0);
        assert!(
            peak < CAP + BESIDE,
            "{} MiB resident, the cap is {} MiB and {} beside it",
            peak / MIB,
            CAP / MIB,
            BESIDE / MIB
        );
    }
}

/// An honest client's request is the next one that it sent, untouched.
fn check(honest: &mut [Honest], request: &Request) {
    let client = request.endpoints.src;
    if let Some(one) = honest.iter_mut().find(|h| h.client == client) {
        let want = one.sent.get(one.got);
        assert!(
            want.map(Vec::as_slice) == Some(&*request.raw),
            "{client}: {:?}",
            request.raw.escape_ascii().to_string()
        );
        assert_eq!(request.flags, Flags::empty(), "{client}");
        one.got += 1;
    }
}

/// The `n`-th of many clients, each at an address of its own.
fn client(n: u32) -> SocketAddr {
    let [_, a, b, c] = n.to_be_bytes();
    SocketAddr::from(([100, 64 + a, b, c], 50_000))
}

#[test]
fn a_syn_flood_of_a_million_sources() {
    alone("a_syn_flood_of_a_million_sources", |world| {
        for n in 0..1_000_000 {
            world.open(client(n));
            if n % 500 == 0 {
                world.pass(5_000_000);
            }
        }
        assert!(world.most_flows <= 20, "a SYN alone makes no flow");
    });
}

#[test]
fn a_hundred_thousand_half_open_flows() {
    alone("a_hundred_thousand_half_open_flows", |world| {
        for n in 0..100_000 {
            world.open(client(n));
            // Every second one begins a request that it never ends.
            if n % 2 == 0 {
                world.send(client(n), ISN + 1, 0, b"GET /half-open HTTP/1.1\r\nHo");
            }
            if n % 100 == 0 {
                world.pass(20_000_000);
            }
        }
    });
}

#[test]
fn a_hundred_thousand_connections_that_sent_a_byte() {
    alone("a_hundred_thousand_connections_that_sent_a_byte", |world| {
        for n in 0..100_000 {
            world.send(client(n), ISN + 1, 0, b"G");
            if n % 100 == 0 {
                world.pass(20_000_000);
            }
        }
    });
}

#[test]
fn ten_thousand_flows_each_holding_a_gap() {
    alone("ten_thousand_flows_each_holding_a_gap", |world| {
        let ahead = [b'x'; 8_000];
        let head = b"POST /gap HTTP/1.1\r\nHost: gap\r\nContent-Length: 100000\r\n\r\n";
        for n in 0..10_000 {
            world.open(client(n));
            world.send(client(n), ISN + 1, 0, head);
            // All within 0.8 s of flow time, so that no hole is given up meanwhile.
            if n % 20 == 0 {
                world.pass(800_000);
            }
        }
        for round in 0..3 {
            for n in 0..10_000 {
                world.send(client(n), ISN + 2_000 + round * 8_000, 0, &ahead);
                if n % 20 == 0 {
                    world.pass(200_000);
                }
            }
        }
    });
}

#[test]
fn one_source_sending_a_gigabyte_out_of_order() {
    alone("one_source_sending_a_gigabyte_out_of_order", |world| {
        const LEN: u32 = 8_900;
        const FLOWS: u32 = 64;
        const ROUNDS: u32 = (1 << 30) / LEN / FLOWS;
        let ahead = [b'x'; LEN as usize];
        let of = |n: u32| SocketAddr::from(([203, 0, 113, 66], u16::try_from(1_024 + n).unwrap()));
        for n in 0..FLOWS {
            world.open(of(n));
            world.send(
                of(n),
                ISN + 1,
                0,
                b"POST /flood HTTP/1.1\r\nHost: flood\r\nContent-Length: 999999999\r\n\r\n",
            );
        }
        for round in 0..ROUNDS {
            for n in 0..FLOWS {
                // Always one byte missing before the next segment.
                let seq = ISN + 100 + round * (LEN + 1);
                world.send(of(n), seq, 0, &ahead);
            }
            world.pass(2_000_000);
        }
        assert!(world.payload_in > 1_000_000_000);
    });
}

#[test]
fn one_byte_of_two() {
    alone("one_byte_of_two", |world| {
        for flow in 0..20 {
            world.send(client(flow), ISN + 1, 0, b"POST / HTTP/1.1\r\n");
            for n in 0..12_000 {
                world.send(client(flow), ISN + 100 + n * 2, 0, b"x");
                if n % 100 == 0 {
                    world.pass(100_000);
                }
            }
        }
    });
}

#[test]
fn heads_that_never_end() {
    alone("heads_that_never_end", |world| {
        let line = b"X-Long: 0123456789012345678901234567890123456789\r\n".repeat(24);
        for n in 0..3_000 {
            world.open(client(n));
            world.send(client(n), ISN + 1, 0, b"GET /long HTTP/1.1\r\n");
        }
        for round in 0..60 {
            for n in 0..3_000 {
                let seq = ISN + 21 + round * u32::try_from(line.len()).unwrap();
                world.send(client(n), seq, 0, &line);
                if n % 100 == 0 {
                    world.pass(1_000_000);
                }
            }
        }
    });
}

#[test]
fn bodies_that_never_end() {
    alone("bodies_that_never_end", |world| {
        let part = [b'x'; 8_000];
        let head = b"POST /slow HTTP/1.1\r\nHost: slow\r\nContent-Length: 1000000\r\n\r\n";
        for n in 0..2_000 {
            world.open(client(n));
            world.send(client(n), ISN + 1, 0, head);
            for round in 0..5 {
                let at = ISN + 1 + u32::try_from(head.len()).unwrap() + round * 8_000;
                world.send(client(n), at, 0, &part);
            }
            world.pass(1_000_000);
        }
        // What room is left is taken by many that are small. And then they are silent.
        for n in 2_000..3_000 {
            world.open(client(n));
            world.send(client(n), ISN + 1, 0, head);
        }
        for _ in 0..1_000 {
            world.pass(10_000_000);
        }
    });
}

#[test]
fn fragments_that_never_complete() {
    alone("fragments_that_never_complete", |world| {
        let body = [b'x'; 1_400];
        let server = IpAddr::V6("2001:db8::80".parse::<Ipv6Addr>().unwrap());
        for n in 0..100_000_u32 {
            let place = |id| Place::Fragment {
                id,
                offset: u16::try_from(n % 3).unwrap() * 1_400,
                more: true,
            };
            let v4 = build::packet(
                world.now,
                client(n / 7).ip(),
                SERVER.ip(),
                6,
                place(n % 0xffff),
                &body,
                false,
            );
            let v6: Ipv6Addr = "2001:db8:1::".parse().unwrap();
            let v6 = IpAddr::V6((v6.to_bits() + u128::from(n / 7)).into());
            let v6 = build::packet(world.now, v6, server, 6, place(n), &body, false);
            world.take(&v4);
            world.take(&v6);
            if n % 100 == 0 {
                world.pass(10_000_000);
            }
        }
        // All of IPv6 is one /64, so one sender: it is refused while it holds its share.
        let (held, refused) = (
            world.outcomes[&PacketOutcome::Fragment],
            world.outcomes[&PacketOutcome::OverCap],
        );
        assert_eq!(held + refused, 200_000);
        assert!(
            held >= 100_000 && refused > 0,
            "{held} held, {refused} refused"
        );
    });
}
