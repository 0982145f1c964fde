//! Segments that are named before the first of them is taken come to what they come to one by one, also where whoever chooses
//! addresses and ports aims at the places by which flows are told to be near.

use crate::decode::{Plain, Seq, TcpFlags};
use crate::time::Timestamp;

use super::super::flow::PlainKey;
use super::super::table::NEAR;
use super::super::{AHEAD, FlowScope, Named, StreamOptions, Streams};
use super::{Event, MS, Recorder, START};

const SERVER: u32 = 0x0a00_0001;

fn segment(client: u32, port: u16, seq: u32, flags: TcpFlags, payload: &[u8]) -> Plain<'_> {
    Plain {
        payload,
        ts: Timestamp(START),
        seq: Seq(seq),
        ack: Seq(0),
        ends: ([client, SERVER], [port, 80]),
        vni: None,
        flags,
    }
}

/// Clients whose flows all have the same place.
fn colliding(count: usize) -> Vec<(u32, u16)> {
    let place = |(client, port): (u32, u16)| {
        let plain = segment(client, port, 0, TcpFlags::ACK, b"");
        PlainKey::of(FlowScope::Global, &plain).0.near() % NEAR
    };
    let all = (0_u32..).map(|n| {
        (
            0x0a01_0000 + n / 100,
            40_000 + u16::try_from(n % 100).unwrap(),
        )
    });
    let wanted = place((0x0a01_0000, 40_000));
    all.filter(|client| place(*client) == wanted)
        .take(count)
        .collect()
}

#[test]
fn flows_that_share_a_place_are_told_apart() {
    let clients = colliding(40);
    let texts: Vec<Vec<u8>> = (0..clients.len() * 6)
        .map(|n| format!("segment {n};").into_bytes())
        .collect();
    let mut segments = Vec::new();
    for &(client, port) in &clients {
        segments.push(segment(client, port, 99, TcpFlags::SYN, b""));
    }
    let mut next = vec![100_u32; clients.len()];
    for (n, text) in texts.iter().enumerate() {
        let at = n * 7 % clients.len();
        let (client, port) = clients[at];
        segments.push(segment(client, port, next[at], TcpFlags::ACK, text));
        next[at] += u32::try_from(text.len()).unwrap();
    }
    for (n, segment) in segments.iter_mut().enumerate() {
        segment.ts = Timestamp(START + n as u64 * MS);
    }

    let mut one_by_one = (Streams::new(StreamOptions::default()), Recorder::default());
    let outcomes: Vec<_> = segments
        .iter()
        .map(|segment| one_by_one.0.push(&segment.segment(), &mut one_by_one.1))
        .collect();

    let mut together = (Streams::new(StreamOptions::default()), Recorder::default());
    let mut named = [Named::NONE; AHEAD];
    let mut ended = Vec::new();
    for batch in segments.chunks(AHEAD) {
        for (segment, named) in batch.iter().zip(&mut named) {
            together.0.name(segment, named);
        }
        together.0.look_ahead(|_| {});
        for (segment, named) in batch.iter().zip(&named) {
            ended.push(together.0.push_named(segment, named, &mut together.1));
        }
    }

    assert_eq!(ended, outcomes);
    assert_eq!(together.1.dirs, one_by_one.1.dirs);
    assert_eq!(together.0.stats(), one_by_one.0.stats());
    together.0.check();
    let bytes = |(_, log): &(_, Vec<Event>)| {
        let data = log.iter().filter_map(|event| match event {
            Event::Data { bytes, .. } => Some(bytes.len()),
            _ => None,
        });
        data.sum::<usize>()
    };
    let given: usize = together.1.dirs.values().map(bytes).sum();
    assert_eq!(given, texts.iter().map(Vec::len).sum::<usize>());
}
