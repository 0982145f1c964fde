//! The connections of one worker: moves bytes between the pure parts and the sockets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token};

use super::answer::Head;
use super::backoff::Backoff;
use super::bytes::{self, Rewrite};
use super::connection::{Alone, Connection, Shut};
use super::lane::Broken;
use super::queue::{Item, Queue, Source};
use super::sharing::Sharing;
use super::tls::Connector;
use super::transport::Transport;
use super::{ForwardError, ForwardOptions};
use crate::http::Request;
use crate::telemetry::{BalancerStatus, Counter, Gauge, RequestOutcome, WorkerCounters};

/// Read at once, and no more than [`READS_MAX`] times this from one connection before the others and the packets get
/// their turn.
const READ_BYTES: usize = 64 * 1024;
/// See [`READ_BYTES`].
const READS_MAX: usize = 4;
/// Connections that linger until their last answer has come, for each one that takes requests.
const LINGERING: usize = 2;
/// A request that so many connections ended on is refused.
const FAILURES_MAX: u8 = 2;
/// How long a charged request waits before it is sent again; see [`Item::not_before`]. An instance that is killed has
/// closed its ports by then.
const RETRY_PAUSE: Duration = Duration::from_millis(250);

/// Delivers the requests of one worker. Nothing here blocks but [`Forwarder::poll`], and that no longer than asked.
///
/// At any time: requests submitted = Σ their outcomes + [`Forwarder::in_flight`].
#[derive(Debug)]
pub struct Forwarder {
    options: ForwardOptions,
    tls: Option<Connector>,
    counters: Arc<WorkerCounters>,
    poll: Poll,
    events: Events,
    queue: Queue,
    /// The first `shared_slots` are for shared connections, the others for quarantine. A slot's index is its token.
    slots: Vec<Option<Connection>>,
    shared_slots: usize,
    on_connections: OnConnections,
    /// Which address the next connection takes.
    turn: usize,
    /// Whether the analyser can be reached at all.
    reach: Backoff,
    /// Whether shared connections get any answer.
    serve: Backoff,
    buffer: Box<[u8]>,
}

/// What is on connections.
#[derive(Clone, Copy, Debug, Default)]
struct OnConnections {
    /// Bytes, overhead included.
    cost: usize,
    /// Requests without an outcome.
    requests: usize,
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// It served its purpose.
    #[error("done")]
    Done,
    /// It was never established.
    #[error("cannot connect: {0}")]
    Unreachable(io::Error),
    /// The analyser closed.
    #[error("closed by the analyser")]
    Closed,
    /// Reading or writing failed.
    #[error("broken: {0}")]
    Failed(io::Error),
    /// Its answers cannot be read.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The oldest request was not answered in time.
    #[error("no answer in time")]
    Silent,
}

impl Forwarder {
    /// A forwarder without connections; they are opened when there is something to send. Reads certificates for
    /// `https`, and does nothing else that could wait.
    ///
    /// # Errors
    /// [`ForwardError`], one line with the remedy.
    pub fn new(
        mut options: ForwardOptions,
        counters: Arc<WorkerCounters>,
    ) -> Result<Self, ForwardError> {
        options.connections = options.connections.max(1);
        options.pipeline = options.pipeline.max(1);
        options.quarantine_connections = options.quarantine_connections.max(1);
        let tls = options
            .target
            .tls
            .then(|| Connector::new(&options))
            .transpose()?;
        let poll = Poll::new().map_err(ForwardError::Events)?;
        let shared_slots = options.connections.saturating_mul(1 + LINGERING);
        let slots = shared_slots.saturating_add(options.quarantine_connections);
        Ok(Self {
            tls,
            counters,
            poll,
            events: Events::with_capacity(256),
            queue: Queue::new(options.queue_bytes, options.quarantine_connections / 4),
            slots: std::iter::repeat_with(|| None).take(slots).collect(),
            shared_slots,
            on_connections: OnConnections::default(),
            turn: random_turn(),
            reach: Backoff::new(0, options.backoff_max),
            serve: Backoff::new(2, options.backoff_max),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            options,
        })
    }

