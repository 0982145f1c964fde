//! `rebuilder self-test`: whether mirrored packets become requests on this machine, by this kernel and in this sandbox,
//! before real ones come.
//!
//! The whole of `rebuilder run` is started with the settings that it will have, on ports of its own on loopback. What is
//! sent to it are datagrams as a mirror sends them: one connection for each worker, its segments out of order and one of
//! them twice, with a body of all byte values. An analyser of the self-test's own must get each request byte for byte,
//! with the lines that are documented to be added. Where it does not, the counters tell how far the packets came.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::decode::{self, Vni};
use crate::forward::{Addresses, Forwarder, Target};
use crate::receive;
use crate::run::{self, RunError, RunOptions, Running};
use crate::telemetry::{Counter, Figures, PacketOutcome, RequestOutcome};

/// How long the requests may take. Some tens of milliseconds are usual; a machine that boots is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long after the last sign of trouble the workers publish what they counted.
const PUBLISHED: Duration = Duration::from_millis(300);

/// What the packets carry. Nobody else can send to the port, so any will do; the largest is hardly anyone's.
const VNI: Vni = Vni(0x00ff_fffe);

/// Documentation addresses (RFC 5737), so that they are nobody's proxies.
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// Bytes of a body: four segments, and every byte value.
const BODY: usize = 4096;

/// Bytes of a segment's payload; the datagram fits any link.
const SEGMENT: usize = 1200;

/// The longest head that the self-test's analyser reads.
const LONGEST_HEAD: u64 = 16 << 10;

/// What came out whole.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    requests: usize,
    packets: usize,
    receive: &'static str,
    took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "self-test: {} mirrored packets came by {} and gave {} whole requests, in {:.3} s",
            self.packets,
            self.receive,
            self.requests,
            self.took.as_secs_f64()
        )
    }
}

/// The stage that failed, and the remedy, in one line.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It cannot run at all.
    #[error("self-test: starting: {0}")]
    Start(#[from] RunError),
    /// Loopback does not work.
    #[error(
        "self-test: {what} on 127.0.0.1: {source}; check that `ip link` shows lo as UP and that the service may use it"
    )]
    Loopback {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel does not give what was sent.
    #[error(
        "self-test: receiving: {arrived} of {sent} packets came out of the {receive}; {remedy}, and report this kernel \
         (`uname -r`)"
    )]
    Receive {
        /// Packets that a worker saw.
        arrived: u64,
        /// Packets that were sent.
        sent: usize,
        /// `ring` or `socket`.
        receive: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A packet is not taken for what it is.
    #[error(
        "self-test: rebuilding: {requests} of {expected} requests were found in the packets, which ended as {outcomes}; \
         check --held-bytes and --checksum"
    )]
    Rebuild {
        /// Requests found.
        requests: u64,
        /// Requests sent.
        expected: usize,
        /// Where the packets ended.
        outcomes: String,
    },
    /// A request does not reach the analyser.
    #[error(
        "self-test: forwarding: {delivered} of {expected} requests reached an analyser on 127.0.0.1 ({failures} \
         connections failed, outcomes: {outcomes}); check --queue-bytes and --inflight-bytes, and that the service may \
         open TCP connections"
    )]
    Forward {
        /// Requests answered.
        delivered: usize,
        /// Requests sent.
        expected: usize,
        /// Connections that could not be had.
        failures: u64,
        /// Where the requests ended.
        outcomes: String,
    },
    /// A request is not whole.
    #[error(
        "self-test: rebuilding: a request came out {flags} ({got} of {expected} bytes); raise --held-bytes"
    )]
    Marred {
        /// Its `X-Mirror-Flags`.
        flags: String,
        /// Bytes that came.
        got: usize,
        /// Bytes that should have come.
        expected: usize,
    },
    /// A request is another one.
    #[error(
        "self-test: forwarding: a request came out changed at byte {at} (of {expected}; {got} came); this program is \
         damaged or wrong: deploy it again, and report that"
    )]
    Changed {
        /// Of the first difference.
        at: usize,
        /// Bytes that came.
        got: usize,
        /// Bytes that should have come.
        expected: usize,
    },
    /// The load balancer would not send traffic.
    #[error("self-test: health: /healthz answers {said:?} although all workers run; report that")]
    Health {
        /// The answer's first line, or what failed.
        said: String,
    },
}

