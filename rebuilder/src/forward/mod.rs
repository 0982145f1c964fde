//! Requests go to the analyser, and each ends in exactly one counted outcome.
//!
//! ```text
//! Request ── bytes ──▶ Item ── queue ──▶ lane ── transport ──▶ analyser
//!              │          ▲                │
//!           sharing       └── not answered ┴── answered ──▶ RequestOutcome
//! ```
//!
//! [`bytes`] says what is sent, [`sharing`] what may stand behind it, [`queue`] and [`waiting`] hold what waits, [`lane`]
//! what is on one connection, [`answer`] reads how far the analyser came; all of these are pure. [`pool`] moves bytes
//! between them and the sockets, [`dispatch`] says which request goes where. A [`Forwarder`] belongs to one worker thread and never blocks it.

pub mod answer;
mod backoff;
pub mod bytes;
mod connection;
mod dispatch;
mod lane;
mod pool;
mod queue;
pub mod sharing;
mod shunned;
mod slots;
mod spoof;
mod target;
mod tls;
mod transport;
mod waiting;

#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use bytes::{HopByHop, Rewrite, XffStyle};
pub use pool::Forwarder;
pub use queue::ITEM_OVERHEAD;
pub use target::{Addresses, Target};

/// How requests are delivered. Every limit is for one worker.
#[derive(Clone, Debug)]
pub struct ForwardOptions {
    /// `--forward`: where the analyser is.
    pub target: Target,
    /// Its addresses, shared with whoever resolves the name again ([`Target::resolve`]). While the list is empty the
    /// analyser counts as away.
    pub addresses: Arc<Addresses>,
    /// `--forward-ca`: a PEM file of certificates to trust beside the system's. Only read for `https`.
    pub ca_file: Option<PathBuf>,
    /// `--xff`: where the client's address goes.
    pub xff: XffStyle,
    /// `--hop-by-hop`: what happens to the captured `Connection` header.
    pub hop_by_hop: HopByHop,
    /// Kept-alive connections that take requests at the same time (default 4; at least 1). As many as twice this may
    /// linger beside them until their last answer has come.
    pub connections: usize,
    /// Requests in flight on one connection (default 16; at least 1). A fresh connection carries one until it has
    /// shown that it stays open behind an answer.
    pub pipeline: usize,
    /// `--queue-bytes`: bytes that wait for a connection (default 64 MiB), [`ITEM_OVERHEAD`] for each request
    /// included. Where half of it is taken, one source may have a quarter; disputed requests may have half. Beyond that
    /// the oldest make room for the new and are counted `queue_full`, disputed ones `quarantine_full`.
    pub queue_bytes: usize,
    /// `--inflight-bytes`: bytes of requests on connections, kept until they are answered (default 16 MiB), counted
    /// in the same way: half of them on shared connections, a quarter each where a connection carries one request. A single
    /// request may exceed such a part when nothing else of it is in flight.
    pub inflight_bytes: usize,
    /// `--answer-timeout`: for the oldest request on a connection (default 10 s) since it was written.
    pub answer_timeout: Duration,
    /// The same for a disputed request, whose connection is its own (default 5 s).
    pub quarantine_timeout: Duration,
    /// When our side of a disputed request's connection is shut, unless it is answered before (default 1 s since it was
    /// written): so an analyser that reads another length into it does not wait for more.
    pub shut_after: Duration,
    /// How long a request that a connection ended on waits before it is sent again, alone (default 250 ms): an instance
    /// that is killed still takes connections for a moment, and has closed its ports by then.
    pub retry_pause: Duration,
    /// Connections that carry a single request after which the analyser may close or leave HTTP (default 16); three
    /// quarters of them for one source.
    pub leaving_connections: usize,
    /// Connections that carry a single disputed or charged request (default 64); a quarter of them for one source.
    pub quarantine_connections: usize,
    /// A connection older than this takes no new requests (default 10 min), so that nodes added later get work.
    pub connection_age: Duration,
    /// The longest pause between two attempts to connect (default 1 s, with up to a quarter of jitter on top).
    pub backoff_max: Duration,
}

impl Default for ForwardOptions {
    fn default() -> Self {
        Self {
            target: Target {
                tls: false,
                host: "127.0.0.1".to_owned(),
                port: 80,
            },
            addresses: Arc::default(),
            ca_file: None,
            xff: XffStyle::default(),
            hop_by_hop: HopByHop::default(),
            connections: 4,
            pipeline: 16,
            queue_bytes: 64 * 1024 * 1024,
            inflight_bytes: 16 * 1024 * 1024,
            answer_timeout: Duration::from_secs(10),
            quarantine_timeout: Duration::from_secs(5),
            shut_after: Duration::from_secs(1),
            retry_pause: Duration::from_millis(250),
            leaving_connections: 16,
            quarantine_connections: 64,
            connection_age: Duration::from_secs(600),
            backoff_max: Duration::from_secs(1),
        }
    }
}

/// Why nothing can be forwarded. Each message is one line that names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// `--forward` does not parse.
    #[error("--forward {url:?}: {why}; the form is http(s)://HOST:PORT")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The name has no address now; trying again may help.
    #[error(
        "--forward: cannot resolve {host}: {source}; check the name and this machine's resolver"
    )]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// `--forward-ca` is no file of certificates.
    #[error("--forward-ca {}: {why}; give a PEM file with at least one certificate", path.display())]
    Ca {
        /// As given.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No certificate to trust.
    #[error(
        "--forward https://…: this system has no root certificates; install ca-certificates or give --forward-ca FILE"
    )]
    NoRoots,
    /// rustls refuses the configuration.
    #[error("--forward https://{host}: {source}; check the host's name")]
    Tls {
        /// The analyser's name.
        host: String,
        /// What rustls says.
        source: rustls::Error,
    },
    /// epoll is not to be had.
    #[error("cannot create an event queue: {0}; raise the limit on open files")]
    Events(#[source] io::Error),
}
