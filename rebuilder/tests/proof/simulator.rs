//! Connections with known requests, and a mirror that loses, delays, doubles and cuts the copies of their packets.
//! Everything follows from a seed.

use std::net::SocketAddr;

use rebuilder::receive::LinkType;

use crate::build::{self, Says};
use crate::random::Random;
use crate::wire::{self, Owned};

/// One client's connection, and what it sends.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) client: SocketAddr,
    server: SocketAddr,
    isn: u32,
    /// All that the client sends.
    pub(crate) stream: Vec<u8>,
    /// Where each request lies in `stream`.
    pub(crate) requests: Vec<std::ops::Range<usize>>,
    /// Where each request's head ends in `stream`.
    pub(crate) heads: Vec<usize>,
    /// Where segments begin in `stream`.
    pub(crate) starts: Vec<usize>,
}

/// A frame as it was on the wire, and what of which connection it carries.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) frame: Owned,
    pub(crate) from_client: bool,
    pub(crate) connection: usize,
    /// The place of its payload in the client's stream; empty for all but the client's data.
    pub(crate) span: std::ops::Range<usize>,
}

const MS: u64 = 1_000_000;

/// Many connections at once, and all their frames in the order of their time.
pub(crate) fn connections(
    seed: u64,
    count: usize,
    requests_each: usize,
) -> (Vec<Connection>, Vec<Sent>) {
    let mut random = Random(seed);
    let mut connections = Vec::new();
    let mut frames = Vec::new();
    for n in 0..count {
        let connection = connect(&mut random, n, requests_each);
        let (connection, sent) = talk(&mut random, n, connection);
        connections.push(connection);
        frames.extend(sent);
    }
    frames.sort_by_key(|sent| sent.frame.ts);
    (connections, frames)
}

fn connect(random: &mut Random, n: usize, requests: usize) -> Connection {
    let low = u8::try_from(n % 200).unwrap();
    let port = u16::try_from(20_000 + n).unwrap();
    let (client, server) = if n % 3 == 2 {
        (
            format!("[2001:db8::1:{low:x}]:{port}").parse().unwrap(),
            "[2001:db8::80]:8080".parse().unwrap(),
        )
    } else {
        (
            SocketAddr::from(([192, 0, 2, low], port)),
            SocketAddr::from(([10, 9, 8, 7], 80)),
        )
    };
    let mut connection = Connection {
        client,
        server,
        // Every second one wraps within its first kilobytes.
        isn: if n.is_multiple_of(2) {
            u32::MAX - u32::try_from(random.below(5_000)).unwrap()
        } else {
            u32::try_from(random.below(1 << 32)).unwrap()
        },
        stream: Vec::new(),
        requests: Vec::new(),
        heads: Vec::new(),
        starts: Vec::new(),
    };
    for r in 0..requests {
        let start = connection.stream.len();
        let head = write_request(random, n, r, &mut connection.stream);
        connection.heads.push(head);
        connection.requests.push(start..connection.stream.len());
    }
    connection
}

/// Bytes that no other request has, some of which look like the beginning of a request.
fn body(random: &mut Random, n: usize, r: usize, len: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(len + 80);
    while body.len() < len {
        let line = match random.below(4) {
            0 => format!(
                "GET /inner/{n}/{r}/{:x} HTTP/1.1\r\nHost: inner\r\n\r\n",
                random.next()
            ),
            _ => format!("{n}.{r}.{}:{:016x};", body.len(), random.next()),
        };
        body.extend_from_slice(line.as_bytes());
    }
    body.truncate(len);
    body
}

/// Appends a request; gives the end of its head.
fn write_request(random: &mut Random, n: usize, r: usize, out: &mut Vec<u8>) -> usize {
    let below = |random: &mut Random, end: u64| usize::try_from(random.below(end)).unwrap();
    let host = "Host: service.example\r\nUser-Agent: simulator/1.0\r\n";
    match random.below(10) {
        0..=4 => {
            out.extend_from_slice(
                format!("GET /c{n}/r{r}?q={:x} HTTP/1.1\r\n", random.next()).as_bytes(),
            );
            out.extend_from_slice(host.as_bytes());
            let cookie = below(random, 600);
            out.extend_from_slice(b"Cookie: s=");
            out.extend_from_slice("0123456789abcdef".repeat(cookie / 16 + 1).as_bytes());
            out.extend_from_slice(b"\r\n\r\n");
            out.len()
        }
        5 | 6 => {
            out.extend_from_slice(
                format!("PUT /c{n}/r{r} HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n")
                    .as_bytes(),
            );
            let head = out.len();
            for _ in 0..=random.below(5) {
                let len = 1 + below(random, 4_000);
                out.extend_from_slice(format!("{len:x}\r\n").as_bytes());
                out.extend_from_slice(&body(random, n, r, len));
                out.extend_from_slice(b"\r\n");
            }
            out.extend_from_slice(b"0\r\n\r\n");
            head
        }
        _ => {
            let len = match random.below(4) {
                0 => below(random, 60_000),
                _ => below(random, 3_000),
            };
            out.extend_from_slice(
                format!("POST /c{n}/r{r} HTTP/1.1\r\n{host}Content-Length: {len}\r\n\r\n")
                    .as_bytes(),
            );
            let head = out.len();
            out.extend_from_slice(&body(random, n, r, len));
            head
        }
    }
}

