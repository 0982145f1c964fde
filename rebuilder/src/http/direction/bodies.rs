//! Behind a head: the body, what is passed over of it, and the search for the next request line where it breaks.

use super::super::Flags;
use super::super::body::Rest;
use super::super::chunked::Step;
use super::super::context::Context;
use super::super::head::{HeadScan, looks_like_status};
use super::super::open::{Building, Open};
use super::super::search::{Origin, Search};
use super::{Direction, InBody, PREFACE, State, Stepped};
use crate::telemetry::PacketOutcome;

impl Direction {
    pub(super) fn body(
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
                    return (self.give_part(cx, open, rest), taken);
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
    pub(super) fn shed(&mut self, cx: &mut Context<'_>, open: Open, rest: Rest) -> State {
        cx.counters.shed_requests += 1;
        self.give_part(cx, open, rest)
    }

    /// What is there of a request is given, the rest is passed over. Bytes in doubt are not given: what they are is found
    /// out, and counted, later.
    fn give_part(&mut self, cx: &mut Context<'_>, mut open: Open, rest: Rest) -> State {
        let sound = open.building.raw.len().saturating_sub(rest.doubtful());
        open.building.raw.truncate(sound.max(open.head_end));
        self.give(cx, open, &rest, Flags::TRUNCATED);
        State::Skip(rest)
    }

    pub(super) fn skip(
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

    pub(super) fn pass_gap(&mut self, cx: &mut Context<'_>, rest: Rest, len: u64) -> State {
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

    pub(super) fn search(
        &mut self,
        cx: &mut Context<'_>,
        mut search: Search,
        seen: u64,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        if !self.spoke_http && origin.segment_start {
            if looks_like_status(bytes) {
                self.presumed = Some(PacketOutcome::Response);
            } else if seen == 0 && matches!(bytes, [0x14..=0x17, 0x03, 0..=4, ..]) {
                self.presumed = Some(PacketOutcome::Tls);
            }
        }
        let before = search.pending();
        let max = cx.search_max(&search, bytes.len());
        let found = search.feed(bytes, origin, max);
        let (taken, kept) = match &found {
            Some(found) => (found.used, found.line.len() as u64),
            None => (bytes.len(), search.pending()),
        };
        self.pass_over(cx, (before + taken as u64).saturating_sub(kept));
        if let Some(found) = found {
            if max == 0 {
                // There is no room to hold it.
                cx.counters.shed_heads += 1;
                self.pass_over(cx, kept);
                let seen = seen.saturating_add(taken as u64);
                return (State::Search { search, seen }, taken);
            }
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
            // Elsewhere the preface of HTTP/2 lies in a body, and must not end the search: whoever can lose us the framing
            // would choose where.
            let first = !self.lost && seen + taken as u64 == kept;
            if first && PREFACE.starts_with(&building.raw) {
                return (State::Preface(building), found.used);
            }
            // The line is read again, from its beginning, with what follows.
            return (State::Head(building, HeadScan::new(false)), found.used);
        }
        let seen = seen.saturating_add(bytes.len() as u64);
        if seen > cx.options.max_search {
            let outcome = self.presumed.unwrap_or(PacketOutcome::NotHttp);
            return (State::Opaque(outcome), bytes.len());
        }
        (State::Search { search, seen }, bytes.len())
    }
}
