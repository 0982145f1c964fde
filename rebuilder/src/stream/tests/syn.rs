//! SYNs that carry data (TCP Fast Open, RFC 7413).

use crate::telemetry::PacketOutcome;

use super::*;

#[test]
fn the_data_of_a_syn_is_the_beginning_of_the_stream_once_the_client_goes_on() {
    let mut lab = Lab::new();
    assert_eq!(lab.push(&seg(99, b"ab").syn()), PacketOutcome::Stream);
    assert_eq!(lab.push(&seg(102, b"cd")), PacketOutcome::Stream);
    assert_eq!(lab.push(&seg(99, b"ab").syn()), PacketOutcome::Duplicate);
    assert_eq!(lab.log()[0], Event::Open { midstream: false });
    assert_eq!(lab.text(), "abcd");
}

#[test]
fn each_sign_that_the_data_of_a_syn_was_taken_hands_it_on() {
    let signs = [
        seg(102, b"").ack(500),
        reply(499, b"").syn().ack(102),
        seg(102, b"").ack(500).fin(),
        seg(110, b"later"),
    ];
    for sign in signs {
        let mut lab = Lab::new();
        lab.push(&seg(99, b"ab").syn());
        assert_eq!(lab.text(), "", "the server may not have taken it");
        lab.push(&sign);
        assert_eq!(lab.text(), "ab", "{sign:?}");
    }
}

#[test]
fn a_sign_that_the_syn_alone_was_taken_hands_nothing_on() {
    for sign in [seg(100, b"").ack(500), reply(499, b"").syn().ack(100)] {
        let mut lab = Lab::new();
        lab.push(&seg(99, b"ab").syn());
        lab.push(&sign);
        assert_eq!(lab.text(), "");
        // Sent again, it is what the server got.
        lab.push(&seg(100, b"abcd"));
        assert_eq!(lab.text(), "abcd");
    }
}

/// Without a cookie the server drops the data; what a client sends in its place is what the server reads.
#[test]
fn other_data_in_the_place_of_the_syns_wins_and_is_marked() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"GET /harmless").syn());
    lab.push(&seg(100, b"").ack(500));
    lab.push(&seg(100, b"GET /etc/pass"));
    lab.push(&seg(113, b"wd"));
    lab.finish();
    assert_eq!(lab.text(), "GET /etc/passwd");
    assert!(matches!(lab.log()[1], Event::Data { conflict: true, .. }));
    assert!(lab.streams.stats().conflicting_bytes > 0);
}

#[test]
fn data_sent_again_in_other_pieces_and_out_of_order_wins_over_the_syns() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"abcdef").syn());
    lab.push_all(&[seg(103, b"DEF"), seg(106, b"g"), seg(100, b"ABC")]);
    assert_eq!(lab.text(), "ABCDEFg");
}

/// Or somebody could put bytes into the stream that the server never got, behind what it did get.
#[test]
fn of_a_syns_data_nothing_is_used_once_any_of_it_was_sent_again() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"abcdef").syn());
    lab.push(&seg(100, b"ABC"));
    lab.wait(10 * SECOND);
    lab.push(&seg(103, b"D"));
    assert_eq!(lab.text(), "ABCD");
    lab.finish();
    assert_eq!(lab.text(), "ABCD");
    // A part of it that comes out of order waits for what is before it, as ever.
    let mut lab = Lab::new();
    lab.push(&seg(99, b"abcdef").syn());
    lab.push(&seg(103, b"def"));
    lab.wait(SECOND);
    assert_eq!(lab.text(), "");
    lab.wait(1);
    assert_eq!(lab.text(), "~~~def");
    assert_eq!(lab.streams.held_bytes(), 0);
}

#[test]
fn a_syns_data_that_is_sent_again_in_pieces_disagrees_with_none_of_them() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"abcdef").syn());
    lab.push_all(&[seg(100, b"abc"), seg(103, b"def"), seg(106, b"g")]);
    assert_eq!(lab.text(), "abcdefg");
    assert_eq!(lab.streams.stats().conflicting_bytes, 0);
    assert_eq!(lab.streams.held_bytes(), 0);
}

#[test]
fn a_syn_that_is_repeated_without_its_data_changes_nothing() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"ab").syn());
    lab.wait(200 * MS);
    lab.push(&seg(99, b"").syn());
    lab.push(&seg(100, b"abcd"));
    assert_eq!(lab.text(), "abcd");
    assert_eq!(lab.logs(CLIENT).len(), 1);
}

#[test]
fn the_data_of_a_syn_that_nothing_follows_is_handed_on_in_the_end() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"ab").syn());
    lab.finish();
    assert_eq!(lab.text(), "ab");
    let mut lab = Lab::new();
    lab.push(&seg(99, b"ab").syn());
    lab.wait(SECOND);
    assert_eq!(lab.text(), "ab");
}

#[test]
fn the_data_of_syns_is_charged() {
    let mut lab = Lab::with(StreamOptions {
        flow_cap: 1000,
        ..StreamOptions::default()
    });
    lab.push(&seg(99, &[b'x'; 700]).syn());
    assert!((700..=1000).contains(&lab.streams.held_bytes()));
    lab.push(&seg(99, &[b'x'; 900]).syn().src("10.0.0.3:40000"));
    assert_eq!(
        text(lab.logs("10.0.0.3:40000")[0]).len(),
        900,
        "no room to wait"
    );
}

#[test]
fn a_syn_that_comes_behind_its_stream_gives_it_the_bytes_that_are_missing() {
    let mut lab = Lab::new();
    lab.push_all(&[seg(102, b"cd"), seg(99, b"ab").syn()]);
    assert_eq!(lab.text(), "abcd");
    assert_eq!(lab.log()[0], Event::Open { midstream: false });
}
