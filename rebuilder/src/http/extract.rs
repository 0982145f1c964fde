//! The extractor: one parser for each direction that the stream stage holds.

use super::context::Context;
use super::direction::Direction;
use super::heavy::Heavy;
use super::search::Origin;
use super::{Cidr, Request};
use crate::budget::{Budget, Source};
use crate::prefetch::prefetch;
use crate::stream::{Chunk, Compared, DirectionId, Endpoints, Interest};

/// What the extractor may hold and whom it believes.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// The longest head in bytes, empty lines before it not counted (of these 4 KiB are kept); also the longest line of a chunk's size and the most
    /// bytes of trailers. A longer head gives no request and is counted in [`HttpCounters::oversize_heads`].
    pub max_head: usize,
    /// The most raw bytes that are kept of one request. A longer one is `truncated` and counted in
    /// [`HttpCounters::oversize_requests`]; its framing is followed to the end.
    pub max_request: usize,
    /// The most bytes that are held of requests that are not complete yet, all directions together; above half of it
    /// one sender (an IPv4 address, a /64 of IPv6) may hold a quarter. What would go beyond is cut: a body is given as
    /// `truncated` ([`HttpCounters::shed_requests`]), a head is given up ([`HttpCounters::shed_heads`]). Where all
    /// together are at the cap, that befalls whoever holds most, so that many who begin requests and never end them
    /// cut no other's.
    pub max_held: usize,
    /// How many bytes a direction may show without a request before it is given up as not HTTP.
    pub max_search: u64,
    /// TCP peers whose `X-Forwarded-For` is believed.
    pub trust: Vec<Cidr>,
    /// TCP peers whose PROXY header is believed; empty: everybody's. From others the header is passed over.
    pub proxy_from: Vec<Cidr>,
    /// The forward stage rewrites `Connection` (`--hop-by-hop persist`), so [`super::Flags::HOP`] is set where it will.
    pub hop_persist: bool,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            max_head: 128 << 10,
            max_request: 64 << 20,
            max_held: 256 << 20,
            max_search: 64 << 20,
            trust: Vec::new(),
            proxy_from: Vec::new(),
            hop_persist: true,
        }
    }
}

/// What the extractor gave and what it could not give. Each only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HttpCounters {
    /// Requests handed on.
    pub requests: u64,
    /// Heads that a gap or the end of the connection cut: no row.
    pub incomplete_heads: u64,
    /// Heads longer than [`HttpOptions::max_head`]: no row.
    pub oversize_heads: u64,
    /// Requests longer than [`HttpOptions::max_request`]: given as `truncated`.
    pub oversize_requests: u64,
    /// Requests cut because [`HttpOptions::max_held`] was reached: given as `truncated`.
    pub shed_requests: u64,
    /// Heads given up because [`HttpOptions::max_held`] was reached: no row.
    pub shed_heads: u64,
    /// Times the framing of a direction was lost: a gap outside a body of known length, a broken chunk, a head given up,
    /// or bytes at a boundary that are no request.
    pub lost_framings: u64,
    /// Times a request line found it again.
    pub resyncs: u64,
    /// PROXY protocol headers read.
    pub proxy_headers: u64,
    /// Bytes of directions that are or may be HTTP that stand in no request: heads given up, bytes passed over while
    /// searching, and the rest of bodies whose request was already given as `truncated`.
    pub skipped_bytes: u64,
}

/// Turns the chunks of all directions into requests.
#[derive(Debug)]
pub struct Extractor {
    options: HttpOptions,
    counters: HttpCounters,
    /// By [`DirectionId::place`].
    directions: Vec<Option<Direction>>,
    budget: Budget,
    heavy: Heavy,
}

impl Extractor {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(options: HttpOptions) -> Self {
        Self {
            budget: Budget::new(options.max_held),
            options,
            counters: HttpCounters::default(),
            directions: Vec::new(),
            heavy: Heavy::default(),
        }
    }

