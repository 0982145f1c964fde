//! The parser of one direction: which bytes belong to which request.

use std::mem;
use std::net::IpAddr;

use super::body::Rest;
use super::chunked::{Chunked, Step};
use super::context::Context;
use super::framing::judge;
use super::head::{HeadScan, Reject, Scan, looks_like_status, split};
use super::open::{Building, Open};
use super::proxy::{self, Preamble};
use super::search::{Origin, Search};
use super::{Flags, Framing};
use crate::stream::{End, Interest};
use crate::telemetry::PacketOutcome;

/// A request whose body is being read.
#[derive(Debug)]
struct InBody {
    open: Open,
    rest: Rest,
}

#[derive(Debug)]
enum State {
    /// At the beginning of a connection: perhaps a PROXY header.
    Preamble(Building),
    /// At a message boundary or in a head.
    Head(Building, HeadScan),
    /// In a body.
    Body(Box<InBody>),
    /// In a body whose request was given already, as `truncated`.
    Skip(Rest),
    /// The framing is not known.
    Search { search: Search, seen: u64 },
    /// No more requests.
    Opaque(PacketOutcome),
}

/// How the previous request changes what a boundary means (rule 5 of the design).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Request,
    Connect,
    Upgrade,
}

/// One direction, from its first byte that was seen.
#[derive(Debug)]
pub(super) struct Direction {
    /// The SYN was not seen.
    midstream: bool,
    /// The framing was known once, or should have been.
    lost: bool,
    /// A request was given: this is HTTP, whatever comes.
    spoke_http: bool,
    /// Something before may be framed differently by another reader, so everything behind may be, too.
    disputed: bool,
    /// Who the PROXY header named.
    proxied: Option<IpAddr>,
    after: After,
    state: State,
}

/// What one step of the parser did with a piece: the next state, and how many bytes it took.
type Stepped = (State, usize);

