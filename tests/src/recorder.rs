//! An analyser that keeps what it gets, for comparison byte by byte: a hyper server.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use std::{fmt, io};

use anyhow::Context;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::network::Host;

/// A request that was received whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Its method.
    pub method: String,
    /// Its target.
    pub target: String,
    /// Its headers in order, names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Length of its body in bytes, without chunk framing.
    pub body_length: usize,
    /// SHA-256 of that body.
    pub body_hash: Hash,
    /// When its last byte had come.
    pub at: SystemTime,
}

impl Received {
    /// The value of a header's first line.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(have, _)| have == name)?;
        std::str::from_utf8(value).ok()
    }
}

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(6)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a [`Recorder`] has received; it outlives the recorder, and several may share one.
#[derive(Clone, Debug, Default)]
pub struct Records(Arc<Mutex<Vec<Received>>>);

impl Records {
    /// Everything so far.
    #[must_use]
    pub fn all(&self) -> Vec<Received> {
        self.lock().clone()
    }

    /// How many so far.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Received>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running recorder. On drop its port and its connections are closed.
#[derive(Debug)]
pub struct Recorder {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Recorder {
    /// Listens on `port` of every IPv4 address of `host`, and answers 200 to everything after `delay`.
    ///
    /// # Errors
    /// Where the port is taken.
    pub fn start(
        host: &Host,
        port: u16,
        records: &Records,
        delay: Duration,
    ) -> anyhow::Result<Self> {
        let listener = host
            .namespace
            .run(|| std::net::TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))))?
            .with_context(|| format!("port {port}"))?;
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let records = records.clone();
        let thread = host.namespace.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            if let Ok(runtime) = runtime {
                runtime.block_on(async {
                    let Ok(listener) = TcpListener::from_std(listener) else {
                        return;
                    };
                    tokio::select! {
                        () = accept(&listener, &records, delay) => {}
                        _ = stopped => {}
                    }
                });
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: &TcpListener, records: &Records, delay: Duration) {
    while let Ok((stream, _)) = listener.accept().await {
        let records = records.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| record(request, &records, delay));
            let mut http = hyper::server::conn::http1::Builder::new();
            // What is asked in one write is answered in one, so that pipelined requests are taken as they come.
            http.timer(TokioTimer::new())
                .pipeline_flush(true)
                .max_buf_size(64 * 1024);
            // A connection that breaks is the rebuilder's to count.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn record(
    request: Request<Incoming>,
    records: &Records,
    delay: Duration,
) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let received = Received {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body_length: body.len(),
        body_hash: Hash::of(&body),
        at: SystemTime::now(),
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    records.lock().push(received);
    Ok(Response::new(Empty::new()))
}
