//! Memory: every cap is reached, and what is over it is counted.

use crate::telemetry::PacketOutcome;

use super::*;
use crate::stream::held::{MARK_BYTES, RUN_OVERHEAD};

/// What ten bytes cost that touch nothing.
const TEN: usize = 10 + MARK_BYTES + RUN_OVERHEAD;

fn capped(flow_cap: usize, total_cap: usize) -> Lab {
    Lab::with(StreamOptions {
        flow_cap,
        total_cap,
        ..StreamOptions::default()
    })
}

fn ten(seq: u32, byte: u8) -> Seg {
    seg(seq, &[byte; 10])
}

#[test]
fn at_the_flows_cap_a_segment_farther_ahead_is_refused() {
    let mut lab = capped(3 * TEN, 1 << 20);
    lab.push(&seg(99, b"").syn());
    for n in 1..4 {
        assert_eq!(lab.push(&ten(100 + 20 * n, b'x')), PacketOutcome::Stream);
    }
    assert_eq!(lab.streams.held_bytes(), 3 * TEN);
    assert_eq!(lab.push(&ten(180, b'4')), PacketOutcome::OverCap);
    assert_eq!(lab.streams.held_bytes(), 3 * TEN);
    assert_eq!(lab.streams.shed_bytes(), 10);
}

/// A hole is waited for, and a fast sender sends more than a window until then. A second direction would take the middle
/// of a body for the beginning of a stream.
#[test]
fn an_upload_that_runs_a_window_past_a_hole_stays_one_stream() {
    for lost in [None, Some(5000)] {
        let mut lab = Lab::with(StreamOptions {
            flow_cap: 20 * TEN,
            window: 1000,
            ..StreamOptions::default()
        });
        lab.push(&seg(99, b"").syn());
        let mut shed = 0;
        for at in (110..9_000).step_by(10).filter(|at| Some(*at) != lost) {
            let outcome = lab.push(&ten(at, b'x'));
            assert!(
                matches!(outcome, PacketOutcome::Stream | PacketOutcome::OverCap),
                "{at}: {outcome:?}"
            );
            shed += u64::from(outcome == PacketOutcome::OverCap) * 10;
        }
        assert_eq!(lab.streams.shed_bytes(), shed);
        lab.wait(2 * SECOND);
        lab.push(&ten(9_000, b'y'));
        assert_eq!(lab.sink.dirs.len(), 1);
        let text = lab.text();
        assert_eq!(text.len(), 9_010 - 100);
        assert!(text.starts_with("~~~~~~~~~~xx") && text.ends_with("~yyyyyyyyyy"));
    }
}

#[test]
fn at_the_flows_cap_the_farthest_ahead_is_shed_for_what_is_nearer() {
    let mut lab = capped(2 * TEN, 1 << 20);
    lab.push(&seg(99, b"").syn());
    lab.push_all(&[ten(150, b'5'), ten(130, b'3')]);
    assert_eq!(lab.push(&ten(110, b'1')), PacketOutcome::Stream);
    assert_eq!(lab.streams.shed_bytes(), 10);
    assert_eq!(
        lab.push(&ten(100, b'0')),
        PacketOutcome::Stream,
        "bytes in order always pass"
    );
    lab.push_all(&[ten(120, b'2'), ten(140, b'4')]);
    assert_eq!(
        lab.text(),
        "00000000001111111111222222222233333333334444444444"
    );
    // What was shed is not waited for: the next segment tells the gap at once.
    assert_eq!(lab.push(&ten(160, b'6')), PacketOutcome::Stream);
    assert!(lab.text().ends_with("4444444444~~~~~~~~~~6666666666"));
}

#[test]
fn a_copy_of_what_was_shed_is_taken_while_its_turn_has_not_passed() {
    let mut lab = capped(2 * TEN, 1 << 20);
    lab.push(&seg(99, b"").syn());
    lab.push_all(&[
        ten(120, b'2'),
        ten(140, b'4'),
        ten(160, b'6'),
        ten(100, b'0'),
    ]);
    assert_eq!(lab.streams.shed_bytes(), 10);
    lab.push_all(&[ten(110, b'1'), ten(130, b'3')]);
    assert_eq!(lab.push(&ten(160, b'6')), PacketOutcome::Stream);
    lab.push(&ten(150, b'5'));
    assert_eq!(
        lab.text(),
        "0000000000111111111122222222223333333333444444444455555555556666666666"
    );
}

