//! A mirrored instance before the real analyser, and the well-framed requests whose answers the tests watch.

use std::time::Duration;

use lab::analyser::Analyser;
use lab::client::Connection;
use lab::data_plane::{DataPlane, Web};
use lab::network::Options;
use lab::nginx::Entry;
use lab::process::wait_for;
use lab::rebuilder::{Metrics, Rebuilder};

use super::rebuilder;

/// What the analyser answers to `/STATUS/…`.
pub(crate) const STATUSES: [u16; 4] = [200, 302, 404, 503];

/// What the tests of smugglers and leavers run on: one instance, one rebuilder, the analyser that inspects.
pub(crate) struct Bench {
    pub(crate) rebuilder: Rebuilder,
    pub(crate) analyser: Analyser,
    web: Web,
    pub(crate) plane: DataPlane,
}

impl Bench {
    /// `port` of the analyser's host is what the rebuilder forwards to.
    pub(crate) fn new(port: u16) -> Self {
        let plane = DataPlane::new(Options::default()).unwrap();
        Self {
            analyser: Analyser::start(&plane.analyser, plane.vpc.directory()).unwrap(),
            web: plane.web().unwrap(),
            rebuilder: rebuilder(&plane, port, &[]),
            plane,
        }
    }

    fn connect(&self) -> Connection {
        Connection::open(&self.plane.client, self.web.servers[0]).unwrap()
    }

    /// Sends these bytes on a connection of their own. What the instance says to them is not looked at.
    pub(crate) fn alone(&self, bytes: &[u8]) {
        let mut connection = self.connect();
        // It may close before it has read all; what was sent until then was mirrored.
        let _ = connection.send(bytes);
        let _ = connection.finish();
    }

    /// Sends `requests` on `connections` kept-alive connections at once, 20 pipelined at a time, while `meanwhile` runs.
    pub(crate) fn neighbours(
        &self,
        requests: &[Vec<u8>],
        connections: usize,
        meanwhile: impl FnOnce(),
    ) {
        std::thread::scope(|scope| {
            for share in requests.chunks(requests.len().div_ceil(connections)) {
                scope.spawn(|| {
                    let mut connection = self.connect();
                    for batch in share.chunks(20) {
                        connection.send(&batch.concat()).unwrap();
                        let answers = connection.answers(batch.len()).unwrap();
                        assert_eq!(answers, vec![200; batch.len()]);
                    }
                });
            }
            meanwhile();
        });
    }

    /// The metrics when so many requests have their outcome.
    pub(crate) fn settled(&self, requests: usize) -> Metrics {
        self.rebuilder.settled(requests as u64).unwrap()
    }

    /// nginx's own log, once it holds so many lines.
    pub(crate) fn log(&self, lines: usize) -> Vec<Entry> {
        wait_for("the analyser's log", Duration::from_secs(10), || {
            let log = self.analyser.access_log()?;
            Ok((log.len() >= lines).then_some(log))
        })
        .unwrap()
    }
}

/// The `n`-th well-framed request of a kind: its target says how it is answered.
pub(crate) fn neighbour(kind: &str, n: usize) -> (String, Vec<u8>) {
    let status = STATUSES[n % STATUSES.len()];
    let target = format!("/{status}/{kind}/{n}");
    let request = if n.is_multiple_of(3) {
        let body = format!("body-{n}").repeat(n % 40);
        format!(
            "POST {target} HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    } else {
        format!("GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n")
    };
    (target, request.into_bytes())
}

/// The status that a target asks for.
pub(crate) fn asked(target: &str) -> Option<u16> {
    target.split('/').nth(1)?.parse().ok()
}

/// Which of the outcomes a status is counted as.
pub(crate) fn outcome(status: u16) -> String {
    format!("delivered_{}xx", status / 100)
}
