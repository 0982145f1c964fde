//! Rules 1, 5, 6 and 11 of the design, from the segments to the requests.

use proptest::prelude::*;

use crate::http::{Extractor, HttpOptions};
use crate::telemetry::PacketOutcome;

use super::property::{at, body_and_spans, cells, isn, shuffled_spans};
use super::*;

/// The extractor as a sink that keeps the requests' bytes and flags.
struct Http {
    extractor: Extractor,
    requests: Vec<(SocketAddr, Vec<u8>, Vec<&'static str>)>,
}

impl Http {
    fn new() -> Self {
        Self {
            extractor: Extractor::new(HttpOptions::default()),
            requests: Vec::new(),
        }
    }
}

impl Sink for Http {
    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        let requests = &mut self.requests;
        self.extractor.chunk(dir, ends, chunk, &mut |r| {
            requests.push((
                r.endpoints.src,
                r.raw.into_owned(),
                r.flags.names().collect(),
            ));
        })
    }
}

/// Some requests, one behind the other, with bodies in which request lines stand.
fn requests() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let one = prop_oneof![
        (1..30_usize).prop_map(|n| {
            format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(n)).into_bytes()
        }),
        (0..40_usize).prop_map(|n| {
            let body = format!("GET /inner HTTP/1.1\r\n\r\n{}", "b".repeat(n));
            let len = body.len();
            format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: {len}\r\n\r\n{body}").into_bytes()
        }),
        (1..20_usize).prop_map(|n| {
            let chunk = "c".repeat(n);
            format!(
                "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{n:x}\r\n{chunk}\r\n0\r\n\r\n"
            )
            .into_bytes()
        }),
    ];
    prop::collection::vec(one, 1..5)
}

/// What a mirror makes of a connection: its requests, the segments that it was cut into and some of them again, in any order.
fn connection() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<(usize, usize)>, u32)> {
    requests().prop_flat_map(|requests| {
        let len = requests.concat().len();
        (Just(requests), shuffled_spans(len), isn())
    })
}

fn segments(requests: &[Vec<u8>], spans: &[(usize, usize)], isn: u32) -> Vec<Seg> {
    let stream = requests.concat();
    spans
        .iter()
        .map(|(from, len)| {
            let s = seg(at(isn, *from), &stream[*from..from + len]).ack(501);
            if from + len == stream.len() {
                s.fin()
            } else {
                s
            }
        })
        .collect()
}

