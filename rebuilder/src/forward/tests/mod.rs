//! What the tests of this room share: captured requests, a scripted analyser, and the loop that a worker would run.

mod addresses;
mod adversary;
mod bytes;
mod bytes_properties;
mod few;
mod nginx;
mod quarantine;
mod scripted;
mod spoofed;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::http::{Extractor, Flags, Framing, Header, HttpOptions, OriginSource, Request};
use crate::stream::{Chunk, DirectionId, End, Endpoints};
use crate::telemetry::{Counter, RequestOutcome, WorkerCounters};
use crate::time::Timestamp;

/// A request as the HTTP stage gives it, for heads whose lines end in CRLF; everything behind the head is its body.
fn captured(raw: &[u8]) -> Request<'static> {
    let mut line_start = 0;
    while raw[line_start..].starts_with(b"\r\n") {
        line_start += 2;
    }
    let find = |what: &[u8], from: usize| {
        from + raw[from..]
            .windows(what.len())
            .position(|w| w == what)
            .unwrap()
    };
    let head_end = find(b"\r\n\r\n", line_start) + 4;
    let line_end = find(b"\r\n", line_start);
    let line = &raw[line_start..line_end];
    let first = line.iter().position(|&b| b == b' ').unwrap();
    let last = line.iter().rposition(|&b| b == b' ').unwrap();
    let version = &line[line.len() - 3..];
    let mut headers = Vec::new();
    let mut at = line_end + 2;
    while at < head_end - 2 {
        let end = find(b"\r\n", at);
        let colon = raw[at..end].iter().position(|&b| b == b':');
        headers.push(match colon {
            None => Header {
                name: at..end,
                value: None,
            },
            Some(colon) => {
                let mut value = at + colon + 1..end;
                while value.start < value.end && b" \t".contains(&raw[value.start]) {
                    value.start += 1;
                }
                while value.start < value.end && b" \t".contains(&raw[value.end - 1]) {
                    value.end -= 1;
                }
                Header {
                    name: at..at + colon,
                    value: Some(value),
                }
            }
        });
        at = end + 2;
    }
    let value_of = |name: &str| {
        headers.iter().find_map(|h| {
            let is = raw[h.name.clone()].eq_ignore_ascii_case(name.as_bytes());
            let value = std::str::from_utf8(&raw[h.value.clone()?]).ok()?;
            is.then_some(value)
        })
    };
    let framing = if value_of("Transfer-Encoding").is_some() {
        Framing::Chunked
    } else {
        match value_of("Content-Length").and_then(|v| v.parse().ok()) {
            Some(length) => Framing::Length(length),
            None => Framing::None,
        }
    };
    Request {
        method: line_start..line_start + first,
        target: line_start + first + 1..line_start + last,
        version: (version[0] - b'0', version[2] - b'0'),
        body_len: (raw.len() - head_end) as u64,
        long_version: false,
        last_whole_chunk_end: head_end,
        line_start,
        head_end,
        headers,
        framing,
        ..request_of(raw.to_vec())
    }
}

fn request_of(raw: Vec<u8>) -> Request<'static> {
    Request {
        ts: Timestamp(0),
        endpoints: Endpoints {
            vni: None,
            src: "192.0.2.10:40000".parse().unwrap(),
            dst: "10.1.2.3:8080".parse().unwrap(),
        },
        origin: IpAddr::from([203, 0, 113, 7]),
        origin_from: OriginSource::Peer,
        raw: raw.into(),
        line_start: 0,
        head_end: 0,
        method: 0..0,
        target: 0..0,
        version: (1, 1),
        headers: Vec::new(),
        framing: Framing::None,
        body_len: 0,
        long_version: false,
        last_whole_chunk_end: 0,
        flags: Flags::empty(),
    }
}

fn get(target: &str) -> Request<'static> {
    captured(format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n").as_bytes())
}

/// Runs the bytes through the HTTP stage, with the client's address that these tests expect.
fn extracted(raw: &[u8], end: End) -> Vec<Request<'static>> {
    let mut requests = extracted_with(HttpOptions::default(), raw, end);
    for request in &mut requests {
        request.origin = IpAddr::from([203, 0, 113, 7]);
    }
    requests
}

/// Runs the bytes of one connection through the HTTP stage.
fn extracted_with(options: HttpOptions, raw: &[u8], end: End) -> Vec<Request<'static>> {
    let mut extractor = Extractor::new(options);
    let mut requests = Vec::new();
    let ends = get("/").endpoints;
    let mut out = |request: Request<'_>| requests.push(request.into_owned());
    let dir = DirectionId::new(1, 1);
    let open = Chunk::Open { midstream: false };
    extractor.chunk(dir, &ends, open, &mut out);
    if !raw.is_empty() {
        let data = Chunk::Data {
            bytes: raw,
            ts: Timestamp(1),
            segment_start: true,
            conflict: false,
        };
        extractor.chunk(dir, &ends, data, &mut out);
    }
    extractor.chunk(dir, &ends, Chunk::Closed(end), &mut out);
    requests
}

