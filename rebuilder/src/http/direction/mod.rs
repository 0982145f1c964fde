//! The parser of one direction: which bytes belong to which request.

mod bodies;
mod heads;

use std::mem;
use std::net::IpAddr;

use super::Flags;
use super::body::Rest;
use super::context::Context;
use super::framing::{begins_with_a_request, trailers_frame};
use super::head::HeadScan;
use super::open::{Building, Open};
use super::search::{Origin, Search};
use crate::stream::{Compared, End, Interest};
use crate::telemetry::PacketOutcome;

/// The connection preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

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
    /// Where HTTP/2 may begin: so much of its preface is there.
    Preface(Building),
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
    /// What a direction without a request looks like where its beginning is not known. Whoever sends a body decides how its
    /// segments begin, so it is searched all the same.
    presumed: Option<PacketOutcome>,
    /// Bytes that were passed over meanwhile. They count once a request comes all the same.
    passed: u64,
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
            presumed: None,
            passed: 0,
            disputed: false,
            proxied: None,
            after: After::Request,
            state,
        }
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        match &self.state {
            State::Preamble(building) | State::Preface(building) | State::Head(building, _) => {
                building.raw.capacity()
            }
            State::Body(body) => body.open.building.raw.capacity() + body.rest.held(),
            State::Skip(rest) => rest.held(),
            State::Search { search, .. } => search.held(),
            State::Opaque(_) => 0,
        }
    }

    /// Compares a late copy, which ends `behind` bytes before the next byte, with what is held of a request.
    pub(super) fn compare(&mut self, behind: u64, copy: &[u8]) -> Compared {
        let building = match &mut self.state {
            State::Preamble(building) | State::Preface(building) | State::Head(building, _) => {
                building
            }
            State::Body(body) => &mut body.open.building,
            State::Skip(_) | State::Search { .. } | State::Opaque(_) => return Compared::default(),
        };
        // What is held ends with the last byte that was given.
        let end = usize::try_from(behind)
            .ok()
            .and_then(|behind| building.raw.len().checked_sub(behind))
            .unwrap_or(0);
        let held = copy.len().min(end);
        let ours = building.raw.get(end - held..end).unwrap_or_default();
        let theirs = copy.get(copy.len() - held..).unwrap_or_default();
        let conflicting = if ours == theirs {
            0
        } else {
            building.flags |= Flags::AMBIGUOUS;
            ours.iter().zip(theirs).filter(|(a, b)| a != b).count() as u64
        };
        Compared {
            held: held as u64,
            conflicting,
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
                    State::Preface(building) => self.preface(cx, building, bytes, origin),
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
        self.settle_preface(cx);
        self.state = match mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp)) {
            State::Preamble(building) => {
                cx.counters.skipped_bytes += building.raw.len() as u64;
                self.lose(cx)
            }
            State::Preface(_) => self.lose(cx),
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
                self.pass_over(cx, search.pending());
                search.reset();
                State::Search { search, seen }
            }
            State::Opaque(outcome) => State::Opaque(outcome),
        };
        self.interest()
    }

    /// Nothing more comes.
    pub(super) fn close(&mut self, cx: &mut Context<'_>, end: End) -> Interest {
        self.settle_preface(cx);
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
            State::Search { search, .. } => self.pass_over(cx, search.pending()),
            State::Preface(_) | State::Opaque(_) => {}
        }
        Interest::Wanted
    }

    /// Lets go of what is held, for somebody who holds less.
    pub(super) fn give_way(&mut self, cx: &mut Context<'_>) {
        self.state = match mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp)) {
            State::Preamble(building) | State::Preface(building) | State::Head(building, _) => {
                cx.counters.shed_heads += 1;
                cx.counters.skipped_bytes += building.raw.len() as u64;
                self.lose_head(cx)
            }
            State::Body(body) => {
                let InBody { open, mut rest } = *body;
                rest.forget();
                self.shed(cx, open, rest)
            }
            State::Skip(mut rest) => {
                rest.forget();
                State::Skip(rest)
            }
            State::Search { search, seen } => {
                self.pass_over(cx, search.pending());
                let search = Search::default();
                State::Search { search, seen }
            }
            State::Opaque(outcome) => State::Opaque(outcome),
        };
    }

    /// Notes bytes that stand in no request. Those of a direction that looks like something else wait until a request
    /// comes: as a rule it is something else, its packets have that outcome, and they were nobody's request.
    fn pass_over(&mut self, cx: &mut Context<'_>, bytes: u64) {
        if self.presumed.is_some() {
            self.passed += bytes;
        } else {
            cx.counters.skipped_bytes += bytes;
        }
    }

    fn interest(&self) -> Interest {
        match self.state {
            State::Opaque(outcome) => Interest::Opaque(outcome),
            _ => self.presumed.map_or(Interest::Wanted, Interest::Presumed),
        }
    }

    /// Whether it gave a request.
    pub(super) fn asks(&self) -> bool {
        self.spoke_http
    }

    /// No more of a preface comes.
    fn settle_preface(&mut self, cx: &mut Context<'_>) {
        if let State::Preface(held) = &mut self.state {
            let held = mem::take(held);
            self.state = self.no_preface(cx, &held);
        }
    }

    /// The state at the boundary behind a message.
    fn boundary(&self) -> State {
        let building = Building::default();
        match self.after {
            After::Request => State::Head(building, HeadScan::new(false)),
            After::Connect => State::Head(building, HeadScan::new(true)),
            After::Upgrade => State::Preface(building),
        }
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

    /// Hands a request on whose bytes were collected.
    fn give(&mut self, cx: &mut Context<'_>, open: Open, rest: &Rest, how: Flags) {
        self.give_bytes(cx, open, None, rest, how);
    }

    /// Hands a request on. `whole`: its bytes, where they came in one piece.
    fn give_bytes(
        &mut self,
        cx: &mut Context<'_>,
        open: Open,
        whole: Option<&[u8]>,
        rest: &Rest,
        how: Flags,
    ) {
        let verdict = open.verdict;
        let mut request = open.finish(cx, whole, rest, self.proxied);
        let begins = |from: usize| request.raw.get(from..).unwrap_or_default();
        // Was its body refused, and is this the next request? Framed alike by whoever reads a body.
        let refused =
            verdict.refused || (verdict.expects && begins_with_a_request(begins(request.head_end)));
        self.disputed |= verdict.disputed
            || rest.odd()
            || (how.is_empty()
                && matches!(rest, Rest::Chunked { .. })
                && trailers_frame(begins(request.last_whole_chunk_end)));
        request.flags |= how;
        request.flags.set(Flags::MIDSTREAM, self.midstream);
        request.flags.set(Flags::DISPUTED, self.disputed || refused);
        // A reader that believes the client stops here: what follows exists for some and not for others.
        self.disputed |= verdict.closes;
        self.spoke_http = true;
        self.presumed = None;
        cx.counters.skipped_bytes += mem::take(&mut self.passed);
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