    /// Takes a request; never waits. Beyond the byte cap it is counted [`RequestOutcome::QueueFull`].
    pub fn submit(&mut self, request: &Request) {
        let outgoing = bytes::outgoing(
            request,
            Rewrite {
                xff: self.options.xff,
                hop_by_hop: self.options.hop_by_hop,
            },
        );
        let item = Item {
            bytes: outgoing.bytes,
            sharing: outgoing.sharing,
            answer: outgoing.answer,
            source: Source::of(request.endpoints.src.ip()),
            failures: 0,
            not_before: None,
        };
        self.counters.add(Counter::Submitted, 1);
        if self.queue.push(item).is_err() {
            self.counters.request(RequestOutcome::QueueFull);
        }
    }

    /// Connects, writes, reads answers, gives up what took too long. Returns after `timeout` at the latest, earlier
    /// when something happened; give zero while packets wait. `now` is the time of the call.
    ///
    /// Gives how long it did nothing but wait, for [`crate::telemetry::LoadMeter::idle`].
    pub fn poll(&mut self, timeout: Duration, now: Instant) -> Duration {
        self.expire(now);
        self.dispatch(now);
        self.drive(now);
        let wait = if self.has_work(now) {
            Duration::ZERO
        } else {
            self.next_timer(now)
                .map_or(timeout, |at| timeout.min(at.saturating_duration_since(now)))
        };
        let begun = (!wait.is_zero()).then(Instant::now);
        let ready = self.poll.poll(&mut self.events, Some(wait));
        let waited = begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        if let Err(error) = ready {
            // EINTR is a signal for someone else; whatever else epoll says, the next call tries again.
            if error.kind() != io::ErrorKind::Interrupted {
                tracing::warn!(%error, "waiting for the analyser's connections failed");
            }
            self.publish();
            return waited;
        }
        let mut any = false;
        for event in &self.events {
            if let Some(Some(connection)) = self.slots.get_mut(event.token().0) {
                connection.readable |=
                    event.is_readable() || event.is_read_closed() || event.is_error();
                connection.writable |=
                    event.is_writable() || event.is_write_closed() || event.is_error();
                any = true;
            }
        }
        if any {
            self.drive(now);
            // Answers have made room.
            self.dispatch(now);
            self.drive(now);
        }
        self.publish();
        waited
    }

