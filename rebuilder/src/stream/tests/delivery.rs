//! Order, duplicates, starts.

use crate::telemetry::PacketOutcome;

use super::*;

#[test]
fn segments_in_order_pass_through_as_they_come() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(lab.push(&seg(100, b"GET ")), PacketOutcome::Stream);
    let first = lab.now;
    lab.now += 5;
    assert_eq!(
        lab.push(&seg(104, b"/ HTTP/1.1\r\n")),
        PacketOutcome::Stream
    );
    assert_eq!(
        lab.log(),
        [
            Event::Open { midstream: false },
            Event::Data {
                bytes: b"GET ".to_vec(),
                ts: first,
                segment_start: true,
                conflict: false
            },
            Event::Data {
                bytes: b"/ HTTP/1.1\r\n".to_vec(),
                ts: first + 5,
                segment_start: true,
                conflict: false
            },
        ]
    );
    assert_eq!(lab.streams.held_bytes(), 0);
}

#[test]
fn a_segment_ahead_waits_and_keeps_its_own_time_stamp() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(103, b"def"));
    let ahead = lab.now;
    assert_eq!(lab.text(), "");
    lab.now += 7;
    lab.push(&seg(100, b"abc"));
    assert_eq!(
        lab.log()[1..],
        [
            Event::Data {
                bytes: b"abc".to_vec(),
                ts: ahead + 7,
                segment_start: true,
                conflict: false
            },
            Event::Data {
                bytes: b"def".to_vec(),
                ts: ahead,
                segment_start: true,
                conflict: false
            },
        ]
    );
}

#[test]
fn a_copy_is_a_duplicate_and_a_partial_overlap_is_trimmed() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(lab.push(&seg(100, b"abc")), PacketOutcome::Stream);
    assert_eq!(lab.push(&seg(100, b"abc")), PacketOutcome::Duplicate);
    assert_eq!(lab.push(&seg(101, b"bcd")), PacketOutcome::Stream);
    assert_eq!(lab.text(), "abcd");
    // Bytes behind a trimmed front do not begin where their segment began.
    assert!(matches!(
        lab.log().last(),
        Some(Event::Data {
            segment_start: false,
            ..
        })
    ));
}

#[test]
fn a_segment_over_several_held_ones_fills_only_the_holes() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(102, b"c"), seg(105, b"fg"), seg(102, b"cdefghi")]);
    assert_eq!(lab.push(&seg(102, b"cdefghi")), PacketOutcome::Duplicate);
    lab.push(&seg(100, b"ab"));
    assert_eq!(lab.text(), "abcdefghi");
    let starts: Vec<bool> = lab
        .log()
        .iter()
        .filter_map(|e| match e {
            Event::Data { segment_start, .. } => Some(*segment_start),
            _ => None,
        })
        .collect();
    assert_eq!(starts, [true, true, false, true, false]);
}

#[test]
fn sequence_numbers_wrap() {
    let mut lab = Lab::after_syn(u32::MAX - 2);
    lab.push_all(&[seg(1, b"cd"), seg(u32::MAX, b"ab"), seg(3, b"ef")]);
    lab.push(&seg(u32::MAX - 1, b"_"));
    assert_eq!(lab.text(), "_abcdef");
}

#[test]
fn a_syn_or_a_bare_ack_or_a_fin_alone_makes_no_flow() {
    let mut lab = Lab::new();
    for s in [
        seg(1, b"").syn(),
        reply(9, b"").syn().ack(2),
        seg(2, b"").ack(10),
        seg(2, b"").fin(),
        seg(2, b"x").rst(),
    ] {
        assert_eq!(lab.push(&s), PacketOutcome::Control);
    }
    assert_eq!(lab.streams.flows(), 0);
    assert!(lab.sink.dirs.is_empty());
}

/// retina: a bare ACK passes as a SYN-ACK.
#[test]
fn a_bare_ack_tells_no_initial_sequence_number() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"").syn());
    lab.push(&reply(499, b"").ack(100));
    lab.push(&reply(600, b"late").ack(100));
    lab.push(&reply(500, b"first").ack(100));
    lab.wait(50 * MS);
    let logs = lab.logs(SERVER);
    assert_eq!(logs[0][0], Event::Open { midstream: true });
    assert_eq!(
        text(logs[0]),
        b"first",
        "the start is the lowest byte seen, not one behind the ACK's number"
    );
}

#[test]
fn a_syn_ack_starts_the_servers_direction() {
    let mut lab = Lab::new();
    lab.push(&reply(499, b"").syn().ack(100));
    lab.push(&reply(500, b"HTTP/1.1 200 OK"));
    assert_eq!(lab.logs(SERVER)[0][0], Event::Open { midstream: false });
}

#[test]
fn without_a_syn_the_lowest_byte_within_50_ms_is_the_start() {
    let mut lab = Lab::new();
    lab.push(&seg(104, b"ef"));
    lab.now += 49 * MS;
    lab.push(&seg(100, b"abcd"));
    assert!(
        lab.sink.dirs.is_empty(),
        "nothing is told before the wait is over"
    );
    lab.wait(MS);
    assert_eq!(lab.log()[0], Event::Open { midstream: true });
    assert_eq!(lab.text(), "abcdef");
    assert_eq!(
        lab.push(&seg(98, b"zz")),
        PacketOutcome::OutOfWindow,
        "bytes before the start come too late"
    );
}

