//! Gaps, ends, and connections that were already running.

use super::*;

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";
const POST: &str = "POST /p HTTP/1.1\r\nContent-Length: 10\r\n\r\n";
const CHUNKED: &str = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn a_gap_in_a_body_of_known_length_keeps_the_framing() {
    let outcome = run(&[seg(format!("{POST}ab")), Gap(5), seg(format!("xyz{NEXT}"))]);
    assert_eq!(outcome.lines(), ["POST /p", "GET /next"]);
    assert_eq!(outcome.requests[0].raw, format!("{POST}ab").as_bytes());
    assert_eq!(outcome.requests[0].body_len, 2);
    assert_eq!(outcome.flags(), [Flags::TRUNCATED, Flags::empty()]);
    assert_eq!(outcome.counters.skipped_bytes, 3);
    // Two gaps, and one that ends exactly with the body.
    let outcome = run(&[
        seg(format!("{POST}ab")),
        Gap(3),
        seg("c"),
        Gap(4),
        seg(NEXT),
    ]);
    assert_eq!(outcome.flags(), [Flags::TRUNCATED, Flags::empty()]);
    // The whole body is missing.
    let outcome = run(&[seg(POST), Gap(10), More(NEXT.into())]);
    assert_eq!(outcome.flags(), [Flags::TRUNCATED, Flags::empty()]);
}

#[test]
fn a_gap_longer_than_the_rest_of_the_body_loses_the_framing() {
    let events = [
        seg(format!("{POST}ab")),
        Gap(9),
        More(NEXT.into()),
        seg(NEXT),
        seg(NEXT),
    ];
    let outcome = run(&events);
    assert_eq!(outcome.lines(), ["POST /p", "GET /next", "GET /next"]);
    assert_eq!(
        outcome.flags(),
        [Flags::TRUNCATED, Flags::RESYNCED, Flags::empty()]
    );
    assert_eq!(outcome.counters.skipped_bytes, NEXT.len() as u64);
}

#[test]
fn a_gap_in_a_head_or_at_a_boundary_loses_the_framing() {
    let head = run(&[
        seg("GET /lost HTTP/1.1\r\nA:"),
        Gap(4),
        seg("b\r\n\r\n"),
        seg(NEXT),
    ]);
    assert_eq!(head.lines(), ["GET /next"]);
    assert_eq!(head.flags(), [Flags::RESYNCED]);
    assert_eq!(
        (head.counters.incomplete_heads, head.counters.resyncs),
        (1, 1)
    );
    let boundary = run(&[seg(NEXT), Gap(4), seg(NEXT)]);
    assert_eq!(boundary.flags(), [Flags::empty(), Flags::RESYNCED]);
    assert_eq!(boundary.counters.incomplete_heads, 0);
    let first = run(&[Gap(1), seg(NEXT)]);
    assert_eq!(first.flags(), [Flags::RESYNCED]);
}

/// A hole may end anywhere, so the segment behind it may begin inside of a method. `ET` is none that anybody sent.
#[test]
fn the_tail_of_a_method_begins_no_request() {
    for request in ["GET /a", "POST /a", "PATCH /a", "DELETE /a"] {
        let head = format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n");
        let method = request.find(' ').unwrap();
        for at in 1..method {
            let outcome = run(&[Gap(at as u64), seg(&head[at..]), seg(NEXT)]);
            assert_eq!(outcome.lines(), ["GET /next"], "{}", &head[at..]);
            // One byte a segment: every byte of the tail is a beginning.
            let mut events = vec![Gap(at as u64)];
            events.extend(head[at..method + 1].bytes().map(|byte| seg([byte])));
            events.extend([More(head[method + 1..].into()), seg(NEXT)]);
            assert_eq!(run(&events).lines(), ["GET /next"], "{}", &head[at..]);
        }
    }
    // One that no server knows is found all the same.
    let own = run(&[Gap(1), seg("FROB /a HTTP/1.1\r\nHost: x\r\n\r\n")]);
    assert_eq!(own.lines(), ["FROB /a"]);
}

