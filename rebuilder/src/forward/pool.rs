//! The connections of one worker: moves bytes between the pure parts and the sockets.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

use super::answer::Head;
use super::backoff::Backoff;
use super::bytes::{self, Rewrite};
use super::connection::Connection;
use super::dispatch::{FreeLane, OnConnections, Places};
use super::lane::Broken;
use super::queue::{Item, Line, PerSource, Queue, Source};
use super::shunned::Shunned;
use super::slots::Slots;
use super::tls::Connector;
use super::{ForwardError, ForwardOptions};
use crate::http::Request;
use crate::telemetry::{BalancerStatus, Counter, Gauge, RequestOutcome, WorkerCounters};

/// Read at once, and no more than [`READS_MAX`] times this from one connection before the others and the packets get
/// their turn.
const READ_BYTES: usize = 64 * 1024;
/// See [`READ_BYTES`].
const READS_MAX: usize = 4;
/// A request that so many connections ended on is refused.
const FAILURES_MAX: u8 = 2;
/// Delivers the requests of one worker. Nothing here blocks but [`Forwarder::poll`], and that no longer than asked.
///
/// At any time: requests submitted = Σ their outcomes + [`Forwarder::in_flight`].
#[derive(Debug)]
pub struct Forwarder {
    pub(super) options: ForwardOptions,
    pub(super) tls: Option<Connector>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) poll: Poll,
    events: Events,
    pub(super) queue: Queue,
    /// Those of each line stand together, see [`Places`]. A slot's index is its token.
    pub(super) slots: Slots<Connection>,
    pub(super) places: Places,
    pub(super) on_connections: OnConnections,
    /// Which address the next connection takes.
    pub(super) turn: usize,
    pub(super) shunned: Shunned,
    /// The answer of the resolver that the connections are in step with.
    answered: u64,
    /// Whether the analyser can be reached at all.
    pub(super) reach: Backoff,
    /// Whether shared connections get any answer.
    pub(super) serve: Backoff,
    buffer: Box<[u8]>,
    /// Empty between the turns.
    pub(super) lanes: Vec<FreeLane>,
    /// The slot of the shared connection that was given a request last.
    pub(super) last_lane: usize,
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
        options.leaving_connections = options.leaving_connections.max(1);
        options.quarantine_connections = options.quarantine_connections.max(1);
        let tls = options
            .target
            .tls
            .then(|| Connector::new(&options))
            .transpose()?;
        let poll = Poll::new().map_err(ForwardError::Events)?;
        let places = Places::new(&options);
        let part = |connections: usize| u32::try_from(connections.max(1)).unwrap_or(u32::MAX);
        let per_source = PerSource {
            // Behind a proxy of the client's side there may be one source for all.
            leaving: part(options.leaving_connections - options.leaving_connections / 4),
            quarantine: part(options.quarantine_connections / 4),
        };
        Ok(Self {
            tls,
            counters,
            poll,
            events: Events::with_capacity(256),
            queue: Queue::new(options.queue_bytes, per_source),
            slots: Slots::new(places.end()),
            places,
            on_connections: OnConnections::default(),
            turn: random_turn(),
            shunned: Shunned::default(),
            answered: options.addresses.answered(),
            reach: Backoff::new(0, options.backoff_max),
            serve: Backoff::new(2, options.backoff_max),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            lanes: Vec::new(),
            last_lane: 0,
            options,
        })
    }

    /// Takes a request; never waits. Where the byte cap is reached the oldest ones make room, counted
    /// [`RequestOutcome::QueueFull`], disputed ones [`RequestOutcome::QuarantineFull`].
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
            number: 0,
        };
        self.counters.add(Counter::Submitted, 1);
        let counters = &self.counters;
        self.queue.push(item, |shed| {
            counters.request(match shed.line() {
                Line::Shared | Line::Leaving => RequestOutcome::QueueFull,
                Line::Quarantine => RequestOutcome::QuarantineFull,
            });
        });
    }

    /// Connects, writes, reads answers, gives up what took too long. Returns after `timeout` at the latest, earlier
    /// when something happened; give zero while packets wait. `now` is the time of the call.
    ///
    /// Gives how long it did nothing but wait, for [`crate::telemetry::LoadMeter::idle`].
    pub fn poll(&mut self, timeout: Duration, now: Instant) -> Duration {
        self.follow_addresses();
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
        let wait = if !wait.is_zero() && self.only_answers_come() {
            thread::sleep(wait);
            Duration::ZERO
        } else {
            wait
        };
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
            if let Some(connection) = self.slots.get_mut(event.token().0) {
                let ending = event.is_read_closed() || event.is_error();
                connection.readable |= event.is_readable() || ending;
                connection.ending |= ending;
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
        self.queue.len() + self.on_connections.requests()
    }

    /// Bytes that wait for a connection, overhead included.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queue.bytes()
    }

    /// Bytes on connections that are not answered yet, overhead included.
    #[must_use]
    pub fn inflight_bytes(&self) -> usize {
        self.on_connections.cost()
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
        while let Some(slot) = self.slots.next(0) {
            if let Some(connection) = self.slots.take(slot) {
                left += connection.lane.unanswered();
                if let Some(alone) = &connection.alone {
                    self.queue.alone_done(alone.line, alone.source);
                }
                connection.transport.close(self.poll.registry(), false);
            }
        }
        left += self.queue.clear();
        self.on_connections = OnConnections::default();
        for _ in 0..left {
            self.counters.request(RequestOutcome::DrainTimeout);
        }
        self.publish();
    }

    /// Lets connections take nothing more whose address is gone; what is on them is answered.
    fn follow_addresses(&mut self) {
        let answered = self.options.addresses.answered();
        if answered == self.answered {
            return;
        }
        self.answered = answered;
        let present = self.options.addresses.present();
        let mut from = 0;
        while let Some(slot) = self.slots.next(from) {
            from = slot + 1;
            if let Some(connection) = self.slots.get_mut(slot)
                && !present.contains(&connection.address)
            {
                connection.lane.close();
            }
        }
    }

    /// Gives up what took too long, and lets old connections take nothing more.
    fn expire(&mut self, now: Instant) {
        let mut from = 0;
        while let Some(slot) = self.slots.next(from) {
            from = slot + 1;
            let Some(connection) = self.slots.get_mut(slot) else {
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
            if let Some(connection) = self.slots.take(slot) {
                self.bury(*connection, &end, now);
            }
        }
    }

    /// Whether [`Forwarder::drive`] has something to do at once.
    fn has_work(&self, now: Instant) -> bool {
        self.slots
            .all()
            .any(|connection| connection.has_work(&self.options, now))
    }

    /// Whether nothing is to come but answers, and nobody waits for the room that they make. Each would wake the worker, which
    /// costs as much as a dozen packets, and none can be of use before more packets are read: whoever has waited until then
    /// finds all of them.
    fn only_answers_come(&self) -> bool {
        let settled =
            |c: &Connection| c.established && c.lane.is_written() && !c.transport.wants_flush();
        self.queue.len() == 0 && self.slots.all().all(settled)
    }

    /// Lets every connection that can do something do it.
    fn drive(&mut self, now: Instant) {
        let mut from = 0;
        while let Some(slot) = self.slots.next(from) {
            from = slot + 1;
            let has_work = |c: &Connection| c.has_work(&self.options, now);
            if !self.slots.get(slot).is_some_and(has_work) {
                continue;
            }
            let Some(mut connection) = self.slots.take(slot) else {
                continue;
            };
            match self.step(&mut connection, now) {
                Ok(()) => self.slots.put(slot, connection),
                Err(end) => self.bury(*connection, &end, now),
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
                Ok((0, _)) => return Err(End::Closed),
                Ok((n, drained)) => {
                    // Where the end has been announced it has to be read, too: no event will tell again.
                    connection.readable = !drained || connection.ending;
                    self.buffer.get(..n).unwrap_or_default()
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    connection.readable = false;
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(End::Failed(error)),
            };
            let counters = &self.counters;
            let on = self.on_connections.of_mut(connection.line());
            let serve = &mut self.serve;
            let (cost, heads) = (connection.lane.cost(), connection.lane.heads());
            let received = connection.lane.received(read, now, |head| {
                on.requests = on.requests.saturating_sub(1);
                serve.reset();
                count_delivery(counters, head);
            });
            let freed = cost.saturating_sub(connection.lane.cost());
            on.cost = on.cost.saturating_sub(freed);
            if heads == 0 && connection.lane.heads() > 0 {
                self.shunned.worked(connection.address);
            }
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
        let line = connection.line();
        let Connection {
            transport,
            address,
            lane,
            alone,
            ..
        } = connection;
        transport.close(self.poll.registry(), alone.is_some());
        let on = self.on_connections.of_mut(line);
        on.cost = on.cost.saturating_sub(lane.cost());
        on.requests = on.requests.saturating_sub(lane.unanswered());
        if let Some(alone) = &alone {
            self.queue.alone_done(alone.line, alone.source);
        }
        tracing::trace!(%end, requests = lane.len(), "connection to the analyser ended");
        if let End::Unreachable(error) = end {
            self.shunned.failed(address, now);
            self.unreachable(error, now);
        }
        // Also one that carried nothing: who closes whatever connects to it is not asked again at once.
        let fruitless = lane.heads() == 0 && !matches!(end, End::Done | End::Unreachable(_));
        if fruitless && alone.is_none() {
            self.serve.strike(now);
            self.shunned.failed(address, now);
        }
        let leftover = lane.into_leftover();
        // From the youngest on, each before the others: so they stand in their old order.
        for (item, begun) in leftover.innocent.into_iter().rev() {
            self.counters.add(Counter::Resent, u64::from(begun));
            self.queue.put_back(item);
        }
        if let Some(mut item) = leftover.charged {
            item.failures += 1;
            if item.failures >= FAILURES_MAX {
                self.counters.request(RequestOutcome::RefusedByAnalyser);
            } else {
                self.counters.add(Counter::Resent, 1);
                item.not_before = now.checked_add(self.options.retry_pause);
                self.queue.put_back(item);
            }
        }
    }

    pub(super) fn unreachable(&mut self, error: &io::Error, now: Instant) {
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
        let mut next = self
            .slots
            .all()
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
        gauge(Gauge::InFlightBytes, self.on_connections.cost());
        gauge(Gauge::InFlight, self.in_flight());
        let up = |slots: std::ops::Range<usize>| {
            self.slots
                .among(slots)
                .filter(|(_, c)| c.established)
                .count()
        };
        gauge(Gauge::Connections, up(0..self.places.end()));
        gauge(
            Gauge::QuarantineConnections,
            up(self.places.of(Line::Quarantine)),
        );
        // Here the figures add up. Where somebody reads them just now, the next turn will do.
        self.counters.publish();
    }

    /// Shared connections that have stayed open behind an answer.
    #[cfg(test)]
    pub(super) fn proven(&self) -> usize {
        let shared = self.slots.among(self.places.of(Line::Shared));
        shared.filter(|(_, c)| c.lane.is_proven()).count()
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.queue.check();
        let mut on = OnConnections::default();
        for (slot, connection) in self.slots.among(0..self.places.end()) {
            connection.lane.check();
            assert!(self.places.of(connection.line()).contains(&slot));
            if connection.alone.is_some() {
                assert!(connection.lane.len() <= 1 && !connection.lane.is_open());
            }
            let of = on.of_mut(connection.line());
            of.cost += connection.lane.cost();
            of.requests += connection.lane.unanswered();
        }
        assert_eq!(self.on_connections, on);
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