#[test]
fn a_syn_that_comes_late_settles_the_start_at_once() {
    let mut lab = Lab::new();
    lab.push_all(&[seg(104, b"ef"), seg(100, b"abcd"), seg(99, b"").syn()]);
    assert_eq!(lab.log()[0], Event::Open { midstream: false });
    assert_eq!(lab.text(), "abcdef");
}

#[test]
fn a_flow_that_still_waits_for_its_start_is_flushed_at_the_end() {
    let mut lab = Lab::new();
    lab.push(&seg(104, b"ef"));
    lab.finish();
    assert_eq!(lab.text(), "ef");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Eof)));
}

#[test]
fn keep_alive_and_window_probes_change_nothing() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(
        lab.push(&seg(99, b"\0")),
        PacketOutcome::Duplicate,
        "a probe before the first byte"
    );
    lab.push(&seg(100, b"abc"));
    assert_eq!(lab.push(&seg(102, b"")), PacketOutcome::Control);
    assert_eq!(lab.push(&seg(102, b"\0")), PacketOutcome::Duplicate);
    lab.push(&seg(103, b"d"));
    assert_eq!(
        lab.push(&seg(103, b"def")),
        PacketOutcome::Stream,
        "a window probe's byte comes again with the rest"
    );
    assert_eq!(lab.text(), "abcdef");
    assert!(
        !lab.log()
            .iter()
            .any(|e| matches!(e, Event::Data { conflict: true, .. }))
    );
}

#[test]
fn the_copy_of_another_vni_is_a_retransmission_unless_the_vni_counts() {
    use crate::stream::FlowScope;
    for (scope, outcome, directions) in [
        (FlowScope::Global, PacketOutcome::Duplicate, 1),
        (FlowScope::Vni, PacketOutcome::Stream, 2),
    ] {
        let mut lab = Lab::with(StreamOptions {
            flow_scope: scope,
            ..StreamOptions::default()
        });
        lab.push(&seg(100, b"abc").vni(1));
        assert_eq!(lab.push(&seg(100, b"abc").vni(2)), outcome);
        lab.finish();
        assert_eq!(lab.logs(CLIENT).len(), directions);
    }
}

#[test]
fn both_directions_are_streams_of_their_own() {
    let mut lab = Lab::after_syn(99);
    lab.push(&reply(299, b"").syn().ack(100));
    lab.push(&seg(100, b"question").ack(300));
    lab.push(&reply(306, b"later").ack(108));
    lab.push(&reply(300, b"answer").ack(108));
    assert_eq!(lab.text(), "question");
    assert_eq!(text(lab.logs(SERVER)[0]), b"answerlater");
    assert_eq!(lab.streams.flows(), 1);
}

#[test]
fn the_packet_that_makes_a_direction_opaque_has_that_outcome_already() {
    let mut lab = Lab::after_syn(99);
    lab.sink.uninteresting = Some((b"\x16\x03".to_vec(), PacketOutcome::Tls));
    lab.push(&seg(110, b"held"));
    assert!(lab.streams.held_bytes() > 0);
    assert_eq!(lab.push(&seg(100, b"\x16\x03\x01")), PacketOutcome::Tls);
    assert_eq!(lab.streams.held_bytes(), 0, "nothing is held for it");
    assert_eq!(
        lab.push(&seg(5000, b"more")),
        PacketOutcome::Tls,
        "a hole is of no interest"
    );
    assert_eq!(
        lab.push(&seg(50_000_000, b"more")),
        PacketOutcome::Tls,
        "nor is a large one"
    );
    lab.push(&seg(50_000_004, b"").fin());
    lab.wait(3 * SECOND);
    assert_eq!(lab.log().len(), 3, "open, data, closed: {:?}", lab.log());
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
}

#[test]
fn a_loss_larger_than_any_window_starts_anew_after_three_segments_in_a_row() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    let far = 100 + (100 << 20);
    assert_eq!(lab.push(&seg(far, b"x")), PacketOutcome::OutOfWindow);
    assert_eq!(lab.push(&seg(far + 1, b"y")), PacketOutcome::OutOfWindow);
    assert_eq!(lab.push(&seg(far + 2, b"z")), PacketOutcome::Stream);
    assert_eq!(
        lab.push(&seg(103, b"d")),
        PacketOutcome::Stream,
        "the stream that was there goes on all the same"
    );
    lab.finish();
    let logs = lab.logs(CLIENT);
    assert_eq!(text(logs[0]), b"abcd");
    assert_eq!(text(logs[1]), b"z");
    assert_eq!(logs[1][0], Event::Open { midstream: true });
}

#[test]
fn strays_from_everywhere_open_nothing() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    for n in 1..50_u32 {
        assert_eq!(
            lab.push(&seg(100 + n * (40 << 20), b"x")),
            PacketOutcome::OutOfWindow
        );
    }
}
