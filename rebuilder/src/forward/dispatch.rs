//! Which request goes on which connection, and when one is opened.

use std::io;
use std::ops::Range;
use std::time::Instant;

use mio::Token;

use super::ForwardOptions;
use super::connection::{Alone, Connection, Shut};
use super::lane::Lane;
use super::pool::Forwarder;
use super::queue::Line;
use super::sharing::Sharing;
use super::transport::Transport;
use crate::telemetry::Counter;

/// Connections that linger until their last answer has come, for each one that takes requests.
const LINGERING: usize = 2;

/// Connections for one request that are opened at once, of each line, before shared requests get their turn: opening one
/// takes some tens of microseconds.
const OPENED_MAX: usize = 8;

/// A shared connection that takes requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct FreeLane {
    slot: usize,
    /// Requests on it.
    len: usize,
    /// As many as there may be.
    depth: usize,
}

impl FreeLane {
    const fn has_room(&self) -> bool {
        self.len < self.depth
    }
}

/// The slots of each line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    shared: usize,
    leaving: usize,
    end: usize,
}

impl Places {
    /// As the options have it.
    #[must_use]
    pub(super) fn new(options: &ForwardOptions) -> Self {
        let shared = options.connections.saturating_mul(1 + LINGERING);
        let leaving = shared.saturating_add(options.leaving_connections);
        Self {
            shared,
            leaving,
            end: leaving.saturating_add(options.quarantine_connections),
        }
    }

    /// How far a slot stands behind another one, where the first follows the last.
    #[must_use]
    const fn behind(&self, last: usize, slot: usize) -> usize {
        // Both are below the end.
        (slot + self.end - last - 1) % self.end
    }

    /// Where those of a line are.
    #[must_use]
    pub(super) const fn of(&self, line: Line) -> Range<usize> {
        match line {
            Line::Shared => 0..self.shared,
            Line::Leaving => self.shared..self.leaving,
            Line::Quarantine => self.leaving..self.end,
        }
    }

    /// How many there are.
    #[must_use]
    pub(super) const fn end(&self) -> usize {
        self.end
    }
}

/// What is on the connections of one line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct On {
    /// Bytes, overhead included.
    pub(super) cost: usize,
    /// Requests without an outcome.
    pub(super) requests: usize,
}

/// What is on connections. Each line has a part of the bytes to itself, half of them the shared one, so that what the
/// analyser keeps waiting on one holds up no other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct OnConnections {
    shared: On,
    leaving: On,
    quarantine: On,
}

impl OnConnections {
    /// Of one line.
    #[must_use]
    pub(super) const fn of(&self, line: Line) -> &On {
        match line {
            Line::Shared => &self.shared,
            Line::Leaving => &self.leaving,
            Line::Quarantine => &self.quarantine,
        }
    }

    /// Of one line.
    pub(super) const fn of_mut(&mut self, line: Line) -> &mut On {
        match line {
            Line::Shared => &mut self.shared,
            Line::Leaving => &mut self.leaving,
            Line::Quarantine => &mut self.quarantine,
        }
    }

    /// Bytes in all, overhead included.
    #[must_use]
    pub(super) const fn cost(&self) -> usize {
        self.shared
            .cost
            .saturating_add(self.leaving.cost)
            .saturating_add(self.quarantine.cost)
    }

    /// Requests without an outcome in all.
    #[must_use]
    pub(super) const fn requests(&self) -> usize {
        self.shared.requests + self.leaving.requests + self.quarantine.requests
    }

    /// Whether a request of this cost may join those of its line, of `bytes_max` for all lines.
    const fn has_room(&self, line: Line, cost: usize, bytes_max: usize) -> bool {
        let part = match line {
            Line::Shared => bytes_max / 2,
            Line::Leaving | Line::Quarantine => bytes_max / 4,
        };
        let on = self.of(line).cost;
        on == 0 || on.saturating_add(cost) <= part
    }
}

impl Forwarder {
    /// Gives waiting requests to connections, and opens connections for them.
    pub(super) fn dispatch(&mut self, now: Instant) {
        self.dispatch_shared(now);
        self.dispatch_alone(Line::Leaving, now);
        self.dispatch_alone(Line::Quarantine, now);
    }

    /// What the next one of a line costs, if there is one and room for it.
    fn next_cost(&self, line: Line, now: Instant) -> Option<usize> {
        let cost = self.queue.next_cost(line, now)?;
        let bytes_max = self.options.inflight_bytes;
        self.on_connections
            .has_room(line, cost, bytes_max)
            .then_some(cost)
    }

    fn dispatch_shared(&mut self, now: Instant) {
        if self.next_cost(Line::Shared, now).is_none() {
            return;
        }
        // Nothing changes them meanwhile but what is put on them here: one that is opened has yet to be established.
        let mut lanes = std::mem::take(&mut self.lanes);
        lanes.extend(self.free_lanes());
        let mut all_open = false;
        let mut filled = None;
        while let Some(cost) = self.next_cost(Line::Shared, now) {
            let free = |at: &usize| lanes.get(*at).is_some_and(FreeLane::has_room);
            let least = (0..lanes.len()).filter(free).min_by_key(|&at| {
                let lane = lanes.get(at);
                lane.map(|lane| (lane.len, self.places.behind(self.last_lane, lane.slot)))
            });
            let len = |at: usize| lanes.get(at).map_or(0, |lane| lane.len);
            if !all_open && least.is_none_or(|at| len(at) > 0) {
                all_open = self.open_shared(now);
            }
            // One is filled before the next is begun: few writes and answers, where few requests come at a time.
            let Some(at) = filled.filter(free).or(least) else {
                break;
            };
            filled = Some(at);
            let Some(lane) = lanes.get_mut(at) else {
                break;
            };
            self.last_lane = lane.slot;
            let Some(connection) = self.slots.get_mut(lane.slot) else {
                break;
            };
            if let Some(item) = self.queue.pop(Line::Shared, now) {
                let on = self.on_connections.of_mut(Line::Shared);
                on.cost += cost;
                on.requests += 1;
                connection.lane.push(item, now);
                lane.len += 1;
            }
        }
        lanes.clear();
        self.lanes = lanes;
    }

