//! Faults of another reassembler (retina, Stanford), each the opposite of a test here.

use crate::http::{Extractor, Flags, HttpOptions};
use crate::telemetry::PacketOutcome;

use super::*;

#[test]
fn an_in_order_fin_with_data_advances_by_the_data() {
    let mut lab = Lab::after_syn(99);
    assert_eq!(lab.push(&seg(100, b"abc").fin()), PacketOutcome::Stream);
    // Were the stream at 101 now, this would be new.
    assert_eq!(lab.push(&seg(101, b"bc").fin()), PacketOutcome::Duplicate);
    lab.wait(2 * SECOND);
    assert_eq!(lab.text(), "abc");
    assert_eq!(lab.log().last(), Some(&Event::Closed(End::Fin)));
}

#[test]
fn the_sequence_number_of_a_fin_is_no_byte_where_segments_overlap() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(103, b"def").fin(), seg(102, b"cdef"), seg(100, b"abcd")]);
    lab.push(&seg(103, b"def").fin());
    lab.finish();
    assert_eq!(lab.text(), "abcdef");
    assert_eq!(lab.streams.stats().conflicting_bytes, 0);
}

#[test]
fn a_bare_ack_is_no_syn_ack() {
    let mut lab = Lab::new();
    lab.push(&seg(99, b"").syn());
    lab.push(&reply(499, b"").ack(100));
    lab.push(&reply(700, b"HTTP").ack(100));
    lab.wait(50 * MS);
    assert_eq!(lab.logs(SERVER)[0][0], Event::Open { midstream: true });
    assert_eq!(text(lab.logs(SERVER)[0]), b"HTTP");
}

#[test]
fn what_waits_is_capped_in_bytes_and_not_in_segments() {
    let mut lab = Lab::after_syn(99);
    for n in (1..=5000_u32).rev() {
        assert_eq!(
            lab.push_unchecked(&seg(100 + 2 * n, b"xy")),
            PacketOutcome::Stream
        );
    }
    lab.streams.check();
    lab.push(&seg(100, b"ab"));
    assert_eq!(lab.text().len(), 10_002);
}

#[test]
fn there_is_a_way_past_a_gap() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[seg(100, b"ab"), seg(105, b"fg")]);
    lab.wait(SECOND + 1);
    assert_eq!(lab.push(&seg(107, b"hi")), PacketOutcome::Stream);
    assert_eq!(lab.text(), "ab~~~fghi");
}

#[test]
fn a_head_that_is_split_over_segments_is_whole() {
    struct Http(Extractor, Vec<(Vec<u8>, Flags)>);
    impl Sink for Http {
        fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
            let Self(extractor, requests) = self;
            extractor.chunk(dir, ends, chunk, &mut |r| {
                requests.push((r.raw.into_owned(), r.flags));
            })
        }
    }
    let raw = b"GET /a/b?c=d HTTP/1.1\r\nHost: example.org\r\nX: y\r\n\r\n";
    for first in 1..raw.len() {
        for second in [first, first + (raw.len() - first) / 2] {
            let mut streams = Streams::new(StreamOptions::default());
            let mut http = Http(Extractor::new(HttpOptions::default()), Vec::new());
            let at = |n: usize| 100 + u32::try_from(n).unwrap();
            let segs = [
                seg(99, b"").syn(),
                seg(100, &raw[..first]),
                seg(at(second), &raw[second..]),
                seg(at(first), &raw[first..second]),
            ];
            for s in &segs {
                streams.push(&segment(s, START), &mut http);
            }
            assert_eq!(http.1, [(raw.to_vec(), Flags::empty())], "{first} {second}");
        }
    }
}
