//! At a message boundary: a PROXY header, a head, or what is neither.

use std::mem;

use super::super::body::Rest;
use super::super::chunked::Chunked;
use super::super::context::Context;
use super::super::framing::judge;
use super::super::head::{HeadScan, MAX_EMPTY, Reject, Scan, split};
use super::super::open::{Building, Open};
use super::super::plain::plain;
use super::super::proxy::{self, Preamble};
use super::super::search::{Origin, Search};
use super::super::{Flags, Framing};
use super::{After, Direction, InBody, PREFACE, State, Stepped};
use crate::telemetry::PacketOutcome;

impl Direction {
    pub(super) fn preamble(
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
            Preamble::Absent if held == 0 => self.preface(cx, Building::default(), bytes, origin),
            Preamble::Absent => {
                // What was held is read again as what it is: there may be a whole head in it, and more behind that.
                let next = State::Preface(Building::default());
                (self.read_again(cx, next, &building), 0)
            }
            Preamble::Header { len, source } => {
                cx.counters.proxy_headers += 1;
                let from = &cx.options.proxy_from;
                let peer = cx.ends.src.ip();
                let believed = from.is_empty() || from.iter().any(|net| net.contains(peer));
                self.proxied = source.filter(|_| believed);
                let next = State::Preface(Building::default());
                (next, len.saturating_sub(held))
            }
        }
    }

    /// Where HTTP/2 may begin: at the beginning of a connection, and where an `Upgrade` may have taken. All of the preface
    /// must be there; its first line alone is a request line like others, and hides nothing.
    pub(super) fn preface(
        &mut self,
        cx: &mut Context<'_>,
        mut building: Building,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        let held = building.raw.len();
        let missing = PREFACE.get(held..).unwrap_or_default();
        let agreeing = bytes
            .iter()
            .zip(missing)
            .take_while(|(a, b)| a == b)
            .count();
        if agreeing == missing.len() {
            if self.midstream && !self.spoke_http {
                // The first bytes that were seen, but perhaps of a body.
                self.presumed = Some(PacketOutcome::Http2);
                self.pass_over(cx, PREFACE.len() as u64);
                let seen = PREFACE.len() as u64;
                let search = Search::default();
                return (State::Search { search, seen }, agreeing);
            }
            return (State::Opaque(PacketOutcome::Http2), bytes.len());
        }
        if agreeing < bytes.len() && held == 0 {
            return self.head(cx, building, HeadScan::new(false), bytes, origin);
        }
        if agreeing < bytes.len() {
            return (self.no_preface(cx, &building), 0);
        }
        if !cx.admit(&mut building.raw, bytes.len(), PREFACE.len()) {
            return self.shed_head(cx, held, bytes);
        }
        building.touch(origin);
        building.raw.extend_from_slice(bytes);
        (State::Preface(building), bytes.len())
    }

    /// What was held as a preface is none: a head, or a part of one, with perhaps something behind it.
    pub(super) fn no_preface(&mut self, cx: &mut Context<'_>, held: &Building) -> State {
        let building = Building {
            flags: held.flags,
            ..Building::default()
        };
        let next = State::Head(building, HeadScan::new(false));
        self.read_again(cx, next, held)
    }

    /// Reads what was held as what it is: there may be a whole head in it, and more behind that. Gives the state behind it.
    fn read_again(&mut self, cx: &mut Context<'_>, from: State, held: &Building) -> State {
        self.state = from;
        let origin = Origin {
            ts: held.ts,
            segment_start: true,
            conflict: held.flags.contains(Flags::AMBIGUOUS),
        };
        self.data(cx, &held.raw, origin);
        mem::replace(&mut self.state, State::Opaque(PacketOutcome::NotHttp))
    }

    /// There is no room for the rest of a head.
    fn shed_head(&mut self, cx: &mut Context<'_>, held: usize, bytes: &[u8]) -> Stepped {
        cx.counters.shed_heads += 1;
        cx.counters.skipped_bytes += (held + bytes.len()) as u64;
        (self.lose_head(cx), bytes.len())
    }

    /// A head is given up; what a boundary meant is not known any more.
    pub(super) fn lose_head(&mut self, cx: &mut Context<'_>) -> State {
        if self.after == After::Connect {
            State::Opaque(PacketOutcome::Tunnel)
        } else {
            self.lose(cx)
        }
    }

    pub(super) fn head(
        &mut self,
        cx: &mut Context<'_>,
        mut building: Building,
        mut scan: HeadScan,
        bytes: &[u8],
        origin: Origin,
    ) -> Stepped {
        building.touch(origin);
        let held = building.raw.len();
        if held == 0 && scan.fresh() {
            let longest = bytes.get(..cx.options.max_head).unwrap_or(bytes);
            if let Some((head, end)) = plain(longest) {
                let open = Open {
                    building,
                    line_start: 0,
                    head_end: end,
                    verdict: judge(bytes, &head),
                    head: Some(head),
                };
                return self.headed(cx, open, bytes, end);
            }
        }
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
            Scan::Reject(Reject::Flood) => {
                // Always the same number of bytes, so that it does not matter how they were cut.
                cx.counters.skipped_bytes += MAX_EMPTY as u64;
                self.disputed = true;
                // What is held is no more than that, or it would have been found before.
                let used = MAX_EMPTY.saturating_sub(held);
                (self.boundary(), used)
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
                let head = data.get(..end).and_then(|head| split(head, line_start));
                let Some(head) = head else {
                    cx.counters.skipped_bytes += held as u64;
                    return (self.reject(cx, Reject::Garbage), 0);
                };
                let verdict = judge(data, &head);
                if held > 0 {
                    building.raw.truncate(end);
                }
                let open = Open {
                    building,
                    line_start,
                    head_end: end,
                    head: Some(head),
                    verdict,
                };
                self.headed(cx, open, bytes, end.saturating_sub(held))
            }
        }
    }

    /// Behind a head, which ends with the first `used` of `bytes`. It is held, or all of it lies in these.
    fn headed(
        &mut self,
        cx: &mut Context<'_>,
        mut open: Open,
        bytes: &[u8],
        used: usize,
    ) -> Stepped {
        let framing = open.verdict.framing;
        let mut admitted = true;
        if open.building.raw.is_empty() {
            let body = match framing {
                Framing::None => Some(0),
                Framing::Length(length) => usize::try_from(length).ok(),
                Framing::Chunked => None,
            };
            let whole = body
                .and_then(|body| used.checked_add(body))
                .filter(|len| *len <= cx.options.max_request)
                .and_then(|len| bytes.get(..len));
            if let Some(whole) = whole {
                // As most requests come. It is handed on where it lies, and never held.
                let rest = Rest::Length(0);
                self.give_bytes(cx, open, Some(whole), &rest, Flags::empty());
                return (self.boundary(), whole.len());
            }
            let raw = &mut open.building.raw;
            admitted = cx.admit(raw, used, used);
            raw.extend_from_slice(bytes.get(..used).unwrap_or_default());
        }
        let rest = match framing {
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

    /// Bytes at a boundary are no request.
    fn reject(&mut self, cx: &mut Context<'_>, reject: Reject) -> State {
        let outcome = match (self.after, reject) {
            (After::Connect, _) | (_, Reject::NotConnect) => PacketOutcome::Tunnel,
            (After::Upgrade, Reject::Status | Reject::Tls | Reject::Garbage | Reject::Nearly) => {
                PacketOutcome::Tunnel
            }
            (_, Reject::TooLong) => {
                cx.counters.oversize_heads += 1;
                self.spoke_http = true;
                return self.lose(cx);
            }
            (_, Reject::Nearly) => {
                self.disputed = true;
                return self.lose(cx);
            }
            _ if self.spoke_http => {
                // Whoever sent them frames what came before differently, or does not care.
                self.disputed = true;
                return self.lose(cx);
            }
            (_, Reject::Status) => PacketOutcome::Response,
            (_, Reject::Tls) => PacketOutcome::Tls,
            (_, Reject::Garbage | Reject::Flood) => PacketOutcome::NotHttp,
        };
        State::Opaque(outcome)
    }
}
