//! Captures of nobody's design: true and forged segments, FINs, RSTs, SYNs, cuts, fragments, tags, jumps of time and
//! plain rubbish, under roomy and under tiny caps.
//!
//! Whatever comes, every byte of a request was captured at consecutive sequence numbers of its own direction (rule 2,
//! rule 3), each packet has one outcome, and each byte a number (rule 10); and nobody else's requests change (rule 11).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;
use rebuilder::decode::{DecodeOptions, Decoder, TcpFlags};
use rebuilder::http::{Flags, HttpOptions};
use rebuilder::pipeline::PipelineOptions;
use rebuilder::receive::LinkType;
use rebuilder::stream::{FlowScope, OverlapPolicy, StreamOptions};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::build::{self, Says};
use crate::random::Random;
use crate::run::run;
use crate::simulator::{self, Mirror};
use crate::wire::{self, Owned};

/// One frame of the capture.
#[derive(Clone, Debug)]
struct Act {
    connection: usize,
    from_client: bool,
    /// Which of two lives of the connection: each has its own sequence numbers.
    life: usize,
    what: What,
    /// Moves time: ms, mostly forward.
    pause: i64,
    dress: Dress,
}

#[derive(Clone, Debug)]
enum What {
    /// Bytes of the stream from a place on, all but `lie` (if not zero) true.
    Data {
        at: usize,
        len: usize,
        lie: u8,
        flags: u8,
    },
    /// All of the stream in segments of this size.
    All { size: usize },
    /// A segment without payload, at a place of the stream.
    Bare { at: usize, flags: u8 },
    /// Not even that.
    Rubbish(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Dress {
    Bare,
    Vxlan(u32),
    Tagged,
    /// In IP fragments, of which the one of this number is lost.
    Fragments(usize),
    /// Cut behind so many bytes.
    Cut(usize),
    BadChecksum,
}

/// What a direction has to say; places in it are offsets from its ISN plus one.
fn stream(connection: usize, from_client: bool, life: usize) -> Vec<u8> {
    if !from_client {
        return format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlife{life}")
            .repeat(6)
            .into_bytes();
    }
    let n = connection * 10 + life;
    let mut out = Vec::new();
    for r in 0..4 {
        let body = format!("GET /not/{n}/{r} HTTP/1.1\r\n\r\n{}", "z".repeat(r * 40));
        out.extend_from_slice(match r {
            0 => format!("GET /{n}/{r} HTTP/1.1\r\nHost: h{n}\r\n\r\n"),
            1 => format!("POST /{n}/{r} HTTP/1.1\r\nHost: h{n}\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            2 => format!("PUT /{n}/{r} HTTP/1.1\r\nHost: h{n}\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            _ => format!("GET /{n}/{r} HTTP/1.0\nHost: h{n}\nConnection: close\n\n"),
        }.as_bytes());
    }
    out
}

fn isn(connection: usize, from_client: bool, life: usize) -> u32 {
    let base = [u32::MAX - 100, 77, 0x7fff_ff80][connection % 3];
    // Lives lie near enough to be taken for one another.
    let apart = if connection == 0 { 900 } else { 40_000_000 };
    let life = u32::try_from(life).unwrap();
    base.wrapping_add(life * apart)
        .wrapping_add(if from_client { 0 } else { 0x1000_0000 })
}

fn ends(connection: usize) -> Ends {
    if connection == 2 {
        (
            "[2001:db8::2]:5002".parse().unwrap(),
            "[2001:db8::80]:80".parse().unwrap(),
        )
    } else {
        let port = u16::try_from(5_000 + connection).unwrap();
        (([192, 0, 2, 1], port).into(), ([10, 0, 0, 80], 80).into())
    }
}

fn segments(act: &Act, now: u64) -> Vec<Owned> {
    let text = stream(act.connection, act.from_client, act.life);
    let start = isn(act.connection, act.from_client, act.life).wrapping_add(1);
    let ack = isn(act.connection, !act.from_client, act.life).wrapping_add(1);
    let (client, server) = ends(act.connection);
    let (src, dst) = if act.from_client {
        (client, server)
    } else {
        (server, client)
    };
    let make = |at: usize, payload: &[u8], flags: u8| {
        // A SYN stands one before its first byte.
        let before = u32::from(flags & wire::SYN != 0);
        let seq = start
            .wrapping_add(u32::try_from(at).unwrap())
            .wrapping_sub(before);
        let says = Says {
            seq,
            ack: Some(ack),
            flags,
            payload,
        };
        build::segment(now, src, dst, says)
    };
    match &act.what {
        What::Data {
            at,
            len,
            lie,
            flags,
        } => {
            let at = at % text.len();
            let mut payload = text[at..(at + len).min(text.len())].to_vec();
            if *lie != 0 {
                let middle = payload.len() / 2;
                payload[middle] ^= lie;
            }
            vec![make(at, &payload, *flags)]
        }
        What::All { size } => text
            .chunks(*size)
            .enumerate()
            .map(|(n, payload)| make(n * size, payload, 0))
            .collect(),
        What::Bare { at, flags } => vec![make(at % (text.len() + 2), &[], *flags)],
        What::Rubbish(data) => vec![Owned {
            ts: Timestamp(now),
            link: LinkType::Ethernet,
            data: data.clone(),
        }],
    }
}

fn dressed(frame: &Owned, dress: &Dress, id: u16) -> Vec<Owned> {
    match dress {
        Dress::Bare => vec![frame.clone()],
        Dress::Vxlan(vni) => wire::mirrored(frame, *vni).into_iter().collect(),
        Dress::Tagged => vec![wire::tagged(frame, &[[0x88a8, 1], [0x8100, 2]])],
        Dress::Fragments(lost) => {
            let mut pieces = wire::fragments(frame, 64, id);
            if *lost < pieces.len() && pieces.len() > 1 {
                pieces.remove(*lost);
            }
            pieces
        }
        Dress::Cut(at) => {
            let mut data = frame.data.clone();
            data.truncate(*at);
            vec![frame.with(data)]
        }
        Dress::BadChecksum => {
            let mut data = frame.data.clone();
            if let Some(at) = wire::layout(frame.link, &data) {
                data[at.tcp + 16] ^= 0x55;
            }
            vec![frame.with(data)]
        }
    }
}

fn capture(acts: &[Act]) -> Vec<Owned> {
    let mut now = 1_700_000_000_000_i64;
    let mut out = Vec::new();
    for (n, act) in acts.iter().enumerate() {
        now += act.pause;
        let ns = u64::try_from(now).unwrap() * 1_000_000;
        for (m, frame) in segments(act, ns).iter().enumerate() {
            let id = u16::try_from((n * 40 + m) % 0xffff).unwrap();
            out.extend(dressed(frame, &act.dress, id));
        }
    }
    out
}

fn act() -> impl Strategy<Value = Act> {
    let flags = prop_oneof![
        8 => Just(0), 2 => Just(wire::PSH), 1 => Just(wire::FIN), 1 => Just(wire::SYN), 1 => Just(wire::RST),
        1 => Just(wire::URG), 1 => any::<u8>().prop_map(|f| f & 0x3f),
    ];
    let bare = prop_oneof![
        3 => Just(wire::SYN), 2 => Just(wire::FIN), 2 => Just(wire::RST), 2 => Just(0), 1 => any::<u8>().prop_map(|f| f & 0x3f),
    ];
    let lie = prop_oneof![9 => Just(0_u8), 1 => any::<u8>()];
    let what = prop_oneof![
        8 => (0..700_usize, 1..300_usize, lie, flags).prop_map(|(at, len, lie, flags)| What::Data { at, len, lie, flags }),
        2 => (1..400_usize).prop_map(|size| What::All { size: size.max(20) }),
        3 => (0..700_usize, bare).prop_map(|(at, flags)| What::Bare { at, flags }),
        1 => prop::collection::vec(any::<u8>(), 0..120).prop_map(What::Rubbish),
    ];
    let pause = prop_oneof![
        20 => 0..5_i64, 3 => 0..300_i64, 2 => 900..2_500_i64, 1 => Just(700_000), 1 => -50..0_i64,
    ];
    let dress = prop_oneof![
        10 => Just(Dress::Bare), 3 => (1..3_u32).prop_map(Dress::Vxlan), 1 => Just(Dress::Tagged),
        2 => (0..8_usize).prop_map(Dress::Fragments), 2 => (0..400_usize).prop_map(Dress::Cut), 1 => Just(Dress::BadChecksum),
    ];
    let life = prop_oneof![5 => Just(0_usize), 1 => Just(1)];
    (
        0..3_usize,
        prop::bool::weighted(0.75),
        life,
        what,
        pause,
        dress,
    )
        .prop_map(|(connection, from_client, life, what, pause, dress)| Act {
            connection,
            from_client,
            life,
            what,
            pause,
            dress,
        })
}

fn options() -> impl Strategy<Value = PipelineOptions> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(tiny, linux, by_vni)| {
        let mut options = PipelineOptions::default();
        if tiny {
            options.stream = StreamOptions {
                flow_cap: 1_500,
                total_cap: 4_000,
                max_flows: 2,
                gap_after: Duration::from_millis(200),
                ..StreamOptions::default()
            };
            options.http = HttpOptions {
                max_head: 100,
                max_request: 150,
                max_held: 700,
                ..HttpOptions::default()
            };
        }
        if linux {
            options.stream.overlap = OverlapPolicy::Linux;
        }
        if by_vni {
            options.stream.flow_scope = FlowScope::Vni;
        }
        options
    })
}

/// Which bytes were captured at a sequence number of a direction, and when.
#[derive(Default)]
struct Seen(BTreeMap<Ends, BTreeMap<u32, Vec<(u8, Timestamp)>>>);

/// Sender and receiver.
type Ends = (SocketAddr, SocketAddr);

impl Seen {
    /// All that the decoder takes out of a capture, and how many payload bytes that is.
    fn of(frames: &[Owned]) -> (Self, u64) {
        let mut decoder = Decoder::new(DecodeOptions::default());
        let (mut seen, mut payload) = (Self::default(), 0);
        for frame in frames {
            let Ok(s) = decoder.decode(&frame.frame()) else {
                continue;
            };
            payload += s.payload.len() as u64;
            let map = seen.0.entry((s.src, s.dst)).or_default();
            let mut seq = s
                .seq
                .0
                .wrapping_add(u32::from(s.flags.contains(TcpFlags::SYN)));
            for byte in s.payload {
                map.entry(seq).or_default().push((*byte, s.ts));
                seq = seq.wrapping_add(1);
            }
        }
        (seen, payload)
    }