/// Tests with these settings, on other ports.
///
/// # Errors
/// [`SelfTestError`] names the stage and the remedy.
pub fn run(options: &RunOptions) -> Result<Report, SelfTestError> {
    let begun = Instant::now();
    // What the real analyser needs of this machine, such as certificates; nothing is sent to it.
    Forwarder::new(options.forward.clone(), Arc::default()).map_err(RunError::from)?;
    let (analyser, received) = analyser().map_err(loopback("listening for TCP"))?;
    let running = run::start(&on_loopback(options, analyser))?;
    let tested = test(&running, options, &received);
    running.stopper().stop();
    // What fails now has been told by the test, or does not matter to it.
    let receive = running.receive();
    let ended = running.wait();
    let (requests, packets) = tested?;
    ended?;
    Ok(Report {
        requests,
        packets,
        receive,
        took: begun.elapsed(),
    })
}

fn loopback(what: &'static str) -> impl Fn(io::Error) -> SelfTestError {
    move |source| SelfTestError::Loopback { what, source }
}

fn on_loopback(options: &RunOptions, analyser: SocketAddr) -> RunOptions {
    let mut options = options.clone();
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    options.listen = any;
    options.admin.listen = any;
    options.drain_timeout = Duration::from_secs(1);
    if !options.pipeline.decode.vnis.is_empty() {
        options.pipeline.decode.vnis = vec![VNI];
    }
    options.forward.target = Target {
        tls: false,
        host: analyser.ip().to_string(),
        port: analyser.port(),
    };
    options.forward.addresses = Arc::new(Addresses::new(vec![analyser]));
    options
}

/// How many requests and packets there were.
fn test(
    running: &Running,
    options: &RunOptions,
    received: &Receiver<Vec<u8>>,
) -> Result<(usize, usize), SelfTestError> {
    let server_port = options
        .pipeline
        .decode
        .ports
        .first()
        .map_or(80, |ports| *ports.start());
    let connections: Vec<Connection> = (0..options.workers)
        .filter_map(|worker| Connection::of(worker, options.workers, server_port))
        .collect();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(loopback("sending UDP"))?;
    let mut sent = 0;
    for connection in &connections {
        for datagram in connection.datagrams() {
            socket
                .send_to(&datagram, running.listen())
                .map_err(loopback("sending UDP"))?;
            sent += 1;
        }
    }
    let mut missing: Vec<Vec<u8>> = connections.iter().map(Connection::expected).collect();
    let expected = missing.len();
    let deadline = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        match received.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(got) => {
                if let Some(at) = missing.iter().position(|wanted| *wanted == got) {
                    missing.swap_remove(at);
                } else if !connections.iter().any(|c| c.expected() == got) {
                    return Err(changed(&missing, &got));
                }
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                thread::sleep(PUBLISHED);
                let figures = running.metrics().totals();
                let delivered = expected - missing.len();
                return Err(stage(
                    &figures,
                    running.receive(),
                    sent,
                    expected,
                    delivered,
                ));
            }
        }
    }
    healthy(running.admin())?;
    Ok((expected, sent))
}

/// How far the packets came.
fn stage(
    figures: &Figures,
    receive: &'static str,
    sent: usize,
    expected: usize,
    delivered: usize,
) -> SelfTestError {
    let arrived: u64 = PacketOutcome::ALL.iter().map(|&o| figures.packets(o)).sum();
    if usize::try_from(arrived).is_ok_and(|arrived| arrived < sent) {
        return SelfTestError::Receive {
            arrived,
            sent,
            receive,
            remedy: if receive == "ring" {
                "choose --receive socket (REBUILDER_RECEIVE=socket)"
            } else {
                "check that no firewall of this machine drops UDP on lo"
            },
        };
    }
    let requests = figures.counter(Counter::Extracted);
    if usize::try_from(requests).is_ok_and(|requests| requests < expected) {
        return SelfTestError::Rebuild {
            requests,
            expected,
            outcomes: listed(
                PacketOutcome::ALL
                    .iter()
                    .map(|&o| (o.label(), figures.packets(o))),
            ),
        };
    }
    SelfTestError::Forward {
        delivered,
        expected,
        failures: figures.counter(Counter::ConnectFailures),
        outcomes: listed(
            RequestOutcome::ALL
                .iter()
                .map(|&o| (o.label(), figures.requests(o))),
        ),
    }
}

