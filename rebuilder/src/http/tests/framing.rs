//! Where a request ends.

use super::super::Framing;
use super::*;

const NEXT: &str = "GET /next HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_length_is_followed_and_pipelined_requests_are_told_apart() {
    let outcome = one(format!(
        "POST /1 HTTP/1.1\r\nContent-Length: 003\r\n\r\nabcGET /2 HTTP/1.1\r\nContent-Length: 2\r\n\r\nGEPUT /3 HTTP/1.1\r\n\r\n{NEXT}"
    ));
    assert_eq!(
        outcome.lines(),
        ["POST /1", "GET /2", "PUT /3", "GET /next"]
    );
    let bodies: Vec<u64> = outcome.requests.iter().map(|r| r.body_len).collect();
    assert_eq!(bodies, [3, 2, 0, 0]);
    assert_eq!(outcome.flags(), [Flags::empty(); 4]);
    assert_eq!(outcome.requests[0].framing, Framing::Length(3));
}

#[test]
fn a_chunked_body_ends_behind_its_trailers() {
    let body = "4;a=b\r\nWiki\r\n00A\r\n0123\r\n6789\r\n0\r\nExpires: now\r\n\r\n";
    let head = "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n";
    let outcome = one(format!("{head}{body}{NEXT}"));
    assert_eq!(outcome.lines(), ["POST /", "GET /next"]);
    let request = &outcome.requests[0];
    assert_eq!(request.raw, format!("{head}{body}").as_bytes());
    assert_eq!(request.body_len, 14);
    assert_eq!(request.framing, Framing::Chunked);
    assert_eq!(request.last_whole_chunk_end, head.len() + 7 + 6 + 5 + 12);
    assert_eq!(request.headers.len(), 1, "trailers are not listed");
    assert_eq!(outcome.flags(), [Flags::empty(); 2]);
}

/// The table of the design, and what RFC 9112 §6 leaves to it: head fields, bytes behind, framing.
#[test]
fn a_disputed_request_is_framed_by_the_table() {
    let chunks = "3\r\nabc\r\n0\r\n\r\n";
    for (version, fields, behind, framing) in [
        (
            "1.1",
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nContent-Length: x",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding: gzip, chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding : chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding:\r\n chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.0",
            "Transfer-Encoding: chunked",
            chunks,
            Framing::Chunked,
        ),
        (
            "1.1",
            "Transfer-Encoding: xchunked\r\nContent-Length: 5",
            "abcde",
            Framing::Length(5),
        ),
        (
            "1.1",
            "Transfer-Encoding: chunked, gzip\r\nContent-Length: 5",
            "abcde",
            Framing::Length(5),
        ),
        (
            "1.1",
            "Transfer-Encoding:\r\nContent-Length: 5",
            "abcde",
            Framing::Length(5),
        ),
        ("1.1", "Transfer-Encoding: identity", "", Framing::None),
        ("1.1", "Transfer-Encoding: \x0bchunked", "", Framing::None),
        (
            "1.1",
            "Content-Length: 5\r\nContent-Length: 5",
            "abcde",
            Framing::Length(5),
        ),
        ("1.1", "Content-Length: 5, 6", "abcde", Framing::Length(5)),
        (
            "1.1",
            "Content-Length: +4\r\nContent-Length: 5\r\nContent-Length: 6",
            "abcde",
            Framing::Length(5),
        ),
        ("1.1", "Content-Length : 5", "abcde", Framing::Length(5)),
        ("1.1", "Content-Length: -5", "", Framing::None),
        ("1.1", "Content-Length: 5 5", "", Framing::None),
        ("1.1", "Content-Length: 0x5", "", Framing::None),
        ("1.1", "Content-Length:", "", Framing::None),
        (
            "1.1",
            "Content-Length: 18446744073709551616",
            "",
            Framing::None,
        ),
    ] {
        let raw = format!("POST /p HTTP/{version}\r\n{fields}\r\n\r\n{behind}");
        let outcome = one(format!("{raw}{NEXT}"));
        assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{fields:?}");
        assert_eq!(outcome.requests[0].framing, framing, "{fields:?}");
        assert_eq!(outcome.requests[0].raw, raw.as_bytes());
        // What stands behind a disputed request is disputed, too.
        assert!(
            outcome
                .requests
                .iter()
                .all(|r| r.flags.contains(Flags::DISPUTED)),
            "{fields:?}"
        );
    }
}