    /// A fresh connection for each, that nothing else goes on.
    fn dispatch_alone(&mut self, line: Line, now: Instant) {
        let mut opened = 0;
        while opened < OPENED_MAX
            && let Some(cost) = self.next_cost(line, now)
            && self.may_connect(now)
            && !(line == Line::Quarantine && self.quarantine_gives_way())
            && let Some(slot) = self.slots.empty(self.places.of(line))
            && let Some(item) = self.queue.pop(line, now)
        {
            opened += 1;
            let disputed = item.sharing == Sharing::Alone;
            let alone = Alone {
                line,
                source: item.source,
                disputed,
                // Who failed once may have failed for taking the end of our side for a lost client.
                shut: if disputed && item.failures == 0 {
                    Shut::Later
                } else {
                    Shut::Never
                },
            };
            match self.open(slot, line, now) {
                Ok(mut connection) => {
                    let on = self.on_connections.of_mut(line);
                    on.cost += cost;
                    on.requests += 1;
                    connection.alone = Some(alone);
                    connection.lane = Lane::single(item, now);
                    if line == Line::Quarantine {
                        self.counters.add(Counter::Quarantined, 1);
                    }
                    self.slots.put(slot, connection);
                }
                Err(error) => {
                    self.queue.alone_done(line, item.source);
                    self.queue.put_back(item);
                    self.unreachable(&error, now);
                }
            }
        }
    }

    /// Whether quarantine may have no further connection for now. An analyser that is busy serves its connections in turn:
    /// 64 of quarantine would leave a handful of shared ones a few percent of it. So while more shared requests are on their
    /// way than there are connections for them, quarantine has no more connections than they.
    fn quarantine_gives_way(&self) -> bool {
        let shared = self.on_connections.of(Line::Shared).requests + self.queue.shared_len();
        let quarantined = self.on_connections.of(Line::Quarantine).requests;
        shared > self.options.connections && quarantined >= self.options.connections
    }

    /// The established shared connections that take requests.
    fn free_lanes(&self) -> impl Iterator<Item = FreeLane> {
        self.slots
            .among(self.places.of(Line::Shared))
            .filter_map(|(slot, connection)| {
                let lane = &connection.lane;
                // One at a time until it has shown that it stays open behind an answer: an analyser that closes
                // after each would get everything else twice.
                let depth = if lane.is_proven() {
                    self.options.pipeline
                } else {
                    1
                };
                let len = lane.len();
                (connection.established && lane.is_open() && len < depth).then_some(FreeLane {
                    slot,
                    len,
                    depth,
                })
            })
    }

    /// Opens one more shared connection if that is useful and allowed. Says whether there are as many as there may be.
    fn open_shared(&mut self, now: Instant) -> bool {
        let mut open = 0;
        let mut connecting = 0;
        let shared = self.places.of(Line::Shared);
        for (_, connection) in self.slots.among(shared.clone()) {
            open += usize::from(connection.lane.is_open());
            connecting += usize::from(!connection.established);
        }
        if open >= self.options.connections {
            return true;
        }
        if connecting >= self.queue.shared_len()
            || self.serve.until(now).is_some()
            || !self.may_connect(now)
        {
            return false;
        }
        if let Some(slot) = self.slots.empty(shared) {
            match self.open(slot, Line::Shared, now) {
                Ok(connection) => self.slots.put(slot, connection),
                Err(error) => self.unreachable(&error, now),
            }
        }
        false
    }

    /// While the analyser is away, one attempt at a time.
    fn may_connect(&self, now: Instant) -> bool {
        self.reach.until(now).is_none()
            && (self.reach.strikes() == 0 || self.slots.all().all(|c| c.established))
    }

    /// Opens a connection of a line, to the address that has the fewest of them and has not failed lately.
    fn open(&mut self, slot: usize, line: Line, now: Instant) -> io::Result<Box<Connection>> {
        let candidates = self.options.addresses.from(self.turn);
        let connections = |address| {
            let of_line = self.slots.among(self.places.of(line));
            of_line
                .filter(|(_, c)| c.address == address && (c.alone.is_some() || c.lane.is_open()))
                .count()
        };
        let Some(address) = self.shunned.pick(&candidates, now, connections) else {
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                "no address of it is known",
            ));
        };
        self.turn = self.turn.wrapping_add(1);
        let registry = self.poll.registry();
        match Transport::open(address, self.tls.as_ref(), registry, Token(slot)) {
            Ok(transport) => Ok(Box::new(Connection::new(transport, address, now))),
            Err(error) => {
                self.shunned.failed(address, now);
                Err(error)
            }
        }
    }
}
