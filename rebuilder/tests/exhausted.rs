//! The program under many who begin and never end: its memory, and what others get. (The scenarios one by one, and the
//! equation of their bytes, are in `proof/exhaustion.rs`.)

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::thread;
use std::time::{Duration, Instant};

use program::{PATIENCE, Rebuilder, analyser};
use wire::Sender;

const MIB: usize = 1 << 20;

/// Sends frames, and waits until each has its outcome.
fn send(rebuilder: &Rebuilder, frames: &[Vec<u8>], sent: &mut u64) {
    rebuilder.send(frames);
    *sent += frames.len() as u64;
    let begun = Instant::now();
    while rebuilder.sum("rebuilder_packets_total") < *sent {
        assert!(
            begun.elapsed() < PATIENCE,
            "{} of {sent} packets have an outcome",
            rebuilder.sum("rebuilder_packets_total")
        );
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn memory_stays_below_the_caps_and_64_mib_while_others_get_every_request() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(
        address,
        &[
            "--held-bytes",
            "32M",
            "--queue-bytes",
            "8M",
            "--inflight-bytes",
            "8M",
            "--ring-bytes",
            "16M",
        ],
    );
    let mut sent = 0;
    let mut honest = Sender::new("198.51.100.1:40000", "10.0.0.2:80");
    send(&rebuilder, &[honest.syn()], &mut sent);
    let mut next = 0_u32;
    let mut attacker = || {
        next += 1;
        let [_, a, b, c] = next.to_be_bytes();
        Sender::new(&format!("100.{}.{b}.{c}:5000", 64 + a), "10.0.0.2:80")
    };
    let ahead = [b'x'; 6_000];
    for round in 0..60 {
        let mut frames = Vec::new();
        // Half-open connections, such that began a head, and such that hold bytes behind a hole.
        for _ in 0..300 {
            frames.push(attacker().syn());
            frames.push(attacker().data("GET /half HTTP/1.1\r\nHo"));
        }
        for _ in 0..60 {
            let mut hole = attacker();
            frames.push(hole.syn());
            frames.push(
                hole.data("POST /hole HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\nx"),
            );
            hole.lose(1);
            for _ in 0..3 {
                frames.push(hole.data(ahead));
            }
        }
        for frames in frames.chunks(rebuilder.burst()) {
            send(&rebuilder, frames, &mut sent);
        }

        let body = format!("round {round} ").repeat(40);
        let text = format!(
            "POST /honest/{round} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let (one, rest) = text.split_at(30);
        let (two, three) = rest.split_at(100);
        let [one, two, three] = [one, two, three].map(|part| honest.data(part));
        // Out of order, and one of them twice.
        send(&rebuilder, &[one, three, two.clone(), two], &mut sent);
        // What was captured of the others' requests is delivered too.
        let got = loop {
            let got = received.recv_timeout(PATIENCE).unwrap();
            if got.target() != "/hole" {
                break got;
            }
        };
        assert_eq!(got.target(), format!("/honest/{round}"));
        assert_eq!(got.body, body.as_bytes());
        assert_eq!(got.field("X-Mirror-Flags"), None);
    }
    let more: Vec<_> = received.try_iter().collect();
    assert!(more.iter().all(|got| got.target() == "/hole"), "{more:?}");
    let peak = rebuilder.peak();
    println!(
        "{} MiB resident at most, {sent} packets, {} bytes shed, {} connections closed early",
        peak / MIB,
        rebuilder.sum("rebuilder_shed_bytes_total"),
        rebuilder.sum("rebuilder_evicted_flows_total"),
    );
    assert!(peak < (32 + 8 + 8 + 16 + 64) * MIB, "{} MiB", peak / MIB);
    assert_eq!(rebuilder.sum("rebuilder_packets_total"), sent);
    // The caps were reached, and what gave way has a number.
    assert!(rebuilder.sum("rebuilder_shed_bytes_total") > 0);
    assert!(rebuilder.sum("rebuilder_evicted_flows_total") > 0);
}
