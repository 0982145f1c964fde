//! The connection preface of HTTP/2 (RFC 9113 §3.4), and what only begins like it.

use super::*;

const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: h\r\n\r\n";
const UPGRADE: &str = "GET /u HTTP/1.1\r\nHost: h\r\nUpgrade: h2c\r\n\r\n";

/// All ways to cut the bytes in two, as two segments; and each byte in one of its own.
fn cuts(bytes: &str) -> impl Iterator<Item = Vec<Event>> {
    let halves = (1..bytes.len()).map(|at| vec![seg(&bytes[..at]), seg(&bytes[at..])]);
    let single = bytes.bytes().map(|byte| seg([byte])).collect();
    halves.chain([vec![seg(bytes)], single])
}

/// Once, its line alone made all that came behind it invisible.
#[test]
fn a_request_line_that_begins_like_the_preface_is_a_request_and_hides_nothing() {
    for behind in ["Host: h\r\n\r\n", "\r\n", "SM: 1\r\n\r\n"] {
        let bytes = format!("PRI * HTTP/2.0\r\n{behind}{NEXT}");
        for (before, lines) in [
            ("", &["PRI *", "GET /next"][..]),
            (NEXT, &["GET /next", "PRI *", "GET /next"]),
            (UPGRADE, &["GET /u", "PRI *", "GET /next"]),
        ] {
            for events in cuts(&format!("{before}{bytes}")) {
                let outcome = run(&events);
                assert_eq!(outcome.lines(), lines, "{events:?}");
                let behind = &outcome.flags()[lines.len() - 2..];
                assert_eq!(behind, [Flags::DISPUTED; 2], "{events:?}");
                assert_eq!(outcome.interest, Interest::Wanted);
                assert_eq!(outcome.counters.skipped_bytes, 0, "{events:?}");
            }
        }
        for events in cuts(&bytes) {
            let outcome = run_with(HttpOptions::default(), true, &events, End::Fin);
            assert_eq!(outcome.lines(), ["PRI *", "GET /next"], "{events:?}");
        }
    }
}

#[test]
fn the_whole_preface_where_http_2_may_begin_is_no_request_however_it_is_cut() {
    let proxied = format!("PROXY TCP4 192.0.2.1 10.0.0.2 1 80\r\n{PREFACE}");
    for (bytes, requests) in [
        (PREFACE.to_owned(), 0),
        (proxied, 0),
        (format!("{UPGRADE}{PREFACE}"), 1),
    ] {
        for mut events in cuts(&bytes) {
            events.push(seg(NEXT));
            let outcome = run(&events);
            assert_eq!(outcome.requests.len(), requests, "{events:?}");
            assert_eq!(outcome.interest, opaque(PacketOutcome::Http2));
        }
    }
}

/// A server of HTTP/1 refuses it and closes. But where our reading has a boundary another's may have a body, and whoever
/// writes that must not choose what is seen behind it.
#[test]
fn the_whole_preface_behind_a_request_hides_nothing() {
    for events in cuts(&format!("{NEXT}{PREFACE}")) {
        let events = [events, vec![seg(NEXT)]].concat();
        let outcome = run(&events);
        let lines = ["GET /next", "PRI *", "GET /next"];
        assert_eq!(outcome.lines(), lines, "{events:?}");
        assert_eq!(
            outcome.flags()[2],
            Flags::RESYNCED | Flags::DISPUTED,
            "{events:?}"
        );
    }
    let spaced = run(&[seg(format!("\r\n{PREFACE}")), seg(NEXT)]);
    assert_eq!(spaced.lines(), ["PRI *", "GET /next"]);
}

#[test]
fn what_ends_inside_a_possible_preface_is_read_as_what_it_is() {
    for len in 1..PREFACE.len() {
        let complete = len >= "PRI * HTTP/2.0\r\n\r\n".len();
        let rest = len - usize::from(complete) * "PRI * HTTP/2.0\r\n\r\n".len();
        for midstream in [false, true] {
            for gap in [false, true] {
                let mut events = vec![seg(&PREFACE[..len])];
                events.extend(gap.then_some(Gap(5)));
                let outcome = run_with(HttpOptions::default(), midstream, &events, End::Fin);
                assert_eq!(outcome.requests.len(), usize::from(complete), "{len}");
                assert_eq!(outcome.counters.skipped_bytes, rest as u64, "{len}");
                if !midstream {
                    // One byte or two may be the beginning of a PROXY header, too; `SM` and a CR begin no head.
                    let incomplete = u64::from((3..=20).contains(&len) && rest > 0);
                    assert_eq!(outcome.counters.incomplete_heads, incomplete, "{len}");
                }
                if gap {
                    let events = [events, vec![seg(NEXT)]].concat();
                    let outcome = run_with(HttpOptions::default(), midstream, &events, End::Fin);
                    assert_eq!(outcome.lines().last().unwrap(), "GET /next", "{len}");
                }
            }
        }
    }
}

#[test]
fn copies_that_disagree_inside_a_possible_preface_mark_its_request() {
    let events = [
        Conflict(b"PRI * HT".to_vec()),
        seg("TP/2.0\r\n\r\nS"),
        seg("EARCH / HTTP/1.1\r\n\r\n"),
    ];
    let outcome = run(&events);
    assert_eq!(outcome.lines(), ["PRI *", "SEARCH /"]);
    assert!(outcome.flags()[0].contains(Flags::AMBIGUOUS));
}