fn post(target: &str, body: &[u8]) -> Request<'static> {
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    captured(&[head.as_bytes(), body].concat())
}

/// A request that goes to quarantine.
fn disputed(target: &str) -> Request<'static> {
    let mut request = get(target);
    request.flags = Flags::DISPUTED;
    request
}

fn from(source: [u8; 4], mut request: Request<'static>) -> Request<'static> {
    request.endpoints.src = SocketAddr::from((source, 40000));
    request
}

/// A forwarder with its counters, checked after each step.
struct Worker {
    forwarder: Forwarder,
    addresses: Arc<Addresses>,
    counters: Arc<WorkerCounters>,
}

impl Worker {
    fn new(at: SocketAddr, options: ForwardOptions) -> Self {
        let counters = Arc::new(WorkerCounters::default());
        let addresses = Arc::new(Addresses::new(vec![at]));
        let options = ForwardOptions {
            addresses: Arc::clone(&addresses),
            ..options
        };
        Self {
            addresses,
            forwarder: Forwarder::new(options, Arc::clone(&counters)).unwrap(),
            counters,
        }
    }

    fn submit(&mut self, request: &Request) {
        self.forwarder.submit(request);
        self.forwarder.check();
    }

    fn step(&mut self) {
        self.forwarder
            .poll(Duration::from_millis(5), Instant::now());
        self.forwarder.check();
    }

    /// Runs until `done`, or fails after `seconds`.
    fn run(&mut self, seconds: u64, mut done: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(seconds);
        while !done(self) {
            assert!(
                Instant::now() < end,
                "after {seconds} s: {:?}, {} in flight",
                self.outcomes(),
                self.forwarder.in_flight()
            );
            self.step();
        }
    }

    fn run_idle(&mut self, seconds: u64) {
        self.run(seconds, |w| w.forwarder.idle());
    }

    fn of(&self, outcome: RequestOutcome) -> u64 {
        self.counters.requests_of(outcome)
    }

    fn count(&self, counter: Counter) -> u64 {
        self.counters.counter(counter)
    }

    /// The outcomes that are not zero.
    fn outcomes(&self) -> Vec<(RequestOutcome, u64)> {
        RequestOutcome::ALL
            .iter()
            .map(|&o| (o, self.of(o)))
            .filter(|&(_, n)| n > 0)
            .collect()
    }
}

/// Times that a test can wait for.
fn short() -> ForwardOptions {
    ForwardOptions {
        answer_timeout: Duration::from_millis(200),
        quarantine_timeout: Duration::from_millis(200),
        shut_after: Duration::from_millis(20),
        retry_pause: Duration::from_millis(20),
        ..ForwardOptions::default()
    }
}

/// All shared requests on one connection.
fn one_connection(options: ForwardOptions) -> ForwardOptions {
    ForwardOptions {
        connections: 1,
        ..options
    }
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// An analyser that does what a test wants: `serve` runs on a thread for each connection, with its number from 0.
struct Peer {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Peer {
    fn new(serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), serve)
    }

    /// The accepting thread ends with the test's process.
    fn on(listener: TcpListener, serve: impl Fn(TcpStream, usize) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let number = count.fetch_add(1, Ordering::SeqCst);
                let serve = Arc::clone(&serve);
                // As nginx does on connections that it keeps: an answer that waits for an acknowledgement would be lost
                // where the connection is closed meanwhile.
                stream.set_nodelay(true).unwrap();
                stream
                    .set_read_timeout(Some(Duration::from_secs(15)))
                    .unwrap();
                std::thread::spawn(move || serve(stream, number));
            }
        });
        Self {
            address,
            connections,
        }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Reads one request, by its Content-Length, out of what came; `None` at the end. `pending` carries over.
fn read_request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Option<Vec<u8>> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(head) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&pending[..head]).to_ascii_lowercase();
            let length = text
                .lines()
                .find_map(|l| l.strip_prefix("content-length: ")?.trim().parse().ok())
                .unwrap_or(0_usize);
            let end = head + 4 + length;
            if pending.len() >= end {
                return Some(pending.drain(..end).collect());
            }
        }
        match stream.read(&mut buffer) {
            Ok(n) if n > 0 => pending.extend_from_slice(&buffer[..n]),
            _ => return None,
        }
    }
}

/// Answers every request with 200 until the peer closes.
fn answer_all(stream: TcpStream) {
    answer(stream, |_| Some(OK.to_vec()));
}

/// Answers every request with what `to` says, until the peer closes; closes itself where it says nothing.
fn answer(mut stream: TcpStream, mut to: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut pending = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut pending) {
        let Some(bytes) = to(&request) else {
            return;
        };
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

/// The target of a request's line.
fn target(request: &[u8]) -> String {
    let line = String::from_utf8_lossy(request);
    line.split(' ').nth(1).unwrap_or_default().to_owned()
}
