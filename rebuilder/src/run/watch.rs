//! The analyser's name and whether it takes connections, watched beside the workers.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::forward::{Addresses, ForwardOptions, Target};
use crate::telemetry::{Counter, Gauge, Metrics};

/// How often the analyser is looked at; also how soon a name that did not resolve is tried again.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How often the analyser's name is resolved: load balancers move.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// Resolves the analyser's name again and again, and says once when it goes away and once when it is back. On a thread
/// of its own, because a resolver may block for seconds.
pub(super) struct AnalyserWatch {
    target: Target,
    addresses: Arc<Addresses>,
    metrics: Arc<Metrics>,
    queue_bytes: usize,
    failures: u64,
    away: bool,
    opens: bool,
    unresolved: bool,
}

impl AnalyserWatch {
    pub(super) fn new(options: &ForwardOptions, metrics: Arc<Metrics>) -> Self {
        Self {
            target: options.target.clone(),
            addresses: Arc::clone(&options.addresses),
            metrics,
            queue_bytes: options.queue_bytes,
            failures: 0,
            away: false,
            opens: false,
            unresolved: false,
        }
    }

    /// Until the other end of `stopped` is dropped.
    pub(super) fn run(mut self, stopped: &mpsc::Receiver<()>) {
        let mut resolve_at = Instant::now();
        loop {
            let now = Instant::now();
            if now >= resolve_at {
                resolve_at = now + self.resolve();
            }
            self.look();
            match stopped.recv_timeout(WATCH_INTERVAL) {
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                _ => return,
            }
        }
    }

    /// When to resolve next. A name that stops resolving keeps its last addresses.
    fn resolve(&mut self) -> Duration {
        match self.target.resolve() {
            Ok(list) => {
                self.addresses.set(list);
                if std::mem::take(&mut self.unresolved) {
                    info!("--forward {}: the name resolves again", self.target);
                }
                RESOLVE_INTERVAL
            }
            Err(e) => {
                if !std::mem::replace(&mut self.unresolved, true) {
                    warn!("{e}; trying again every second");
                }
                WATCH_INTERVAL
            }
        }
    }

    fn look(&mut self) {
        let totals = self.metrics.totals();
        let failures = totals.counter(Counter::ConnectFailures);
        let connected = totals.gauge(Gauge::Connections) > 0;
        if failures > self.failures && !connected && !self.away {
            self.away = true;
            warn!(
                "--forward {}: the analyser does not accept connections; requests wait up to {} bytes a worker, then \
                 the oldest are counted queue_full: start it, or check the URL and its security group",
                self.target, self.queue_bytes
            );
        } else if connected && self.away {
            self.away = false;
            info!("--forward {}: the analyser is back", self.target);
        }
        self.failures = failures;
        if totals.counter(Counter::AnalyserOpened) > 0 && !self.opens {
            self.opens = true;
            warn!(
                "--forward {}: a host with the analyser's address opens connections that are mirrored. If it is a load \
                 balancer, the nodes behind it are mirrored and get each of their requests again: take them out of the \
                 selection, for example with !asg:waf-*",
                self.target
            );
        }
    }
}
