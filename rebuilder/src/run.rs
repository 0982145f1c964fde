//! `rebuilder run`: one worker thread a core, each with its own socket, flow table and analyser connections, sharing
//! nothing. Everything slow (health, metrics, name resolution, signals) runs beside them.

mod watch;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::{error, info, warn};

use self::watch::AnalyserWatch;
use self::worker::Worker;
use crate::forward::{ForwardError, ForwardOptions};
use crate::handover::Handover;
use crate::http::{Cidr, Flags, Request, is_health_check};
use crate::pipeline::PipelineOptions;
use crate::receive::host::{HostLoss, HostWatch, with_gro};
use crate::receive::sys::{no_core_dump, processors};
use crate::receive::udp::BindError;
use crate::receive::{self, ReceiveOptions, Receiver};
use crate::telemetry::{
    AdminError, AdminHandle, AdminOptions, AdminServer, Counter, Health, Metrics, PacketOutcome,
    RequestOutcome, WorkerCounters,
};

/// How often the host's own losses are read.
const HOST_INTERVAL: Duration = Duration::from_secs(1);

/// Settings of `rebuilder run`.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Where mirrored packets arrive.
    pub listen: SocketAddr,
    /// Worker threads, at least one.
    pub workers: usize,
    /// Where `/healthz` and `/metrics` are served.
    pub admin: AdminOptions,
    /// How long after SIGTERM answers are waited for.
    pub drain_timeout: Duration,
    /// How mirrored packets are received.
    pub receive: ReceiveOptions,
    /// Packet path; byte caps are those of one worker.
    pub pipeline: PipelineOptions,
    /// Delivery; byte caps are those of one worker.
    pub forward: ForwardOptions,
    /// Which requests are not handed to the analyser.
    pub selection: RequestSelection,
}

/// Which requests are counted instead of handed to the analyser.
#[derive(Clone, Debug, Default)]
pub struct RequestSelection {
    /// What happens to a request whose body has a hole.
    pub incomplete: Incomplete,
    /// `--ignore-health-checks`: where probes come from that are left out; see [`is_health_check`].
    pub health_checks_from: Vec<Cidr>,
}

impl RequestSelection {
    /// The outcome of a request that goes no further.
    #[must_use]
    pub fn outcome(&self, request: &Request) -> Option<RequestOutcome> {
        if self.incomplete == Incomplete::Drop && request.flags.contains(Flags::TRUNCATED) {
            Some(RequestOutcome::Incomplete)
        } else if is_health_check(request, &self.health_checks_from) {
            Some(RequestOutcome::HealthCheck)
        } else {
            None
        }
    }
}

/// `--incomplete`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Incomplete {
    /// It is forwarded as far as it was captured.
    #[default]
    Forward,
    /// It is counted `incomplete`.
    Drop,
}

/// Why the rebuilder cannot run. `Display` is one line that names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The packet socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The admin socket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The forwarder.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// Signals or threads.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// A worker ended by itself.
    #[error(
        "worker {0} failed; its requests in flight are lost; restart the rebuilder and report the lines above"
    )]
    Worker(usize),
}

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`RunError`] when a socket cannot be had, or a worker fails.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    // Its memory is other people's requests.
    no_core_dump()?;
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let running = start(options)?;
    let signal_handle = signals.handle();
    let stopper = running.stopper();
    let signal_thread = thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in signals.forever() {
                if stopper.stop() {
                    info!(
                        "draining: requests in flight are answered; a second signal cuts that short"
                    );
                } else {
                    info!("a second signal: what is not answered yet is counted drain_timeout");
                }
            }
        })?;
    let ended = running.wait();
    signal_handle.close();
    let _ = signal_thread.join();
    ended
}

/// Opens the sockets and starts the workers and all that runs beside them. When it returns, they take traffic.
///
/// # Errors
/// [`RunError`] when a socket or a thread cannot be had.
pub fn start(options: &RunOptions) -> Result<Running, RunError> {
    let (receivers, no_ring) = receive::open(options.listen, options.workers, &options.receive)?;
    if let Some(why) = no_ring {
        warn!("{why}; reading UDP sockets instead, at many times the cost of a packet");
    }
    let admin = AdminServer::bind(&options.admin)?;
    let now = Instant::now();
    let counters: Vec<Arc<WorkerCounters>> = receivers.iter().map(|_| Arc::default()).collect();
    let metrics = Arc::new(Metrics::new(counters.clone()));
    let stopper = Stopper {
        stop: Arc::default(),
        health: Arc::new(Health::new(counters.len(), now)),
    };
    let health = &stopper.health;
    if let Some(scant) = receivers.iter().filter_map(Receiver::scant_buffer).min() {
        warn!(
            "the receive buffer is {scant} bytes, so bursts will be lost: raise net.core.rmem_max to 67108864 or give \
             the process CAP_NET_ADMIN"
        );
    }
    let first = receivers.first();
    let listen = first.map_or(options.listen, Receiver::local_addr);
    if let Some(Receiver::Ring(_)) = first {
        for interface in with_gro() {
            info!(
                "{interface}: the kernel may put packets together (GRO), which rebuilder_super_frames_total would count; \
                 to switch it off: ethtool -K {interface} gro off"
            );
        }
    }
    let receive = first.map_or("nothing", Receiver::name);

    // Known before the first packet, so that none of a connection to it is taken for a stranger's.
    if let Some(address) = options.forward.target.address() {
        options.forward.addresses.set(vec![address]);
    }
    let host = Arc::new(HostLoss::default());
    let processors = processors_for(options.workers);
    let (ended, ends) = mpsc::channel();
    let mut threads = Vec::new();
    let sides = Handover::group(receivers.len());
    let sides = receivers.into_iter().zip(sides);
    for (index, ((receiver, handover), counters)) in sides.zip(&counters).enumerate() {
        let worker = Worker::new(
            index,
            receiver,
            handover,
            options,
            Arc::clone(counters),
            &stopper,
        )?
        // They are counted once, not once a worker.
        .counts_host_loss((index == 0).then(|| Arc::clone(&host)))
        .stays_on(processors.get(index).copied());
        let ended = ended.clone();
        threads.push(
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    // A panic must be seen by the main thread at once: a rebuilder that lost a worker lost its share of the
                    // traffic, and only a restart brings it back.
                    let result = catch_unwind(AssertUnwindSafe(|| worker.run()));
                    let _ = ended.send((index, result.is_ok()));
                })?,
        );
    }
    drop(ended);

    let address = admin.address();
    let admin = admin.start(Arc::clone(health), Arc::clone(&metrics))?;
    let (stop_watch, watch_stopped) = mpsc::channel();
    let host_watch = HostWatch::default();
    // Ends with the process: nobody waits for a driver.
    thread::Builder::new().name("host".into()).spawn({
        let host = Arc::clone(&host);
        move || {
            loop {
                host_watch.look(&host);
                thread::sleep(HOST_INTERVAL);
            }
        }
    })?;
    let watch = AnalyserWatch::new(&options.forward, Arc::clone(&metrics));
    // Never joined: a resolver that does not answer would hold up the end by many seconds.
    thread::Builder::new()
        .name("analyser".into())
        .spawn(move || watch.run(&watch_stopped))?;
    health.ready();
    info!(%listen, receive, admin = %address, workers = options.workers, forward = %options.forward.target, "ready");
    Ok(Running {
        listen,
        receive,
        admin: address,
        metrics,
        stopper,
        threads,
        ends,
        _admin: admin,
        _stop_watch: stop_watch,
    })
}

