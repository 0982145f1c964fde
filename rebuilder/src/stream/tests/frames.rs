//! From frames on: what the headers say reaches the streams, and options change nothing.

use etherparse::{PacketBuilder, TcpOptionElement};

use crate::http::{Flags, Request};
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::receive::{Frame, LinkType};

use super::*;

/// A client's segment in an Ethernet frame.
fn frame(seq: u32, urgent: Option<u16>, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut builder = PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 80, seq, 1_000)
        .ack(9)
        .options_raw(options)
        .unwrap();
    if let Some(pointer) = urgent {
        builder = builder.urg(pointer);
    }
    let mut out = Vec::new();
    builder.write(&mut out, payload).unwrap();
    out
}

fn syn(seq: u32) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2([2; 6], [4; 6])
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40_000, 80, seq, 1_000)
        .syn()
        .options(&[TcpOptionElement::MaximumSegmentSize(1460)])
        .unwrap()
        .write(&mut out, b"")
        .unwrap();
    out
}

/// What comes of frames that arrive at these times.
fn requests(frames: &[(u64, Vec<u8>)]) -> Vec<Request<'static>> {
    let mut pipeline = Pipeline::new(PipelineOptions::default());
    let mut out = Vec::new();
    for (ts, data) in frames {
        let frame = Frame {
            ts: Timestamp(START + ts),
            link: LinkType::Ethernet,
            data,
        };
        pipeline.frame(&frame, &mut |r| out.push(r.into_owned()));
    }
    pipeline.finish(End::Eof, &mut |r| out.push(r.into_owned()));
    out
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n";

/// Time stamps (also ones that run backwards, which a server drops: PAWS), MD5 and authentication options, and options
/// that lie about their length.
#[test]
fn options_of_tcp_change_nothing() {
    let stamps = |value: u8| vec![1, 1, 8, 10, 0, 0, 0, value, 0, 0, 0, 0];
    let md5: Vec<u8> = [&[1, 1, 19, 18][..], &[7; 16]].concat();
    let ao: Vec<u8> = [&[29, 16, 1, 1][..], &[7; 12]].concat();
    let cases: [[Vec<u8>; 2]; 5] = [
        [vec![], vec![]],
        [stamps(9), stamps(1)],
        [md5.clone(), md5],
        [ao.clone(), ao],
        [vec![8, 99, 0, 0], vec![255, 0, 255, 0]],
    ];
    for [first, second] in cases {
        let got = requests(&[
            (0, syn(99)),
            (1, frame(100, None, &first, &GET[..10])),
            (2, frame(110, None, &second, &GET[10..])),
        ]);
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].raw.as_ref(), got[0].flags), (GET, Flags::empty()));
    }
}

#[test]
fn a_request_with_an_urgent_byte_is_ambiguous_and_as_captured() {
    for (urgent, flags) in [(None, Flags::empty()), (Some(5), Flags::AMBIGUOUS)] {
        let got = requests(&[(0, syn(99)), (1, frame(100, urgent, &[], GET))]);
        assert_eq!((got[0].raw.as_ref(), got[0].flags), (GET, flags));
    }
}

/// Two sessions mirror the same connection, one of them at 128 bytes, and its copies come first.
#[test]
fn of_twenty_uploads_mirrored_twice_with_the_cut_copy_first_all_are_whole() {
    for delay in [200_000, 50_000_000] {
        let mut frames = vec![(0, syn(99))];
        let mut sent = Vec::new();
        let mut seq = 100;
        for n in 0..20_u8 {
            let head = format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n");
            let raw = [head.as_bytes(), &[b'a' + n; 500]].concat();
            let whole = frame(seq, None, &[], &raw);
            let at = 1_000_000 + u64::from(n) * 10_000_000;
            frames.push((at, whole[..128].to_vec()));
            frames.push((at + delay, whole));
            seq += u32::try_from(raw.len()).unwrap();
            sent.push(raw);
        }
        frames.sort_by_key(|(at, _)| *at);
        let got = requests(&frames);
        let raw: Vec<_> = got.iter().map(|r| r.raw.clone()).collect();
        assert_eq!(raw, sent, "{delay} ns later");
        assert!(got.iter().all(|r| r.flags.is_empty()));
    }
}