fn listed<'a>(outcomes: impl Iterator<Item = (&'a str, u64)>) -> String {
    let counted: Vec<String> = outcomes
        .filter(|&(_, n)| n > 0)
        .map(|(label, n)| format!("{label} {n}"))
        .collect();
    if counted.is_empty() {
        "none".to_owned()
    } else {
        counted.join(", ")
    }
}

/// Compared with the expected one that it is most like.
fn changed(missing: &[Vec<u8>], got: &[u8]) -> SelfTestError {
    let same = |wanted: &Vec<u8>| wanted.iter().zip(got).take_while(|(a, b)| a == b).count();
    let nearest = missing.iter().max_by_key(|&wanted| same(wanted));
    let expected = nearest.map_or(0, Vec::len);
    let head = String::from_utf8_lossy(got);
    match head
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.strip_prefix("X-Mirror-Flags: "))
    {
        Some(flags) => SelfTestError::Marred {
            flags: flags.to_owned(),
            got: got.len(),
            expected,
        },
        None => SelfTestError::Changed {
            at: nearest.map_or(0, same),
            got: got.len(),
            expected,
        },
    }
}

fn healthy(admin: SocketAddr) -> Result<(), SelfTestError> {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: rebuilder\r\nConnection: close\r\n\r\n")?;
        let mut line = String::new();
        BufReader::new(stream).take(256).read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    };
    match ask() {
        Ok(line) if line.starts_with("HTTP/1.1 200 ") => Ok(()),
        Ok(said) => Err(SelfTestError::Health { said }),
        Err(e) => Err(SelfTestError::Health {
            said: e.to_string(),
        }),
    }
}

/// Answers each request with 200 and gives it to the receiver. Its threads end with the process.
fn analyser() -> io::Result<(SocketAddr, Receiver<Vec<u8>>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (requests, received) = channel();
    thread::Builder::new()
        .name("self-test".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let requests = requests.clone();
                // A connection that gets no thread is closed, and the test says that nothing came.
                let _ = thread::Builder::new()
                    .name("self-test".into())
                    .spawn(move || answer(stream, &requests));
            }
        })?;
    Ok((address, received))
}

fn answer(mut stream: TcpStream, requests: &Sender<Vec<u8>>) {
    let Ok(reading) = stream.try_clone() else {
        return;
    };
    let mut reading = BufReader::new(reading);
    while let Ok(Some(request)) = read_request(&mut reading) {
        let _ = requests.send(request);
        if stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .is_err()
        {
            return;
        }
    }
}

/// Head and body, as they came; nothing at the connection's end.
fn read_request(from: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut request = Vec::new();
    let mut length = 0;
    let mut head = from.take(LONGEST_HEAD);
    loop {
        let line_at = request.len();
        head.read_until(b'\n', &mut request)?;
        let line = request.get(line_at..).unwrap_or_default();
        if line.is_empty() {
            return Ok(None);
        }
        if line == b"\r\n" {
            break;
        }
        if let Some(value) = line.strip_prefix(b"Content-Length: ") {
            let text = String::from_utf8_lossy(value);
            length = text.trim_end().parse().unwrap_or(0);
        }
    }
    from.take(length).read_to_end(&mut request)?;
    Ok(Some(request))
}

/// A mirrored connection with one request.
struct Connection {
    worker: usize,
    client: SocketAddrV4,
    server: SocketAddrV4,
}