#[test]
fn a_gap_inside_the_data_of_a_chunk_keeps_the_framing() {
    let outcome = run(&[
        seg(format!("{CHUNKED}3\r\nabc\r\n10\r\n0123")),
        Gap(10),
        seg("ef\r\n1\r\nz\r\n0\r\n\r\n"),
        More(NEXT.into()),
    ]);
    assert_eq!(outcome.lines(), ["POST /p", "GET /next"]);
    let request = &outcome.requests[0];
    assert_eq!(
        request.raw,
        format!("{CHUNKED}3\r\nabc\r\n10\r\n0123").as_bytes()
    );
    assert_eq!(request.body_len, 7);
    assert_eq!(request.last_whole_chunk_end, CHUNKED.len() + 8);
    assert_eq!(outcome.flags(), [Flags::TRUNCATED, Flags::empty()]);
}

#[test]
fn a_gap_over_the_framing_of_a_chunk_loses_it() {
    for behind in [
        "3\r\nabc\r\n",
        "3\r\nabc",
        "3\r\nab",
        "3",
        "3\r\nabc\r\n0\r\n",
    ] {
        let outcome = run(&[
            seg(format!("{CHUNKED}{behind}")),
            Gap(12),
            seg("bc\r\n0\r\n\r\n"),
            seg(NEXT),
        ]);
        assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{behind:?}");
        assert_eq!(
            outcome.requests[0].raw,
            format!("{CHUNKED}{behind}").as_bytes()
        );
        assert_eq!(
            outcome.flags(),
            [Flags::TRUNCATED, Flags::RESYNCED],
            "{behind:?}"
        );
    }
}

#[test]
fn an_unfinished_body_is_aborted_by_the_client_and_truncated_by_the_capture() {
    for body in [format!("{POST}abc"), format!("{CHUNKED}3\r\nabc\r\n4")] {
        for (end, flag) in [
            (End::Fin, Flags::ABORTED),
            (End::Reset, Flags::ABORTED),
            (End::Idle, Flags::TRUNCATED),
            (End::Eof, Flags::TRUNCATED),
        ] {
            let outcome = run_with(HttpOptions::default(), false, &[seg(&body)], end);
            assert_eq!(outcome.only().flags, flag);
            assert_eq!(outcome.only().raw, body.as_bytes());
            assert_eq!(outcome.only().body_len, 3);
        }
    }
}

#[test]
fn an_unfinished_head_is_counted_and_gives_no_row() {
    let outcome = run(&[seg(format!("{NEXT}\r\nGET / HTTP/1.1\r\nHost: x\r\n"))]);
    assert_eq!(outcome.lines(), ["GET /next"]);
    assert_eq!(outcome.counters.incomplete_heads, 1);
    // The line end that old clients send behind a body is no head.
    let outcome = run(&[seg(format!("{NEXT}\r\n"))]);
    assert_eq!(outcome.counters.incomplete_heads, 0);
}

fn midstream(events: &[Event]) -> Outcome {
    run_with(HttpOptions::default(), true, events, End::Fin)
}

#[test]
fn every_request_of_a_running_connection_is_flagged_midstream() {
    let outcome = midstream(&[seg("rest of a body"), seg(format!("{NEXT}{NEXT}"))]);
    assert_eq!(outcome.flags(), [Flags::MIDSTREAM; 2]);
    assert_eq!(outcome.counters.resyncs, 0);
    let outcome = midstream(&[seg(NEXT), Gap(3), seg(NEXT)]);
    assert_eq!(
        outcome.flags(),
        [Flags::MIDSTREAM, Flags::MIDSTREAM | Flags::RESYNCED]
    );
}

