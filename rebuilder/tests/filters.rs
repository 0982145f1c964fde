//! `--port` and `--checksum`, through the program.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::io::Write;
use std::process::Command;

use program::{PATIENCE, Rebuilder, analyser};
use serde_json::Value;
use wire::{Sender, a_second_apart, pcap};

/// A connection of one request.
fn connection(src: &str, dst: &str, target: &str) -> Vec<Vec<u8>> {
    let mut sender = Sender::new(src, dst);
    let get = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    vec![sender.syn(), sender.data(get), sender.fin()]
}

/// With another TCP checksum; behind Ethernet (14) and IPv4 (20) it begins at byte 16.
fn wrong(mut frame: Vec<u8>) -> Vec<u8> {
    frame[14 + 20 + 16] ^= 1;
    frame
}

/// Three connections, of which one has each port.
fn some_ports() -> Vec<Vec<u8>> {
    [
        connection("10.1.0.7:40000", "10.0.0.2:80", "/80"),
        connection("[2001:db8::7]:40001", "[2001:db8::2]:8080", "/8080"),
        connection("10.1.0.7:8443", "10.0.0.2:9000", "/from-8443"),
    ]
    .concat()
}

/// The targets, and how many packets ended so.
fn inspect(frames: Vec<Vec<u8>>, arguments: &[&str], outcome: &str) -> (Vec<String>, u64) {
    let mut capture = tempfile::NamedTempFile::new().unwrap();
    capture.write_all(&pcap(&a_second_apart(frames))).unwrap();
    let read = |form: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
            .args(["inspect", form])
            .arg(capture.path())
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect::<Vec<Value>>()
    };
    let targets = read("--json").into_iter();
    let targets = targets.map(|row| row["target"].as_str().unwrap().to_owned());
    let summary = read("--summary").remove(0);
    let ended = summary["packets_by_outcome"][outcome].as_u64().unwrap_or(0);
    (targets.collect(), ended)
}

#[test]
fn inspect_takes_the_connections_that_have_a_named_port_at_either_end() {
    let cases: [(&[&str], &[&str]); 5] = [
        (&[], &["/80", "/8080", "/from-8443"]),
        (&["--port", "80"], &["/80"]),
        (&["--port", "80,8443"], &["/80", "/from-8443"]),
        (
            &["--port", "8000-8100", "--port", "9000"],
            &["/8080", "/from-8443"],
        ),
        (&["--port", "1-79,81-8079"], &[]),
    ];
    for (arguments, targets) in cases {
        let (got, excluded) = inspect(some_ports(), arguments, "port_excluded");
        assert_eq!(got, targets);
        // Each connection is three packets.
        assert_eq!(excluded, 9 - 3 * targets.len() as u64);
    }
}

#[test]
fn run_takes_the_connections_that_have_a_named_port_at_either_end() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &["--port", "8443,8000-8100"]);
    rebuilder.send(&some_ports());
    let mut got: Vec<_> = (0..2)
        .map(|_| received.recv_timeout(PATIENCE).unwrap().target().to_owned())
        .collect();
    got.sort();
    assert_eq!(got, ["/8080", "/from-8443"]);
    rebuilder.shows("rebuilder_packets_total{outcome=\"port_excluded\"} 3");
    assert!(received.try_recv().is_err(), "nothing else was delivered");
}

/// So many sound connections, and one of which the request's first copy has a wrong checksum and other bytes.
fn with_garbage(before: u16) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for n in 0..before {
        let src = format!("10.1.0.7:{}", 20_000 + n);
        frames.extend(connection(&src, "10.0.0.2:80", "/before"));
    }
    let (src, dst) = ("10.1.0.7:40000", "10.0.0.2:80");
    let benign = connection(src, dst, "/benign");
    let attack = connection(src, dst, "/attack");
    let [syn, garbage] = [&benign[0], &benign[1]];
    frames.extend([syn.clone(), wrong(garbage.clone())]);
    frames.extend_from_slice(&attack[1..]);
    frames
}

#[test]
fn what_a_server_drops_for_its_checksum_is_not_what_the_analyser_sees() {
    let last = |frames, policy| {
        let arguments: &[&str] = match policy {
            "" => &[],
            policy => &["--checksum", policy],
        };
        let (targets, dropped) = inspect(frames, arguments, "bad_checksum");
        (targets.last().unwrap().clone(), dropped)
    };
    let attack = |dropped| ("/attack".to_owned(), dropped);
    let benign = || ("/benign".to_owned(), 0);
    // `auto`, by default: a hundred right ones (and a SYN) of this interface in this direction were seen.
    assert_eq!(last(with_garbage(33), ""), attack(1));
    assert_eq!(last(with_garbage(33), "auto"), attack(1));
    assert_eq!(last(with_garbage(32), ""), benign());
    assert_eq!(last(with_garbage(33), "count"), benign());
    assert_eq!(last(with_garbage(0), "drop"), attack(1));
}

#[test]
fn a_wrong_checksum_that_is_only_counted_stands_in_the_metrics() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &["--checksum", "count"]);
    rebuilder.send(&with_garbage(0));
    let got = received.recv_timeout(PATIENCE).unwrap();
    assert_eq!(got.target(), "/benign");
    rebuilder.shows("rebuilder_bad_checksums_total 1");
    rebuilder.shows("rebuilder_packets_total{outcome=\"bad_checksum\"} 0");
}
