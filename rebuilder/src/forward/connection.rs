//! One connection: its socket, what is on it, and what it has to do next.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::ForwardOptions;
use super::lane::Lane;
use super::queue::{Line, Source};
use super::transport::Transport;
use crate::telemetry::{Counter, WorkerCounters};

/// For TCP and TLS to be established.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Requests in one `writev`.
const BATCH: usize = 16;
/// Bytes written to one connection before the others and the packets get their turn.
const WRITE_BYTES_MAX: usize = 1024 * 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) transport: Transport,
    pub(super) address: SocketAddr,
    pub(super) lane: Lane,
    /// Set where it carries one request and no other.
    pub(super) alone: Option<Alone>,
    pub(super) established: bool,
    pub(super) opened: Instant,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// An event has said that the analyser's side ends.
    pub(super) ending: bool,
    /// Why nothing more can be written; answers may still be there to read.
    pub(super) write_error: Option<io::Error>,
}

/// What is particular to a connection that carries one request.
#[derive(Debug)]
pub(super) struct Alone {
    /// Leaving or quarantine.
    pub(super) line: Line,
    /// Whose share of it it takes.
    pub(super) source: Source,
    /// The request's framing is disputed, which bounds the wait for its answer.
    pub(super) disputed: bool,
    pub(super) shut: Shut,
}

/// Whether our side is shut behind the request, so that nobody waits for bytes that another reading of its framing
/// has still to come.
///
/// Not at once: nginx takes a client that ends its side for one that went away, and drops the request (499) while it
/// waits for a proxied server. Who understands the request answers before [`ForwardOptions::shut_after`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shut {
    /// It stays open.
    Never,
    /// [`ForwardOptions::shut_after`] the last byte was written, when no answer has come.
    Later,
    /// It is shut.
    Done,
}

impl Connection {
    /// One that is being opened.
    pub(super) fn new(transport: Transport, address: SocketAddr, now: Instant) -> Self {
        Self {
            transport,
            address,
            lane: Lane::new(now),
            alone: None,
            established: false,
            opened: now,
            readable: false,
            writable: false,
            ending: false,
            write_error: None,
        }
    }

    /// Which way to the analyser it belongs to.
    pub(super) fn line(&self) -> Line {
        self.alone.as_ref().map_or(Line::Shared, |alone| alone.line)
    }

    /// Whether it can go on without waiting for an event.
    pub(super) fn has_work(&self, options: &ForwardOptions, now: Instant) -> bool {
        if !self.established {
            return self.readable || self.writable;
        }
        self.readable
            || (self.writable && (!self.lane.is_written() || self.transport.wants_flush()))
            || self.wants_shut(options, now)
    }

    /// Whether our side is to be shut now.
    fn wants_shut(&self, options: &ForwardOptions, now: Instant) -> bool {
        self.writable && self.shut_at(options).is_some_and(|at| at <= now)
    }

    /// When our side is to be shut, if it is.
    pub(super) fn shut_at(&self, options: &ForwardOptions) -> Option<Instant> {
        let later = self.alone.as_ref().is_some_and(|a| a.shut == Shut::Later);
        // While the socket takes nothing the event that it does is waited for, not a time that has passed: a timer in the
        // past would have the worker spin.
        (later && self.established && self.writable && self.lane.is_written())
            .then(|| self.lane.deadline(options.shut_after))
            .flatten()
    }

    /// When it is given up.
    pub(super) fn timer(&self, options: &ForwardOptions) -> Option<Instant> {
        if !self.established {
            return self.opened.checked_add(CONNECT_TIMEOUT);
        }
        let disputed = self.alone.as_ref().is_some_and(|alone| alone.disputed);
        self.lane.deadline(if disputed {
            options.quarantine_timeout
        } else {
            options.answer_timeout
        })
    }

    /// Writes what it can. An error is kept for later: what was answered before it has to be read first.
    pub(super) fn write(
        &mut self,
        options: &ForwardOptions,
        counters: &WorkerCounters,
        now: Instant,
    ) {
        if self.write_error.is_some() {
            return;
        }
        if let Err(error) = self.try_write(options, counters, now) {
            self.writable = false;
            if error.kind() != io::ErrorKind::WouldBlock {
                // The next read tells whether answers are left.
                self.readable = true;
                self.write_error = Some(error);
            }
        }
    }

    fn try_write(
        &mut self,
        options: &ForwardOptions,
        counters: &WorkerCounters,
        now: Instant,
    ) -> io::Result<()> {
        let mut budget = WRITE_BYTES_MAX;
        while self.writable && budget > 0 && !self.lane.is_written() {
            let mut slices = [IoSlice::new(&[]); BATCH];
            let filled = self.lane.unwritten(&mut slices);
            let batch = slices.get(..filled).unwrap_or_default();
            let written = match self.transport.write(batch) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                written => written?,
            };
            counters.add(Counter::ForwardedBytes, written as u64);
            self.lane.wrote(written, now);
            budget = budget.saturating_sub(written);
        }
        if self.writable && !self.transport.flush()? {
            self.writable = false;
        }
        if self.wants_shut(options, now)
            && let Some(alone) = &mut self.alone
        {
            alone.shut = Shut::Done;
            self.transport.shut_write()?;
        }
        Ok(())
    }
}