/// A rebuilder that takes traffic.
#[derive(Debug)]
pub struct Running {
    listen: SocketAddr,
    receive: &'static str,
    admin: SocketAddr,
    metrics: Arc<Metrics>,
    stopper: Stopper,
    threads: Vec<JoinHandle<()>>,
    /// Which worker has ended, and whether soundly.
    ends: mpsc::Receiver<(usize, bool)>,
    // Each ends its thread when it is dropped.
    _admin: AdminHandle,
    _stop_watch: mpsc::Sender<()>,
}

impl Running {
    /// Where mirrored packets arrive; with port 0 asked for, the one that the system chose.
    #[must_use]
    pub const fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where `/healthz` and `/metrics` are served.
    #[must_use]
    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// By what packets are received: `ring` or `socket`.
    #[must_use]
    pub const fn receive(&self) -> &'static str {
        self.receive
    }

    /// The figures.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The way to end it.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Waits until all workers have drained, after [`Stopper::stop`] or because one failed.
    ///
    /// # Errors
    /// [`RunError::Worker`].
    pub fn wait(self) -> Result<(), RunError> {
        let mut failed = None;
        for (index, sound) in self.ends {
            if !sound {
                error!(worker = index, "a worker failed");
                failed.get_or_insert(index);
                // The others answer for what they hold.
                self.stopper.drain();
            }
        }
        for thread in self.threads {
            let _ = thread.join();
        }
        report(&self.metrics);
        failed.map_or(Ok(()), |index| Err(RunError::Worker(index)))
    }
}

/// The totals, as the log's last line.
fn report(metrics: &Metrics) {
    let totals = metrics.totals();
    info!(
        packets = PacketOutcome::ALL
            .iter()
            .map(|&o| totals.packets(o))
            .sum::<u64>(),
        requests = RequestOutcome::ALL
            .iter()
            .map(|&o| totals.requests(o))
            .sum::<u64>(),
        kernel_drops = totals.counter(Counter::KernelDrops),
        submitted = totals.counter(Counter::Submitted),
        extracted = totals.counter(Counter::Extracted),
        incomplete = totals.requests(RequestOutcome::Incomplete),
        health_checks = totals.requests(RequestOutcome::HealthCheck),
        skipped_bytes = totals.counter(Counter::SkippedBytes),
        shed_bytes = totals.counter(Counter::ShedBytes),
        draining = totals.packets(PacketOutcome::Draining),
        queue_full = totals.requests(RequestOutcome::QueueFull),
        unanswered = totals.requests(RequestOutcome::DrainTimeout),
        "ended"
    );
}

/// Ends a rebuilder.
#[derive(Clone, Debug)]
pub struct Stopper {
    stop: Arc<Stop>,
    health: Arc<Health>,
}

impl Stopper {
    /// The first time it drains: what has arrived is delivered. After that answers are waited for no longer. Whether it
    /// was the first time.
    pub fn stop(&self) -> bool {
        self.health.drain();
        let first = !self.stop.draining.swap(true, Ordering::AcqRel);
        if !first {
            self.stop.at_once.store(true, Ordering::Release);
        }
        first
    }

    fn drain(&self) {
        self.health.drain();
        self.stop.draining.store(true, Ordering::Release);
    }
}

/// What the workers are told.
#[derive(Debug, Default)]
struct Stop {
    /// The first signal came.
    draining: AtomicBool,
    /// The second one came: answers are waited for no longer.
    at_once: AtomicBool,
}

/// The cores that workers stay on, one each, where there is a worker for every core: moved, it would find another's cache
/// and share another's core. Where there are fewer, the scheduler knows better which are free (of interrupts too).
fn processors_for(workers: usize) -> Vec<usize> {
    let all = processors().unwrap_or_default();
    if all.len() == workers && workers > 1 {
        all
    } else {
        Vec::new()
    }
}
