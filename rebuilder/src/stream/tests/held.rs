//! What waits, alone: against a map of bytes, and how much work it makes.

use std::collections::BTreeMap;

use proptest::prelude::*;

use crate::stream::held::{Arrival, Held};
use crate::stream::{OverlapPolicy, StreamOffset};
use crate::time::Timestamp;

fn arrival(at: usize, bytes: &[u8]) -> Arrival<'_> {
    Arrival {
        at: StreamOffset(at as u64),
        bytes,
        ts: Timestamp(1),
        now: Timestamp(1),
        segment_start: true,
        suspect: false,
    }
}

/// All bytes that are held, by their place.
fn drained(mut held: Held) -> BTreeMap<u64, u8> {
    let mut out = BTreeMap::new();
    while let Some(first) = held.first() {
        if first.cut.is_some() {
            held.pop_cut();
            continue;
        }
        let mut at = first.at.0;
        for piece in held.pop_run().unwrap().pieces() {
            for byte in piece.data {
                assert_eq!(out.insert(at, *byte), None);
                at += 1;
            }
        }
    }
    assert_eq!(held.cost(), 0);
    out
}

proptest! {
    /// Whatever comes in whatever order, with copies that disagree and cuts: the bytes are those of a map in which a
    /// byte that is there stays (`first`), and what is stored, what disagrees and what is shed is told as it is.
    #[test]
    fn what_is_held_is_what_a_map_of_bytes_holds(
        steps in prop::collection::vec((0..300_usize, 0..60_usize, any::<bool>(), 0..40_u64, 0..12_u8), 1..80),
    ) {
        let mut held = Held::default();
        let mut map: BTreeMap<u64, u8> = BTreeMap::new();
        for (n, (at, len, odd, cut, what)) in steps.into_iter().enumerate() {
            let byte = |i: usize| u8::try_from((at + i) % 251).unwrap() ^ u8::from(odd);
            let bytes: Vec<u8> = (0..len).map(byte).collect();
            let now = Timestamp(1 + n as u64);
            match what {
                0 => {
                    if let Some(shed) = held.shed_last(100) {
                        let bytes = map.split_off(&shed.from.0);
                        prop_assert_eq!(bytes.len() as u64, shed.bytes);
                        prop_assert!(bytes.range(shed.to.0..).next().is_none());
                    }
                }
                1 | 2 => held.insert_cut(StreamOffset(at as u64), cut, now),
                _ => {
                    let new = Arrival { now, ..arrival(at, &bytes) };
                    let done = held.insert(new, OverlapPolicy::First);
                    let mut stored = 0;
                    let mut conflicting = 0;
                    for (i, byte) in bytes.iter().enumerate() {
                        let ours = map.entry((at + i) as u64).or_insert_with(|| {
                            stored += 1;
                            *byte
                        });
                        conflicting += u64::from(ours != byte);
                    }
                    prop_assert_eq!((done.stored, done.conflicting), (stored, conflicting));
                }
            }
            held.check();
        }
        prop_assert_eq!(drained(held), map);
    }

    /// Linux, one byte at a time: a segment that begins earlier wins, or there and is longer; where one has given way,
    /// what is left of it begins where the other ends.
    #[test]
    fn under_linux_what_is_held_is_what_a_map_of_bytes_and_their_segments_holds(
        steps in prop::collection::vec((0..120_usize, 1..40_usize, any::<u8>()), 1..40),
    ) {
        let mut held = Held::default();
        // Of each byte: its value, and which fragment it belongs to.
        let mut map: BTreeMap<usize, (u8, usize)> = BTreeMap::new();
        for (n, (at, len, byte)) in steps.into_iter().enumerate() {
            held.insert(arrival(at, &vec![byte; len]), OverlapPolicy::Linux);
            held.check();
            let fragment = |map: &BTreeMap<usize, (u8, usize)>, id: usize| {
                let mut places = map.iter().filter(|(_, (_, of))| *of == id).map(|(at, _)| *at);
                let first = places.next().unwrap();
                (first, places.next_back().unwrap_or(first) + 1)
            };
            let before = map.clone();
            for place in at..at + len {
                let wins = before.get(&place).is_none_or(|(_, old)| {
                    let (start, end) = fragment(&before, *old);
                    at < start || (at == start && at + len > end)
                });
                if wins {
                    map.insert(place, (byte, n));
                }
            }
        }
        let bytes: BTreeMap<u64, u8> = map.into_iter().map(|(at, (byte, _))| (at as u64, byte)).collect();
        prop_assert_eq!(drained(held), bytes);
    }
}

/// One-byte segments behind a hole: once a segment over 8,300 of them cost 0.6 ms, each time. Counted, not timed.
#[test]
fn neighbours_share_runs_in_whatever_order_they_come() {
    const N: usize = 8_300;
    let orders: [Vec<usize>; 4] = [
        (0..N).collect(),
        (0..N).rev().collect(),
        (0..N).step_by(2).chain((1..N).step_by(2)).collect(),
        (0..N).map(|n| n * 3_571 % N).collect(),
    ];
    for order in orders {
        let mut held = Held::default();
        for at in order {
            held.insert(arrival(1000 + at, b"x"), OverlapPolicy::First);
        }
        held.check();
        // Of two that touch, both together are more than 128 segments.
        assert!(held.runs() <= 2 * N / 128 + 1, "{} runs", held.runs());
        let over = vec![b'x'; N];
        let done = held.insert(arrival(1000, &over), OverlapPolicy::First);
        assert_eq!((done.stored, done.conflicting), (0, 0));
    }
}

/// Neighbours share a run: of that only so much is shed as must be, in whole segments, the farthest first.
#[test]
fn of_a_run_only_as_many_segments_are_shed_as_are_needed() {
    let mut held = Held::default();
    for n in 0..10 {
        held.insert(arrival(100 * n, &[b'x'; 100]), OverlapPolicy::First);
    }
    assert_eq!(held.runs(), 1);
    // What is reserved for the run to grow into counts, too.
    let slack = held.cost() - 1_000;
    for need in [1, 150, 450] {
        let before = held.cost();
        let shed = held.shed_last(need).unwrap();
        held.check();
        assert!(before - held.cost() >= need);
        assert!(shed.bytes % 100 == 0 && shed.to.since(shed.from) == shed.bytes);
        assert!(
            shed.bytes <= 100 * need.div_ceil(100) as u64,
            "{need}: {}",
            shed.bytes
        );
    }
    assert!(slack > 0 && held.cost() > 0);
}

#[test]
fn a_segment_over_many_holes_leaves_none() {
    let mut held = Held::default();
    for n in 0..4_000 {
        held.insert(arrival(2 * n, b"x"), OverlapPolicy::First);
    }
    assert_eq!(held.runs(), 4_000);
    let done = held.insert(arrival(0, &[b'x'; 8_000]), OverlapPolicy::First);
    assert_eq!(done.stored, 4_000);
    held.check();
    assert!(held.runs() < 140, "{} runs", held.runs());
}

/// A cut frame adds nothing where others came before it, so nobody pays for its way past them.
#[test]
fn a_cut_over_more_pieces_than_are_looked_through_is_a_hole_behind_them() {
    let mut held = Held::default();
    for n in 0..1_000 {
        held.insert(arrival(2 * n, b"x"), OverlapPolicy::First);
    }
    held.insert_cut(StreamOffset(0), 2_000, Timestamp(1));
    held.check();
    assert_eq!(held.cuts(), 128, "of 256 steps, every second finds a byte");
}