impl Direction {
    pub(super) fn new(midstream: bool) -> Self {
        let state = if midstream {
            State::Search {
                search: Search::default(),
                seen: 0,
            }
        } else {
            State::Preamble(Building::default())
        };
        Self {
            midstream,
            lost: false,
            spoke_http: false,
            disputed: false,
            proxied: None,
            after: After::Request,
            state,
        }
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Preamble(building) | State::Head(building, _) => building.raw.capacity(),
            State::Body(body) => body.open.building.raw.capacity() + body.rest.held(),
            State::Skip(rest) => rest.held(),
            State::Search { search, .. } => search.held(),
            State::Opaque(_) => 0,
        }
    }

    /// Takes the next bytes in order.
    pub(super) fn data(
        &mut self,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
        mut origin: Origin,
    ) -> Interest {
        while !bytes.is_empty() {
            // Every step takes a byte, or moves on to a state that does.
            let (next, used) =
                match mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp)) {
                    State::Preamble(building) => self.preamble(cx, building, bytes, origin),
                    State::Head(building, scan) => self.head(cx, building, scan, bytes, origin),
                    State::Body(body) => self.body(cx, body, bytes, origin),
                    State::Skip(rest) => self.skip(cx, rest, bytes, origin),
                    State::Search { search, seen } => self.search(cx, search, seen, bytes, origin),
                    State::Opaque(outcome) => (State::Opaque(outcome), bytes.len()),
                };
            self.state = next;
            if used > 0 {
                origin.segment_start = false;
            }
            bytes = bytes.get(used..).unwrap_or_default();
        }
        self.interest()
    }

    /// `len` bytes will never come.
    pub(super) fn gap(&mut self, cx: &mut Context<'_>, len: u64) -> Interest {
        if len == 0 {
            return self.interest();
        }
        self.state = match mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp)) {
            State::Preamble(building) => {
                cx.counters.skipped_bytes += building.raw.len() as u64;
                self.lose(cx)
            }
            State::Head(building, scan) => {
                cx.counters.skipped_bytes += building.raw.len() as u64;
                cx.counters.incomplete_heads += u64::from(scan.begun());
                self.lose_head(cx)
            }
            State::Body(body) => {
                let InBody { open, rest } = *body;
                self.give(cx, open, &rest, Flags::TRUNCATED);
                self.pass_gap(cx, rest, len)
            }
            State::Skip(rest) => {
                cx.counters.skipped_bytes += rest.doubtful() as u64;
                self.pass_gap(cx, rest, len)
            }
            State::Search { mut search, seen } => {
                cx.counters.skipped_bytes += search.pending();
                search.reset();
                State::Search { search, seen }
            }
            State::Opaque(outcome) => State::Opaque(outcome),
        };
        self.interest()
    }

    /// Nothing more comes.
    pub(super) fn close(&mut self, cx: &mut Context<'_>, end: End) -> Interest {
        match mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp)) {
            State::Preamble(building) => {
                cx.counters.skipped_bytes += building.raw.len() as u64;
            }
            State::Head(building, scan) => {
                cx.counters.skipped_bytes += building.raw.len() as u64;
                cx.counters.incomplete_heads += u64::from(scan.begun());
            }
            State::Body(body) => {
                let InBody { open, rest } = *body;
                let how = match end {
                    End::Fin | End::Reset => Flags::ABORTED,
                    End::Idle | End::Eof => Flags::TRUNCATED,
                };
                self.give(cx, open, &rest, how);
            }
            State::Skip(rest) => cx.counters.skipped_bytes += rest.doubtful() as u64,
            State::Search { search, .. } => cx.counters.skipped_bytes += search.pending(),
            State::Opaque(_) => {}
        }
        Interest::Wanted
    }

    fn interest(&self) -> Interest {
        match self.state {
            State::Opaque(outcome) => Interest::Opaque(outcome),
            _ => Interest::Wanted,
        }
    }

    /// The state at the boundary behind a message.
    fn boundary(&self) -> State {
        State::Head(
            Building::default(),
            HeadScan::new(self.after == After::Connect),
        )
    }

    /// The framing is lost; from here on a request line must be found.
    fn lose(&mut self, cx: &mut Context<'_>) -> State {
        self.lose_into(cx, Search::default())
    }

    fn lose_into(&mut self, cx: &mut Context<'_>, search: Search) -> State {
        cx.counters.lost_framings += 1;
        self.lost = true;
        self.after = After::Request;
        State::Search { search, seen: 0 }
    }

    fn preamble(
        &mut self,
        cx: &mut Context<'_>,
        mut building: Building,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        let held = building.raw.len();
        let read = if held == 0 {
            proxy::read(bytes)
        } else {
            if !cx.admit(&mut building.raw, bytes.len(), usize::MAX) {
                return self.shed_head(cx, held, bytes);
            }
            building.raw.extend_from_slice(bytes);
            let read = proxy::read(&building.raw);
            building.raw.truncate(held);
            read
        };
        match read {
            Preamble::More => {
                if !cx.admit(&mut building.raw, bytes.len(), usize::MAX) {
                    return self.shed_head(cx, held, bytes);
                }
                building.touch(origin);
                building.raw.extend_from_slice(bytes);
                (State::Preamble(building), bytes.len())
            }
            Preamble::Absent => (State::Head(building, HeadScan::new(false)), 0),
            Preamble::Header { len, source } => {
                cx.counters.proxy_headers += 1;
                self.proxied = source;
                let next = State::Head(Building::default(), HeadScan::new(false));
                (next, len.saturating_sub(held))
            }
        }
    }

    /// There is no room for the rest of a head.
    fn shed_head(&mut self, cx: &mut Context<'_>, held: usize, bytes: &[u8]) -> Stepped {
        cx.counters.shed_heads += 1;
        cx.counters.skipped_bytes += (held + bytes.len()) as u64;
        (self.lose_head(cx), bytes.len())
    }

    /// A head is given up; what a boundary meant is not known any more.
    fn lose_head(&mut self, cx: &mut Context<'_>) -> State {
        if self.after == After::Connect {
            State::Opaque(PacketOutcome::Tunnel)
        } else {
            self.lose(cx)
        }
    }

    fn head(
        &mut self,
        cx: &mut Context<'_>,
        mut building: Building,
        mut scan: HeadScan,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        building.touch(origin);
        let held = building.raw.len();
        // Looked at where they lie unless a part came before: most heads come whole, and are copied once, into `raw`.
        let data = if held == 0 {
            bytes
        } else {
            if !cx.admit(&mut building.raw, bytes.len(), usize::MAX) {
                return self.shed_head(cx, held, bytes);
            }
            building.raw.extend_from_slice(bytes);
            &building.raw
        };
        match scan.scan(data, cx.options.max_head) {
            Scan::More => {
                if held == 0 {
                    if !cx.admit(&mut building.raw, bytes.len(), usize::MAX) {
                        return self.shed_head(cx, 0, bytes);
                    }
                    building.raw.extend_from_slice(bytes);
                }
                (State::Head(building, scan), bytes.len())
            }
            Scan::Reject(reject) => {
                // What is no request line in the tolerant reading is none in the strict one, so the piece may be
                // searched from its beginning; but a head that is too long must not be found a second time.
                let passed = if reject == Reject::TooLong && held == 0 {
                    bytes.len()
                } else {
                    0
                };
                let next = self.reject(cx, reject);
                if matches!(next, State::Search { .. }) {
                    cx.counters.skipped_bytes += (held + passed) as u64;
                }
                (next, passed)
            }
            Scan::Complete(end) => {
                let line_start = scan.line_start();
                let known = data.get(..end).and_then(|head| {
                    let parts = split(head, line_start)?;
                    let verdict = judge(head, &parts);
                    Some((parts, verdict))
                });
                let Some((head, verdict)) = known else {
                    cx.counters.skipped_bytes += held as u64;
                    return (self.reject(cx, Reject::Garbage), 0);
                };
                let used = end.saturating_sub(held);
                let mut admitted = true;
                if held == 0 {
                    // One allocation for what this piece holds of the request. If that is all of it, it is handed on
                    // at once and not held.
                    let behind = bytes.len().saturating_sub(used);
                    let body = match verdict.framing {
                        Framing::None => Some(0),
                        Framing::Length(length) => {
                            usize::try_from(length).ok().filter(|n| *n <= behind)
                        }
                        Framing::Chunked => None,
                    };
                    match body {
                        Some(body) => building.raw.reserve_exact(used + body),
                        None => admitted = cx.admit(&mut building.raw, used, used),
                    }
                    building
                        .raw
                        .extend_from_slice(bytes.get(..used).unwrap_or_default());
                } else {
                    building.raw.truncate(end);
                }
                let mut open = Open {
                    building,
                    line_start,
                    head_end: end,
                    head: Some(head),
                    verdict,
                };
                let rest = match verdict.framing {
                    Framing::None | Framing::Length(0) => {
                        self.give(cx, open, &Rest::Length(0), Flags::empty());
                        return (self.boundary(), used);
                    }
                    Framing::Length(length) => Rest::Length(length),
                    Framing::Chunked => Rest::Chunked {
                        coding: Chunked::new(cx.options.max_head),
                        search: Search::default(),
                    },
                };
                if !admitted {
                    return (self.shed(cx, open, rest), used);
                }
                open.head = None;
                (State::Body(Box::new(InBody { open, rest })), used)
            }
        }
    }

    /// Bytes at a boundary are no request.
    fn reject(&mut self, cx: &mut Context<'_>, reject: Reject) -> State {
        let outcome = match (self.after, reject) {
            (_, Reject::Http2) => PacketOutcome::Http2,
            (After::Connect, _) | (_, Reject::NotConnect) => PacketOutcome::Tunnel,
            (After::Upgrade, Reject::Status | Reject::Tls | Reject::Garbage) => {
                PacketOutcome::Tunnel
            }
            (_, Reject::TooLong) => {
                cx.counters.oversize_heads += 1;
                self.spoke_http = true;
                return self.lose(cx);
            }
            _ if self.spoke_http => {
                // Whoever sent them frames what came before differently, or does not care.
                self.disputed = true;
                return self.lose(cx);
            }
            (_, Reject::Status) => PacketOutcome::Response,
            (_, Reject::Tls) => PacketOutcome::Tls,
            (_, Reject::Garbage) => PacketOutcome::NotHttp,
        };
        State::Opaque(outcome)
    }

    fn body(
        &mut self,
        cx: &mut Context<'_>,
        mut body: Box<InBody>,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        let InBody { open, rest } = &mut *body;
        let room = cx
            .options
            .max_request
            .max(open.head_end)
            .saturating_sub(open.building.raw.len());
        let full = bytes.len() > room;
        let bytes = bytes.get(..room).unwrap_or(bytes);
        let all = open.building.raw.len().saturating_add(rest.at_most(room));
        if !cx.admit(&mut open.building.raw, rest.at_most(bytes.len()), all) {
            let InBody { open, rest } = *body;
            return (self.shed(cx, open, rest), 0);
        }
        let step = rest.feed(bytes);
        let taken = match step {
            Step::More => bytes.len(),
            Step::End(at) | Step::Bad(at) => at,
        };
        if taken > 0 {
            open.building.touch(origin);
            open.building
                .raw
                .extend_from_slice(bytes.get(..taken).unwrap_or_default());
        }
        match step {
            Step::More => {
                rest.read_along(cx, bytes, origin);
                if full {
                    cx.counters.oversize_requests += 1;
                    let InBody { open, rest } = *body;
                    self.give(cx, open, &rest, Flags::TRUNCATED);
                    return (State::Skip(rest), taken);
                }
                (State::Body(body), taken)
            }
            Step::End(_) => {
                let InBody { open, rest } = *body;
                self.give(cx, open, &rest, Flags::empty());
                (self.boundary(), taken)
            }
            Step::Bad(_) => {
                let InBody { mut open, rest } = *body;
                open.verdict.disputed = true;
                if let Rest::Chunked { coding, .. } = &rest {
                    let sound = usize::try_from(coding.sound()).unwrap_or(usize::MAX);
                    open.building
                        .raw
                        .truncate(open.head_end.saturating_add(sound));
                }
                self.give(cx, open, &rest, Flags::TRUNCATED);
                self.behind(cx, rest, step, bytes, origin)
            }
        }
    }

    /// There is no room for the rest of a body: what is there is given, the rest is passed over.
    fn shed(&mut self, cx: &mut Context<'_>, open: Open, rest: Rest) -> State {
        cx.counters.shed_requests += 1;
        self.give(cx, open, &rest, Flags::TRUNCATED);
        State::Skip(rest)
    }

    fn skip(
        &mut self,
        cx: &mut Context<'_>,
        mut rest: Rest,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        // Bytes in doubt are counted once it is known what they are.
        let before = rest.doubtful();
        let step = rest.feed(bytes);
        let (taken, after) = match step {
            Step::More => (bytes.len(), rest.doubtful()),
            Step::End(at) => (at, 0),
            Step::Bad(at) => (at, rest.doubtful()),
        };
        cx.counters.skipped_bytes += (before + taken).saturating_sub(after) as u64;
        self.behind(cx, rest, step, bytes, origin)
    }

    /// The state after a piece of a body whose request was given.
    fn behind(
        &mut self,
        cx: &mut Context<'_>,
        rest: Rest,
        step: Step,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        match (step, rest) {
            (Step::More, mut rest) => {
                rest.read_along(cx, bytes, origin);
                (State::Skip(rest), bytes.len())
            }
            (Step::End(at), _) => (self.boundary(), at),
            (Step::Bad(at), Rest::Length(_)) => (self.lose(cx), at),
            (Step::Bad(at), Rest::Chunked { coding, mut search }) => {
                self.disputed = true;
                // What is in doubt is looked through again: it may be the beginning of a request line.
                let doubtful = coding.doubtful().unwrap_or(0);
                if doubtful <= at {
                    search.reset();
                }
                let earlier = doubtful.saturating_sub(at) as u64;
                cx.counters.skipped_bytes += earlier.saturating_sub(search.pending());
                (self.lose_into(cx, search), at.saturating_sub(doubtful))
            }
        }
    }

    fn pass_gap(&mut self, cx: &mut Context<'_>, rest: Rest, len: u64) -> State {
        match rest {
            Rest::Length(left) if len == left => self.boundary(),
            Rest::Length(left) if len < left => State::Skip(Rest::Length(left - len)),
            Rest::Chunked { mut coding, search } => {
                if coding.gap(len) {
                    State::Skip(Rest::Chunked { coding, search })
                } else {
                    self.lose(cx)
                }
            }
            Rest::Length(_) => self.lose(cx),
        }
    }

    fn search(
        &mut self,
        cx: &mut Context<'_>,
        mut search: Search,
        seen: u64,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        if !self.spoke_http && origin.segment_start {
            if looks_like_status(bytes) {
                return (State::Opaque(PacketOutcome::Response), bytes.len());
            }
            if seen == 0 && matches!(bytes, [0x14..=0x17, 0x03, 0..=4, ..]) {
                return (State::Opaque(PacketOutcome::Tls), bytes.len());
            }
        }
        let before = search.pending();
        let max = cx.search_max(&search, bytes.len());
        let found = search.feed(bytes, origin, max);
        let (taken, kept) = match &found {
            Some(found) => (found.used, found.line.len() as u64),
            None => (bytes.len(), search.pending()),
        };
        cx.counters.skipped_bytes += (before + taken as u64).saturating_sub(kept);
        if let Some(found) = found {
            let mut flags = Flags::empty();
            if self.lost {
                cx.counters.resyncs += 1;
                flags |= Flags::RESYNCED;
            }
            flags.set(Flags::AMBIGUOUS, found.conflict);
            let building = Building {
                ts: found.ts,
                raw: found.line,
                flags,
            };
            return (State::Head(building, HeadScan::new(false)), found.used);
        }
        let seen = seen.saturating_add(bytes.len() as u64);
        if seen > cx.options.max_search {
            return (State::Opaque(PacketOutcome::NotHttp), bytes.len());
        }
        (State::Search { search, seen }, bytes.len())
    }

    /// Hands a request on.
    fn give(&mut self, cx: &mut Context<'_>, open: Open, rest: &Rest, how: Flags) {
        let verdict = open.verdict;
        let mut request = open.finish(cx, rest, self.proxied);
        self.disputed |= verdict.disputed || rest.odd();
        request.flags |= how;
        request.flags.set(Flags::MIDSTREAM, self.midstream);
        request.flags.set(Flags::DISPUTED, self.disputed);
        // A reader that believes the client stops here: what follows exists for some and not for others.
        self.disputed |= verdict.closes;
        self.spoke_http = true;
        self.after = if verdict.connect {
            After::Connect
        } else if verdict.upgrade {
            After::Upgrade
        } else {
            After::Request
        };
        cx.counters.requests += 1;
        (cx.out)(request);
    }
}
