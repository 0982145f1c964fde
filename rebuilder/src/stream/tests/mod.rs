//! Tests of the whole flow table: a sink that holds the table to its promises, and a small language for segments.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::decode::{Segment, Seq, TcpFlags, Vni};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

use super::{Chunk, DirectionId, End, Endpoints, Interest, Sink, StreamOptions, Streams};

mod caps;
mod delivery;
mod ending;
mod frames;
mod gaps;
mod held;
mod late;
mod near;
mod overlap;
mod property;
mod retina;
mod roles;
mod rules;
mod syn;

pub(super) const MS: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1000 * MS;
pub(super) const START: u64 = 1_700_000_000 * SECOND;

/// A chunk that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Open {
        midstream: bool,
    },
    Data {
        bytes: Vec<u8>,
        ts: u64,
        segment_start: bool,
        conflict: bool,
    },
    Gap(u64),
    Closed(End),
}

/// Writes down what it is told, and panics where the order of events is broken.
#[derive(Default)]
pub(super) struct Recorder {
    pub(super) dirs: BTreeMap<DirectionId, (Endpoints, Vec<Event>)>,
    /// Says that a direction is opaque once a chunk holds these bytes.
    pub(super) uninteresting: Option<(Vec<u8>, PacketOutcome)>,
    /// Says that a direction looks like answers where a chunk holds these bytes, and that every other one asks.
    pub(super) answers: Option<Vec<u8>>,
}

impl Sink for Recorder {
    fn asks(&self, _: DirectionId) -> bool {
        self.answers.is_some()
    }

    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        let (first_ends, log) = self.dirs.entry(dir).or_insert_with(|| (*ends, Vec::new()));
        assert_eq!(first_ends, ends, "a direction changed its endpoints");
        assert!(
            !matches!(log.last(), Some(Event::Closed(_))),
            "{dir:?} goes on after Closed"
        );
        let event = match chunk {
            Chunk::Open { midstream } => Event::Open { midstream },
            Chunk::Data {
                bytes,
                ts,
                segment_start,
                conflict,
            } => {
                assert!(!bytes.is_empty(), "empty data");
                Event::Data {
                    bytes: bytes.to_vec(),
                    ts: ts.0,
                    segment_start,
                    conflict,
                }
            }
            Chunk::Gap { len } => {
                assert!(len > 0, "an empty gap");
                Event::Gap(len)
            }
            Chunk::Closed(end) => Event::Closed(end),
        };
        assert_eq!(
            log.is_empty(),
            matches!(event, Event::Open { .. }),
            "{dir:?}: Open comes first and once"
        );
        let interest = match (&self.uninteresting, &event) {
            (Some((mark, outcome)), Event::Data { bytes, .. }) if contains(bytes, mark) => {
                Interest::Opaque(*outcome)
            }
            (_, Event::Data { bytes, .. })
                if self
                    .answers
                    .as_ref()
                    .is_some_and(|mark| contains(bytes, mark)) =>
            {
                Interest::Presumed(PacketOutcome::Response)
            }
            _ => Interest::Wanted,
        };
        log.push(event);
        interest
    }
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

/// The bytes of a direction, a gap written as one `~` a byte.
pub(super) fn text(log: &[Event]) -> Vec<u8> {
    let mut out = Vec::new();
    for event in log {
        match event {
            Event::Data { bytes, .. } => out.extend_from_slice(bytes),
            Event::Gap(len) => out.resize(out.len() + usize::try_from(*len).unwrap(), b'~'),
            Event::Open { .. } | Event::Closed(_) => {}
        }
    }
    out
}

/// A table under test, its sink, and two endpoints.
pub(super) struct Lab {
    pub(super) streams: Streams,
    pub(super) sink: Recorder,
    /// Added to every time.
    pub(super) now: u64,
}

pub(super) const CLIENT: &str = "10.0.0.1:40000";
pub(super) const SERVER: &str = "10.0.0.2:80";

/// A segment to be written down in a test.
#[derive(Clone, Debug)]
pub(super) struct Seg {
    pub(super) src: SocketAddr,
    pub(super) dst: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: Option<u32>,
    pub(super) flags: TcpFlags,
    pub(super) urgent: u16,
    pub(super) payload: Vec<u8>,
    pub(super) cut: u32,
    pub(super) vni: Option<u32>,
}

/// A client's segment.
pub(super) fn seg(seq: u32, payload: &[u8]) -> Seg {
    Seg {
        src: CLIENT.parse().unwrap(),
        dst: SERVER.parse().unwrap(),
        seq,
        ack: None,
        flags: TcpFlags::ACK,
        urgent: 0,
        payload: payload.to_vec(),
        cut: 0,
        vni: None,
    }
}

