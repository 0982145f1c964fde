//! Holes: what fills them, and when they become gaps (DESIGN §2 rule 3).

use crate::telemetry::PacketOutcome;

use super::*;

/// A table with "ab" delivered at 100 and "fgh" held at 105: a hole of three bytes.
fn hole() -> Lab {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    lab.push(&seg(105, b"fgh"));
    lab
}

#[test]
fn a_hole_older_than_a_second_is_a_gap_of_its_length() {
    let mut lab = hole();
    lab.wait(SECOND);
    assert_eq!(
        lab.text(),
        "ab",
        "exactly a second is not older than a second"
    );
    lab.wait(1);
    assert_eq!(lab.text(), "ab~~~fgh");
    assert_eq!(lab.log()[2], Event::Gap(3));
    assert_eq!(lab.streams.held_bytes(), 0);
    assert_eq!(lab.streams.stats().gap_bytes, 3);
}

#[test]
fn a_byte_as_late_as_the_setting_allows_still_fills_the_hole() {
    let mut lab = hole();
    lab.now += SECOND;
    assert_eq!(lab.push(&seg(102, b"cde")), PacketOutcome::Stream);
    assert_eq!(lab.text(), "abcdefgh");
}

#[test]
fn bytes_that_come_after_the_verdict_are_duplicates() {
    let mut lab = hole();
    lab.now += SECOND + 1;
    assert_eq!(lab.push(&seg(102, b"cde")), PacketOutcome::Duplicate);
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn a_hole_is_as_old_as_the_first_byte_seen_behind_it() {
    let mut lab = hole();
    lab.now += 900 * MS;
    // The piece right behind the hole is young; that the hole exists has been known for longer.
    lab.push(&seg(104, b"e"));
    lab.now += 900 * MS;
    lab.push(&seg(120, b"x"));
    assert_eq!(lab.text(), "ab~~efgh");
    lab.wait(101 * MS);
    assert_eq!(lab.text(), "ab~~efgh", "the second hole has its own age");
    lab.wait(900 * MS);
    assert_eq!(lab.text(), "ab~~efgh~~~~~~~~~~~~x");
}

/// A byte far ahead that nobody sent, or that some broken card made up, and a stream that goes on.
#[test]
fn a_stray_byte_far_ahead_costs_no_byte_of_a_stream_that_goes_on() {
    // Nearer than a mebibyte it is believed, but not while bytes in order come.
    for (reach, pause) in [
        (5_000_000, 3 * SECOND),
        (5_000_000, 900 * MS),
        (500_000, 900 * MS),
    ] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"ab"));
        assert_eq!(lab.push(&seg(100 + reach, b"!")), PacketOutcome::Stream);
        for n in 0..10 {
            lab.wait(pause);
            assert_eq!(lab.push(&seg(102 + 2 * n, b"cd")), PacketOutcome::Stream);
        }
        assert_eq!(
            lab.text(),
            format!("ab{}", "cd".repeat(10)),
            "{reach} {pause}"
        );
        lab.push(&seg(122, b"").fin());
        lab.wait(4 * SECOND);
        let stats = lab.streams.stats();
        if reach > 1 << 20 {
            assert_eq!((stats.gap_bytes, stats.shed_bytes), (0, 1), "it is counted");
            assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
        }
    }
}

#[test]
fn a_stray_that_the_other_side_acknowledged_or_that_goes_on_is_no_stray() {
    let far = 5_000_000;
    for acked in [true, false] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(100, b"ab"));
        lab.push(&seg(far, b"yz"));
        if acked {
            lab.push(&reply(500, b"").ack(far + 2));
        } else {
            lab.push(&seg(far + 2, b"z"));
        }
        lab.wait(SECOND + 1);
        assert_eq!(lab.log()[2], Event::Gap(u64::from(far - 102)));
    }
}

#[test]
fn a_hole_that_is_being_filled_is_waited_for() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(110, b"k"));
    lab.push(&seg(111, b"l"));
    for n in 0..10 {
        lab.wait(900 * MS);
        assert_eq!(lab.push(&seg(100 + n, b"x")), PacketOutcome::Stream);
    }
    assert_eq!(lab.text(), "xxxxxxxxxxkl");
}

