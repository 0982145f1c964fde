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

/// Neighbours share a run: of that only so much is shed as must be, and whole segments.
#[test]
fn of_neighbours_only_the_farthest_segments_are_shed() {
    let mut lab = capped(RUN_OVERHEAD + 10 * MARK_BYTES + 1000, 1 << 20);
    lab.push(&seg(99, b"").syn());
    for n in 1..=5 {
        assert_eq!(
            lab.push(&seg(100 * n + 100, &[b'0' + u8::try_from(n).unwrap(); 100])),
            PacketOutcome::Stream
        );
    }
    assert_eq!(lab.push(&seg(110, &[b'a'; 90])), PacketOutcome::Stream);
    while lab.streams.shed_bytes() == 0 {
        let end = 700 + u32::try_from(lab.streams.held_bytes()).unwrap();
        lab.push(&ten(end, b'z'));
    }
    let nearer = lab.push(&seg(102, b"bbb"));
    assert_eq!(nearer, PacketOutcome::Stream);
    lab.push(&seg(100, b"cc"));
    lab.push(&seg(105, b"ddddd"));
    let want: String = format!("ccbbbddddd{}", "a".repeat(90));
    assert!(lab.text().starts_with(&want));
    assert!(lab.text().contains(&"3".repeat(100)), "{}", lab.text());
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

#[test]
fn one_sender_holds_a_quarter_once_the_table_is_half_full() {
    let mut lab = capped(100 * TEN, 40 * TEN);
    let from =
        |host: u32, port: u32, seq: u32| ten(seq, b'x').src(&format!("10.1.0.{host}:{port}"));
    let syn = |host: u32, port: u32| seg(99, b"").syn().src(&format!("10.1.0.{host}:{port}"));
    // Below half, one sender may hold all of it, in as many flows as it likes.
    for port in 1..=20 {
        lab.push(&syn(1, port));
        assert_eq!(lab.push(&from(1, port, 110)), PacketOutcome::Stream);
    }
    lab.push(&syn(1, 21));
    assert_eq!(lab.push(&from(1, 21, 110)), PacketOutcome::OverCap);
    // Others are not hurt, up to their own quarter.
    lab.push(&syn(2, 1));
    for n in 1..=10 {
        assert_eq!(lab.push(&from(2, 1, 100 + 20 * n)), PacketOutcome::Stream);
    }
    assert_eq!(lab.push(&from(2, 1, 500)), PacketOutcome::OverCap);
    // The total binds everyone.
    lab.push(&syn(3, 1));
    for n in 1..=10 {
        assert_eq!(lab.push(&from(3, 1, 100 + 20 * n)), PacketOutcome::Stream);
    }
    lab.push(&syn(4, 1));
    assert_eq!(lab.streams.held_bytes(), 40 * TEN);
    assert_eq!(lab.push(&from(4, 1, 110)), PacketOutcome::OverCap);
    assert_eq!(
        lab.push(&from(4, 1, 100)),
        PacketOutcome::Stream,
        "bytes in order always pass"
    );
    // A second later the holes are given up, and the table is empty.
    lab.wait(SECOND + 1);
    assert_eq!(lab.streams.held_bytes(), 0);
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

/// What the options' documentation says of memory.
#[test]
fn a_flow_and_a_remembered_syn_cost_what_the_options_say() {
    use crate::stream::{direction::Direction, flow::Flow};
    let index_entry = 40 + 8;
    let flow = size_of::<Option<Flow>>() + index_entry + 2 * size_of::<Direction>();
    assert!(flow <= 1000, "{flow} bytes");
    const { assert!(crate::stream::isn::ENTRY_BYTES <= 32) };
}