#[test]
fn odd_chunk_framing_that_a_lenient_server_takes_is_followed_and_disputed() {
    for body in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\r\n",
        "3\r\nabc\r\n0\r\n\n",
        "3 \r\nabc\r\n0\r\n\r\n",
        "3\t;x\r\nabc\r\n0\r\n\r\n",
        "3;\r\nabc\r\n0\r\n\r\n",
        "3;a=\"x\"\r\nabc\r\n0\r\n\r\n",
        "3;\ra\r\nabc\r\n0\r\n\r\n",
        "3\r\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nno colon\r\n\r\n",
        "3\r\nabc\r\n0\r\nA: b\n\r\n",
        "3\r\nabc\r\n0\r\n\rA: b\r\n\r\n",
    ] {
        let raw = format!("POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let outcome = one(format!("{raw}{NEXT}"));
        assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{body:?}");
        assert_eq!(outcome.requests[0].raw, raw.as_bytes(), "{body:?}");
        assert_eq!(outcome.requests[0].body_len, 3);
        assert_eq!(outcome.flags(), [Flags::DISPUTED; 2], "{body:?}");
    }
}

#[test]
fn a_bad_chunk_size_ends_the_request_with_its_last_whole_chunk() {
    for bad in [
        "xyz\r\n",
        "-1\r\n",
        "\r\n",
        "0x3\r\n",
        "8000000000000000\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let sound = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
        let outcome = run(&[
            seg(format!("{sound}{bad}GET /hidden HTTP/1.1\r\n\r\n")),
            seg(NEXT),
        ]);
        assert_eq!(outcome.lines(), ["POST /p", "GET /next"], "{bad:?}");
        assert_eq!(outcome.requests[0].raw, sound.as_bytes());
        assert_eq!(outcome.requests[0].last_whole_chunk_end, sound.len());
        assert_eq!(
            outcome.flags(),
            [
                Flags::TRUNCATED | Flags::DISPUTED,
                Flags::RESYNCED | Flags::DISPUTED
            ]
        );
        assert_eq!(
            (outcome.counters.lost_framings, outcome.counters.resyncs),
            (1, 1)
        );
    }
}

#[test]
fn a_request_line_in_place_of_a_chunk_size_is_found_though_it_begins_with_hex_digits() {
    let sound = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    let next = "DELETE /next HTTP/1.1\r\n\r\n";
    for cut in 1..next.len() {
        let outcome = run(&[seg(sound), seg(&next[..cut]), seg(&next[cut..])]);
        assert_eq!(outcome.lines(), ["POST /p", "DELETE /next"], "cut at {cut}");
        assert_eq!(outcome.requests[1].raw, next.as_bytes());
        assert_eq!(outcome.requests[1].ts, Timestamp(2));
        assert_eq!(outcome.counters.skipped_bytes, 0);
    }
}

#[test]
fn data_without_its_line_end_is_kept_though_its_chunk_is_not_whole() {
    let raw = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde";
    let outcome = run(&[seg(raw), seg(NEXT)]);
    let request = &outcome.requests[0];
    assert_eq!(request.raw, raw.as_bytes());
    assert_eq!(
        (request.body_len, request.last_whole_chunk_end),
        (5, raw.len() - 5)
    );
    assert_eq!(request.flags, Flags::TRUNCATED | Flags::DISPUTED);
    assert_eq!(outcome.requests[1].flags, Flags::RESYNCED | Flags::DISPUTED);
}

#[test]
fn a_chunk_line_or_trailer_beyond_max_head_is_a_bad_one() {
    let options = HttpOptions {
        max_head: 200,
        ..HttpOptions::default()
    };
    for body in [
        format!("3;{}\r\nabc\r\n0\r\n\r\n", "a".repeat(300)),
        format!("0\r\nA: {}\r\n\r\n", "a".repeat(300)),
        format!("{}3\r\nabc\r\n0\r\n\r\n", "0".repeat(300)),
    ] {
        let head = "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let outcome = run_with(
            options.clone(),
            false,
            &[seg(format!("{head}{body}"))],
            End::Fin,
        );
        assert_eq!(outcome.only().raw, head.as_bytes());
        assert_eq!(outcome.flags(), [Flags::TRUNCATED | Flags::DISPUTED]);
    }
}

