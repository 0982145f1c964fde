//! One worker: packets in, requests out, until it is told to drain.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::{RequestSelection, RunOptions, Stop, Stopper};
use crate::decode::{Plain, Segment};
use crate::forward::{ForwardError, Forwarder};
use crate::handover::{Handover, Route, Steer};
use crate::http::Request;
use crate::loops::{Kin, Loops};
use crate::pipeline::Pipeline;
use crate::receive::host::{HostLoss, Loss};
use crate::receive::sys::pin;
use crate::receive::{Frame, Left, Receiver};
use crate::stream::{End, SET_BACK};
use crate::telemetry::{Counter, Gauge, Health, LoadMeter, PacketOutcome, WorkerCounters};
use crate::time::Timestamp;

/// How long a worker sleeps when nothing waits. A wake-up costs as much as a dozen packets, so the ring or socket is
/// drained on a timer instead of at each packet.
const TICK: Duration = Duration::from_millis(1);

/// How often the figures of the stages go to the metrics: a system call for the kernel's drops, so not at each turn.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(100);

/// What `rebuilder_load_ratio` is measured over.
const LOAD_WINDOW: Duration = Duration::from_secs(1);

/// Packets taken from the socket before the analyser's connections get their turn.
const DRAIN_BUDGET: usize = 1024;

/// How long a read may have taken for the time before it to count. Half of what the stream stage takes for a clock that
/// was set back.
const LONGEST_READ: Duration = Duration::from_millis(500);
const _: () = assert!(2 * LONGEST_READ.as_millis() <= SET_BACK.as_millis());

/// How long, after SIGTERM, what the kernel still holds is read before the socket is given up.
const LAST_READ: Duration = Duration::from_secs(2);

/// After so long, what had arrived before can be read: a block of a ring is given some milliseconds after its first
/// packet, and timers of a busy machine are late.
const SETTLED: Duration = Duration::from_millis(100);

pub(super) struct Worker {
    index: usize,
    receiver: Receiver,
    handover: Handover,
    loops: Loops,
    pipeline: Pipeline,
    forwarder: Forwarder,
    selection: RequestSelection,
    counters: Arc<WorkerCounters>,
    published: Published,
    /// Requests that the extractor has found, as far as that is counted.
    extracted: u64,
    publish_at: Instant,
    host: Option<Arc<HostLoss>>,
    /// Where it stays, if anywhere.
    processor: Option<usize>,
    last_error: Option<io::ErrorKind>,
    health: Arc<Health>,
    stop: Arc<Stop>,
    drain_timeout: Duration,
}