    /// Whether these bytes were captured at consecutive sequence numbers, the first of them at that time.
    fn has(&self, direction: Ends, raw: &[u8], ts: Timestamp) -> bool {
        let Some(map) = self.0.get(&direction) else {
            return false;
        };
        map.iter()
            .filter(|(_, first)| first.contains(&(raw[0], ts)))
            .any(|(start, _)| {
                raw.iter().enumerate().all(|(n, byte)| {
                    let seq = start.wrapping_add(u32::try_from(n).unwrap());
                    map.get(&seq)
                        .is_some_and(|seen| seen.iter().any(|(b, _)| b == byte))
                })
            })
    }
}

fn cases() -> u32 {
    std::env::var("PROOF_CASES").map_or(300, |n| n.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn no_capture_makes_a_byte_up_or_leaves_one_without_a_number(
        mut acts in prop::collection::vec(act(), 1..60),
        one_sided in any::<bool>(),
        options in options(),
    ) {
        acts.iter_mut().for_each(|act| act.from_client |= one_sided);
        let frames = capture(&acts);
        let (seen, payload) = Seen::of(&frames);
        let run = run(&frames, &options);

        for request in &run.requests {
            let ends = request.endpoints;
            prop_assert!(!request.raw.is_empty());
            prop_assert!(
                seen.has((ends.src, ends.dst), &request.raw, request.ts),
                "not captured: {}", request.raw.escape_ascii()
            );
            // A whole request has its whole head, and its parts lie within it.
            prop_assert!(request.head_end <= request.raw.len());
            prop_assert!(request.line_start <= request.method.start);
            prop_assert!(request.method.end < request.target.start || request.target.is_empty());
        }
        let raw: usize = run.requests.iter().map(|r| r.raw.len()).sum();
        prop_assert!(
            run.stats.delivered_bytes + run.stats.shed_bytes <= payload,
            "more went out than came in: {payload} {:?}", run.stats
        );
        // The rest went to directions that are no HTTP, whose packets say so; `table.rs` has only such that are.
        prop_assert!(raw as u64 + run.http.skipped_bytes <= run.stats.delivered_bytes);
        let over_cap = run.outcomes.get(&PacketOutcome::OverCap).copied().unwrap_or(0);
        prop_assert!(over_cap == 0 || run.stats.shed_bytes > 0, "over_cap packets, and no byte shed");
    }

    #[test]
    fn true_bytes_in_any_order_and_shape_give_the_requests_that_were_sent(
        cuts in prop::collection::vec(1..700_usize, 0..40),
        again in prop::collection::vec((0..700_usize, 1..300_usize), 0..20),
        order in any::<u64>(),
        dresses in prop::collection::vec(0..4_usize, 8),
        connection in 0..3_usize,
    ) {
        let text = stream(connection, true, 0);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % text.len()).chain([0, text.len()]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut parts: Vec<(usize, usize)> = cuts.windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        parts.extend(again.iter().map(|(at, len)| (at % text.len(), *len)));
        let mut random = Random(order);
        for n in (1..parts.len()).rev() {
            parts.swap(n, usize::try_from(random.below(n as u64 + 1)).unwrap());
        }
        let act = |what| Act { connection, from_client: true, life: 0, what, pause: 0, dress: Dress::Bare };
        let mut acts = vec![act(What::Bare { at: 0, flags: wire::SYN })];
        acts.extend(parts.iter().enumerate().map(|(n, (at, len))| Act {
            dress: match dresses[n % dresses.len()] {
                0 => Dress::Bare,
                1 => Dress::Vxlan(9),
                2 => Dress::Tagged,
                _ => Dress::Fragments(usize::MAX),
            },
            ..act(What::Data { at: *at, len: *len, lie: 0, flags: 0 })
        }));
        let frames = capture(&acts);
        let run = run(&frames, &PipelineOptions::default());
        let got: Vec<u8> = run.requests.iter().flat_map(|r| r.raw.to_vec()).collect();
        prop_assert_eq!(got.escape_ascii().to_string(), text.escape_ascii().to_string());
        prop_assert_eq!(run.requests.len(), 4);
        let bad = Flags::all() - Flags::DISPUTED - Flags::HOP;
        prop_assert!(run.requests.iter().all(|r| !r.flags.intersects(bad)));
        prop_assert_eq!(run.stats.delivered_bytes, text.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: (cases() / 5).max(1), max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    /// Rule 11, on the way in. (Time stamps are the receiver's, so nobody's traffic jumps in time.)
    #[test]
    fn nobody_s_traffic_changes_another_s_requests(
        acts in prop::collection::vec(act(), 1..80),
        seed in any::<u64>(),
        poor in any::<bool>(),
    ) {
        let (connections, frames) = simulator::connections(seed, 3, 3);
        let mirror = Mirror {
            loss: if poor { 5 } else { 0 },
            reorder: 10,
            duplicate: 10,
            ..Mirror::default()
        };
        let honest: Vec<Owned> = mirror.copy(seed, &frames).iter().map(simulator::bare).collect();
        let mut random = Random(seed);
        let (first, last) = (honest[0].ts.0, honest[honest.len() - 1].ts.0);
        let mut all = honest.clone();
        all.extend(capture(&acts).into_iter().map(|frame| Owned {
            ts: Timestamp(first + random.below(last - first + 1)),
            ..frame
        }));
        all.sort_by_key(|frame| frame.ts);
        let of_the_honest = |frames: &[Owned]| {
            let run = run(frames, &PipelineOptions::default());
            let mut rows: Vec<String> = run
                .requests
                .iter()
                .filter(|r| connections.iter().any(|c| c.client == r.endpoints.src))
                .map(crate::run::row)
                .collect();
            rows.sort();
            rows
        };
        let want = of_the_honest(&honest);
        prop_assert!(poor || want.len() == 9);
        prop_assert_eq!(of_the_honest(&all), want);
    }
}
