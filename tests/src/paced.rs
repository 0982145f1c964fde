//! A client that sends so many requests a second over connections that it keeps open, and knows of each what became of
//! it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use crate::network::Host;

/// What is sent.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The web servers.
    pub servers: Vec<SocketAddr>,
    /// Connections to all of them.
    pub connections: u32,
    /// Requests a second on all connections.
    pub a_second: u32,
    /// Every so-many-th request is a POST with a body of so many bytes.
    pub posts: (u64, usize),
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
pub struct Sent {
    /// When its first byte was written.
    pub at: Instant,
    /// Whether it was answered.
    pub answered: bool,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    opened: AtomicU64,
    sent: Mutex<Vec<Sent>>,
    trouble: Mutex<Vec<String>>,
}

/// A running client.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<anyhow::Result<()>>>>,
}

/// What it has done in all.
#[derive(Clone, Debug)]
pub struct Done {
    /// All requests; the target of the n-th is [`target`] of n.
    pub sent: Vec<Sent>,
    /// Connections that it has opened.
    pub opened: u64,
    /// What went wrong on connections.
    pub trouble: Vec<String>,
}

/// The target of a request.
#[must_use]
pub fn target(number: u64) -> String {
    format!("/request/{number}")
}

/// The number of the request with this target.
#[must_use]
pub fn number(target: &str) -> Option<usize> {
    target.strip_prefix("/request/")?.parse().ok()
}

impl Client {
    /// Begins, in a namespace.
    ///
    /// # Errors
    /// Where no thread can be made there.
    pub fn start(host: &Host, pace: Pace) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let thread = host.namespace.spawn(move || -> anyhow::Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let mut tasks = Vec::new();
                for index in 0..pace.connections {
                    tasks.push(tokio::spawn(keep(pace.clone(), index, Arc::clone(&its))));
                }
                for task in tasks {
                    let _ = task.await;
                }
            });
            Ok(())
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Requests sent so far.
    #[must_use]
    pub fn sent(&self) -> usize {
        lock(&self.shared.sent).len()
    }

    /// Ends it when all that was sent is answered.
    ///
    /// # Errors
    /// Where it has panicked.
    pub fn stop(mut self) -> anyhow::Result<Done> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it is stopped")?;
        let Ok(end) = thread.join() else {
            bail!("the client panicked");
        };
        end??;
        Ok(Done {
            sent: lock(&self.shared.sent).clone(),
            opened: self.shared.opened.load(Ordering::Relaxed),
            trouble: lock(&self.shared.trouble).clone(),
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection: a request each so many milliseconds, each after the answer to the one before. A connection that
/// breaks is opened anew.
async fn keep(pace: Pace, index: u32, shared: Arc<Shared>) {
    let period = Duration::from_secs(1) * pace.connections / pace.a_second;
    // Evenly over the period, or all would send at once.
    let first = tokio::time::Instant::now() + period * index / pace.connections;
    let mut clock = tokio::time::interval_at(first, period);
    while !shared.stop.load(Ordering::Relaxed) {
        if let Err(error) = talk(&pace, index, &shared, &mut clock).await {
            lock(&shared.trouble).push(format!("connection {index}: {error}"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn talk(
    pace: &Pace,
    index: u32,
    shared: &Shared,
    clock: &mut tokio::time::Interval,
) -> io::Result<()> {
    let mut servers = pace.servers.iter().cycle();
    let server = servers.nth(usize::try_from(index).unwrap_or(0));
    let server = *server.ok_or_else(|| io::Error::other("no server"))?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut stream = socket.connect(server).await?;
    stream.set_nodelay(true)?;
    shared.opened.fetch_add(1, Ordering::Relaxed);
    let mut buffer = vec![0; 4096];
    while !shared.stop.load(Ordering::Relaxed) {
        clock.tick().await;
        let number = {
            let mut sent = lock(&shared.sent);
            sent.push(Sent {
                at: Instant::now(),
                answered: false,
            });
            sent.len() - 1
        };
        let text = request(u64::try_from(number).unwrap_or(0), pace.posts);
        stream.write_all(&text).await?;
        let mut length = 0;
        while !whole(buffer.get(..length).unwrap_or_default()) {
            let room = buffer.get_mut(length..).unwrap_or_default();
            let read = stream.read(room).await?;
            if read == 0 {
                return Err(io::Error::other("closed before the answer"));
            }
            length += read;
        }
        if let Some(sent) = lock(&shared.sent).get_mut(number) {
            sent.answered = true;
        }
    }
    Ok(())
}

fn request(number: u64, (every, size): (u64, usize)) -> Vec<u8> {
    let common = "Host: shop.example\r\nUser-Agent: lab\r\nAccept: */*\r\n";
    let target = target(number);
    if !number.is_multiple_of(every) {
        return format!("GET {target} HTTP/1.1\r\n{common}\r\n").into_bytes();
    }
    let mut text =
        format!("POST {target} HTTP/1.1\r\n{common}Content-Length: {size}\r\n\r\n").into_bytes();
    text.resize(text.len() + size, b'x');
    text
}

/// Whether these bytes are the whole of the web server's short answer.
fn whole(bytes: &[u8]) -> bool {
    bytes.windows(4).any(|window| window == b"\r\n\r\n") && bytes.ends_with(b"ok\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_its_number() {
        let text = String::from_utf8(request(7, (10, 5))).unwrap();
        let line = text.lines().next().unwrap();
        assert_eq!(number(line.split(' ').nth(1).unwrap()), Some(7));
        let post = String::from_utf8(request(20, (10, 5))).unwrap();
        assert!(post.starts_with("POST /request/20 "));
        assert!(post.ends_with("Content-Length: 5\r\n\r\nxxxxx"));
    }
}