    /// Requests that have no outcome yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.queue.len() + self.on_connections.requests
    }

    /// Bytes that wait for a connection, overhead included.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Bytes on connections that are not answered yet, overhead included.
    #[must_use]
    pub fn inflight_bytes(&self) -> usize {
        self.on_connections.cost
    }

    /// Whether every request has its outcome.
    #[must_use]
    pub fn idle(&self) -> bool {
        self.in_flight() == 0
    }

    /// The time for draining is over: whatever has no outcome is counted [`RequestOutcome::DrainTimeout`], and every
    /// connection is closed.
    pub fn shut(&mut self) {
        let mut left = 0;
        for i in 0..self.slots.len() {
            if let Some(connection) = self.slots.get_mut(i).and_then(Option::take) {
                left += connection.lane.unanswered();
                if let Some(alone) = &connection.alone {
                    self.queue.alone_done(alone.source);
                }
                connection.transport.close(self.poll.registry());
            }
        }
        left += self.queue.clear();
        self.on_connections = OnConnections::default();
        for _ in 0..left {
            self.counters.request(RequestOutcome::DrainTimeout);
        }
        self.publish();
    }

    /// Gives up what took too long, and lets old connections take nothing more.
    fn expire(&mut self, now: Instant) {
        for i in 0..self.slots.len() {
            let Some(Some(connection)) = self.slots.get_mut(i) else {
                continue;
            };
            if now.saturating_duration_since(connection.opened) >= self.options.connection_age {
                connection.lane.close();
            }
            let end = if connection.timer(&self.options).is_some_and(|at| at <= now) {
                if connection.established {
                    self.counters.add(Counter::AnswerTimeouts, 1);
                    End::Silent
                } else {
                    End::Unreachable(io::ErrorKind::TimedOut.into())
                }
            } else if connection.established && connection.lane.is_done() {
                End::Done
            } else {
                continue;
            };
            if let Some(connection) = self.slots.get_mut(i).and_then(Option::take) {
                self.bury(connection, &end, now);
            }
        }
    }

    /// Gives waiting requests to connections, and opens connections for them.
    fn dispatch(&mut self, now: Instant) {
        while let Some(cost) = self.queue.next_shared_cost()
            && self.has_room(cost)
        {
            let lane = self.best_lane();
            if lane.is_none_or(|(_, len)| len > 0) {
                self.open_shared(now);
            }
            let Some(connection) = lane.and_then(|(slot, _)| self.slots.get_mut(slot)?.as_mut())
            else {
                break;
            };
            if let Some(item) = self.queue.pop_shared() {
                self.on_connections.cost += item.cost();
                self.on_connections.requests += 1;
                connection.lane.push(item, now);
            }
        }
        while let Some(cost) = self.queue.next_alone_cost(now)
            && self.has_room(cost)
            && self.may_connect(now)
            && let Some(slot) = self.free_slot(self.shared_slots..self.slots.len())
            && let Some(item) = self.queue.pop_alone(now)
        {
            let disputed = item.sharing == Sharing::Alone;
            let alone = Alone {
                source: item.source,
                disputed,
                // Who failed once may have failed for taking the end of our side for a lost client.
                shut: if disputed && item.failures == 0 {
                    Shut::Later
                } else {
                    Shut::Never
                },
            };
            match self.open(slot, now) {
                Ok(mut connection) => {
                    self.on_connections.cost += item.cost();
                    self.on_connections.requests += 1;
                    connection.alone = Some(alone);
                    connection.lane.push(item, now);
                    connection.lane.close();
                    self.counters.add(Counter::Quarantined, 1);
                    self.put(slot, connection);
                }
                Err(error) => {
                    self.queue.alone_done(item.source);
                    self.queue.put_back(item);
                    self.unreachable(&error, now);
                }
            }
        }
    }

    /// Whether a request of this cost may join those in flight.
    const fn has_room(&self, cost: usize) -> bool {
        self.on_connections.cost == 0
            || self.on_connections.cost.saturating_add(cost) <= self.options.inflight_bytes
    }

    /// The established shared connection with the fewest requests, and how many those are.
    fn best_lane(&self) -> Option<(usize, usize)> {
        let shared = self.slots.iter().take(self.shared_slots);
        shared
            .enumerate()
            .filter_map(|(slot, connection)| {
                let connection = connection.as_ref()?;
                let lane = &connection.lane;
                // One at a time until it has shown that it stays open behind an answer: an analyser that closes
                // after each would get everything else twice.
                let depth = if lane.is_proven() {
                    self.options.pipeline
                } else {
                    1
                };
                (connection.established && lane.is_open() && lane.len() < depth)
                    .then_some((slot, lane.len()))
            })
            .min_by_key(|&(_, len)| len)
    }

    /// Opens one more shared connection if that is useful and allowed.
    fn open_shared(&mut self, now: Instant) {
        let mut open = 0;
        let mut connecting = 0;
        for connection in self.slots.iter().take(self.shared_slots).flatten() {
            open += usize::from(connection.lane.is_open());
            connecting += usize::from(!connection.established);
        }
        if open >= self.options.connections
            || connecting >= self.queue.shared_len()
            || self.serve.until(now).is_some()
            || !self.may_connect(now)
        {
            return;
        }
        let Some(slot) = self.free_slot(0..self.shared_slots) else {
            return;
        };
        match self.open(slot, now) {
            Ok(connection) => self.put(slot, connection),
            Err(error) => self.unreachable(&error, now),
        }
    }

    /// While the analyser is away, one attempt at a time.
    fn may_connect(&self, now: Instant) -> bool {
        self.reach.until(now).is_none()
            && (self.reach.strikes() == 0 || self.slots.iter().flatten().all(|c| c.established))
    }

    fn free_slot(&self, mut slots: std::ops::Range<usize>) -> Option<usize> {
        slots.find(|&slot| matches!(self.slots.get(slot), Some(None)))
    }

    fn put(&mut self, slot: usize, connection: Connection) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Some(connection);
        }
    }

    fn open(&mut self, slot: usize, now: Instant) -> io::Result<Connection> {
        let Some(address) = self.options.addresses.pick(self.turn) else {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "no address of it is known",
            ));
        };
        self.turn = self.turn.wrapping_add(1);
        let registry = self.poll.registry();
        let transport = Transport::open(address, self.tls.as_ref(), registry, Token(slot))?;
        Ok(Connection::new(transport, now))
    }

    /// Whether [`Forwarder::drive`] has something to do at once.
    fn has_work(&self, now: Instant) -> bool {
        self.slots
            .iter()
            .flatten()
            .any(|connection| connection.has_work(&self.options, now))
    }

    /// Lets every connection that can do something do it.
    fn drive(&mut self, now: Instant) {
        for i in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(i) else {
                continue;
            };
            let has_work = |c: &Connection| c.has_work(&self.options, now);
            if !slot.as_ref().is_some_and(has_work) {
                continue;
            }
            let Some(mut connection) = slot.take() else {
                continue;
            };
            match self.step(&mut connection, now) {
                Ok(()) => self.put(i, connection),
                Err(end) => self.bury(connection, &end, now),
            }
        }
    }

    fn step(&mut self, connection: &mut Connection, now: Instant) -> Result<(), End> {
        if !connection.established {
            match connection.transport.establish() {
                Ok(true) => {
                    connection.established = true;
                    // Whatever came with the handshake has raised its event already.
                    connection.readable = true;
                    connection.writable = true;
                    connection.lane.restart(now);
                    self.counters.add(Counter::Connects, 1);
                    self.reach.reset();
                }
                Ok(false) => {
                    connection.readable = false;
                    connection.writable = false;
                    return Ok(());
                }
                Err(error) => return Err(End::Unreachable(error)),
            }
        }
        connection.write(&self.options, &self.counters, now);
        self.read(connection, now)?;
        if connection.lane.is_done() {
            return Err(End::Done);
        }
        Ok(())
    }

    fn read(&mut self, connection: &mut Connection, now: Instant) -> Result<(), End> {
        for _ in 0..READS_MAX {
            if !connection.readable {
                break;
            }
            let read = match connection.transport.read(&mut self.buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(n) => self.buffer.get(..n).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::Failed(error)),
            };
            let counters = &self.counters;
            let requests = &mut self.on_connections.requests;
            let serve = &mut self.serve;
            let cost = connection.lane.cost();
            let received = connection.lane.received(read, now, |head| {
                *requests = requests.saturating_sub(1);
                serve.reset();
                count_delivery(counters, head);
            });
            let freed = cost.saturating_sub(connection.lane.cost());
            self.on_connections.cost = self.on_connections.cost.saturating_sub(freed);
            received?;
        }
        match connection.write_error.take() {
            // All answers that had come are read now.
            Some(error) if !connection.readable => Err(End::Failed(error)),
            error => {
                connection.write_error = error;
                Ok(())
            }
        }
    }

    /// Takes care of what a connection leaves behind.
    fn bury(&mut self, connection: Connection, end: &End, now: Instant) {
        let Connection {
            transport,
            lane,
            alone,
            ..
        } = connection;
        transport.close(self.poll.registry());
        self.on_connections.cost = self.on_connections.cost.saturating_sub(lane.cost());
        self.on_connections.requests = self
            .on_connections
            .requests
            .saturating_sub(lane.unanswered());
        if let Some(alone) = &alone {
            self.queue.alone_done(alone.source);
        }
        tracing::trace!(%end, requests = lane.len(), "connection to the analyser ended");
        if let End::Unreachable(error) = end {
            self.unreachable(error, now);
        }
        let fruitless = lane.heads() == 0;
        let leftover = lane.into_leftover();
        // From the youngest on, each before the others: so they stand in their old order.
        for (item, begun) in leftover.innocent.into_iter().rev() {
            self.counters.add(Counter::Resent, u64::from(begun));
            self.queue.put_back(item);
        }
        if let Some(mut item) = leftover.charged {
            if fruitless && alone.is_none() {
                self.serve.strike(now);
            }
            item.failures += 1;
            if item.failures >= FAILURES_MAX {
                self.counters.request(RequestOutcome::RefusedByAnalyser);
            } else {
                self.counters.add(Counter::Resent, 1);
                item.not_before = now.checked_add(RETRY_PAUSE);
                self.queue.put_back(item);
            }
        }
    }

    fn unreachable(&mut self, error: &io::Error, now: Instant) {
        self.counters.add(Counter::ConnectFailures, 1);
        // That it is away is said once for all workers, by whoever watches the counters. What is wrong with its TLS
        // would be lost there.
        if self.reach.strikes() == 0 && error.kind() == io::ErrorKind::InvalidData {
            tracing::warn!(
                "--forward {}: TLS fails: {error}; check the certificate, its name, and --forward-ca",
                self.options.target
            );
        }
        self.reach.strike(now);
    }

    /// When [`Forwarder::expire`] or [`Forwarder::dispatch`] has something to do next.
    fn next_timer(&self, now: Instant) -> Option<Instant> {
        let connections = self.slots.iter().flatten();
        let mut next = connections
            .flat_map(|c| [c.timer(&self.options), c.shut_at(&self.options)])
            .flatten()
            .min();
        if self.queue.len() > 0 {
            for until in [self.reach.until(now), self.serve.until(now)] {
                next = match (next, until) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
            }
        }
        next
    }

    fn publish(&self) {
        let gauge = |gauge, n: usize| self.counters.set(gauge, n as u64);
        gauge(Gauge::QueueBytes, self.queue.bytes());
        gauge(Gauge::InFlightBytes, self.on_connections.cost);
        gauge(Gauge::InFlight, self.in_flight());
        let up = |connections: &[Option<Connection>]| {
            connections
                .iter()
                .flatten()
                .filter(|c| c.established)
                .count()
        };
        let (shared, alone) = self.slots.split_at(self.shared_slots.min(self.slots.len()));
        gauge(Gauge::Connections, up(shared) + up(alone));
        gauge(Gauge::QuarantineConnections, up(alone));
        // Here the figures add up. Where somebody reads them just now, the next turn will do.
        self.counters.publish();
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.queue.check();
        let mut on = OnConnections::default();
        for connection in self.slots.iter().flatten() {
            connection.lane.check();
            on.cost += connection.lane.cost();
            on.requests += connection.lane.unanswered();
        }
        assert_eq!(self.on_connections.cost, on.cost);
        assert_eq!(self.on_connections.requests, on.requests);
        let ended: u64 = RequestOutcome::ALL
            .iter()
            .map(|&outcome| self.counters.requests_of(outcome))
            .sum();
        assert_eq!(
            self.counters.counter(Counter::Submitted),
            ended + self.in_flight() as u64,
            "submitted = outcomes + in flight"
        );
    }
}

/// Workers and instances start at different addresses. The standard library's hash keys are random.
fn random_turn() -> usize {
    let random = RandomState::new().hash_one(0_u8);
    usize::try_from(random >> 33).unwrap_or(0)
}

fn count_delivery(counters: &WorkerCounters, head: Head) {
    counters.request(match head.status {
        0..=299 => RequestOutcome::Delivered2xx,
        300..=399 => RequestOutcome::Delivered3xx,
        400..=499 => RequestOutcome::Delivered4xx,
        _ => RequestOutcome::Delivered5xx,
    });
    if head.balancer {
        counters.balancer(BalancerStatus::of(head.status));
    }
}
