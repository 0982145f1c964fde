//! The capture that everything is measured on: made anew from a fixed seed, the same bytes each time.
//!
//! As a rebuilder sees them: Ethernet, IPv4, UDP, VXLAN, and in it the frames of [`FLOWS`] connections, [`OPEN`] of them
//! at a time, both directions. Each connection carries [`REQUESTS_PER_FLOW`] requests in [`PACKETS_PER_FLOW`] packets, its
//! handshake and its end among them. TCP sends in trains, and on a link that is much faster than all that is mirrored a
//! train stays together: at any time [`ACTIVE`] connections send theirs, their packets mixed at random. One packet in a
//! thousand comes a few places late.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::Ipv4Addr;
use std::path::Path;

use lab::random::Random;

/// Connections in all.
const FLOWS: usize = 20_000;
/// Connections that are open at the same time.
const OPEN: usize = 5_000;
/// Connections that are sending a train at the same time.
const ACTIVE: usize = 4;
/// Full segments in a train: a congestion window that has not grown yet (RFC 6928).
const TRAIN: usize = 10;
/// Requests on each.
const REQUESTS_PER_FLOW: usize = 4;
/// Packets of each.
const PACKETS_PER_FLOW: usize = 60;
/// Requests in the capture.
pub(crate) const REQUESTS: usize = FLOWS * REQUESTS_PER_FLOW;
/// Packets in the capture of both directions.
pub(crate) const PACKETS: usize = FLOWS * PACKETS_PER_FLOW;

/// Payload of a full segment: an MTU of 1500, TCP time stamps.
const MSS: usize = 1448;
/// Nanoseconds between two packets: 100,000 a second.
const PACKET_NANOS: u64 = 10_000;
/// How many places a late packet comes late, at most.
const LATE: usize = 8;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// What is mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mirrored {
    /// Requests and responses.
    Both,
    /// What clients send (the template's default filter).
    Inbound,
}

/// How the connections' packets follow on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mixing {
    /// As described above.
    Trains,
    /// Any packet of any open connection may be next: what memory caches like least.
    Packets,
}

/// Writes the capture; gives the number of its packets.
pub(crate) fn write(path: &Path, mirrored: Mirrored, mixing: Mixing) -> io::Result<usize> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    // pcap, nanoseconds, little-endian, Ethernet.
    out.write_all(&0xa1b2_3c4d_u32.to_le_bytes())?;
    out.write_all(&[2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    out.write_all(&0x4_0000_u32.to_le_bytes())?;
    out.write_all(&1_u32.to_le_bytes())?;

    let mut random = Random::new(20);
    let mut late = Late::default();
    let mut begun = 0;
    let mut open: Vec<Connection> = Vec::new();
    let mut active: Vec<Connection> = Vec::new();
    let mut written = 0;
    let mut nanos = 1_800_000_000_000_000_000;
    loop {
        while begun < FLOWS && open.len() + active.len() < OPEN {
            open.push(Connection::new(begun, &mut random));
            begun += 1;
        }
        let at_once = if mixing == Mixing::Trains {
            ACTIVE
        } else {
            OPEN
        };
        while active.len() < at_once && !open.is_empty() {
            active.push(open.swap_remove(random.below(open.len())));
        }
        let at = random.below(active.len());
        let Some(connection) = active.get_mut(at) else {
            break;
        };
        let (packet, to_server) = connection.next();
        if connection.steps.is_empty() {
            active.swap_remove(at);
        } else if mixing == Mixing::Trains && !connection.in_train(to_server) {
            open.push(active.swap_remove(at));
        }
        nanos += PACKET_NANOS;
        if mirrored == Mirrored::Inbound && !to_server {
            continue;
        }
        written += 1;
        let waits = random.chance(1).then(|| 1 + random.below(LATE));
        late.pass(packet, waits, |packet| record(&mut out, nanos, packet))?;
    }
    late.rest(|packet| record(&mut out, nanos, packet))?;
    out.flush()?;
    Ok(written)
}

fn record(out: &mut impl Write, nanos: u64, packet: &[u8]) -> io::Result<()> {
    let field = |value: u64| u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes();
    out.write_all(&field(nanos / 1_000_000_000))?;
    out.write_all(&field(nanos % 1_000_000_000))?;
    out.write_all(&field(packet.len() as u64))?;
    out.write_all(&field(packet.len() as u64))?;
    out.write_all(packet)
}

/// Packets that wait until others have overtaken them.
#[derive(Default)]
struct Late(Vec<(usize, Vec<u8>)>);

impl Late {
    fn pass(
        &mut self,
        packet: Vec<u8>,
        waits: Option<usize>,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(waits) = waits {
            self.0.push((waits, packet));
            return Ok(());
        }
        write(&packet)?;
        for (waits, _) in &mut self.0 {
            *waits -= 1;
        }
        let (due, rest) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|(waits, _)| *waits == 0);
        self.0 = rest;
        due.iter()
            .try_for_each(|(_, packet): &(usize, Vec<u8>)| write(packet))
    }

    fn rest(self, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        self.0.iter().try_for_each(|(_, packet)| write(packet))
    }
}

