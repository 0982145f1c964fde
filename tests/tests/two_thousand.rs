//! What a rebuilder hands on is what nginx got: 2,000 requests of every ordinary kind, compared with nginx's own log
//! and, body by body, with the hashes of what the clients sent.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use lab::client::{Connection, body_file, curl};
use lab::data_plane::{CLIENT, DataPlane};
use lab::network::Options;
use lab::process::wait_for;
use lab::random::Random;
use lab::recorder::{Hash, Recorder, Records};

/// 1 B to 1 MB, as many small ones as large ones by order of magnitude.
fn body(random: &mut Random) -> Vec<u8> {
    let magnitude = 10_usize.pow(u32::try_from(random.below(6)).unwrap());
    let length = magnitude + random.below(9 * magnitude);
    random.bytes(length)
}

/// What was sent: target to method and hash of the body.
type Sent = BTreeMap<String, (String, Hash)>;

struct Sender<'a> {
    plane: &'a DataPlane,
    servers: [SocketAddr; 2],
    random: Random,
    sent: Sent,
}

impl Sender<'_> {
    /// A target that no other request has.
    fn note(&mut self, method: &str, body: &[u8]) -> String {
        let target = format!(
            "/shop/item-{}?token={:x}&name=a%20b",
            self.sent.len(),
            self.random.number()
        );
        self.sent
            .insert(target.clone(), (method.to_owned(), Hash::of(body)));
        target
    }

    fn server(&mut self) -> SocketAddr {
        self.servers[self.random.below(2)]
    }

    fn get(&mut self, more: &str) -> Vec<u8> {
        let target = self.note("GET", b"");
        format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n{more}\r\n")
            .into_bytes()
    }

    fn post(&mut self, body: &[u8]) -> Vec<u8> {
        let target = self.note("POST", body);
        let length = body.len();
        let mut request = format!(
            "POST {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        request
    }

    fn chunked(&mut self, body: &[u8]) -> Vec<u8> {
        let target = self.note("PUT", body);
        let mut head = format!(
            "PUT {target} HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n"
        );
        let trailer = self.random.below(4) == 0;
        if trailer {
            head.push_str("Trailer: X-Sum\r\n");
        }
        let mut request = (head + "\r\n").into_bytes();
        let mut rest = body;
        while !rest.is_empty() {
            let limit = [1, 10, 1000, 20_000][self.random.below(4)];
            // At most a few hundred chunks.
            let length = (1 + self.random.below(limit))
                .max(body.len() / 300)
                .min(rest.len());
            let extension = if self.random.below(5) == 0 {
                ";part=1"
            } else {
                ""
            };
            let mut line = String::new();
            write!(line, "{length:x}{extension}\r\n").unwrap();
            request.extend_from_slice(line.as_bytes());
            request.extend_from_slice(&rest[..length]);
            request.extend_from_slice(b"\r\n");
            rest = &rest[length..];
        }
        request.extend_from_slice(if trailer {
            b"0\r\nX-Sum: 1\r\n\r\n"
        } else {
            b"0\r\n\r\n"
        });
        request
    }

    /// curl: ten GETs over one connection.
    fn curl_gets(&mut self) {
        let server = self.server();
        let urls: Vec<String> = (0..10)
            .map(|_| format!("http://{server}{}", self.note("GET", b"")))
            .collect();
        let mut command = self.plane.client.namespace.command("curl");
        for (index, url) in urls.iter().enumerate() {
            if index > 0 {
                command.arg("--next");
            }
            command.args([
                "--silent",
                "--show-error",
                "--fail",
                "--output",
                "/dev/null",
                url.as_str(),
            ]);
        }
        let out = command.output().unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    }

    /// curl: one POST, with a length or chunked.
    fn curl_post(&mut self) {
        let body = body(&mut self.random);
        let file = body_file(self.plane.vpc.directory(), "body", &body).unwrap();
        let target = self.note("POST", &body);
        let url = format!("http://{}{target}", self.server());
        let encoding = if self.random.below(2) == 0 {
            "Transfer-Encoding: chunked"
        } else {
            "X-Plain: yes"
        };
        assert_eq!(
            curl(
                &self.plane.client,
                &["-H", encoding, "--data-binary", &file, &url]
            )
            .unwrap(),
            200
        );
    }

    /// One connection: some requests, each after the answer to the one before, or all at once.
    fn connection(&mut self, requests: &[Vec<u8>], pipelined: bool) {
        let server = self.server();
        let mut connection = Connection::open(&self.plane.client, server).unwrap();
        if pipelined {
            connection.send(&requests.concat()).unwrap();
            assert_eq!(
                connection.answers(requests.len()).unwrap(),
                vec![200; requests.len()]
            );
        } else {
            for request in requests {
                connection.send(request).unwrap();
                assert_eq!(connection.answers(1).unwrap(), [200]);
            }
        }
    }
}

