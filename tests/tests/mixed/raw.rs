//! A client that decides itself which bytes share a segment.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use lab::client::Connection;
use lab::judge::{BAIT, Request, Sent};
use lab::random::Random;

/// What [`Cut::Paced`] sends.
const PACED_BYTES_PER_SECOND: f64 = 3e6;
const PACED_BURST: usize = 20;

/// Answers are waited for in portions, so that neither side's buffers fill.
const BATCH: usize = 200;

/// One client thread, which must be in the client's namespace.
pub(crate) struct Raw {
    pub(crate) random: Random,
    /// Of both families.
    pub(crate) locals: [IpAddr; 2],
    /// Plain IPv4 and IPv6, then those behind a jumbo MTU.
    pub(crate) servers: [SocketAddr; 4],
    /// The next local port; each is used once.
    pub(crate) port: u16,
    /// The next request's id.
    pub(crate) id: u64,
    /// A bait every so many segments.
    pub(crate) bait_every: usize,
    pub(crate) sent: Vec<Sent>,
}

/// How a request's bytes become segments.
#[derive(Clone, Copy)]
pub(crate) enum Cut {
    /// As the kernel likes.
    Anyhow,
    /// After this byte of the head.
    At(usize),
    /// One byte each.
    Bytes,
    /// The head in one, then full ones, each of which begins with a bait where the body has baits.
    Aligned,
    /// The same, slowly.
    Paced,
}

impl Raw {
    fn target(&mut self) -> (u64, String) {
        let id = self.id;
        self.id += 1;
        (
            id,
            format!("/raw/{id}?q={:x}&name=a%20b", self.random.number() >> 32),
        )
    }

    fn request(id: u64, head: String, body: &[u8], chunked: bool, baits: &[usize]) -> Request {
        let length = head.len();
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        Request {
            id,
            bytes,
            head: length,
            chunked,
            baits: baits.iter().map(|at| (length + at) as u64).collect(),
        }
    }

    /// A request without body, of one of many shapes.
    pub(crate) fn get(&mut self) -> Request {
        let (id, target) = self.target();
        let (method, more) = match self.random.below(12) {
            0 => ("SEARCH", "Accept: */*\r\n".to_owned()),
            1 => ("DELETE", "Content-Length: 0\r\n".to_owned()),
            2 => ("PROPFIND", "Depth:1\r\nX-Empty:\r\n".to_owned()),
            3 => (
                "OPTIONS",
                "accept:  */* \t\r\nACCEPT: a\r\naccept: b\r\n".to_owned(),
            ),
            4 => {
                let length = 1 + self.random.below(6000);
                (
                    "GET",
                    format!(
                        "Cookie: {}\r\nX-Bytes: \u{fc}\u{df}\r\n",
                        "c".repeat(length)
                    ),
                )
            }
            _ => ("GET", "User-Agent: lab\r\nAccept: */*\r\n".to_owned()),
        };
        let absolute = if self.random.below(20) == 0 {
            "http://shop.example"
        } else {
            ""
        };
        let head =
            format!("{method} {absolute}{target} HTTP/1.1\r\nHost: shop.example\r\n{more}\r\n");
        Self::request(id, head, b"", false, &[])
    }

    /// The last of its connection.
    pub(crate) fn closing(&mut self) -> Request {
        let (id, target) = self.target();
        let head =
            format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n");
        Self::request(id, head, b"", false, &[])
    }