    /// One chunk of one direction. Requests that it completes are handed to `out`, in stream order.
    pub fn chunk(
        &mut self,
        dir: DirectionId,
        ends: &Endpoints,
        chunk: Chunk<'_>,
        out: &mut impl FnMut(Request),
    ) -> Interest {
        let source = Source::of(ends.src.ip());
        if let Chunk::Open { midstream } = chunk {
            let old = seat(&mut self.directions, dir).replace(Direction::new(midstream));
            let held = old.map_or(0, |old| old.held());
            self.budget.change(source, held, 0);
            self.heavy.change(dir, ends, held, 0);
            return Interest::Wanted;
        }
        if let Chunk::Data { bytes, .. } = chunk {
            self.make_room(dir, source, bytes.len(), out);
        }
        // A direction that was never opened is one whose beginning is not known.
        let seat = seat(&mut self.directions, dir);
        let direction = seat.get_or_insert_with(|| Direction::new(true));
        let before = direction.held();
        let mut cx = Context {
            options: &self.options,
            counters: &mut self.counters,
            budget: &self.budget,
            source,
            grown: 0,
            ends,
            out,
        };
        let interest = match chunk {
            Chunk::Data {
                bytes,
                ts,
                segment_start,
                conflict,
            } => {
                let origin = Origin {
                    ts,
                    segment_start,
                    conflict,
                };
                direction.data(&mut cx, bytes, origin)
            }
            Chunk::Gap { len } => direction.gap(&mut cx, len),
            Chunk::Closed(end) => direction.close(&mut cx, end),
            Chunk::Open { .. } => Interest::Wanted,
        };
        let after = direction.held();
        if after != before {
            self.budget.change(source, before, after);
            self.heavy.change(dir, ends, before, after);
        }
        if matches!(chunk, Chunk::Closed(_)) {
            *seat = None;
        }
        interest
    }

    /// Where `more` bytes would not fit into all that may be held, whoever holds most gives way, as long as that is more
    /// than this direction would hold, and its sender holds no more than its share.
    fn make_room(
        &mut self,
        dir: DirectionId,
        source: Source,
        more: usize,
        out: &mut impl FnMut(Request),
    ) {
        // No buffer grows by more than what comes, or by its own size.
        if self.budget.over(more.max(self.budget.total())) == 0 {
            return;
        }
        let own = self.direction(dir).map_or(0, Direction::held);
        let need = more.max(own);
        while self.budget.over(need) > 0 && !self.budget.over_share(source, need) {
            let Some((victim, ends)) = self.heavy.heaviest() else {
                return;
            };
            let Some(direction) = seat(&mut self.directions, victim) else {
                return;
            };
            let before = direction.held();
            if victim == dir || before <= own.saturating_add(more) {
                return;
            }
            let source = Source::of(ends.src.ip());
            direction.give_way(&mut Context {
                options: &self.options,
                counters: &mut self.counters,
                budget: &self.budget,
                source,
                grown: 0,
                ends: &ends,
                out,
            });
            let after = direction.held();
            self.budget.change(source, before, after);
            self.heavy.change(victim, &ends, before, after);
            if after >= before {
                return;
            }
        }
    }

    /// Compares a late copy, which ends `behind` bytes before the next byte, with what is held of a request that is not
    /// complete. One that disagrees makes it [`super::Flags::AMBIGUOUS`].
    pub fn compare(&mut self, dir: DirectionId, behind: u64, copy: &[u8]) -> Compared {
        let direction = self.directions.get_mut(dir.place());
        direction
            .and_then(Option::as_mut)
            .map_or_else(Compared::default, |direction| {
                direction.compare(behind, copy)
            })
    }

    /// Whether requests came of this direction.
    #[must_use]
    pub fn asks(&self, dir: DirectionId) -> bool {
        self.direction(dir).is_some_and(Direction::asks)
    }

    fn direction(&self, dir: DirectionId) -> Option<&Direction> {
        self.directions.get(dir.place())?.as_ref()
    }

    /// Asks memory for what is kept of a direction.
    #[inline]
    pub(crate) fn prefetch(&self, dir: DirectionId) {
        if let Some(direction) = self.directions.get(dir.place()) {
            prefetch(direction, usize::MAX);
        }
    }

    /// Bytes of requests that are not complete yet.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.budget.total()
    }

    /// See [`HttpCounters`].
    #[must_use]
    pub fn counters(&self) -> HttpCounters {
        self.counters
    }
}

/// A direction's place.
fn seat(directions: &mut Vec<Option<Direction>>, dir: DirectionId) -> &mut Option<Direction> {
    let place = dir.place();
    if place >= directions.len() {
        directions.resize_with(place + 1, || None);
    }
    // It is there now.
    &mut directions[place]
}
