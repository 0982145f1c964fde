//! What nginx serves we find: the same malformed bytes, read by a real server and by us.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rebuilder::http::{Extractor, HttpOptions, Request};
use rebuilder::stream::{Chunk, DirectionId, End, Endpoints};
use rebuilder::time::Timestamp;

/// Connections; more by `MIRRORFLEET_NGINX_CASES`.
const CASES: usize = 3000;

/// nginx on a socket in a directory of its own. It answers each request that it takes with 200 and its target.
struct Nginx {
    dir: tempfile::TempDir,
    process: Child,
}

impl Nginx {
    /// `None` where nginx is not installed.
    fn start() -> Option<Self> {
        let installed = Command::new("nginx")
            .arg("-v")
            .stderr(Stdio::null())
            .status();
        if installed.is_err() {
            eprintln!("SKIPPED: nginx is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let config = "daemon off; master_process off; pid nginx.pid; error_log error.log crit;
            events { }
            http { access_log off;
                client_body_temp_path b; proxy_temp_path p; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
                server { listen unix:nginx.sock; location / { return 200 $request_uri; } } }";
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let process = Command::new("nginx")
            .args(["-p", ".", "-c", "nginx.conf", "-e", "error.log"])
            .current_dir(dir.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nginx = Self { dir, process };
        for _ in 0..200 {
            if UnixStream::connect(nginx.socket()).is_ok() {
                return Some(nginx);
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        let log = std::fs::read_to_string(nginx.dir.path().join("error.log"));
        panic!("nginx does not listen: {log:?}");
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nginx.sock")
    }

    /// The targets that it served, in order.
    fn serves(&self, bytes: &[u8]) -> Vec<String> {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // It may have refused and closed before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answers = Vec::new();
        let _ = stream.read_to_end(&mut answers);
        let mut rest = answers.as_slice();
        let mut served = Vec::new();
        while rest.starts_with(b"HTTP/1.1 ") {
            let head = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
            let text = String::from_utf8_lossy(&rest[..head]).to_ascii_lowercase();
            let length = text
                .split("content-length: ")
                .nth(1)
                .map_or(0, |t| t.split('\r').next().unwrap().parse().unwrap());
            if text.starts_with("http/1.1 200") {
                served.push(String::from_utf8_lossy(&rest[head..head + length]).into_owned());
            }
            rest = &rest[head + length..];
        }
        served
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What we find in a connection of one segment.
fn found(bytes: &[u8]) -> Vec<Request<'static>> {
    let mut extractor = Extractor::new(HttpOptions::default());
    let ends = Endpoints {
        vni: None,
        src: "192.0.2.7:40000".parse().unwrap(),
        dst: "10.0.0.2:80".parse().unwrap(),
    };
    let mut requests = Vec::new();
    let data = Chunk::Data {
        bytes,
        ts: Timestamp(1),
        segment_start: true,
        conflict: false,
    };
    for chunk in [
        Chunk::Open { midstream: false },
        data,
        Chunk::Closed(End::Fin),
    ] {
        extractor.chunk(DirectionId::new(1, 1), &ends, chunk, &mut |r| {
            requests.push(r.into_owned());
        });
    }
    requests
}

fn target(request: &Request) -> String {
    let target = String::from_utf8_lossy(request.bytes(&request.target));
    // nginx takes spaces around it for none of it.
    target.trim_matches(' ').to_owned()
}

/// xorshift64*, fixed, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let word = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(word).unwrap() % bound
    }
}

const SEEDS: [&str; 6] = [
    "GET /t HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /t HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde",
    "POST /t HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\nT: u\r\n\r\n",
    "GET /t HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "GET http://a/t?x=y HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
    "\r\nPUT /t HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 05\r\nContent-Length: 5\r\n\r\nabcde",
];

const WORDS: [&[u8]; 36] = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\x0b",
    b"HTTP/1.1",
    b"0",
    b"1",
    b"9",
    b".",
    b",",
    b";",
    b"_",
    b"-",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"chunked",
    b"?",
    b"#",
    b"\xff",
    b"x",
    b"+",
    b"Host: b\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: x\r\n",
    b"\"",
    b"\\",
    b"//",
    b"A: b\r\n",
    b"e",
    b"CONNECT",
];

fn mutated(random: &mut Random) -> Vec<u8> {
    let mut bytes = SEEDS[random.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..[1, 1, 1, 2, 3][random.below(5)] {
        let at = random.below(bytes.len() + 1);
        let word = WORDS[random.below(WORDS.len())];
        let gone = random.below(4).min(bytes.len() - at);
        let word = if random.below(4) == 0 { &[][..] } else { word };
        let gone = if random.below(2) == 0 { 0 } else { gone };
        bytes.splice(at..at + gone, word.iter().copied());
    }
    bytes
}

#[test]
fn of_malformed_bytes_we_find_every_request_that_nginx_serves_and_its_boundaries() {
    let Some(nginx) = Nginx::start() else { return };
    let cases = std::env::var("MIRRORFLEET_NGINX_CASES").map_or(CASES, |n| n.parse().unwrap());
    let mut random = Random(0x6d69_7272_6f72);
    let (mut all, mut behind, mut long) = (0, 0, 0);
    // `long`: `HTTP/1.10` and the like, which it takes for 1.1.
    for n in 0..cases {
        let marker = format!("GET /m{n} HTTP/1.1\r\nHost: a\r\n\r\n");
        let bytes = [&mutated(&mut random), marker.as_bytes()].concat();
        let served = nginx.serves(&bytes);
        let ours = found(&bytes);
        let text = bytes.escape_ascii();
        let mut rows = ours.iter();
        for uri in &served {
            all += 1;
            long += usize::from(ours.iter().any(|r| r.long_version));
            assert!(
                rows.any(|r| target(r).ends_with(uri.as_str())),
                "nginx served {served:?}, we found {:?}: {text}",
                ours.iter().map(target).collect::<Vec<_>>()
            );
        }
        // Where nginx got as far as the marker, it ended the request before where we ended it.
        if served.last() == Some(&format!("/m{n}")) {
            behind += 1;
            let last = ours.last().unwrap();
            assert_eq!(target(last), format!("/m{n}"), "{text}");
            assert!(bytes.ends_with(&last.raw), "{text}");
        }
    }
    // Else nothing was compared.
    assert!(
        all > cases / 4 && behind > cases / 8 && long > cases / 2000,
        "{all} {behind} {long}"
    );
}
