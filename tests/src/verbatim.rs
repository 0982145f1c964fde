//! An analyser that keeps every byte it gets, in the order in which it got them.
//!
//! [`crate::recorder`] is a hyper server: what it records has been through somebody's idea of HTTP (header names in
//! lower case, chunk framing removed). This one cuts the bytes of each connection into requests by the strictest
//! reading of RFC 9112 and changes none. What it cannot cut that way it keeps too, as [`Taken::broken`], and closes.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

use crate::network::Host;

/// How often threads look whether they shall end.
const LOOK: Duration = Duration::from_millis(100);

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// One request, as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The connection that it came on, numbered from 0.
    pub connection: u64,
    /// Request line and headers, the empty line included.
    pub head: Vec<u8>,
    /// Everything behind, chunk framing included.
    pub body: Vec<u8>,
    /// It cannot be told where it ends; `head` is all that is left of the connection.
    pub broken: bool,
}

/// What is listening. On drop its port and its connections are closed.
#[derive(Debug)]
pub struct Verbatim {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    taken: Mutex<Vec<Taken>>,
    count: AtomicU64,
    stop: AtomicBool,
}

impl Verbatim {
    /// Listens on `port` of every IPv4 address of `host`, and answers 200 to everything.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(host: &Host, port: u16) -> anyhow::Result<Self> {
        let listener = host
            .namespace
            .run(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))?
            .with_context(|| format!("port {port}"))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared::default());
        let its = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("verbatim".to_owned())
            .spawn(move || accept(&listener, &its))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// How many requests have been taken.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }

    /// Ends it and gives all it has taken.
    #[must_use]
    pub fn stop(mut self) -> Vec<Taken> {
        self.end();
        std::mem::take(&mut self.shared.taken())
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Verbatim {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) -> io::Result<()> {
    let (mut threads, mut connections) = (Vec::new(), 0);
    while !shared.stopping() {
        match listener.accept() {
            Ok((stream, _)) => {
                let (its, number) = (Arc::clone(shared), connections);
                connections += 1;
                threads.push(thread::Builder::new().spawn(move || {
                    // A connection that breaks is the rebuilder's to count.
                    let _ = serve(stream, number, &its);
                })?);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn serve(mut stream: TcpStream, connection: u64, shared: &Shared) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LOOK))?;
    let mut cutter = Cutter::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                ) =>
            {
                if shared.stopping() {
                    break;
                }
                continue;
            }
            Err(error) => {
                shared.keep(&mut cutter, connection);
                return Err(error);
            }
        };
        let (mut answers, mut broken) = (Vec::new(), false);
        cutter.feed(buffer.get(..length).unwrap_or_default(), |head, body| {
            let taken = match body {
                Some(body) => Taken {
                    connection,
                    head,
                    body,
                    broken: false,
                },
                None => Taken {
                    connection,
                    head,
                    body: Vec::new(),
                    broken: true,
                },
            };
            broken |= taken.broken;
            answers.extend_from_slice(ANSWER);
            shared.taken().push(taken);
            shared.count.fetch_add(1, Ordering::Relaxed);
        });
        stream.write_all(&answers)?;
        if broken {
            return Ok(());
        }
    }
    shared.keep(&mut cutter, connection);
    Ok(())
}