/// Once, whoever was joined in the middle of a body of his own could end his reading by how its segments begin.
#[test]
fn what_looks_like_an_answer_tls_or_http_2_in_a_running_connection_hides_no_request() {
    let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for (segments, presumed) in [
        (
            &["body", "HTTP/1.1 200 OK\r\n\r\n", "x"][..],
            PacketOutcome::Response,
        ),
        (&["\x17\x03\x03\0\x20abc", "x"], PacketOutcome::Tls),
        (
            &["\x17\x03\x03\0\x20abc", "HTTP/1.0 404 "],
            PacketOutcome::Response,
        ),
        (&[preface, "x"], PacketOutcome::Http2),
    ] {
        let mut events: Vec<Event> = segments.iter().map(seg).collect();
        let seen = midstream(&events);
        assert_eq!(seen.interest, Interest::Presumed(presumed));
        // What was passed over counts only once it is known that requests are there.
        assert_eq!(seen.counters.skipped_bytes, 0);
        events.extend([seg(NEXT), seg("HTTP/1.1 200 OK\r\n\r\n"), seg(NEXT)]);
        let found = midstream(&events);
        assert_eq!(found.lines(), ["GET /next"; 2]);
        let answer = "HTTP/1.1 200 OK\r\n\r\n".len();
        let passed: usize = segments.iter().map(|s| s.len()).sum();
        assert_eq!(found.counters.skipped_bytes, (passed + answer) as u64);
        assert_eq!(found.flags()[0], Flags::MIDSTREAM);
        assert_eq!(found.interest, Interest::Wanted);
    }
    // The same where a hole hides the first head of a connection whose SYN was seen.
    let answer = seg("HTTP/1.1 200 OK\r\n\r\n");
    let lost = run(&[seg("POST / HT"), Gap(100), answer, seg(NEXT)]);
    assert_eq!(lost.lines(), ["GET /next"]);
}

#[test]
fn a_search_without_result_ends_at_its_bound() {
    let options = HttpOptions {
        max_search: 1000,
        ..HttpOptions::default()
    };
    let junk = || seg([0u8; 500]);
    let outcome = run_with(options.clone(), true, &[junk(), junk()], End::Fin);
    assert_eq!(outcome.interest, Interest::Wanted);
    let outcome = run_with(options.clone(), true, &[junk(), junk(), seg("a")], End::Fin);
    assert_eq!(outcome.interest, opaque(PacketOutcome::NotHttp));
    // A request in between begins a new count.
    let outcome = run_with(
        options,
        true,
        &[junk(), junk(), seg(NEXT), Gap(1), junk(), seg(NEXT), junk()],
        End::Fin,
    );
    assert_eq!(outcome.requests.len(), 2);
    assert_eq!(outcome.interest, Interest::Wanted);
}

#[test]
fn a_search_takes_only_a_strict_request_line_at_the_start_of_a_segment() {
    for not in [
        "xGET /next HTTP/1.1\n\r\n\r\n",
        "GET /a b HTTP/1.1\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\n\r\n",
        " GET / HTTP/1.1\r\n\r\n",
        "GET HTTP/1.1\r\n\r\n",
    ] {
        assert_eq!(midstream(&[seg(not)]).requests.len(), 0, "{not:?}");
        // ... and what it rejects does not hide what comes at the next start.
        assert_eq!(
            midstream(&[seg(not), seg(NEXT)]).lines(),
            ["GET /next"],
            "{not:?}"
        );
    }
    assert_eq!(midstream(&[More(NEXT.into())]).requests.len(), 0);
}

#[test]
fn a_search_finds_a_line_cut_anywhere_and_the_right_one_of_several_beginnings() {
    for at in 1..NEXT.len() {
        let outcome = midstream(&[seg("junk one"), seg(&NEXT[..at]), seg(&NEXT[at..])]);
        assert_eq!(outcome.only().raw, NEXT.as_bytes(), "cut at {at}");
        assert_eq!(outcome.only().ts, Timestamp(2));
    }
    // `a b GET /next HTTP/1.1` has too many spaces to be a line itself; the candidate inside it is one.
    let outcome = midstream(&[seg("a"), seg(" "), seg("b "), seg(NEXT)]);
    assert_eq!(outcome.only().raw, NEXT.as_bytes());
    assert_eq!(outcome.only().ts, Timestamp(4));
    assert_eq!(outcome.counters.skipped_bytes, 4);
}

