//! `--ignore-health-checks`, through the program: mirrored packets in, an analyser that writes down what it gets.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

mod wire;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use wire::{Sender, vxlan};

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers each head with 200 and gives it to the receiver. Ends with the test.
fn analyser() -> (SocketAddr, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, received) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, heads) = (stream.unwrap(), heads.clone());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while lines.read_line(&mut head).is_ok_and(|n| n > 0) {
                    if head.ends_with("\r\n\r\n") {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                        let _ = stream.write_all(answer);
                        let _ = heads.send(std::mem::take(&mut head));
                    }
                }
            });
        }
    });
    (address, received)
}

/// A running program, killed with its owner.
struct Rebuilder {
    child: Child,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl Rebuilder {
    fn start(forward: SocketAddr, more: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rebuilder"))
            .args(["run", "--forward", &format!("http://{forward}")])
            .args(["--workers", "1", "--listen", "127.0.0.1:0"])
            .args(["--admin", "127.0.0.1:0"])
            .args(more)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let ready = loop {
            let line = log.next().expect("it ended").unwrap();
            if line.contains("ready") {
                break line;
            }
        };
        // What it says later must not meet a closed pipe.
        thread::spawn(move || log.for_each(drop));
        let word = |key: &str| {
            let (_, rest) = ready.split_once(key).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        Self {
            listen: word("listen="),
            admin: word("admin="),
            child,
        }
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until the line stands in the metrics.
    fn shows(&self, line: &str) {
        let begun = Instant::now();
        loop {
            let metrics = self.metrics();
            if metrics.lines().any(|l| l == line) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "no `{line}` in\n{metrics}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Rebuilder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(target: &str, more: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nUser-Agent: ELB-HealthChecker/2.0\r\n{more}\r\n")
}

/// A connection of one request each, with the source that it comes from.
fn send(rebuilder: &Rebuilder, requests: &[(&str, String)]) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for (port, (source, request)) in (40_000..).zip(requests) {
        let mut sender = Sender::new(&format!("{source}:{port}"), "10.0.0.2:80");
        for frame in [sender.syn(), sender.data(request), sender.fin()] {
            let datagram = vxlan(1, &frame);
            socket.send_to(&datagram, rebuilder.listen).unwrap();
        }
    }
}

fn targets(received: &Receiver<String>, count: usize) -> Vec<String> {
    let mut targets: Vec<String> = (0..count)
        .map(|_| received.recv_timeout(PATIENCE).unwrap())
        .map(|head| head.split(' ').nth(1).unwrap().to_owned())
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