impl Shared {
    /// What a connection ends in the middle of is kept, too.
    fn keep(&self, cutter: &mut Cutter, connection: u64) {
        if !cutter.bytes.is_empty() {
            self.taken().push(Taken {
                connection,
                head: std::mem::take(&mut cutter.bytes),
                body: Vec::new(),
                broken: true,
            });
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Cuts the bytes of a connection into requests.
#[derive(Debug, Default)]
struct Cutter {
    bytes: Vec<u8>,
    /// How far the request at the beginning of `bytes` is understood.
    seen: Seen,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    /// No empty line before this place.
    #[default]
    Nothing,
    HeadUntil(usize),
    /// The head ends at the first place, the body at the second.
    Length(usize, usize),
    /// The head ends at the first place, the next chunk begins at the second.
    Chunk(usize, usize),
}

impl Cutter {
    /// Takes more bytes; `out` is called with the head and the body of each request that is whole now, or with all that
    /// there is and no body where it cannot be cut.
    fn feed(&mut self, bytes: &[u8], mut out: impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        self.bytes.extend_from_slice(bytes);
        loop {
            match self.seen {
                Seen::Nothing => self.seen = Seen::HeadUntil(0),
                Seen::HeadUntil(from) => {
                    let Some(end) = find(&self.bytes, b"\r\n\r\n", from) else {
                        self.seen = Seen::HeadUntil(self.bytes.len().saturating_sub(3));
                        return;
                    };
                    let head = end + 4;
                    self.seen = match framing(self.bytes.get(..head).unwrap_or_default()) {
                        Some(Framing::Length(length)) => Seen::Length(head, head + length),
                        Some(Framing::Chunked) => Seen::Chunk(head, head),
                        None => return self.break_off(out),
                    };
                }
                Seen::Length(head, end) => {
                    if self.bytes.len() < end {
                        return;
                    }
                    self.give(head, end, &mut out);
                }
                Seen::Chunk(head, at) => {
                    let Some(line_end) = find(&self.bytes, b"\r\n", at) else {
                        return;
                    };
                    let line = self.bytes.get(at..line_end).unwrap_or_default();
                    let digits = line.split(|&byte| byte == b';').next().unwrap_or_default();
                    let size = std::str::from_utf8(digits)
                        .ok()
                        .and_then(|digits| usize::from_str_radix(digits, 16).ok());
                    match size {
                        None => return self.break_off(out),
                        // The trailers end with an empty line, whose line end may be that of the size.
                        Some(0) => {
                            let Some(end) = find(&self.bytes, b"\r\n\r\n", line_end) else {
                                return;
                            };
                            self.give(head, end + 4, &mut out);
                        }
                        Some(size) => {
                            let next = line_end + 2 + size + 2;
                            if self.bytes.len() < next {
                                return;
                            }
                            if self.bytes.get(next - 2..next) != Some(b"\r\n") {
                                return self.break_off(out);
                            }
                            self.seen = Seen::Chunk(head, next);
                        }
                    }
                }
            }
        }
    }

    fn give(&mut self, head: usize, end: usize, out: &mut impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        let behind = self.bytes.split_off(end);
        let mut whole = std::mem::replace(&mut self.bytes, behind);
        let body = whole.split_off(head);
        self.seen = Seen::Nothing;
        out(whole, Some(body));
    }

    fn break_off(&mut self, mut out: impl FnMut(Vec<u8>, Option<Vec<u8>>)) {
        self.seen = Seen::Nothing;
        out(std::mem::take(&mut self.bytes), None);
    }
}

enum Framing {
    Length(usize),
    Chunked,
}

/// How a body is framed, where that is beyond doubt.
fn framing(head: &[u8]) -> Option<Framing> {
    let mut found = None;
    for (number, line) in head.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r")?;
        if number == 0 {
            continue;
        }
        let Some(colon) = line.iter().position(|&byte| byte == b':') else {
            return line.is_empty().then(|| found.unwrap_or(Framing::Length(0)));
        };
        let (name, value) = line.split_at(colon);
        let value = std::str::from_utf8(value.get(1..)?).map(str::trim);
        let here = if name.eq_ignore_ascii_case(b"content-length") {
            Framing::Length(value.ok()?.parse().ok()?)
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.ok()?.eq_ignore_ascii_case("chunked") {
                return None;
            }
            Framing::Chunked
        } else {
            continue;
        };
        if found.replace(here).is_some() {
            return None;
        }
    }
    None
}

fn find(bytes: &[u8], what: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    rest.windows(what.len())
        .position(|window| window == what)
        .map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST /b HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc\
        PUT /c HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n2;x=1\r\n\r\n\r\n1\r\nz\r\n0\r\n\r\n\
        PUT /d HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: 1\r\n\r\nGET /e HTTP/1.1\r\n\r\n";

    fn cut(pieces: &[&[u8]]) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let (mut cutter, mut all) = (Cutter::default(), Vec::new());
        for piece in pieces {
            cutter.feed(piece, |head, body| all.push((head, body)));
        }
        assert!(cutter.bytes.is_empty(), "{:?}", cutter.bytes);
        all
    }

    #[test]
    fn wherever_the_bytes_are_split_the_same_requests_come_out() {
        let whole = cut(&[STREAM]);
        let bodies: Vec<&[u8]> = whole
            .iter()
            .map(|(_, body)| body.as_deref().unwrap())
            .collect();
        let expected: [&[u8]; 5] = [
            b"",
            b"abc",
            b"2;x=1\r\n\r\n\r\n1\r\nz\r\n0\r\n\r\n",
            b"0\r\nX: 1\r\n\r\n",
            b"",
        ];
        assert_eq!(bodies, expected);
        let glued: Vec<u8> = whole
            .iter()
            .flat_map(|(head, body)| [head.as_slice(), body.as_deref().unwrap()].concat())
            .collect();
        assert_eq!(glued, STREAM);
        for at in 0..STREAM.len() {
            assert_eq!(cut(&[&STREAM[..at], &STREAM[at..]]), whole, "{at}");
        }
        let bytes: Vec<&[u8]> = STREAM.chunks(1).collect();
        assert_eq!(cut(&bytes), whole);
    }

    #[test]
    fn what_cannot_be_cut_is_kept_as_it_came() {
        for odd in [
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
                .as_slice(),
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
            b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        ] {
            assert_eq!(
                cut(&[odd]),
                [(odd.to_vec(), None)],
                "{:?}",
                String::from_utf8_lossy(odd)
            );
        }
    }
}
