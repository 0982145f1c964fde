//! The program with a packet ring, and without the right to one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use program::{PATIENCE, Rebuilder, analyser};
use wire::Sender;

const GET: &str = "GET /ring HTTP/1.1\r\nHost: a\r\n\r\n";

/// The program, started by root without `CAP_NET_RAW`; `None` where this is not root.
fn without_packet_sockets() -> Option<Command> {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-net_raw", "--"]);
    let mut probe = Command::new("setpriv");
    probe.args(["--bounding-set", "-net_raw", "--", "true"]);
    if !probe.status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: setpriv may not drop a capability");
        return None;
    }
    command.arg(env!("CARGO_BIN_EXE_rebuilder"));
    Some(command)
}

#[test]
fn without_the_capability_it_reads_sockets_and_says_so_in_one_line() {
    let Some(command) = without_packet_sockets() else {
        return;
    };
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start_as(command, address, &["--workers", "2"]);
    assert!(!rebuilder.ring);
    let lines: Vec<&String> = rebuilder
        .said
        .iter()
        .filter(|line| line.contains("CAP_NET_RAW"))
        .collect();
    assert!(
        matches!(&lines[..], [line] if line.contains("WARN") && line.contains("sockets")),
        "{:?}",
        rebuilder.said
    );
    let mut sender = Sender::new("198.51.100.1:40000", "10.0.0.2:80");
    rebuilder.send(&[sender.syn(), sender.data(GET)]);
    assert_eq!(received.recv_timeout(PATIENCE).unwrap().target(), "/ring");
}

#[test]
fn a_ring_that_was_asked_for_and_cannot_be_had_is_an_error_that_names_the_capability() {
    let Some(mut command) = without_packet_sockets() else {
        return;
    };
    let output = command
        .args([
            "run",
            "--forward",
            "http://127.0.0.1:9",
            "--receive",
            "ring",
        ])
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(
        said.contains("CAP_NET_RAW") && said.contains("--receive socket"),
        "{said}"
    );
}

/// Must show 2 of the plan, second half. What holds the worker is SIGSTOP, so that the program needs no hook for it.
#[test]
fn what_a_held_worker_loses_is_counted_to_the_packet() {
    let (address, _received) = analyser();
    let rebuilder = Rebuilder::start(address, &["--ring-bytes", "2M"]);
    if !rebuilder.ring {
        eprintln!("SKIPPED: no packet ring (CAP_NET_RAW)");
        return;
    }
    let mut sender = Sender::new("198.51.100.1:40000", "10.0.0.2:80");
    let frames = vec![sender.data("x".repeat(600)); 10_000];
    rebuilder.send(&frames[..1_000]);
    rebuilder.signal(libc::SIGSTOP);
    let held = Instant::now();
    rebuilder.send(&frames);
    thread::sleep(Duration::from_secs(1).saturating_sub(held.elapsed()));
    rebuilder.signal(libc::SIGCONT);
    rebuilder.send(&frames[..1_000]);
    let sent = 12_000;
    let begun = Instant::now();
    loop {
        let taken = rebuilder.sum("rebuilder_packets_total");
        let dropped = rebuilder.sum("rebuilder_kernel_drops_total");
        let softnet = rebuilder.sum("rebuilder_softnet_drops_total");
        // The host's own losses may be somebody else's, too.
        if taken + dropped <= sent && sent <= taken + dropped + softnet {
            // Some 700 bytes each with its headers: 2 MB hold fewer than 3,000.
            assert!((7_000..10_000).contains(&dropped), "{dropped} dropped");
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{sent} sent, {taken} taken, {dropped} dropped, {softnet} before any socket"
        );
        thread::sleep(Duration::from_millis(50));
    }
}