#[test]
fn a_request_beyond_max_request_is_cut_counted_and_followed_to_its_end() {
    let options = HttpOptions {
        max_request: 100,
        ..HttpOptions::default()
    };
    let head = "POST /p HTTP/1.1\r\nContent-Length: 500\r\n\r\n";
    let big = format!("{head}{}{NEXT}", "x".repeat(500));
    let chunked = format!(
        "POST /p HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n{}\r\n0\r\n\r\n{NEXT}",
        "x".repeat(500)
    );
    for text in [big, chunked] {
        for size in [1, 7, 10_000] {
            let events: Vec<Event> = text.as_bytes().chunks(size).map(seg).collect();
            let outcome = run_with(options.clone(), false, &events, End::Fin);
            assert_eq!(outcome.lines(), ["POST /p", "GET /next"]);
            assert_eq!(outcome.requests[0].raw, &text.as_bytes()[..100]);
            assert_eq!(outcome.flags(), [Flags::TRUNCATED, Flags::empty()]);
            assert_eq!(outcome.counters.oversize_requests, 1);
        }
    }
}

#[test]
fn a_request_that_says_close_may_be_followed_but_what_follows_is_disputed() {
    for head in [
        "GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET /1 HTTP/1.0\r\n\r\n",
    ] {
        let outcome = one(format!("{head}{NEXT}"));
        assert_eq!(outcome.flags(), [Flags::HOP, Flags::DISPUTED]);
    }
}

#[test]
fn expect_100_continue_is_read_from_the_clients_bytes_alone() {
    let head = "PUT /p HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    let outcome = run(&[seg(head), seg("abc"), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["PUT /p", "GET /next"]);
    assert_eq!(outcome.requests[0].body_len, 3);
}

#[test]
fn after_connect_only_another_connect_is_a_request() {
    let connect = "CONNECT a:443 HTTP/1.1\r\nContent-Length: 9\r\n\r\n";
    let outcome = one(format!("{connect}{connect}"));
    assert_eq!(outcome.lines(), ["CONNECT a:443", "CONNECT a:443"]);
    assert_eq!(outcome.requests[0].framing, Framing::None);
    assert_eq!(outcome.flags(), [Flags::DISPUTED; 2]);
    let plain = "CONNECT a:443 HTTP/1.1\r\n\r\n";
    for behind in [NEXT, "\x16\x03\x01\x02", "junk", "\0", "GET / HTTP/1.1\r\n"] {
        let outcome = run(&[seg(plain), seg(behind), seg(NEXT), seg("\r\n\r\n")]);
        assert_eq!(outcome.lines(), ["CONNECT a:443"], "{behind:?}");
        assert_eq!(outcome.flags(), [Flags::empty()]);
        assert_eq!(
            outcome.interest,
            opaque(PacketOutcome::Tunnel),
            "{behind:?}"
        );
    }
    let gap = run(&[seg(plain), Gap(3), seg(NEXT)]);
    assert_eq!(gap.interest, opaque(PacketOutcome::Tunnel));
}

#[test]
fn after_upgrade_a_request_line_means_that_it_did_not_take() {
    let upgrade =
        "GET /u HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nab";
    let outcome = run(&[seg(upgrade), seg(NEXT), seg("\x01junk"), seg(NEXT)]);
    assert_eq!(outcome.lines(), ["GET /u", "GET /next", "GET /next"]);
    for (behind, end) in [
        ("\u{81}frame", PacketOutcome::Tunnel),
        ("junk\r\n", PacketOutcome::Tunnel),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PacketOutcome::Http2),
    ] {
        let outcome = run(&[seg(upgrade), seg(behind), seg(NEXT)]);
        assert_eq!(outcome.lines(), ["GET /u"]);
        assert_eq!(outcome.interest, opaque(end));
    }
}

#[test]
fn garbage_between_requests_loses_the_framing_and_a_segment_finds_it() {
    let outcome = run(&[
        seg(format!("{NEXT}\x01\x02")),
        seg("GET /in the middle HTTP/1.1\r\nmore junk"),
        seg(NEXT),
    ]);
    assert_eq!(outcome.lines(), ["GET /next", "GET /next"]);
    assert_eq!(
        outcome.flags(),
        [Flags::empty(), Flags::RESYNCED | Flags::DISPUTED]
    );
    assert_eq!(outcome.counters.lost_framings, 1);
}
