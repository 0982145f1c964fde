//! FIN, RST, SYN, idle time: what ends a direction, and what does not.

use crate::telemetry::PacketOutcome;

use super::*;

fn count(lab: &Lab, src: &str) -> usize {
    lab.logs(src).len()
}

/// retina: an in-order FIN with data advances by one.
#[test]
fn a_fin_with_data_advances_by_the_data() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(lab.push(&seg(100, b"abc").fin()), PacketOutcome::Stream);
    lab.wait(2 * SECOND);
    assert_eq!(lab.text(), "abc");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
    assert_eq!(lab.streams.flows(), 0);
}

/// retina: overlap counts FIN's phantom byte as payload.
#[test]
fn the_fins_sequence_number_is_no_byte() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(103, b"def").fin(), seg(102, b"cdef"), seg(100, b"abcd")]);
    lab.finish();
    assert_eq!(lab.text(), "abcdef");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
}

#[test]
fn a_fin_ahead_of_its_bytes_waits_for_them() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"a"));
    lab.push(&seg(104, b"").fin());
    lab.wait(900 * MS);
    assert_eq!(lab.push(&seg(101, b"bcd")), PacketOutcome::Stream);
    lab.wait(1990 * MS);
    assert_eq!(lab.text(), "abcd");
    assert_ne!(lab.log().last(), Some(&Event::Closed(End::Fin)));
    lab.wait(10 * MS);
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
}

/// Whoever guesses a place in the window can put a FIN or a RST there, and a stray byte before it.
#[test]
fn an_end_ahead_of_bytes_that_go_on_in_order_ends_nothing() {
    let forged = [
        vec![seg(9_000_000, b"").fin()],
        vec![seg(9_000_000, b"?"), seg(9_000_001, b"").rst()],
        vec![seg(9_000_000, b"?"), reply(7, b"").rst().ack(9_000_001)],
    ];
    for forged in forged {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"abc").ack(500));
        lab.push(&reply(500, b"").ack(103));
        lab.push_all(&forged);
        for n in 0..40 {
            lab.wait(100 * MS);
            assert_eq!(
                lab.push(&seg(103 + n, b".").ack(500)),
                PacketOutcome::Stream
            );
        }
        assert_eq!(count(&lab, CLIENT), 1, "{forged:?}");
        assert!(
            !matches!(lab.log().last(), Some(Event::Closed(_))),
            "{forged:?}"
        );
    }
}

/// Once the right acknowledgement alone ended the other direction, whatever the sequence number: what came behind was
/// joined midway, and whom a PROXY header had named was forgotten.
#[test]
fn a_reset_with_a_wrong_sequence_number_ends_nothing_whatever_it_acknowledges() {
    let both = [
        seg(100, b"abc").ack(500),
        reply(500, b"answer").ack(103),
        seg(103, b"").ack(506),
    ];
    for (seen, forged) in [
        (&both[..], reply(7, b"").rst().ack(103)),
        (&both[..], seg(7, b"").rst().ack(506)),
        // The server's direction is not captured.
        (&both[..1], reply(7, b"").rst().ack(103)),
    ] {
        let mut lab = Lab::after_syn(99);
        lab.push_all(seen);
        lab.push(&forged);
        lab.wait(5 * SECOND);
        assert_eq!(lab.push(&seg(103, b"def").ack(506)), PacketOutcome::Stream);
        assert_eq!((lab.text().as_str(), count(&lab, CLIENT)), ("abcdef", 1));
        for log in [lab.logs(CLIENT), lab.logs(SERVER)].concat() {
            assert!(!matches!(log.last(), Some(Event::Closed(_))), "{forged:?}");
        }
    }
}

#[test]
fn late_copies_of_a_closed_flow_are_duplicates_for_2_s_and_make_no_second_flow() {
    let mut lab = Lab::after_syn(99);
    let segs = [seg(100, b"abc"), seg(103, b"def").fin()];
    lab.push_all(&segs);
    lab.now += 2 * SECOND - MS;
    for s in &segs {
        assert_eq!(lab.push(s), PacketOutcome::Duplicate);
    }
    assert_eq!(lab.push(&seg(99, b"").syn()), PacketOutcome::Control);
    lab.wait(7 * SECOND);
    assert_eq!(lab.streams.flows(), 0);
    assert_eq!((lab.text().as_str(), count(&lab, CLIENT)), ("abcdef", 1));
}

