//! A TCP relay that keeps every byte: what the rebuilder writes on each of its connections, and what it is answered.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, bail};

use crate::network::Host;

/// What went over one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tape {
    /// From who connected.
    pub up: Vec<u8>,
    /// To who connected.
    pub down: Vec<u8>,
}

/// An answer on a tape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Its header `X-Echo`: the target that it answers, where the analyser said so.
    pub echo: Option<String>,
}

impl Tape {
    /// Its answers, in order. A last one that was cut is left out.
    ///
    /// # Errors
    /// Where one is neither of a known length nor chunked.
    pub fn answers(&self) -> anyhow::Result<Vec<Answer>> {
        let mut rest = self.down.as_slice();
        let mut answers = Vec::new();
        while let Some(end) = find(rest, b"\r\n\r\n") {
            let (head, body) = rest.split_at(end + 4);
            let head = String::from_utf8_lossy(head).into_owned();
            let field = |name: &str| {
                head.lines()
                    .filter_map(|line| line.split_once(':'))
                    .find(|(have, _)| have.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.trim().to_owned())
            };
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .with_context(|| format!("no status: {head}"))?;
            let length = match (status, field("content-length"), field("transfer-encoding")) {
                (100..200, ..) => 0,
                (_, Some(length), None) => length.parse().context("a length")?,
                // The only chunked answers here are those of a few bytes that nginx makes itself.
                (_, None, Some(_)) => match find(body, b"0\r\n\r\n") {
                    Some(last) => last + 5,
                    None => break,
                },
                _ => bail!("where does it end? {head}"),
            };
            let Some(behind) = body.get(length..) else {
                break;
            };
            rest = behind;
            if status >= 200 {
                answers.push(Answer {
                    status,
                    echo: field("x-echo"),
                });
            }
        }
        Ok(answers)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// A running relay. It goes on until its process ends.
#[derive(Debug)]
pub struct Relay {
    tapes: Arc<Mutex<Vec<Arc<Mutex<Tape>>>>>,
}

impl Relay {
    /// Takes connections at `port` of `host` and hands each on to `to`, as seen from there.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(host: &Host, port: u16, to: SocketAddr) -> anyhow::Result<Self> {
        let listener = host
            .namespace
            .run(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))?
            .with_context(|| format!("port {port}"))?;
        let relay = Self {
            tapes: Arc::default(),
        };
        let tapes = Arc::clone(&relay.tapes);
        host.namespace.spawn(move || {
            for near in listener.incoming() {
                let tape = Arc::<Mutex<Tape>>::default();
                locked(&tapes).push(Arc::clone(&tape));
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(to)) else {
                    continue;
                };
                // A connection that breaks is the rebuilder's to count.
                let _ = hand_on(near, far, &tape);
            }
        })?;
        Ok(relay)
    }

    /// Everything so far, in the order in which the connections came.
    #[must_use]
    pub fn tapes(&self) -> Vec<Tape> {
        let tapes = locked(&self.tapes);
        tapes.iter().map(|tape| locked(tape).clone()).collect()
    }
}

fn hand_on(near: TcpStream, far: TcpStream, tape: &Arc<Mutex<Tape>>) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    let (up, down) = (Arc::clone(tape), Arc::clone(tape));
    thread::spawn(move || {
        let _ = copy(near, far, |bytes| locked(&up).up.extend_from_slice(bytes));
    });
    thread::spawn(move || {
        let _ = copy(far_too, near_too, |bytes| {
            locked(&down).down.extend_from_slice(bytes);
        });
    });
    Ok(())
}

/// Until the end of one side, or an error of either.
fn copy(mut from: TcpStream, mut to: TcpStream, mut keep: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(Shutdown::Write),
            Ok(read) => buffer.get(..read).unwrap_or_default(),
            Err(error) => {
                let _ = to.shutdown(Shutdown::Both);
                return Err(error);
            }
        };
        keep(read);
        if let Err(error) = to.write_all(read) {
            let _ = from.shutdown(Shutdown::Both);
            return Err(error);
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_on_a_tape_are_told_apart() {
        let tape = Tape {
            up: Vec::new(),
            down: b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Echo: /a\r\n\r\nok\n\
                    HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n\
                    HTTP/1.1 400 Bad Request\r\nContent-Length: 9\r\n\r\ncut"
                .to_vec(),
        };
        let answer = |status, echo: Option<&str>| Answer {
            status,
            echo: echo.map(ToOwned::to_owned),
        };
        assert_eq!(
            tape.answers().unwrap(),
            [answer(200, Some("/a")), answer(404, None)]
        );
    }
}