/// The same from the server.
pub(super) fn reply(seq: u32, payload: &[u8]) -> Seg {
    let seg = seg(seq, payload);
    Seg {
        src: seg.dst,
        dst: seg.src,
        ..seg
    }
}

impl Seg {
    pub(super) fn syn(mut self) -> Self {
        self.flags = (self.flags | TcpFlags::SYN) - TcpFlags::ACK;
        self
    }
    pub(super) fn fin(mut self) -> Self {
        self.flags |= TcpFlags::FIN;
        self
    }
    pub(super) fn rst(mut self) -> Self {
        self.flags |= TcpFlags::RST;
        self
    }
    pub(super) fn ack(mut self, ack: u32) -> Self {
        self.ack = Some(ack);
        self
    }
    pub(super) fn urgent(mut self, pointer: u16) -> Self {
        self.flags |= TcpFlags::URG;
        self.urgent = pointer;
        self
    }
    pub(super) fn cut(mut self, cut: u32) -> Self {
        self.cut = cut;
        self
    }
    pub(super) fn vni(mut self, vni: u32) -> Self {
        self.vni = Some(vni);
        self
    }
    pub(super) fn src(mut self, src: &str) -> Self {
        self.src = src.parse().unwrap();
        self
    }
}

/// The segment at a time.
pub(super) fn segment(s: &Seg, now: u64) -> Segment<'_> {
    Segment {
        ts: Timestamp(now),
        vni: s.vni.map(Vni),
        src: s.src,
        dst: s.dst,
        seq: Seq(s.seq),
        ack: Seq(s.ack.unwrap_or(0)),
        flags: if s.ack.is_some() {
            s.flags | TcpFlags::ACK
        } else {
            s.flags - TcpFlags::ACK
        },
        urgent: s.urgent,
        payload: &s.payload,
        cut: s.cut,
    }
}

impl Lab {
    pub(super) fn new() -> Self {
        Self::with(StreamOptions::default())
    }

    pub(super) fn with(opts: StreamOptions) -> Self {
        Self {
            streams: Streams::new(opts),
            sink: Recorder::default(),
            now: START,
        }
    }

    /// A table that has seen the client's SYN with this initial sequence number.
    pub(super) fn after_syn(isn: u32) -> Self {
        let mut lab = Self::new();
        assert_eq!(lab.push(&seg(isn, b"").syn()), PacketOutcome::Control);
        lab
    }

    /// Pushes a segment at the present time and checks the invariants.
    pub(super) fn push(&mut self, s: &Seg) -> PacketOutcome {
        let outcome = self.push_unchecked(s);
        self.streams.check();
        outcome
    }

    pub(super) fn push_unchecked(&mut self, s: &Seg) -> PacketOutcome {
        let segment = segment(s, self.now);
        self.streams.push(&segment, &mut self.sink)
    }

    /// Pushes segments a microsecond apart.
    pub(super) fn push_all(&mut self, segs: &[Seg]) -> Vec<PacketOutcome> {
        segs.iter()
            .map(|s| {
                self.now += 1000;
                self.push(s)
            })
            .collect()
    }

    pub(super) fn wait(&mut self, ns: u64) {
        self.now += ns;
        self.streams.advance(Timestamp(self.now), &mut self.sink);
        self.streams.check();
    }

    pub(super) fn finish(&mut self) {
        self.streams.finish(End::Eof, &mut self.sink);
        self.streams.check();
        assert_eq!(self.streams.held_bytes(), 0);
        assert_eq!(self.streams.flows(), 0);
        for (dir, (_, log)) in &self.sink.dirs {
            assert!(
                matches!(log.last(), Some(Event::Closed(_))),
                "{dir:?} was not closed"
            );
        }
    }

    /// The events of each direction that a sender had, in order of appearance.
    pub(super) fn logs(&self, src: &str) -> Vec<&[Event]> {
        let src: SocketAddr = src.parse().unwrap();
        self.sink
            .dirs
            .values()
            .filter(|(ends, _)| ends.src == src)
            .map(|(_, log)| log.as_slice())
            .collect()
    }

    /// The events of the client's only direction.
    pub(super) fn log(&self) -> &[Event] {
        let logs = self.logs(CLIENT);
        assert_eq!(logs.len(), 1, "one direction of the client");
        logs[0]
    }

    /// The client's bytes so far.
    pub(super) fn text(&self) -> String {
        String::from_utf8(text(self.log())).unwrap()
    }
}