#[test]
fn two_thousand_requests_arrive_as_nginx_logged_them_with_every_body_byte() {
    if lab::skip::no_lab("two_thousand_requests_arrive_as_nginx_logged_them_with_every_body_byte") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    let records = Records::default();
    let _recorder = Recorder::start(&plane.analyser, 80, &records, Duration::ZERO).unwrap();
    let rebuilder = plane.rebuild(80, &[]).unwrap();
    let web = plane.web().unwrap();

    let mut sender = Sender {
        plane: &plane,
        servers: web.servers,
        random: Random::new(0x6d69_7272_6f72),
        sent: Sent::new(),
    };
    for _ in 0..40 {
        sender.curl_gets();
    }
    for _ in 0..40 {
        sender.curl_post();
    }
    // The whole range, whatever the generator gives.
    for length in [1, 1_000_000] {
        let body = sender.random.bytes(length);
        let requests = [sender.post(&body), sender.chunked(&body)];
        sender.connection(&requests, false);
    }
    for _ in 0..30 {
        let requests: Vec<Vec<u8>> = (0..10)
            .map(|_| {
                let body = body(&mut sender.random);
                match sender.random.below(3) {
                    0 => sender.get(""),
                    1 => sender.post(&body),
                    _ => sender.chunked(&body),
                }
            })
            .collect();
        sender.connection(&requests, false);
    }
    for _ in 0..40 {
        let requests: Vec<Vec<u8>> = (0..25)
            .map(|_| {
                let length = sender.random.below(2000);
                let body = sender.random.bytes(length);
                match sender.random.below(5) {
                    0 => sender.post(&body),
                    1 => sender.chunked(&body),
                    _ => sender.get(""),
                }
            })
            .collect();
        sender.connection(&requests, true);
    }
    while sender.sent.len() < 2000 {
        let request = sender.get("Connection: close\r\n");
        sender.connection(&[request], false);
    }
    let sent = sender.sent;
    assert_eq!(sent.len(), 2000);

    let logged = wait_for("nginx's log", Duration::from_secs(10), || {
        let log = web.access_log()?;
        Ok((log.len() >= sent.len()).then_some(log))
    })
    .unwrap();
    let settled = wait_for(
        "all requests at the analyser",
        Duration::from_secs(30),
        || Ok((records.count() >= sent.len()).then_some(())),
    );
    let (received, metrics) = (records.all(), rebuilder.metrics().unwrap());
    let counted = format!(
        "received {} of {}; packets {:?}; requests {:?}",
        received.len(),
        sent.len(),
        metrics.outcomes("rebuilder_packets_total"),
        metrics.outcomes("rebuilder_requests_total")
    );
    assert!(settled.is_ok(), "{counted}");

    let mut from_nginx: Vec<(&str, &str)> = logged
        .iter()
        .map(|entry| (entry.method(), entry.target()))
        .collect();
    let mut rebuilt: Vec<(&str, &str)> = received
        .iter()
        .map(|it| (it.method.as_str(), it.target.as_str()))
        .collect();
    from_nginx.sort_unstable();
    rebuilt.sort_unstable();
    assert!(
        from_nginx == rebuilt,
        "nginx's list and the rebuilt one differ; {counted}"
    );
    for it in &received {
        let (method, hash) = &sent[&it.target];
        assert_eq!(
            (&it.method, it.body_hash),
            (method, *hash),
            "{} with a body of {}",
            it.target,
            it.body_length
        );
        let client = it.header("x-real-ip").unwrap();
        assert!(CLIENT.contains(&client), "{}: client {client}", it.target);
        assert_eq!(
            it.header("x-mirror-flags").filter(|flags| *flags != "hop"),
            None,
            "{}",
            it.target
        );
    }
    // Every packet that was mirrored has one outcome, and for every request the answer came.
    let mirrored = web.packets().unwrap();
    let counted = wait_for("all counted", Duration::from_secs(10), || {
        let metrics = rebuilder.metrics()?;
        Ok(
            ((metrics.packets(), metrics.requests(), metrics.delivered())
                == (mirrored, 2000, 2000))
                .then_some(()),
        )
    });
    assert!(
        counted.is_ok(),
        "{mirrored} packets mirrored; {:?}",
        rebuilder.metrics().unwrap()
    );
    rebuilder.drained().unwrap();
}