/// What one packet of a connection is.
#[derive(Clone, Copy, Debug)]
struct Step {
    to_server: bool,
    flags: u8,
    payload: usize,
}

/// One connection on its way: what it still has to send.
struct Connection {
    client: (Ipv4Addr, u16),
    server: (Ipv4Addr, u16),
    /// Next sequence numbers, client and server.
    seq: [u32; 2],
    /// In reverse order.
    steps: Vec<Step>,
    /// What the client still sends, and what of it was sent.
    requests: Vec<u8>,
    sent: usize,
    /// The same of the server.
    responses: Vec<u8>,
    answered: usize,
}

impl Connection {
    fn new(number: usize, random: &mut Random) -> Self {
        let [a, b, ..] = u32::try_from(number).unwrap_or(0).to_le_bytes();
        let steps = |to_server, flags, payload| Step {
            to_server,
            flags,
            payload,
        };
        let mut all = vec![
            steps(true, SYN, 0),
            steps(false, SYN | ACK, 0),
            steps(true, ACK, 0),
        ];
        let mut requests = Vec::new();
        let mut responses = Vec::new();
        for n in 0..REQUESTS_PER_FLOW {
            let request = request(number * REQUESTS_PER_FLOW + n, random);
            for piece in request.chunks(MSS) {
                all.push(steps(true, PSH | ACK, piece.len()));
            }
            all.push(steps(false, ACK, 0));
            requests.extend_from_slice(&request);
            // What is left of the packets is divided among the answers: of three packets two are full of data.
            let left = PACKETS_PER_FLOW.saturating_sub(3 + all.len());
            let share =
                left / (REQUESTS_PER_FLOW - n) - if n + 1 < REQUESTS_PER_FLOW { 2 } else { 0 };
            let mut sizes = Vec::new();
            let mut left = share;
            while left > 0 {
                // Two segments and an acknowledgement are three packets.
                let data = TRAIN.min((2 * left).div_ceil(3));
                let acks = (data / 2).min(left - data);
                for _ in 0..data {
                    // The first one is full: the head is in it.
                    let full = sizes.is_empty() || random.below(2) == 0;
                    let size = if full { MSS } else { 100 + random.below(500) };
                    sizes.push(size);
                    all.push(steps(false, PSH | ACK, size));
                }
                all.extend((0..acks).map(|_| steps(true, ACK, 0)));
                left -= data + acks;
            }
            responses.extend(response(sizes.iter().sum()));
        }
        all.extend([
            steps(true, FIN | ACK, 0),
            steps(false, FIN | ACK, 0),
            steps(true, ACK, 0),
        ]);
        assert_eq!(
            all.len(),
            PACKETS_PER_FLOW,
            "a connection of another length"
        );
        all.reverse();
        Self {
            client: (
                Ipv4Addr::new(10, 1, b, a),
                32_768 + u16::try_from(random.below(28_000)).unwrap_or(0),
            ),
            server: (Ipv4Addr::new(10, 0, 0, 1 + a % 50), 80),
            seq: [0, 1].map(|_| u32::try_from(random.number() >> 32).unwrap_or(0)),
            steps: all,
            requests,
            sent: 0,
            responses,
            answered: 0,
        }
    }

    /// Whether what comes next belongs to the same train.
    fn in_train(&self, to_server: bool) -> bool {
        self.steps
            .last()
            .is_some_and(|next| next.to_server == to_server)
    }

    /// The next packet, and whether it goes to the server. There is one.
    fn next(&mut self) -> (Vec<u8>, bool) {
        let Some(Step {
            to_server,
            flags,
            payload,
        }) = self.steps.pop()
        else {
            return (Vec::new(), false);
        };
        let (own, other) = if to_server { (0, 1) } else { (1, 0) };
        let (bytes, at) = if to_server {
            (&self.requests, &mut self.sent)
        } else {
            (&self.responses, &mut self.answered)
        };
        let payload = bytes.get(*at..*at + payload).unwrap_or_default();
        *at += payload.len();
        let [seq, ack] = [
            self.seq[own],
            if flags == SYN { 0 } else { self.seq[other] },
        ];
        let (src, dst) = if to_server {
            (self.client, self.server)
        } else {
            (self.server, self.client)
        };
        let packet = packet(src, dst, (seq, ack), flags, payload);
        let taken = payload.len() + usize::from(flags & (SYN | FIN) != 0);
        self.seq[own] = seq.wrapping_add(u32::try_from(taken).unwrap_or(0));
        (packet, to_server)
    }
}