#[test]
fn shed_bytes_at_the_very_end_are_told_as_a_gap() {
    let mut lab = capped(TEN, 1 << 20);
    lab.push(&seg(99, b"").syn());
    lab.push_all(&[ten(110, b'1'), ten(130, b'3'), ten(100, b'0')]);
    lab.finish();
    assert_eq!(
        lab.text(),
        format!("00000000001111111111{}", "~".repeat(20))
    );
}

#[test]
fn a_flow_that_waits_for_its_start_begins_early_rather_than_lose_bytes() {
    let mut lab = capped(2 * TEN, 1 << 20);
    lab.push_all(&[ten(140, b'4'), ten(120, b'2')]);
    assert!(lab.sink.dirs.is_empty());
    assert_eq!(lab.push(&ten(100, b'0')), PacketOutcome::Stream);
    assert_eq!(lab.streams.shed_bytes(), 0);
    lab.push_all(&[ten(110, b'1'), ten(130, b'3')]);
    assert_eq!(
        lab.text(),
        "00000000001111111111222222222233333333334444444444"
    );
}

/// 32 KiB ahead of a hole, from one of a host's ports.
fn block(host: u32, port: u32) -> Seg {
    seg(200, &[b'x'; 32 << 10]).src(&format!("10.1.0.{host}:{port}"))
}

/// Pushes blocks from new ports of a host until one is refused; what the host holds then.
fn fill(lab: &mut Lab, host: u32, ports: std::ops::Range<u32>) -> usize {
    let before = lab.streams.held_bytes() + lab.streams.flow_bytes();
    for port in ports {
        lab.push(&seg(99, b"").syn().src(&format!("10.1.0.{host}:{port}")));
        if lab.push(&block(host, port)) == PacketOutcome::OverCap {
            return lab.streams.held_bytes() + lab.streams.flow_bytes() - before;
        }
    }
    panic!("no cap was reached");
}

#[test]
fn one_sender_holds_a_quarter_once_the_table_is_half_full() {
    const CAP: usize = 1 << 20;
    const SLACK: usize = 40 << 10;
    let near = |held: usize, cap: usize| held <= cap + SLACK && held + SLACK > cap;
    let mut lab = capped(4 << 20, CAP);
    // Below half, one sender may hold all of it, in as many flows as it likes.
    assert!(near(fill(&mut lab, 1, 40_000..40_100), CAP / 2));
    // Others are not hurt, up to their own quarter.
    assert!(near(fill(&mut lab, 2, 40_000..40_100), CAP / 4));
    assert!(near(fill(&mut lab, 3, 40_000..40_100), CAP / 4));
    assert!(lab.streams.held_bytes() + lab.streams.flow_bytes() <= CAP);
    // A second later the holes are given up, and nothing is held.
    lab.wait(SECOND + 1);
    assert_eq!(lab.streams.held_bytes(), 0);
}