/// How a read of the socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    /// Nothing is left.
    Empty,
    /// Nothing can be read now, but what has arrived will be in some milliseconds.
    Soon,
    /// The budget is used up.
    More,
    /// Another worker must first take what was handed over to it.
    BackedUp,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        receiver: Receiver,
        handover: Handover,
        options: &RunOptions,
        counters: Arc<WorkerCounters>,
        stopper: &Stopper,
    ) -> Result<Self, ForwardError> {
        Ok(Self {
            index,
            receiver,
            handover,
            loops: Loops::new(Arc::clone(&options.forward.addresses)),
            pipeline: Pipeline::new(options.pipeline.clone()),
            forwarder: Forwarder::new(options.forward.clone(), Arc::clone(&counters))?,
            selection: options.selection.clone(),
            counters,
            published: Published::default(),
            extracted: 0,
            publish_at: Instant::now(),
            host: None,
            processor: None,
            last_error: None,
            health: Arc::clone(&stopper.health),
            stop: Arc::clone(&stopper.stop),
            drain_timeout: options.drain_timeout,
        })
    }

    /// It also counts what this host lost.
    pub(super) fn counts_host_loss(mut self, host: Option<Arc<HostLoss>>) -> Self {
        self.host = host;
        self
    }

    /// It runs on this processor only.
    pub(super) fn stays_on(mut self, processor: Option<usize>) -> Self {
        self.processor = processor;
        self
    }

    pub(super) fn run(mut self) {
        if let Some(Err(error)) = self.processor.map(pin) {
            tracing::debug!(worker = self.index, %error, "runs on any core");
        }
        let mut load = LoadMeter::new(LOAD_WINDOW, Instant::now());
        while !self.stop.draining.load(Ordering::Acquire) {
            self.loops.refresh();
            let read = self.read();
            self.count_extracted();
            let wait = match read {
                Read::More => Duration::ZERO,
                // The other worker is at it.
                Read::BackedUp => TICK,
                Read::Soon | Read::Empty => self.receiver.pause(),
            };
            load.idle(self.forwarder.poll(wait, Instant::now()));
            let now = Instant::now();
            if let Some(ratio) = load.sample(now) {
                self.counters.set_load(ratio);
            }
            self.health.beat(self.index, now);
            if now >= self.publish_at {
                self.publish_at = now + PUBLISH_INTERVAL;
                load.fill(self.receiver.fill());
                self.publish();
            }
        }
        self.drain();
    }

    /// Takes what the socket holds, up to the budget.
    fn read(&mut self) -> Read {
        let Self {
            receiver,
            pipeline,
            forwarder,
            counters,
            selection,
            handover,
            loops,
            ..
        } = self;
        let mut submit = |request: Request| submit(forwarder, counters, selection, &request);
        // Taken before reading: all that had arrived by then is read when the socket is found empty. Taken behind it, a
        // pause of this thread in between would let flow time pass packets that have arrived and are not read.
        let now = wall_clock();
        let budget = DRAIN_BUDGET.min(handover.may_read());
        let drained = receiver.drain(budget, now, |frames| {
            let whose = Whose {
                loops,
                handover,
                counters,
            };
            let ended = |outcome| counters.packet(outcome);
            pipeline.frames(frames.iter().copied(), whose, ended, &mut submit);
            counters.add(Counter::ReceivedBytes, bytes_of(frames));
        });
        counters.packets(PacketOutcome::Draining, handover.flush());
        handover.take(|segment| counters.packet(pipeline.segment(segment, &mut submit)));
        match drained {
            Ok(drained) => {
                if drained.left == Left::Nothing && is_recent(now, wall_clock()) {
                    pipeline.advance(now, &mut submit);
                }
                match (drained.left, budget) {
                    (Left::Nothing, _) => Read::Empty,
                    (Left::Soon, _) => Read::Soon,
                    (Left::More, 0) => Read::BackedUp,
                    (Left::More, _) => Read::More,
                }
            }
            Err(e) => {
                // Nothing that a UDP socket reports is final (ENOBUFS, ENOMEM). Said once for each kind, and the tick
                // that follows an empty read keeps a lasting one from spinning.
                if self.last_error.replace(e.kind()) != Some(e.kind()) {
                    warn!(
                        worker = self.index,
                        "the packet socket reports: {e}; reading goes on"
                    );
                }
                Read::Empty
            }
        }
    }

    /// Takes what other workers have handed over, so that they may read on.
    fn take_handed(&mut self) {
        let Self {
            pipeline,
            forwarder,
            counters,
            selection,
            handover,
            ..
        } = self;
        let mut submit = |request: Request| submit(forwarder, counters, selection, &request);
        handover.take(|segment| counters.packet(pipeline.segment(segment, &mut submit)));
    }

    /// The extractor's own count of what it found, at every turn: with the outcomes and what is in flight, which are
    /// counted by others, it adds up in every scrape.
    fn count_extracted(&mut self) {
        let found = self.pipeline.http_counters().requests;
        self.counters
            .add(Counter::Extracted, found.saturating_sub(self.extracted));
        self.extracted = found;
    }

    /// Brings the figures of the stages up to date.
    fn publish(&mut self) {
        if let Some(host) = &self.host {
            let Loss { softnet, nic } = host.get();
            let [bandwidth, packets, conntrack] = nic;
            let host = [
                (Counter::SoftnetDrops, softnet),
                (Counter::NicBandwidthExceeded, bandwidth),
                (Counter::NicPacketsExceeded, packets),
                (Counter::NicConntrackExceeded, conntrack),
            ];
            self.published.raise(&self.counters, &host);
        }
        let (counters, pipeline) = (&self.counters, &self.pipeline);
        counters.set(Gauge::Flows, pipeline.flows() as u64);
        counters.set(Gauge::HeldBytes, pipeline.held_bytes() as u64);
        let (stream, http) = (pipeline.stream_stats(), pipeline.http_counters());
        self.published.raise(
            counters,
            &[
                (Counter::KernelDrops, self.receiver.kernel_drops()),
                (Counter::TruncatedDatagrams, self.receiver.truncated()),
                (Counter::SuperFrames, self.receiver.super_frames()),
                (Counter::HandedOver, self.handover.handed()),
                (Counter::CutFrames, pipeline.cut_frames()),
                (Counter::BadChecksums, pipeline.bad_checksums()),
                (Counter::Gaps, pipeline.gaps()),
                (Counter::GapBytes, stream.gap_bytes),
                (Counter::ShedBytes, stream.shed_bytes),
                (Counter::ConflictBytes, pipeline.conflict_bytes()),
                (Counter::LostFragmentBytes, pipeline.lost_fragment_bytes()),
                (Counter::LateConflicts, stream.late_conflicts),
                (Counter::EvictedFlows, stream.evicted_flows),
                (Counter::TimeJumps, stream.time_jumps),
                (
                    Counter::IncompleteHeads,
                    http.incomplete_heads + http.oversize_heads + http.shed_heads,
                ),
                (
                    Counter::CutRequests,
                    http.oversize_requests + http.shed_requests,
                ),
                (Counter::LostFramings, http.lost_framings),
                (Counter::SkippedBytes, http.skipped_bytes),
            ],
        );
    }

    /// What has arrived is read, what is held is flushed, what is in flight is answered or counted.
    fn drain(mut self) {
        let begun = Instant::now();
        loop {
            let wait = match self.read() {
                Read::Empty => break,
                // What is still to come has arrived later.
                Read::Soon if begun.elapsed() >= SETTLED => break,
                Read::Soon => TICK,
                Read::More | Read::BackedUp => Duration::ZERO,
            };
            if begun.elapsed() >= LAST_READ {
                break;
            }
            self.count_extracted();
            self.forwarder.poll(wait, Instant::now());
        }
        self.handover.stop_sending();
        // What others still read may be ours. None of them reads longer than we may.
        while !self.handover.is_last() && begun.elapsed() < 2 * LAST_READ {
            self.take_handed();
            self.forwarder.poll(TICK, Instant::now());
            self.health.beat(self.index, Instant::now());
        }
        let Self {
            pipeline,
            forwarder,
            counters,
            selection,
            handover,
            ..
        } = &mut self;
        let mut submit = |request: Request| submit(forwarder, counters, selection, &request);
        handover.close(|segment| counters.packet(pipeline.segment(segment, &mut submit)));
        pipeline.finish(End::Idle, &mut submit);
        self.count_extracted();
        while !self.forwarder.idle()
            && begun.elapsed() < self.drain_timeout
            && !self.stop.at_once.load(Ordering::Acquire)
        {
            let now = Instant::now();
            self.forwarder.poll(TICK, now);
            self.health.beat(self.index, now);
            self.turn_away();
            self.publish();
        }
        self.forwarder.shut();
        self.receiver.refuse();
        while !self.turn_away() && begun.elapsed() < self.drain_timeout + LAST_READ {
            thread::sleep(TICK);
        }
        self.publish();
        while !self.counters.publish() {
            thread::yield_now();
        }
    }

    /// Counts what arrives too late to be rebuilt, so that no packet that the kernel took is without an outcome; whether
    /// the socket was found empty.
    fn turn_away(&mut self) -> bool {
        let counters = &self.counters;
        let counted = self.receiver.drain(DRAIN_BUDGET, wall_clock(), |frames| {
            counters.packets(PacketOutcome::Draining, frames.len() as u64);
            counters.add(Counter::ReceivedBytes, bytes_of(frames));
        });
        counted.map_or_else(
            |error| {
                // Said when it was read last; now nothing more depends on it.
                tracing::debug!(worker = self.index, %error, "the packet socket reports");
                true
            },
            |drained| drained.left == Left::Nothing,
        )
    }
}

