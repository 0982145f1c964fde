//! An upload on an interface with MTU 9001, whose mirrored copies are cut at 8500 bytes, as AWS cuts them; and the remedy
//! that the README names.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::sync::mpsc::Receiver;

use program::{Got, PATIENCE, Rebuilder, analyser};
use wire::Sender;

/// `PacketLength` of the mirror session: what is left of a frame.
const PACKET_LENGTH: usize = 8500;

/// Bytes before the payload in a frame: Ethernet 14, IPv4 20, TCP 20.
const HEADERS: usize = 54;

const HEAD: &str = "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\nA: b\r\n\r\n";
const NEXT: &str = "GET /next HTTP/1.1\r\nHost: a\r\n\r\n";

fn body() -> Vec<u8> {
    (0..=250u8).cycle().take(100_000).collect()
}

/// The frames of one connection: the upload in segments that fill `mtu`, a request behind it, FIN; cut by the mirror.
fn mirrored(mtu: usize, port: u16) -> Vec<Vec<u8>> {
    let mut sender = Sender::new(&format!("10.1.0.7:{port}"), "10.0.0.2:80");
    let bytes = [HEAD.as_bytes(), &body(), NEXT.as_bytes()].concat();
    let mut frames = vec![sender.syn()];
    frames.extend(bytes.chunks(mtu - 40).map(|payload| sender.data(payload)));
    frames.push(sender.fin());
    for frame in &mut frames {
        frame.truncate(PACKET_LENGTH);
    }
    frames
}

/// What the analyser got of the two, whichever came first.
fn upload_and_next(received: &Receiver<Got>) -> (Got, Got) {
    let [a, b] = [(); 2].map(|()| received.recv_timeout(PATIENCE).unwrap());
    if a.target() == "/upload" {
        (a, b)
    } else {
        (b, a)
    }
}

#[test]
fn under_mtu_9001_the_first_8446_bytes_of_an_upload_survive_and_a_counter_says_so() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &[]);
    let frames = mirrored(9001, 40_000);
    let cut = frames.iter().filter(|f| f.len() == PACKET_LENGTH).count();
    // 100,101 bytes in segments of 8,961: eleven full ones and a rest.
    assert_eq!(cut, 11);
    rebuilder.send(&frames);

    let (upload, next) = upload_and_next(&received);
    let captured = PACKET_LENGTH - HEADERS - HEAD.len();
    assert_eq!((upload.target(), captured), ("/upload", 8382));
    assert!(upload.body == body()[..captured], "other bytes");
    // Its length is rewritten in place, and all the rest of the head stands as captured before our lines.
    let head = HEAD.replace("100000", "8382");
    assert!(upload.head.starts_with(head.trim_end()), "{}", upload.head);
    assert_eq!(upload.field("X-Mirror-Flags"), Some("truncated"));
    // The hole keeps the framing: the request behind it begins where the length says.
    assert_eq!(
        (next.target(), next.field("X-Mirror-Flags")),
        ("/next", None)
    );

    rebuilder.shows("rebuilder_cut_frames_total 11");
    rebuilder.shows("rebuilder_gaps_total 11");
    // 8,961 - 8,446 of each.
    rebuilder.shows("rebuilder_gap_bytes_total 5665");
    rebuilder.shows("rebuilder_requests_total{outcome=\"delivered_2xx\"} 2");
}

/// Chunked, what ends before the first missing byte is sent: the last whole chunk, and the zero chunk behind it.
#[test]
fn a_chunked_upload_ends_with_its_last_whole_chunk() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &[]);
    let head = "POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    // 0x3e8: a thousand. Eight of them and a part of a ninth, of two thousand, fit into what is left of the first frame; the
    // hole lies in the data of the ninth, so the framing is kept.
    let chunk = format!("3e8\r\n{}\r\n", "c".repeat(1000));
    let last = format!("7d0\r\n{}\r\n", "d".repeat(2000));
    let bytes = format!("{head}{}{last}0\r\n\r\n{NEXT}", chunk.repeat(8));
    let mut sender = Sender::new("10.1.0.7:40000", "10.0.0.2:80");
    let mut frames = vec![sender.syn()];
    frames.extend(
        bytes
            .as_bytes()
            .chunks(8961)
            .map(|payload| sender.data(payload)),
    );
    frames.push(sender.fin());
    frames.iter_mut().for_each(|f| f.truncate(PACKET_LENGTH));
    rebuilder.send(&frames);
    let (upload, next) = upload_and_next(&received);
    let expected = format!("{}0\r\n\r\n", chunk.repeat(8));
    assert!(
        upload.body == expected.as_bytes(),
        "{} bytes",
        upload.body.len()
    );
    assert_eq!(upload.field("X-Mirror-Flags"), Some("truncated"));
    assert_eq!(
        (next.target(), next.field("X-Mirror-Flags")),
        ("/next", None)
    );
}

#[test]
fn with_incomplete_drop_a_cut_upload_is_counted_instead() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &["--incomplete", "drop"]);
    rebuilder.send(&mirrored(9001, 40_000));
    assert_eq!(received.recv_timeout(PATIENCE).unwrap().target(), "/next");
    rebuilder.shows("rebuilder_requests_total{outcome=\"incomplete\"} 1");
    rebuilder.shows("rebuilder_requests_extracted_total 2");
}

#[test]
fn under_mtu_8450_the_whole_upload_survives() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &[]);
    rebuilder.send(&mirrored(8450, 40_000));
    let (upload, next) = upload_and_next(&received);
    assert!(upload.body == body(), "other bytes");
    assert_eq!(upload.field("X-Mirror-Flags"), None);
    assert_eq!(next.target(), "/next");
    rebuilder.shows("rebuilder_cut_frames_total 0");
}

/// A cut inside a head: nothing of the request is forwarded, and what follows is found.
#[test]
fn a_head_that_is_cut_is_counted_and_never_forwarded() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &[]);
    let mut sender = Sender::new("10.1.0.7:40000", "10.0.0.2:80");
    let long = format!(
        "GET /cut HTTP/1.1\r\nHost: a\r\nCookie: {}\r\n\r\n",
        "c".repeat(8900)
    );
    let mut frames = vec![
        sender.syn(),
        sender.data(&long),
        sender.data(NEXT),
        sender.fin(),
    ];
    frames[1].truncate(PACKET_LENGTH);
    rebuilder.send(&frames);
    let next = received.recv_timeout(PATIENCE).unwrap();
    assert_eq!(
        (next.target(), next.field("X-Mirror-Flags")),
        ("/next", Some("resynced"))
    );
    rebuilder.shows("rebuilder_incomplete_heads_total 1");
    rebuilder.shows("rebuilder_requests_extracted_total 1");
    rebuilder.shows("rebuilder_cut_frames_total 1");
}