    pub(crate) fn post(&mut self, length: usize, baits: Option<usize>) -> Request {
        let (id, target) = self.target();
        let mut body = self.random.bytes(length);
        let mut laid = Vec::new();
        if let Some(segment) = baits {
            self.lay(&mut body, id, 0, segment, &mut laid);
        }
        // A body is no matter of the method.
        let method = ["POST", "PUT", "PATCH", "GET"][self.random.below(4)];
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\nX-Last: 1\r\n\r\n"
        );
        Self::request(id, head, &body, false, &laid)
    }

    pub(crate) fn chunked(
        &mut self,
        length: usize,
        chunks: usize,
        baits: Option<usize>,
    ) -> Request {
        let (id, target) = self.target();
        let trailer = self.random.below(4) == 0;
        let mut body = Vec::with_capacity(length + 64);
        let (mut left, mut laid) = (length, Vec::new());
        while left > 0 {
            let size = (length / chunks).max(1).min(left);
            let extension = if self.random.below(5) == 0 {
                ";part=1"
            } else {
                ""
            };
            let mut line = String::new();
            write!(line, "{size:x}{extension}\r\n").unwrap();
            body.extend_from_slice(line.as_bytes());
            let mut data = self.random.bytes(size);
            if let Some(segment) = baits {
                self.lay(&mut data, id, body.len(), segment, &mut laid);
            }
            body.extend_from_slice(&data);
            body.extend_from_slice(b"\r\n");
            left -= size;
        }
        body.extend_from_slice(if trailer {
            b"0\r\nX-Sum: 1\r\n\r\n"
        } else {
            b"0\r\n\r\n"
        });
        let more = if trailer { "Trailer: X-Sum\r\n" } else { "" };
        let head = format!(
            "PUT {target} HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n{more}\r\n"
        );
        Self::request(id, head, &body, true, &laid)
    }

    /// Lays request lines where segments will begin. `data` begins at this offset of the body.
    fn lay(
        &mut self,
        data: &mut [u8],
        id: u64,
        offset: usize,
        segment: usize,
        laid: &mut Vec<usize>,
    ) {
        for at in (0..data.len()).step_by(segment * self.bait_every) {
            let bait = format!(
                "GET {BAIT}{id}/{} HTTP/1.1\r\nHost: evil.example\r\n\r\n\0",
                offset + at
            );
            if let Some(place) = data.get_mut(at..at + bait.len()) {
                place.copy_from_slice(bait.as_bytes());
                laid.push(offset + at);
            }
        }
    }

    pub(crate) fn server(&mut self) -> usize {
        self.random.below(4)
    }

    pub(crate) fn open(&mut self, server: usize) -> Connection {
        let to = self.servers[server];
        let local = self.locals[usize::from(to.is_ipv6())];
        let from = SocketAddr::new(local, self.port);
        self.port += 1;
        self.sent.push(Sent {
            from,
            to,
            requests: Vec::new(),
            more: 0,
        });
        Connection::from_address(from, to).unwrap()
    }

    /// Sends requests on the connection that was opened last, each after the answer to the one before.
    pub(crate) fn send(&mut self, connection: &mut Connection, request: Request, cut: Cut) {
        let bytes = &request.bytes;
        match cut {
            Cut::Anyhow => connection.send(bytes).unwrap(),
            Cut::At(at) => {
                connection.send(&bytes[..at]).unwrap();
                connection.send(&bytes[at..]).unwrap();
            }
            Cut::Bytes => bytes
                .chunks(1)
                .for_each(|byte| connection.send(byte).unwrap()),
            Cut::Aligned | Cut::Paced => {
                let segment = connection.segment_size().unwrap();
                let (head, body) = bytes.split_at(request.head);
                connection.send(head).unwrap();
                let line = if request.chunked {
                    // The size line by itself, so that the data begins a segment.
                    body.iter().position(|&byte| byte == b'\n').unwrap() + 1
                } else {
                    0
                };
                connection.send(&body[..line]).unwrap();
                for (number, piece) in body[line..].chunks(segment).enumerate() {
                    connection.send(piece).unwrap();
                    if matches!(cut, Cut::Paced) && number % PACED_BURST == 0 {
                        let pause = (PACED_BURST * segment) as f64 / PACED_BYTES_PER_SECOND;
                        thread::sleep(Duration::from_secs_f64(pause));
                    }
                }
            }
        }
        self.sent.last_mut().unwrap().requests.push(request);
        assert_eq!(connection.answers(1).unwrap(), [200]);
        // nginx may answer before it has all of a body.
        connection.acknowledged().unwrap();
    }

    /// Sends requests on the connection that was opened last, all at once.
    pub(crate) fn pipeline(&mut self, connection: &mut Connection, requests: Vec<Request>) {
        assert!(requests.len() <= BATCH);
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|it| it.bytes.iter().copied())
            .collect();
        connection.send(&bytes).unwrap();
        let count = requests.len();
        self.sent.last_mut().unwrap().requests.extend(requests);
        assert_eq!(connection.answers(count).unwrap(), vec![200; count]);
        connection.acknowledged().unwrap();
    }
}