/// A FIN that nobody acknowledges is sent again after 0.2, 0.4, 0.8 s and so on (RFC 6298 §5.5): once this made six
/// requests of one.
#[test]
fn a_fin_repeated_at_doubling_distances_makes_no_second_flow() {
    let mut lab = Lab::after_syn(99);
    let last = seg(100, b"abc").fin();
    assert_eq!(lab.push(&last), PacketOutcome::Stream);
    let mut distance = 200 * MS;
    while distance <= 120 * SECOND {
        lab.wait(distance);
        assert_eq!(lab.push(&last), PacketOutcome::Duplicate, "{distance}");
        distance *= 2;
    }
    lab.wait(600 * SECOND);
    assert_eq!((lab.text().as_str(), count(&lab, CLIENT)), ("abc", 1));
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
    assert_eq!(lab.streams.flows(), 0);
}

#[test]
fn a_new_connection_on_the_ports_of_a_repeated_fin_is_whole() {
    for isn in [103_u32, 5_000, 1 << 30] {
        let mut lab = Lab::after_syn(99);
        let last = seg(100, b"abc").fin();
        lab.push(&last);
        for distance in [200, 400, 800, 1600] {
            lab.wait(distance * MS);
            lab.push(&last);
        }
        lab.wait(2 * SECOND);
        lab.push(&seg(isn, b"").syn());
        lab.push_all(&[seg(isn + 4, b"456"), last.clone(), seg(isn + 1, b"123")]);
        lab.finish();
        let texts: Vec<_> = lab.logs(CLIENT).into_iter().map(text).collect();
        assert_eq!(texts, [b"abc".to_vec(), b"123456".to_vec()], "ISN {isn}");
        assert_eq!(lab.logs(CLIENT)[1][0], Event::Open { midstream: false });
    }
}

#[test]
fn a_forged_fin_in_the_middle_of_a_stream_changes_nothing() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    lab.push(&seg(101, b"").fin()); // before bytes that were seen
    lab.wait(10 * SECOND);
    lab.push(&seg(103, b"").fin()); // where the stream goes on
    lab.wait(SECOND);
    lab.push(&seg(103, b"def"));
    lab.push(&seg(5_000_000, b"").fin()); // far ahead: no reason to give up what lies between
    lab.wait(1500 * MS);
    assert_eq!(lab.push(&seg(106, b"ghi")), PacketOutcome::Stream);
    lab.push(&seg(u32::MAX / 2, b"").fin()); // outside the window
    assert_eq!(lab.text(), "abcdefghi");
}

#[test]
fn a_reset_destroys_nothing_that_is_held() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    lab.push(&seg(104, b"ef"));
    assert_eq!(lab.push(&seg(106, b"").rst()), PacketOutcome::Control);
    assert_eq!(lab.push(&seg(102, b"cd")), PacketOutcome::Stream);
    lab.wait(2 * SECOND);
    assert_eq!(lab.text(), "abcdef");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Reset)));
    assert_eq!(lab.streams.flows(), 0);
}

#[test]
fn a_reset_that_no_receiver_would_take_is_ignored() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    lab.push(&seg(150, b"").rst());
    lab.push(&seg(101, b"").rst());
    lab.wait(60 * SECOND);
    assert_eq!(lab.push(&seg(103, b"def")), PacketOutcome::Stream);
    assert_eq!(lab.text(), "abcdef");
}

#[test]
fn a_stream_that_goes_on_after_a_reset_was_not_reset() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    lab.push(&seg(103, b"").rst());
    lab.wait(SECOND);
    lab.push(&seg(103, b"def"));
    lab.wait(60 * SECOND);
    assert_eq!(lab.push(&seg(106, b"ghi")), PacketOutcome::Stream);
    assert_eq!((lab.text().as_str(), count(&lab, CLIENT)), ("abcdefghi", 1));
}

#[test]
fn the_servers_reset_ends_the_clients_direction() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    lab.push(&reply(0, b"").rst().ack(103));
    lab.wait(2 * SECOND);
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Reset)));
}