impl Connection {
    /// One that the kernel steers to this worker.
    fn of(worker: usize, workers: usize, server_port: u16) -> Option<Self> {
        let server = SocketAddrV4::new(SERVER, server_port);
        (1024..=u16::MAX).rev().find_map(|port| {
            let client = SocketAddrV4::new(CLIENT, port);
            (port != server_port && receive::owner(client.into(), server.into(), workers) == worker)
                .then_some(Self {
                    worker,
                    client,
                    server,
                })
        })
    }

    fn head(&self) -> String {
        format!(
            "POST /rebuilder-self-test/{} HTTP/1.1\r\nHost: self-test.invalid\r\nContent-Type: \
             application/octet-stream\r\nContent-Length: {BODY}\r\n",
            self.worker
        )
    }

    fn body() -> impl Iterator<Item = u8> {
        (0..=u8::MAX).cycle().take(BODY)
    }

    fn captured(&self) -> Vec<u8> {
        let mut bytes = self.head().into_bytes();
        bytes.extend(b"\r\n");
        bytes.extend(Self::body());
        bytes
    }

    /// What README.md promises the analyser.
    fn expected(&self) -> Vec<u8> {
        let (client, server) = (self.client.ip(), self.server);
        let mut bytes = self.head().into_bytes();
        bytes.extend(
            format!(
                "X-Forwarded-For: {client}\r\nX-Real-IP: {client}\r\nX-Server-Addr: {}\r\nX-Server-Port: {}\r\n\r\n",
                server.ip(),
                server.port()
            )
            .bytes(),
        );
        bytes.extend(Self::body());
        bytes
    }

    /// SYN, then the segments: the second and the third in the wrong order, the second once more behind them.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        // The sequence numbers pass 2^32 on the way.
        let isn = u32::MAX - 2000;
        let captured = self.captured();
        let mut at = isn.wrapping_add(1);
        let mut segments: Vec<Vec<u8>> = Vec::new();
        for payload in captured.chunks(SEGMENT) {
            segments.push(self.datagram(at, ACK, payload));
            at = at.wrapping_add(u32::try_from(payload.len()).unwrap_or(0));
        }
        if let Some(second) = segments.get(1).cloned() {
            segments.swap(1, 2);
            segments.push(second);
        }
        segments.insert(0, self.datagram(isn, SYN, &[]));
        segments
    }

    fn datagram(&self, seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut datagram = decode::vxlan_header(VNI).to_vec();
        // Locally administered addresses, IPv4.
        datagram.extend([2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
        let tcp_len = u16::try_from(20 + payload.len()).unwrap_or(u16::MAX);
        let addresses = [self.client.ip().octets(), self.server.ip().octets()].concat();
        let mut ip = vec![0x45, 0];
        ip.extend((20 + tcp_len).to_be_bytes());
        // Not to be fragmented, 64 hops, TCP.
        ip.extend([0, 1, 0x40, 0, 64, TCP, 0, 0]);
        ip.extend(&addresses);
        put_checksum(&mut ip, 10, &[]);
        datagram.extend(ip);
        let mut tcp = Vec::with_capacity(usize::from(tcp_len));
        tcp.extend(self.client.port().to_be_bytes());
        tcp.extend(self.server.port().to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        // No acknowledgement, five words of header, a full window.
        tcp.extend([0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(payload);
        let [high, low] = tcp_len.to_be_bytes();
        let pseudo = [addresses.as_slice(), &[0, TCP, high, low]].concat();
        put_checksum(&mut tcp, 16, &pseudo);
        datagram.extend(tcp);
        datagram
    }
}

const TCP: u8 = 6;
/// RFC 9293 §3.1.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// RFC 1071, over `before` (of even length) and `bytes`, whose checksum at `at` is zero so far.
fn put_checksum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let words = |bytes: &[u8]| -> u32 {
        bytes
            .chunks(2)
            .map(|pair| match *pair {
                [high, low] => u32::from(u16::from_be_bytes([high, low])),
                [high] => u32::from(high) << 8,
                _ => 0,
            })
            .sum()
    };
    let sum = words(before) + words(bytes);
    let folded = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(u16::MAX);
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests;