#[test]
fn another_flows_packet_lets_the_time_of_a_hole_pass() {
    let mut lab = hole();
    lab.now += 2 * SECOND;
    lab.push(&seg(1, b"other").src("10.0.0.9:1"));
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn a_packet_from_the_past_does_not_turn_time_back() {
    let mut lab = hole();
    lab.wait(SECOND);
    lab.now -= 10 * SECOND;
    lab.push(&seg(200, b"x"));
    lab.now += 10 * SECOND + 1;
    lab.push(&seg(300, b"").ack(1));
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn a_hole_that_the_other_side_has_received_is_a_gap_after_100_ms() {
    let mut lab = hole();
    lab.push(&reply(500, b"").ack(105));
    lab.wait(100 * MS - 1);
    assert_eq!(lab.text(), "ab");
    lab.wait(1);
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn an_acknowledgement_of_part_of_a_hole_shortens_nothing() {
    let mut lab = hole();
    lab.push(&reply(500, b"").ack(104));
    lab.wait(500 * MS);
    assert_eq!(lab.text(), "ab");
    lab.push(&reply(500, b"").ack(108));
    lab.wait(100 * MS);
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn acknowledgements_that_go_on_do_not_put_the_verdict_off() {
    let mut lab = hole();
    for n in 0..10 {
        lab.push(&reply(500, b"").ack(105 + n));
        lab.wait(10 * MS);
    }
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn an_acknowledgement_without_a_byte_behind_the_hole_makes_no_gap() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    lab.push(&reply(500, b"").ack(10_000));
    lab.wait(10 * SECOND);
    assert_eq!(lab.push(&seg(102, b"cd")), PacketOutcome::Stream);
    assert_eq!(lab.text(), "abcd");
}

#[test]
fn a_cut_frame_is_a_gap_of_known_length() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(lab.push(&seg(100, b"ab").cut(3)), PacketOutcome::Stream);
    lab.push(&seg(105, b"fgh"));
    lab.wait(100 * MS - 1);
    assert_eq!(lab.text(), "ab", "a whole copy may come");
    lab.wait(1);
    assert_eq!(lab.log()[2], Event::Gap(3));
    assert_eq!(lab.text(), "ab~~~fgh");
}

#[test]
fn a_cut_with_nothing_behind_it_is_a_gap_all_the_same() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab").cut(3));
    lab.wait(100 * MS);
    assert_eq!(lab.log()[2..], [Event::Gap(3)]);
    assert_eq!(lab.streams.held_bytes(), 0);
}

#[test]
fn a_whole_copy_behind_the_verdict_on_a_cut_is_a_duplicate() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab").cut(3));
    lab.now += 100 * MS;
    assert_eq!(lab.push(&seg(100, b"abcde")), PacketOutcome::Duplicate);
    assert_eq!(lab.text(), "ab~~~");
}

/// Mirrored twice, and the copy that was cut came first: sixteen of twenty requests were lost once.
#[test]
fn a_whole_copy_after_the_cut_one_makes_the_bytes_whole() {
    for delay in [0, 200_000, 50 * MS, 100 * MS - 1] {
        let mut lab = Lab::after_syn(99);
        for n in 0..20 {
            let at = 100 + 6 * n;
            lab.push(&seg(at, b"abcd").cut(2));
            lab.wait(delay);
            assert_eq!(lab.push(&seg(at, b"abcdef")), PacketOutcome::Stream);
        }
        assert_eq!(lab.text(), "abcdef".repeat(20), "{delay} ns later");
        assert_eq!(lab.streams.stats().gap_bytes, 0);
    }
}

/// The copies of the second mirror session come 50 ms behind those of the first, which are cut.
#[test]
fn a_stream_of_cut_frames_is_made_whole_by_copies_50_ms_behind() {
    const FRAME: u32 = 9000;
    let whole: Vec<u8> = (0..=255).cycle().take(FRAME as usize).collect();
    let mut lab = Lab::after_syn(99);
    for n in 0..60 {
        lab.push_unchecked(&seg(100 + n * FRAME, &whole[..8450]).cut(FRAME - 8450));
        if let Some(before) = n.checked_sub(50) {
            lab.push_unchecked(&seg(100 + before * FRAME, &whole));
        }
        lab.now += MS;
    }
    lab.streams.check();
    assert!(text(lab.log()).starts_with(&whole.repeat(10)));
    assert_eq!(lab.streams.stats().gap_bytes, 0);
}

/// At 1 Gbit/s a hundred milliseconds are 12 MB, three times what a flow may hold.
#[test]
fn an_upload_of_cut_frames_gives_its_cuts_up_before_anything_is_shed() {
    const FRAME: u32 = 9000;
    let captured = vec![b'x'; 8450];
    let mut lab = Lab::with(StreamOptions {
        flow_cap: 1 << 18,
        ..StreamOptions::default()
    });
    lab.push(&seg(99, b"").syn());
    for n in 0..2000 {
        let outcome = lab.push_unchecked(&seg(100 + n * FRAME, &captured).cut(FRAME - 8450));
        assert_eq!(outcome, PacketOutcome::Stream);
        lab.now += 72_000;
    }
    lab.streams.check();
    assert_eq!(lab.streams.shed_bytes(), 0);
    lab.finish();
    assert_eq!(lab.streams.stats().delivered_bytes, 2000 * 8450);
    assert_eq!(
        lab.streams.stats().gap_bytes,
        2000 * u64::from(FRAME - 8450)
    );
}

#[test]
fn a_cut_that_waited_behind_a_hole_has_used_up_its_time() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(103, b"d").cut(2));
    lab.push(&seg(106, b"g"));
    lab.wait(500 * MS);
    lab.push(&seg(100, b"abc"));
    assert_eq!(lab.text(), "abcd");
    lab.wait(0);
    assert_eq!(lab.text(), "abcd~~g");
}