#[test]
fn a_reset_without_an_acknowledgement_ends_both_directions_where_it_fits_its_own() {
    for (seq, end) in [(506, End::Reset), (7, End::Idle)] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"abc"));
        lab.push(&reply(499, b"").syn().ack(103));
        lab.push(&reply(500, b"answer").ack(103));
        lab.push(&reply(seq, b"").rst());
        lab.wait(700 * SECOND);
        assert_eq!(lab.log().last(), Some(&Event::Closed(end)));
        assert_eq!(lab.logs(SERVER)[0].last(), Some(&Event::Closed(end)));
    }
}

/// A server that resets has often not read all that was sent.
#[test]
fn a_reset_that_acknowledges_a_part_ends_the_direction_where_it_is_the_peers() {
    // The client expects its peer at 500. What a stranger guesses does not stand there.
    for (seq, ack, end) in [
        (500, Some(101), End::Reset),
        (500, None, End::Reset),
        (501, Some(101), End::Idle),
        (500, Some(150), End::Idle),
        (500, Some(90), End::Idle),
    ] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"abc").ack(500));
        let rst = reply(seq, b"").rst();
        lab.push(&match ack {
            Some(ack) => rst.ack(ack),
            None => rst,
        });
        lab.wait(2 * SECOND);
        let closed = lab.log().last() == Some(&Event::Closed(End::Reset));
        assert_eq!(closed, end == End::Reset, "{seq} {ack:?}");
    }
}

#[test]
fn what_a_bare_acknowledgement_says_tells_where_the_peers_reset_stands() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc").ack(500));
    lab.push(&seg(103, b"").ack(700));
    lab.push(&seg(103, b"").ack(600)); // overtaken
    lab.push(&reply(700, b"").rst().ack(101));
    lab.wait(2 * SECOND);
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Reset)));
}

#[test]
fn text_on_a_reset_is_no_part_of_the_stream() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    assert_eq!(
        lab.push(&seg(103, b"go away").rst()),
        PacketOutcome::Control
    );
    lab.finish();
    assert_eq!(lab.text(), "abc");
}

#[test]
fn a_forged_syn_does_not_disturb_the_flow_that_exists() {
    // One that fits the next byte, one just ahead of it, one far away.
    for isn in [102, 150, 7_000_000, u32::MAX - 5] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"abc"));
        assert_eq!(lab.push(&seg(isn, b"").syn()), PacketOutcome::Control);
        assert_eq!(lab.push(&seg(151, b"x")), PacketOutcome::Stream);
        assert_eq!(lab.push(&seg(103, b"def")), PacketOutcome::Stream);
        assert_eq!(
            (lab.text().as_str(), count(&lab, CLIENT)),
            ("abcdef", 1),
            "ISN {isn}"
        );
    }
}

#[test]
fn a_second_connection_on_the_same_ports_lives_beside_the_old_one() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"old"));
    let isn = 1_000_000_000;
    lab.push(&seg(isn, b"").syn());
    assert_eq!(lab.push(&seg(isn + 1, b"new")), PacketOutcome::Stream);
    assert_eq!(lab.push(&seg(103, b" still")), PacketOutcome::Stream);
    assert_eq!(lab.push(&seg(isn + 4, b" too")), PacketOutcome::Stream);
    lab.finish();
    let logs = lab.logs(CLIENT);
    assert_eq!(text(logs[0]), b"old still");
    assert_eq!(text(logs[1]), b"new too");
    assert_eq!(logs[1][0], Event::Open { midstream: false });
}

#[test]
fn the_generation_that_fell_silent_ends_by_idle_time() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"old"));
    let isn = 1_000_000_000;
    lab.push(&seg(isn, b"").syn());
    for seq in (isn + 1..).take(13) {
        lab.wait(50 * SECOND);
        assert_eq!(lab.push(&seg(seq, b"x")), PacketOutcome::Stream);
    }
    assert_eq!(lab.logs(CLIENT)[0].last(), Some(&Event::Closed(End::Idle)));
    assert!(!matches!(
        lab.logs(CLIENT)[1].last(),
        Some(Event::Closed(_))
    ));
}

#[test]
fn ports_reused_after_a_fin_make_a_new_stream_even_where_the_windows_meet() {
    // Linux moves the ISN of a reused port ahead by its clock: often by less than the window.
    for isn in [103_u32, 5_000, 1 << 21, 1 << 31] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"one").fin());
        lab.push(&seg(isn, b"").syn());
        assert_eq!(
            lab.push(&seg(isn + 4, b"two")),
            PacketOutcome::Stream,
            "ISN {isn}, out of order"
        );
        assert_eq!(
            lab.push(&seg(isn + 1, b"...")),
            PacketOutcome::Stream,
            "ISN {isn}"
        );
        assert_eq!(lab.push(&seg(100, b"one").fin()), PacketOutcome::Duplicate);
        lab.finish();
        let texts: Vec<_> = lab.logs(CLIENT).into_iter().map(text).collect();
        assert_eq!(texts, [b"one".to_vec(), b"...two".to_vec()], "ISN {isn}");
    }
}