/// Many senders, none of them over its share, fill the table: whoever holds little is not the one to lose.
#[test]
fn in_a_full_table_whoever_holds_most_gives_way() {
    let mut lab = capped(4 << 20, 1 << 20);
    for host in 10..60 {
        lab.push(&seg(99, b"").syn().src(&format!("10.1.0.{host}:40000")));
        lab.push(&block(host, 40_000));
        lab.push(&seg(99, b"").syn().src(&format!("10.1.2.{host}:40000")));
        let less = seg(200, &[b'x'; 6000]).src(&format!("10.1.2.{host}:40000"));
        assert_eq!(lab.push(&less), PacketOutcome::Stream);
    }
    // A block is one segment, so it is shed whole.
    assert!(lab.streams.held_bytes() + lab.streams.flow_bytes() > (1 << 20) - (36 << 10));
    assert!(lab.streams.shed_bytes() > 0, "and it is counted");
    lab.push(&seg(99, b"").syn());
    lab.push(&seg(100, b"ab"));
    // Ahead of a hole, twenty times over.
    let ahead: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    for (n, bytes) in ahead.chunks(1000).enumerate() {
        let at = 103 + 1000 * u32::try_from(n).unwrap();
        assert_eq!(lab.push(&seg(at, bytes)), PacketOutcome::Stream);
    }
    assert!(lab.streams.held_bytes() + lab.streams.flow_bytes() <= 1 << 20);
    lab.push(&seg(102, b"c"));
    assert_eq!(text(lab.log()), [b"abc", &ahead[..]].concat());
    // One that would hold as much as the others is refused.
    lab.push(&seg(99, b"").syn().src("10.1.0.9:40000"));
    for n in 0..100 {
        lab.push(&seg(99, b"").syn().src(&format!("10.1.1.{n}:40000")));
        lab.push(&seg(200, &[b'x'; 1000]).src(&format!("10.1.1.{n}:40000")));
    }
    assert_eq!(lab.push(&block(9, 40_000)), PacketOutcome::OverCap);
}

#[test]
fn the_state_of_flows_is_charged_and_takes_no_more_than_half() {
    use crate::stream::flows::{DIRECTION_BYTES, FLOW_BYTES};
    const ONE: usize = FLOW_BYTES + DIRECTION_BYTES;
    let mut lab = capped(4 << 20, 20 * ONE);
    for host in 1..=10 {
        lab.push(&seg(100, b"x").src(&format!("10.1.0.{host}:40000")));
        lab.wait(60 * MS);
    }
    assert_eq!(
        (lab.streams.flows(), lab.streams.flow_bytes()),
        (10, 10 * ONE)
    );
    assert_eq!(lab.streams.stats().evicted_flows, 0);
    // The other direction costs too; whoever was silent longest goes.
    let answer = Seg {
        dst: "10.1.0.10:40000".parse().unwrap(),
        ..reply(500, b"y")
    };
    lab.push(&answer);
    assert_eq!(lab.streams.flows(), 9);
    assert_eq!(
        lab.logs("10.1.0.1:40000")[0].last(),
        Some(&Event::Closed(End::Idle))
    );
    assert_eq!(lab.streams.flow_bytes(), 9 * ONE + DIRECTION_BYTES);
    lab.finish();
    assert_eq!(lab.streams.flow_bytes(), 0);
}

/// Rules 9 and 11: one source that opens connections without end closes its own.
#[test]
fn one_source_of_many_flows_evicts_its_own_only() {
    let mut lab = capped(4 << 20, 1 << 20);
    let others: Vec<String> = (1..=50).map(|n| format!("10.2.0.{n}:40000")).collect();
    for other in &others {
        lab.push(&seg(99, b"").syn().src(other));
        lab.push(&seg(100, b"GET ").src(other));
    }
    for n in 0..5000 {
        let s = seg(1, b"x").src(&format!("10.9.9.9:{}", 10_000 + n));
        lab.now += 1000;
        lab.push_unchecked(&s);
    }
    lab.streams.check();
    assert!(lab.streams.stats().evicted_flows > 4000);
    // Long before the table is full: half of what flows may cost is 256 KiB.
    assert!(lab.streams.flow_bytes() < 260 << 10);
    for other in &others {
        lab.push(&seg(104, b"/ HTTP/1.1").src(other));
        assert_eq!(lab.logs(other).len(), 1);
        assert_eq!(text(lab.logs(other)[0]), b"GET / HTTP/1.1");
    }
}