/// All frames of a connection: handshake, requests in segments, acknowledgements, answers, FINs.
fn talk(random: &mut Random, n: usize, mut connection: Connection) -> (Connection, Vec<Sent>) {
    let mut out: Vec<Sent> = Vec::new();
    let mut now = 1_700_000_000_000 * MS + random.below(400 * MS);
    let (client, server) = (connection.client, connection.server);
    let server_isn = u32::try_from(random.below(1 << 32)).unwrap();
    let (mut seq, mut answered) = (connection.isn.wrapping_add(1), server_isn.wrapping_add(1));
    let mut say = |random: &mut Random, from_client: bool, says: Says<'_>, span| {
        now += 20_000 + random.below(300_000);
        let (src, dst) = if from_client {
            (client, server)
        } else {
            (server, client)
        };
        out.push(Sent {
            frame: build::segment(now, src, dst, says),
            from_client,
            connection: n,
            span,
        });
    };
    let says = |seq, ack, flags| Says {
        seq,
        ack,
        flags,
        payload: &[],
    };
    say(random, true, says(connection.isn, None, wire::SYN), 0..0);
    say(random, false, says(server_isn, Some(seq), wire::SYN), 0..0);
    say(random, true, says(seq, Some(answered), 0), 0..0);

    // Of a third of the connections segments are tiny, of another third as long as jumbo frames allow.
    let most = [200, 1_448, 8_948][n % 3];
    let mut at = 0;
    while at < connection.stream.len() {
        // The next requests go out together: one, or several behind each other.
        let several = 1 + usize::try_from(random.below(3)).unwrap();
        let end = connection
            .requests
            .iter()
            .filter(|r| r.start >= at)
            .nth(several - 1)
            .map_or(connection.stream.len(), |r| r.end);
        while at < end {
            let len = if random.below(3) == 0 {
                1 + usize::try_from(random.below(most)).unwrap()
            } else {
                usize::try_from(most).unwrap()
            };
            let span = at..(at + len).min(end);
            let payload = &connection.stream[span.clone()];
            let segment = Says {
                payload,
                ..says(seq, Some(answered), wire::PSH)
            };
            say(random, true, segment, span.clone());
            connection.starts.push(at);
            seq = seq.wrapping_add(u32::try_from(payload.len()).unwrap());
            at = span.end;
            if random.below(2) == 0 {
                say(random, false, says(answered, Some(seq), 0), 0..0);
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nGET / ".repeat(several);
        let segment = Says {
            payload: &answer,
            ..says(answered, Some(seq), wire::PSH)
        };
        say(random, false, segment, 0..0);
        answered = answered.wrapping_add(u32::try_from(answer.len()).unwrap());
    }
    say(random, true, says(seq, Some(answered), wire::FIN), 0..0);
    say(
        random,
        false,
        says(answered, Some(seq.wrapping_add(1)), wire::FIN),
        0..0,
    );
    (connection, out)
}

/// What a mirror does to the copies.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mirror {
    /// Copies that are lost, in a hundred.
    pub(crate) loss: u64,
    /// Copies that are overtaken by up to 64 later ones, in a hundred.
    pub(crate) reorder: u64,
    /// Copies that come a second time, up to 50 ms later, in a hundred.
    pub(crate) duplicate: u64,
    /// Frames are cut behind this many bytes.
    pub(crate) cut_at: Option<usize>,
    /// The server's direction is not mirrored.
    pub(crate) one_sided: bool,
}

impl Mirror {
    /// What arrives, in the order of its arrival, wrapped in VXLAN and stamped when it arrives.
    pub(crate) fn copy(self, seed: u64, frames: &[Sent]) -> Vec<Sent> {
        let mut random = Random(seed);
        let mut chance = |percent: u64| random.below(100) < percent;
        let mut arrivals: Vec<(u64, Sent)> = Vec::new();
        let mut places = Random(seed ^ 0x5555);
        for (n, sent) in frames.iter().enumerate() {
            if self.one_sided && !sent.from_client {
                continue;
            }
            let overtaken = |places: &mut Random| {
                let behind = n + 1 + usize::try_from(places.below(64)).unwrap();
                let at = frames[behind.min(frames.len() - 1)].frame.ts.0 + 1;
                // Where few packets follow: still sooner than any hole is given up.
                at.min(sent.frame.ts.0 + 40 * MS)
            };
            let (lost, late, twice) = (
                chance(self.loss),
                chance(self.reorder),
                chance(self.duplicate),
            );
            let own = sent.frame.ts.0;
            if !lost {
                let at = if late { overtaken(&mut places) } else { own };
                arrivals.push((at, sent.clone()));
            }
            if twice && !chance(self.loss) {
                arrivals.push((own + places.below(50 * MS), sent.clone()));
            }
        }
        arrivals.sort_by_key(|(at, _)| *at);
        arrivals
            .into_iter()
            .map(|(at, sent)| {
                let mut frame = sent.frame;
                frame.ts.0 = at;
                let mut span = sent.span;
                if let Some(most) = self.cut_at
                    && let Some(over) = frame.data.len().checked_sub(most)
                {
                    frame.data.truncate(most);
                    span.end = span.end.saturating_sub(over).max(span.start);
                }
                let frame = wire::datagram(&frame, 5).unwrap();
                Sent {
                    frame,
                    span,
                    ..sent
                }
            })
            .collect()
    }
}

/// An arrived frame as it would be captured on the instance itself.
pub(crate) fn bare(sent: &Sent) -> Owned {
    Owned {
        ts: sent.frame.ts,
        link: LinkType::Ethernet,
        data: sent.frame.data[8..].to_vec(),
    }
}
