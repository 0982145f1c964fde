//! The program as a process on loopback, and an analyser that writes down what it gets.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::wire::vxlan;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the analyser got: head and body.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Got {
    pub(crate) fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    /// The value of the only field of this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut values = self
            .head
            .lines()
            .filter_map(|l| l.split_once(": "))
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        let value = values.next().map(|(_, v)| v);
        assert_eq!(values.next(), None, "{name} twice in {}", self.head);
        value
    }
}

/// By its length, or its chunks as they stand; nothing where it has neither.
fn read_body(stream: &mut impl BufRead, got: &mut Got) -> std::io::Result<()> {
    if got.field("Transfer-Encoding").is_none() {
        let length = got
            .field("Content-Length")
            .map_or(0, |l| l.parse().unwrap());
        got.body.resize(length, 0);
        return stream.read_exact(&mut got.body);
    }
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap();
        got.body.extend(line.as_bytes());
        let at = got.body.len();
        // The data and its line end, or the empty line behind the zero chunk.
        got.body.resize(at + size + 2, 0);
        stream.read_exact(&mut got.body[at..])?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// Answers each request (with a length, chunked without trailers, or without body) with 200 and gives it to the receiver. Ends with the
/// test.
pub(crate) fn analyser() -> (SocketAddr, Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (requests, received) = channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, requests) = (stream.unwrap(), requests.clone());
            thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap());
                let mut head = String::new();
                while lines.read_line(&mut head).is_ok_and(|n| n > 0) {
                    if !head.ends_with("\r\n\r\n") {
                        continue;
                    }
                    let mut got = Got {
                        head: std::mem::take(&mut head),
                        body: Vec::new(),
                    };
                    if read_body(&mut lines, &mut got).is_err() {
                        return;
                    }
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    let _ = requests.send(got);
                }
            });
        }
    });
    (address, received)
}

/// A running program, killed with its owner.
pub(crate) struct Rebuilder {
    child: Child,
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    /// Whether it reads a ring.
    pub(crate) ring: bool,
    /// What it said before it was ready.
    pub(crate) said: Vec<String>,
    /// What it says since.
    says: Arc<Mutex<Vec<u8>>>,
}

impl Rebuilder {
    pub(crate) fn start(forward: SocketAddr, more: &[&str]) -> Self {
        Self::start_as(Command::new(env!("CARGO_BIN_EXE_rebuilder")), forward, more)
    }

    /// The same by a command that ends with the program.
    pub(crate) fn start_as(mut command: Command, forward: SocketAddr, more: &[&str]) -> Self {
        let given = |flag: &str| more.contains(&flag);
        let defaults = [
            ("--workers", "1"),
            ("--listen", "127.0.0.1:0"),
            ("--admin", "127.0.0.1:0"),
        ];
        let defaults = defaults.into_iter().filter(|(flag, _)| !given(flag));
        let mut child = command
            .args(["run", "--forward", &format!("http://{forward}")])
            .args(defaults.flat_map(|(flag, value)| [flag, value]))
            .args(more)
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready = loop {
            let line = log.next().expect("it ended").unwrap();
            if line.contains(" ready ") {
                break line;
            }
            said.push(line);
        };
        // Also because what it says later must not meet a closed pipe.
        let says = Arc::new(Mutex::new(Vec::new()));
        let later = Arc::clone(&says);
        thread::spawn(move || {
            for line in log {
                let mut says = later.lock().unwrap();
                says.extend(line.unwrap().into_bytes());
                says.push(b'\n');
            }
        });
        let word = |key: &str| {
            let (_, rest) = ready.split_once(key).unwrap();
            rest.split(' ').next().unwrap().parse().unwrap()
        };
        Self {
            listen: word("listen="),
            admin: word("admin="),
            ring: ready.contains("receive=\"ring\""),
            said,
            says,
            child,
        }
    }

    /// How many frames of a few thousand bytes can wait for it. A ring takes them in only every some milliseconds, and
    /// has room; the smallest buffer of a socket has none.
    pub(crate) fn burst(&self) -> usize {
        if self.ring { 800 } else { 40 }
    }

    /// Mirrored frames arrive.
    pub(crate) fn send<'a>(&self, frames: impl IntoIterator<Item = &'a Vec<u8>>) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for frame in frames {
            socket.send_to(&vxlan(1, frame), self.listen).unwrap();
        }
    }

    /// What it said since it was ready. After its end, what had come through the pipe by now.
    pub(crate) fn says(&self) -> String {
        String::from_utf8_lossy(&self.says.lock().unwrap()).into_owned()
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn end(&mut self) -> Option<i32> {
        self.end_by(libc::SIGTERM).code()
    }

    /// A signal that ends it, and how it ended.
    pub(crate) fn end_by(&mut self, signal: i32) -> ExitStatus {
        self.signal(signal);
        self.child.wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: i32) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: a signal to a child that has not been waited for, so the number is still its own.
        assert_eq!(unsafe { libc::kill(id, signal) }, 0);
    }

    /// The most that was ever resident, in bytes (proc_pid_status(5)).
    pub(crate) fn peak(&self) -> usize {
        self.status("VmHWM:")
    }

    /// What is resident now, in bytes; a ring counts.
    pub(crate) fn resident(&self) -> usize {
        self.status("VmRSS:")
    }

    fn status(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with(field)).unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<usize>()
            .unwrap()
            * 1024
    }

    /// The sum of a counter over its labels.
    pub(crate) fn sum(&self, metric: &str) -> u64 {
        let metrics = self.metrics();
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(metric));
        lines
            .filter(|rest| rest.starts_with(['{', ' ']))
            .map(|rest| rest.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    pub(crate) fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until the line stands in the metrics.
    pub(crate) fn shows(&self, line: &str) {
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