proptest! {
    /// Rule 1: the order, copies, the cuts and the initial sequence number change no request.
    #[test]
    fn a_connection_gives_its_requests_in_whatever_order_its_segments_come(
        (sent, spans, isn) in connection(),
        syn_at in 0..40_usize,
    ) {
        let mut streams = Streams::new(StreamOptions::default());
        let mut http = Http::new();
        let mut segs = segments(&sent, &spans, isn);
        segs.insert(syn_at.min(segs.len()), seg(isn, b"").syn());
        for (n, s) in segs.iter().enumerate() {
            streams.push(&segment(s, START + n as u64 * 1_000_000), &mut http);
            streams.check();
        }
        streams.finish(End::Eof, &mut http);
        let got: Vec<_> = http.requests.iter().map(|(_, raw, _)| raw.clone()).collect();
        prop_assert_eq!(got, sent);
        prop_assert!(http.requests.iter().all(|(_, _, flags)| flags.is_empty()), "{:?}", http.requests);
    }

    /// Rule 5: without the server's direction everything is the same, while no hole is older than the times of rule 3.
    #[test]
    fn the_servers_direction_changes_nothing(
        (sent, spans, isn) in connection(),
        answers in prop::collection::vec((0..400_usize, 0..40_u32, 0..4_u8), 40),
        start in any::<bool>(),
    ) {
        let segs = segments(&sent, &spans, isn);
        let mut out = Vec::new();
        for both in [true, false] {
            let mut streams = Streams::new(StreamOptions::default());
            let mut http = Http::new();
            let mut now = START;
            if start {
                streams.push(&segment(&seg(isn, b"").syn(), now), &mut http);
                if both {
                    streams.push(&segment(&reply(500, b"").syn().ack(at(isn, 0)), now), &mut http);
                }
            }
            let len = sent.concat().len();
            for (s, (acked, seq, what)) in segs.iter().zip(&answers) {
                streams.push(&segment(s, now), &mut http);
                if both {
                    let answer = reply(501 + seq, b"HTTP/1.1 200 OK\r\n").ack(at(isn, (*acked).min(len)));
                    let answer = match what {
                        0 => Seg { payload: Vec::new(), ..answer },
                        1 => answer.fin(),
                        _ => answer,
                    };
                    streams.push(&segment(&answer, now), &mut http);
                }
                now += MS; // 40 ms in all
            }
            for s in segs.iter().skip(answers.len()) {
                streams.push(&segment(s, now), &mut http);
            }
            streams.finish(End::Eof, &mut http);
            out.push(http.requests);
        }
        let client: SocketAddr = CLIENT.parse().unwrap();
        prop_assert!(out[1].iter().all(|(src, _, _)| *src == client));
        prop_assert_eq!(&out[0], &out[1]);
    }

    /// Rule 11: two peers whose segments interleave, one of them lossy, each get what they get alone.
    #[test]
    fn what_one_peer_sends_changes_nothing_for_another(
        (body, spans) in body_and_spans(),
        (other, other_spans) in body_and_spans(),
        isns in (isn(), isn()),
        fates in prop::collection::vec((any::<bool>(), 0..10_u8, prop_oneof![4 => Just(0), 1 => Just(60), 1 => Just(400), 1 => Just(1001)]), 120),
    ) {
        let peer = "10.0.0.7:41000";
        let make = |isn: u32, body: &[u8], (from, len): (usize, usize), fate: u8| {
            let s = seg(at(isn, from), &body[from..from + len]);
            match fate {
                0 => None,
                1 => Some(Seg { payload: s.payload[..len / 2].to_vec(), ..s }.cut(u32::try_from(len - len / 2).unwrap())),
                2 => Some(s.fin()),
                _ => Some(s),
            }
        };
        let (mut ours, mut theirs) = (spans.into_iter(), other_spans.into_iter());
        let mut all: Vec<(u64, Seg)> = Vec::new();
        let mut now = START;
        for (own, fate, ms) in fates {
            now += ms * MS + 1000;
            let s = if own {
                ours.next().and_then(|span| make(isns.0, &body, span, fate))
            } else {
                theirs.next().and_then(|span| make(isns.1, &other, span, fate)).map(|s| s.src(peer))
            };
            all.extend(s.map(|s| (now, s)));
        }
        let run = |who: Option<&str>| {
            let mut lab = Lab::new();
            for (now, s) in &all {
                if who.is_none_or(|who| s.src == who.parse().unwrap()) {
                    lab.now = *now;
                    lab.push(s);
                }
            }
            lab.wait(5 * SECOND);
            lab.finish();
            lab
        };
        let together = run(None);
        for who in [CLIENT, peer] {
            let alone = run(Some(who));
            prop_assert_eq!(together.logs(who), alone.logs(who));
        }
    }

    /// Rule 6: forged segments of one kind, wherever they stand, cost no byte and add none.
    #[test]
    fn forged_resets_fins_and_syns_are_harmless(
        (body, spans) in body_and_spans(),
        isn in isn(),
        kind in 0..3_u8,
        forged in prop::collection::vec((0..30_usize, 0..4_u8, any::<u32>(), any::<bool>()), 1..12),
    ) {
        let mut lab = Lab::new();
        lab.push(&seg(isn, b"").syn());
        let mut high = 0;
        let mut got = 0;
        for (i, (from, len)) in spans.iter().enumerate() {
            for (_, place, number, server) in forged.iter().filter(|(when, ..)| *when == i) {
                let seq = match place {
                    0 => at(isn, high),
                    1 => at(isn, got),
                    2 => at(isn, 0).wrapping_add(number % 2000),
                    _ => *number,
                };
                let first = seq.wrapping_add(1);
                if kind == 2 && spans.iter().any(|(from, _)| at(isn, *from) == first) {
                    // Whoever forges a SYN exactly before a segment that overtook others could forge that as well.
                    continue;
                }
                let s = seg(seq, b"");
                let s = match kind {
                    0 if *server => reply(*number, b"").rst().ack(seq),
                    0 => s.rst(),
                    1 => s.fin(),
                    _ => s.syn(),
                };
                prop_assert_eq!(lab.push(&s), PacketOutcome::Control);
            }
            lab.push(&seg(at(isn, *from), &body[*from..from + len]));
            high = high.max(from + len);
            got = text(lab.logs(CLIENT).first().copied().unwrap_or_default()).len();
            lab.now += 20 * MS; // below a second in all
        }
        prop_assert_eq!(lab.logs(CLIENT).len(), 1, "a second stream");
        prop_assert_eq!(text(lab.log()), &body[..]);
        lab.finish();
        // A FIN that was forged behind the end may tell bytes that never were.
        let end = text(lab.log());
        prop_assert_eq!(&end[..body.len()], &body[..]);
        prop_assert!(end[body.len()..].iter().all(|b| *b == b'~') && (kind == 1 || end.len() == body.len()));
    }

    /// Rules 2 and 7: under either policy each byte is one that was captured at its place, and where copies that were
    /// held disagreed it is marked.
    #[test]
    fn under_either_policy_each_byte_is_one_of_its_copies(
        (body, spans) in body_and_spans(),
        isn in isn(),
        linux in any::<bool>(),
        odd in prop::collection::vec(0..4_u8, 40),
    ) {
        let policy = if linux { crate::stream::OverlapPolicy::Linux } else { crate::stream::OverlapPolicy::First };
        let mut lab = Lab::with(StreamOptions { overlap: policy, ..StreamOptions::default() });
        let mut copies: Vec<Vec<u8>> = vec![Vec::new(); body.len()];
        // All but the first byte, so that all is held; then that.
        for ((from, len), odd) in spans.iter().zip(&odd) {
            let from = (*from).max(1);
            let bytes: Vec<u8> = body.get(from..from + len - 1).unwrap_or_default().iter().map(|b| b ^ u8::from(*odd == 0)).collect();
            for (i, byte) in bytes.iter().enumerate() {
                copies[from + i].push(*byte);
            }
            if !bytes.is_empty() {
                lab.push(&seg(isn, b"").syn());
                lab.push(&seg(at(isn, from), &bytes));
            }
        }
        copies[0].push(body[0]);
        lab.push(&seg(isn, b"").syn());
        lab.push(&seg(at(isn, 0), &body[..1]));
        lab.finish();
        for (cell, copies) in cells(lab.log()).iter().zip(&copies) {
            match cell {
                Some((byte, conflict)) => {
                    prop_assert!(copies.contains(byte), "a byte was made up");
                    let agree = copies.iter().all(|copy| copy == byte);
                    prop_assert!(agree || *conflict, "a conflict is not marked");
                }
                None => prop_assert!(copies.is_empty(), "a byte was lost"),
            }
        }
    }
}