#[test]
fn ports_reused_after_a_fin_without_a_syn_make_a_stream_joined_midway() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"one").fin());
    assert_eq!(lab.push(&seg(1 << 30, b"two")), PacketOutcome::Stream);
    lab.finish();
    assert_eq!(text(lab.logs(CLIENT)[1]), b"two");
}

#[test]
fn no_more_than_four_generations_live_beside_each_other() {
    let mut lab = Lab::new();
    let isn = |n: u32| n * (100 << 20);
    for n in 0..4 {
        lab.push(&seg(isn(n), b"").syn());
        assert_eq!(lab.push(&seg(isn(n) + 1, b"x")), PacketOutcome::Stream);
    }
    lab.push(&seg(isn(4), b"").syn());
    assert_eq!(
        lab.push(&seg(isn(4) + 1, b"x")),
        PacketOutcome::OutOfWindow,
        "none of the four has been silent"
    );
    lab.wait(SECOND);
    for n in 1..4 {
        assert_eq!(lab.push(&seg(isn(n) + 2, b"y")), PacketOutcome::Stream);
    }
    lab.wait(1500 * MS);
    assert_eq!(
        lab.push(&seg(isn(4) + 1, b"x")),
        PacketOutcome::Stream,
        "the first has been"
    );
    assert_eq!(lab.logs(CLIENT)[0].last(), Some(&Event::Closed(End::Idle)));
}

#[test]
fn a_silent_flow_is_closed_after_the_idle_time() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"abc"));
    lab.now += 60 * SECOND;
    lab.push(&reply(1, b"").ack(103)); // any packet of the flow counts
    lab.wait(600 * SECOND - 1);
    assert_eq!(lab.streams.flows(), 1);
    lab.wait(1);
    assert_eq!(lab.streams.flows(), 0);
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Idle)));
    // What comes after is joined midway, without a hole back to the old SYN.
    lab.push(&seg(103, b"def"));
    lab.finish();
    assert_eq!(
        lab.logs(CLIENT)[1][..2].first(),
        Some(&Event::Open { midstream: true })
    );
    assert_eq!(text(lab.logs(CLIENT)[1]), b"def");
}

#[test]
fn the_end_of_time_expires_everything() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[
        seg(100, b"ab"),
        seg(104, b"ef"),
        reply(7, b"answer"),
        seg(1, b"z").src("10.0.0.3:1"),
    ]);
    lab.streams.advance(Timestamp::INFINITY, &mut lab.sink);
    lab.streams.check();
    assert_eq!((lab.streams.flows(), lab.streams.held_bytes()), (0, 0));
    assert_eq!(lab.text(), "ab~~ef");
    // And the table lives on.
    assert_eq!(
        lab.push(&seg(1, b"z").src("10.0.0.4:1")),
        PacketOutcome::Stream
    );
    lab.finish();
}

#[test]
fn the_final_flush_is_in_the_order_in_which_directions_appeared() {
    struct Order(Vec<DirectionId>);
    impl Sink for Order {
        fn chunk(&mut self, dir: DirectionId, _: &Endpoints, chunk: Chunk<'_>) -> Interest {
            if matches!(chunk, Chunk::Closed(_)) {
                self.0.push(dir);
            }
            Interest::Wanted
        }
    }
    let mut lab = Lab::new();
    for n in 0..500_u16 {
        let s = seg(1, b"x").src(&format!("10.0.{}.{}:{}", n % 7, n % 251, 1000 + n));
        lab.push_unchecked(&s);
        if n % 3 == 0 {
            // Holes in the slots, so that slots and directions are out of step.
            lab.push_unchecked(&s.clone().fin());
        }
        lab.now += 20 * MS;
    }
    let mut order = Order(Vec::new());
    lab.streams.finish(End::Eof, &mut order);
    assert!(order.0.len() > 300);
    assert!(order.0.is_sorted());
}