#[test]
fn a_copy_that_is_held_fills_a_cut() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(103, b"de"));
    lab.push(&seg(100, b"ab").cut(3));
    lab.wait(100 * MS);
    assert_eq!(lab.text(), "ab~de");
}

#[test]
fn a_cut_ahead_of_a_hole_waits_for_a_copy_until_its_turn() {
    for (copy, expected) in [(true, "abcdefghi"), (false, "abcdef~~~")] {
        let mut lab = Lab::after_syn(99);
        lab.push(&seg(103, b"def").cut(3));
        if copy {
            assert_eq!(lab.push(&seg(103, b"defghi")), PacketOutcome::Stream);
        }
        lab.push(&seg(100, b"abc"));
        lab.wait(100 * MS);
        assert_eq!(lab.text(), expected);
    }
}

#[test]
fn a_copy_in_the_middle_of_a_cut_leaves_both_ends_missing() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(101, b"b").cut(6), seg(104, b"ee"), seg(100, b"a")]);
    lab.wait(100 * MS);
    assert_eq!(lab.text(), "ab~~ee~~");
}

/// Found by the oracle: the age of the first cut was given to the bytes behind the second.
#[test]
fn a_copy_over_cuts_of_different_ages_leaves_each_its_age() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(102, b"c").cut(2));
    lab.now += 500 * MS;
    lab.push(&seg(105, b"f").cut(2));
    lab.now += 400 * MS;
    assert_eq!(lab.push(&seg(103, b"defgh")), PacketOutcome::Stream);
    lab.wait(101 * MS);
    assert_eq!(lab.text(), "~~cdefgh");
}

#[test]
fn copies_cut_at_different_lengths_hold_one_piece_for_the_missing_tail() {
    let mut lab = Lab::after_syn(99);
    for len in 1..50 {
        lab.push(&seg(110, &vec![b'x'; len]).cut(100 - u32::try_from(len).unwrap()));
    }
    lab.push(&seg(100, b"0123456789"));
    lab.wait(100 * MS);
    assert_eq!(
        lab.text(),
        format!("0123456789{}{}", "x".repeat(49), "~".repeat(51))
    );
}

#[test]
fn a_frame_cut_before_its_first_byte_is_a_gap_too() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    assert_eq!(
        lab.push(&seg(102, b"").cut(4)),
        PacketOutcome::Control,
        "no captured payload"
    );
    lab.wait(100 * MS);
    assert_eq!(lab.text(), "ab~~~~");
}

#[test]
fn bytes_lost_before_the_fin_are_told_before_the_end() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    lab.push(&seg(107, b"").fin());
    lab.wait(2 * SECOND);
    assert_eq!(lab.log()[2..], [Event::Gap(5), Event::Closed(End::Fin)]);
}

#[test]
fn the_end_of_the_file_turns_every_hole_into_a_gap() {
    let mut lab = hole();
    lab.push(&seg(110, b"kl"));
    lab.finish();
    assert_eq!(lab.text(), "ab~~~fgh~~kl");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Eof)));
}

#[test]
fn a_stream_that_lost_its_first_segment_begins_with_a_gap() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(103, b"de"));
    lab.wait(2 * SECOND);
    assert_eq!(
        lab.log()[..2],
        [Event::Open { midstream: false }, Event::Gap(3)]
    );
    assert_eq!(lab.text(), "~~~de");
}

/// Another worker may be seconds ahead of one that has packets to read. The bytes that fill a hole may be among them.
#[test]
fn a_segment_handed_over_from_the_future_makes_no_hole_old() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(104, b"efgh"));
    // Of another connection, ten seconds later.
    let other = seg(500, b"other").src("10.0.0.9:4000");
    let handed = Segment {
        ts: Timestamp(lab.now + 10 * SECOND),
        vni: None,
        src: other.src,
        dst: other.dst,
        seq: Seq(other.seq),
        ack: Seq(0),
        flags: other.flags,
        urgent: 0,
        payload: &other.payload,
        cut: 0,
    };
    let outcome = lab.streams.push_handed(&handed, &mut lab.sink);
    assert_eq!(outcome, PacketOutcome::Stream);
    lab.push(&seg(100, b"abcd"));
    let [log] = &lab.logs(CLIENT)[..] else {
        panic!("one direction");
    };
    assert_eq!(text(log), b"abcdefgh");
    // It keeps its own time for what is told of it, and a table that has none takes it.
    let mut empty = Lab::new();
    empty.streams.push_handed(&handed, &mut empty.sink);
    assert_eq!(empty.streams.now(), handed.ts);
}