/// A request as browsers and services send them: 200 to 900 bytes of head; one in five has a body.
fn request(number: usize, random: &mut Random) -> Vec<u8> {
    let mut cookie = String::new();
    for _ in 0..random.below(30) {
        cookie.push_str(&format!("{:016x}", random.number()));
    }
    let target = format!(
        "/shop/{}/item/{number}?page={}&sort=price",
        random.below(40),
        random.below(90)
    );
    let head = format!(
        "Host: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
         Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en-US,en;q=0.5\r\n\
         Accept-Encoding: gzip, deflate, br, zstd\r\nCookie: session={cookie}\r\n"
    );
    if random.below(5) > 0 {
        return format!("GET {target} HTTP/1.1\r\n{head}\r\n").into_bytes();
    }
    let body = vec![b'b'; 50 + random.below(1_500)];
    let length = body.len();
    let mut request =
        format!("POST {target} HTTP/1.1\r\n{head}Content-Type: text/plain\r\nContent-Length: {length}\r\n\r\n")
            .into_bytes();
    request.extend_from_slice(&body);
    request
}

/// A response of so many bytes in all.
fn response(len: usize) -> Vec<u8> {
    let head = |server: &str, body: usize| {
        format!(
            "HTTP/1.1 200 OK\r\nServer: {server}\r\nContent-Type: text/html\r\nContent-Length: {body}\r\n\r\n"
        )
    };
    // Where the number gets a digit more, a byte more of head is needed.
    let fitting = ["nginx", "nginx2"].into_iter().find_map(|server| {
        let bodies = (1..=6).map(|digits| len.saturating_sub(head(server, 0).len() + digits - 1));
        let mut heads = bodies.map(|body| (head(server, body), body));
        heads.find(|(head, body)| head.len() + body == len)
    });
    let (head, _) = fitting.unwrap_or_default();
    let mut bytes = head.into_bytes();
    bytes.resize(len, b'r');
    bytes
}

/// Ethernet, IPv4, UDP, VXLAN, Ethernet, IPv4, TCP with time stamps; checksums as AWS has them: none outside, right inside.
fn packet(
    src: (Ipv4Addr, u16),
    dst: (Ipv4Addr, u16),
    (seq, ack): (u32, u32),
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    const TCP: usize = 32;
    const IP: usize = 20;
    const ETHERNET: usize = 14;
    let len = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
    let tcp_len = TCP + payload.len();

    let mut tcp = Vec::with_capacity(tcp_len);
    tcp.extend_from_slice(&src.1.to_be_bytes());
    tcp.extend_from_slice(&dst.1.to_be_bytes());
    tcp.extend_from_slice(&seq.to_be_bytes());
    tcp.extend_from_slice(&ack.to_be_bytes());
    // No SYN here scales the window, and a reader that keeps to it passes over what lies outside: the largest one.
    tcp.extend_from_slice(&[0x80, flags, 0xff, 0xff, 0, 0, 0, 0]);
    // NOP, NOP, time stamps (RFC 7323 §3.2).
    // The same time throughout; a SYN has none to echo.
    let echo = u8::from(flags != SYN);
    tcp.extend_from_slice(&[1, 1, 8, 10, 0, 0, 1, 0, 0, 0, echo, 0]);
    tcp.extend_from_slice(payload);
    let mut pseudo: Vec<u8> = [src.0.octets(), dst.0.octets()].concat();
    pseudo.extend_from_slice(&[0, 6]);
    pseudo.extend_from_slice(&len(tcp_len));
    let sum = checksum(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&sum);

    let ip = |src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: usize| {
        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&len(IP + payload));
        ip.extend_from_slice(&[0, 0, 0x40, 0, 64, protocol, 0, 0]);
        ip.extend_from_slice(&src.octets());
        ip.extend_from_slice(&dst.octets());
        let sum = checksum(&[&ip]);
        ip[10..12].copy_from_slice(&sum);
        ip
    };
    let inner = ETHERNET + IP + tcp_len;
    // The port tells connections apart, as a mirror's does (RFC 7348 §5).
    let port = 49_152 + ((src.1 ^ dst.1) & 0x3fff);
    let mut packet = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    packet.extend(ip(
        Ipv4Addr::new(10, 9, 0, 9),
        Ipv4Addr::new(10, 9, 0, 1),
        17,
        16 + inner,
    ));
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&4789_u16.to_be_bytes());
    packet.extend_from_slice(&len(16 + inner));
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(&[8, 0, 0, 0, 0, 0x12, 0xb5, 0]);
    packet.extend_from_slice(&[2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2, 8, 0]);
    packet.extend(ip(src.0, dst.0, 6, tcp_len));
    packet.extend_from_slice(&tcp);
    packet
}

/// The Internet checksum (RFC 1071); every part but the last has an even length.
fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let mut sum = 0_u64;
    for part in parts {
        let (pairs, rest) = part.as_chunks::<2>();
        sum += pairs
            .iter()
            .map(|pair| u64::from(u16::from_be_bytes(*pair)))
            .sum::<u64>();
        sum += rest.first().map_or(0, |&byte| u64::from(byte) << 8);
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap_or(0)).to_be_bytes()
}