#[test]
fn letters_before_a_request_line_do_not_become_a_part_of_its_method() {
    let body = "QUJDREVGR0hJSktM".repeat(100);
    for tail in ["zzzz", &body, "GET"] {
        for events in [
            vec![seg(tail), seg(NEXT)],
            vec![seg(tail), seg(&NEXT[..2]), seg(&NEXT[2..])],
        ] {
            let outcome = midstream(&events);
            assert_eq!(outcome.only().raw, NEXT.as_bytes(), "behind {tail}");
        }
    }
    // Cut anywhere, a method that ends in another one stays whole, and so does one that nobody registered.
    for line in ["PROPPATCH /next", "FROBNICATE /next"] {
        let request = format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n");
        let bytes: Vec<_> = request.bytes().map(|b| seg([b])).collect();
        assert_eq!(midstream(&bytes).lines(), [line]);
    }
}

#[test]
fn what_a_search_holds_is_bounded_by_max_head() {
    let mut extractor = Extractor::new(HttpOptions {
        max_head: 1000,
        ..HttpOptions::default()
    });
    extractor.chunk(
        DirectionId::new(1, 1),
        &ends(),
        Chunk::Open { midstream: true },
        &mut |_| (),
    );
    let mut worst = 0;
    for n in 0..5000 {
        let chunk = Chunk::Data {
            bytes: if n == 0 { b"GET /" } else { b"a" },
            ts: Timestamp(1),
            segment_start: true,
            conflict: false,
        };
        extractor.chunk(DirectionId::new(1, 1), &ends(), chunk, &mut |_| ());
        worst = worst.max(extractor.held_bytes());
    }
    assert!((1000..=2048).contains(&worst), "{worst}");
}

#[test]
fn a_direction_that_was_never_opened_is_a_running_one() {
    let mut extractor = Extractor::new(HttpOptions::default());
    let mut flags = Vec::new();
    let chunk = Chunk::Data {
        bytes: NEXT.as_bytes(),
        ts: Timestamp(1),
        segment_start: true,
        conflict: false,
    };
    extractor.chunk(DirectionId::new(9, 9), &ends(), chunk, &mut |r| {
        flags.push(r.flags);
    });
    assert_eq!(flags, [Flags::MIDSTREAM]);
}

/// Feeds `count` directions of their own sources with `pieces` each, and says what came and the most that was held.
fn crowd(
    max_held: usize,
    count: u8,
    pieces: &[&str],
) -> (Vec<Request<'static>>, HttpCounters, usize) {
    let mut extractor = Extractor::new(HttpOptions {
        max_held,
        ..HttpOptions::default()
    });
    let mut requests = Vec::new();
    let mut worst = 0;
    let ends = |n: u8| Endpoints {
        src: std::net::SocketAddr::from(([198, 51, 100, n], 4000)),
        ..ends()
    };
    for n in 0..count {
        let dir = DirectionId::new(n.into(), n.into());
        extractor.chunk(dir, &ends(n), Chunk::Open { midstream: false }, &mut |_| ());
    }
    for bytes in pieces {
        for n in 0..count {
            let chunk = Chunk::Data {
                bytes: bytes.as_bytes(),
                ts: Timestamp(1),
                segment_start: true,
                conflict: false,
            };
            extractor.chunk(
                DirectionId::new(n.into(), n.into()),
                &ends(n),
                chunk,
                &mut |r| {
                    requests.push(r.into_owned());
                },
            );
            worst = worst.max(extractor.held_bytes());
        }
    }
    for n in 0..count {
        let chunk = Chunk::Closed(End::Fin);
        extractor.chunk(
            DirectionId::new(n.into(), n.into()),
            &ends(n),
            chunk,
            &mut |r| {
                requests.push(r.into_owned());
            },
        );
    }
    assert_eq!(extractor.held_bytes(), 0);
    (requests, extractor.counters(), worst)
}

