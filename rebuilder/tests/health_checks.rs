//! `--ignore-health-checks`, through the program: mirrored packets in, an analyser that writes down what it gets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod program;
mod wire;

use std::process::Command;
use std::sync::mpsc::Receiver;

use program::{Got, PATIENCE, Rebuilder, analyser};
use wire::Sender;

fn get(target: &str, more: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nUser-Agent: ELB-HealthChecker/2.0\r\n{more}\r\n")
}

/// A connection of one request each, with the source that it comes from.
fn send(rebuilder: &Rebuilder, requests: &[(&str, String)]) {
    for (port, (source, request)) in (40_000..).zip(requests) {
        let mut sender = Sender::new(&format!("{source}:{port}"), "10.0.0.2:80");
        rebuilder.send(&[sender.syn(), sender.data(request), sender.fin()]);
    }
}

fn targets(received: &Receiver<Got>, count: usize) -> Vec<String> {
    let mut targets: Vec<String> = (0..count)
        .map(|_| received.recv_timeout(PATIENCE).unwrap())
        .map(|got| got.target().to_owned())
        .collect();
    targets.sort();
    targets
}

#[test]
fn an_attack_under_the_name_of_a_health_check_from_elsewhere_is_delivered_and_a_probe_is_counted() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(
        address,
        &["--ignore-health-checks", "10.1.0.0/24,2001:db8::/32"],
    );
    send(
        &rebuilder,
        &[
            ("10.1.0.7", get("/probe", "")),
            ("203.0.113.9", get("/elsewhere/../../etc/passwd", "")),
            ("10.1.0.7", get("/inside?q=%27or+1=1", "")),
            (
                "10.1.0.7",
                get("/relayed", "X-Forwarded-For: 203.0.113.9\r\n"),
            ),
            ("10.1.0.8", get("/probe", "")),
        ],
    );
    assert_eq!(
        targets(&received, 3),
        [
            "/elsewhere/../../etc/passwd",
            "/inside?q=%27or+1=1",
            "/relayed"
        ]
    );
    // Every request has exactly one outcome: 5 = 3 + 2 + 0.
    rebuilder.shows("rebuilder_requests_total{outcome=\"delivered_2xx\"} 3");
    rebuilder.shows("rebuilder_requests_total{outcome=\"health_check\"} 2");
    rebuilder.shows("rebuilder_requests_extracted_total 5");
    rebuilder.shows("rebuilder_requests_submitted_total 3");
    rebuilder.shows("rebuilder_requests_in_flight 0");
    assert!(received.try_recv().is_err(), "nothing else was delivered");
}

#[test]
fn without_the_option_a_probe_is_a_request_like_another() {
    let (address, received) = analyser();
    let rebuilder = Rebuilder::start(address, &[]);
    send(&rebuilder, &[("10.1.0.7", get("/probe", ""))]);
    assert_eq!(targets(&received, 1), ["/probe"]);
    rebuilder.shows("rebuilder_requests_total{outcome=\"health_check\"} 0");
}

#[test]
fn inspect_has_no_such_option() {
    let output = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
        .args(["inspect", "--ignore-health-checks", "0.0.0.0/0", "a.pcap"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