/// Whose the connections are that this worker reads packets of.
struct Whose<'a> {
    loops: &'a Loops,
    handover: &'a mut Handover,
    counters: &'a WorkerCounters,
}

impl Steer for Whose<'_> {
    #[inline]
    fn is_own(&self, segment: &Plain<'_>) -> bool {
        self.loops.is_strange(segment.ends.0) && self.handover.is_own(&segment.ends)
    }

    fn route(&mut self, segment: &Segment<'_>) -> Route {
        match self.loops.kin(segment.src, segment.dst) {
            Kin::Stranger => {}
            Kin::Fleet => return Route::Loop,
            Kin::OfAnalyser => self.counters.add(Counter::AnalyserOpened, 1),
        }
        self.handover.route(segment)
    }
}

fn bytes_of(frames: &[Frame<'_>]) -> u64 {
    frames.iter().map(|frame| frame.data.len() as u64).sum()
}

fn submit(
    forwarder: &mut Forwarder,
    counters: &WorkerCounters,
    selection: &RequestSelection,
    request: &Request,
) {
    match selection.outcome(request) {
        Some(outcome) => counters.request(outcome),
        None => forwarder.submit(request),
    }
}

/// The stages keep totals; the metrics take increments. This remembers what was passed on.
#[derive(Default)]
struct Published(BTreeMap<&'static str, u64>);

impl Published {
    fn raise(&mut self, counters: &WorkerCounters, totals: &[(Counter, u64)]) {
        for &(counter, total) in totals {
            let last = self.0.entry(counter.name()).or_default();
            if total > *last {
                counters.add(counter, total - *last);
                *last = total;
            }
        }
    }
}

/// Whether what the clock said before reading is still of use behind it. Where this thread had to wait in between (a busy
/// machine, a paused one), what it has read may be a second later than that, and to the stream stage a trusted clock that
/// is behind by a second has been set back: flow time would run ahead by that second from then on, and holes that are
/// being filled would be given up. The next turn asks anew.
fn is_recent(before: Timestamp, after: Timestamp) -> bool {
    after.since(before) <= LONGEST_READ
}

fn wall_clock() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_took_half_a_second_says_nothing_of_the_time_now() {
        let (before, longest) = (Timestamp(7), LONGEST_READ);
        assert!(is_recent(before, before));
        assert!(is_recent(before, before + longest));
        assert!(!is_recent(
            before,
            before + longest + Duration::from_nanos(1)
        ));
        // A clock that was set back meanwhile is believed: the stream stage knows what to do then.
        assert!(is_recent(before + Duration::from_secs(3600), before));
    }
}