#[test]
fn beyond_max_held_bodies_are_cut_and_their_framing_is_kept() {
    let head = "POST /p HTTP/1.1\r\nContent-Length: 1000\r\n\r\n";
    let half = "x".repeat(500);
    let last = format!("{half}{NEXT}");
    let (requests, counters, worst) = crowd(20_000, 100, &[head, &half, &last]);
    assert!((15_000..=20_000).contains(&worst), "{worst}");
    assert_eq!(
        requests.len(),
        200,
        "each direction still gives both of its requests"
    );
    let cut = requests
        .iter()
        .filter(|r| r.flags == Flags::TRUNCATED)
        .count();
    assert_eq!(counters.shed_requests, cut as u64);
    assert!((50..100).contains(&cut), "{cut}");
    assert!(
        requests
            .iter()
            .filter(|r| r.flags.is_empty())
            .all(|r| [1000, 0].contains(&r.body_len))
    );
}

#[test]
fn beyond_max_held_heads_and_proxy_headers_are_given_up() {
    let long = format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(500));
    let (requests, counters, worst) = crowd(20_000, 100, &[&long, "\r\n\r\n", NEXT]);
    assert!((15_000..=20_000).contains(&worst), "{worst}");
    assert!(counters.shed_heads >= 60, "{}", counters.shed_heads);
    assert_eq!(counters.resyncs, counters.shed_heads);
    assert_eq!(requests.len() as u64, 200 - counters.shed_heads);
    let proxy = format!("\r\n\r\n\0\r\nQUIT\n\x21\x11\x7f\x7f{}", "x".repeat(500));
    let (_, counters, worst) = crowd(20_000, 100, &[&proxy]);
    assert!((15_000..=20_000).contains(&worst), "{worst}");
    assert!(counters.shed_heads >= 60, "{}", counters.shed_heads);
}

#[test]
fn one_source_alone_cannot_fill_more_than_half_of_max_held() {
    let options = HttpOptions {
        max_held: 20_000,
        ..HttpOptions::default()
    };
    let body = "x".repeat(15_000);
    let outcome = run_with(
        options,
        false,
        &[
            seg("POST /p HTTP/1.1\r\nContent-Length: 20000\r\n\r\n"),
            seg(&body[..9000]),
            seg(&body[..5000]),
        ],
        End::Fin,
    );
    assert_eq!(outcome.flags(), [Flags::TRUNCATED]);
    assert_eq!(outcome.only().body_len, 9000);
    assert_eq!(outcome.counters.shed_requests, 1);
}

/// Found by the fuzzer: whoever can lose a rebuilder the framing must not end its reading by a line of his choice.
#[test]
fn the_preface_of_http_2_ends_nothing_but_at_the_beginning() {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let next = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n";
    let lost = run(&[
        seg(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        seg(preface),
        seg(next),
    ]);
    assert_eq!(lost.lines(), ["POST /", "PRI *", "GET /next"]);
    // A connection joined midway may have been joined at its first byte, however that came.
    for pieces in [
        vec![seg(preface)],
        preface.iter().map(|b| seg([*b])).collect(),
    ] {
        let first = run_with(HttpOptions::default(), true, &pieces, End::Fin);
        let presumed = Interest::Presumed(PacketOutcome::Http2);
        assert_eq!(first.interest, presumed);
    }
    let later = [seg(b"the end of a body"), seg(preface), seg(next)];
    let later = run_with(HttpOptions::default(), true, &later, End::Fin);
    assert_eq!(later.lines(), ["PRI *", "GET /next"]);
    assert_eq!(later.counters.skipped_bytes, 17 + "SM\r\n\r\n".len() as u64);
}