/// A source that took more than its quarter while there was room is the first to give it back.
#[test]
fn in_a_full_table_flows_of_a_source_over_its_share_go_first() {
    use crate::stream::flows::{DIRECTION_BYTES, FLOW_BYTES};
    let mut lab = capped(4 << 20, 200 * (FLOW_BYTES + DIRECTION_BYTES));
    lab.push(&seg(1, b"x").src("10.2.0.1:40000"));
    for n in 0..45 {
        lab.now += 1000;
        lab.push(&seg(1, b"x").src(&format!("10.9.9.9:{}", 10_000 + n)));
    }
    for n in 0..60 {
        lab.now += 1000;
        lab.push(&seg(1, b"x").src(&format!("10.3.0.{n}:40000")));
    }
    assert_eq!(
        (lab.streams.flows(), lab.streams.stats().evicted_flows),
        (100, 6)
    );
    lab.finish();
    let evicted = |src: &str| lab.logs(src)[0].last() == Some(&Event::Closed(End::Idle));
    assert!(
        !evicted("10.2.0.1:40000"),
        "silent longest of all, and in nobody's way"
    );
    assert!((0..6).all(|n| evicted(&format!("10.9.9.9:{}", 10_000 + n))));
}

#[test]
fn one_byte_pieces_are_charged_their_bookkeeping() {
    let opts = StreamOptions {
        flow_cap: 1 << 16,
        ..StreamOptions::default()
    };
    let mut lab = Lab::with(opts);
    lab.push(&seg(99, b"").syn());
    let mut refused = 0;
    for n in 0..10_000 {
        refused += u32::from(lab.push_unchecked(&seg(102 + 2 * n, b"x")) == PacketOutcome::OverCap);
    }
    lab.streams.check();
    // 65,536 bytes hold 339 pieces of 193 bytes.
    assert_eq!(refused, 10_000 - 339);
}

#[test]
fn a_full_table_closes_the_flow_that_was_silent_longest() {
    let mut lab = Lab::with(StreamOptions {
        max_flows: 3,
        ..StreamOptions::default()
    });
    let at = |port: u16, seq: u32| seg(seq, b"x").src(&format!("10.0.0.1:{port}"));
    lab.push_all(&[at(1, 10), at(2, 10), at(3, 10), at(1, 11)]);
    lab.push(&at(4, 10));
    assert_eq!(lab.streams.flows(), 3);
    assert_eq!(lab.streams.stats().evicted_flows, 1);
    assert_eq!(
        lab.logs("10.0.0.1:2")[0].last(),
        Some(&Event::Closed(End::Idle))
    );
    assert_eq!(
        text(lab.logs("10.0.0.1:2")[0]),
        b"x",
        "what it held was delivered"
    );
}

#[test]
fn a_flood_of_syns_makes_no_flow() {
    let mut lab = Lab::new();
    lab.push(&seg(100, b"mine"));
    let syn = seg(7, b"").syn();
    for n in 0..200_000_u32 {
        let host = std::net::Ipv4Addr::from(0x0b00_0000 + n);
        let s = Seg {
            src: (host, 1234).into(),
            ..syn.clone()
        };
        assert_eq!(lab.push_unchecked(&s), PacketOutcome::Control);
    }
    lab.streams.check();
    assert_eq!(
        (lab.streams.flows(), lab.streams.held_bytes()),
        (1, 4 + MARK_BYTES + RUN_OVERHEAD)
    );
    lab.finish();
    assert_eq!(lab.text(), "mine");
}

/// What a flow is charged covers what it takes: tables that double may be less than half full.
#[test]
fn a_flow_and_a_remembered_syn_cost_what_they_are_charged() {
    use crate::stream::flows::{DIRECTION_BYTES, FLOW_BYTES};
    use crate::stream::{direction::Direction, flow::Flow};
    const BLOCK: usize = 16;
    let half_full = |entry: usize| (entry + 1) * 16 / 7;
    // Eight bytes, in a table that is three quarters full or half of that.
    let index = 22;
    let owner = half_full(24) + 2 * 48 + half_full(24);
    let timer = 2 * size_of::<(Timestamp, u32)>();
    let flow = size_of::<Option<Flow>>() + index + owner + timer;
    assert!(flow <= FLOW_BYTES, "{flow} bytes");
    // In a list that has just grown, with its free place.
    let extractor = 2 * (crate::http::DIRECTION_STATE + size_of::<usize>());
    let direction = size_of::<Direction>() + BLOCK + extractor;
    assert!(direction <= DIRECTION_BYTES, "{direction} bytes");
    const { assert!(crate::stream::isn::ENTRY_BYTES <= 32) };
}
