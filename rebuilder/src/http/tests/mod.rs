//! Tests of the extraction as a whole: chunks in, requests out.

mod chunks;
mod client;
mod damage;
mod framing;
mod heads;
mod health_check;
mod llhttp;
mod plain;
mod preface;
mod properties;
mod proxy;
mod row;
mod table;
mod upgrade;

use super::{Extractor, Flags, HttpCounters, HttpOptions, Request};
use crate::stream::{Chunk, DirectionId, End, Endpoints, Interest};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

/// One thing that the stream stage tells about a direction.
#[derive(Clone, Debug)]
enum Event {
    /// A segment of its own.
    Segment(Vec<u8>),
    /// Bytes behind those of the event before, in the same segment.
    More(Vec<u8>),
    /// A segment of which two copies disagreed.
    Conflict(Vec<u8>),
    Gap(u64),
}

use Event::{Conflict, Gap, More, Segment};

fn seg(bytes: impl AsRef<[u8]>) -> Event {
    Segment(bytes.as_ref().to_vec())
}

/// What came of a direction.
struct Outcome {
    requests: Vec<Request<'static>>,
    counters: HttpCounters,
    /// After the last event before the end.
    interest: Interest,
}

impl Outcome {
    fn only(&self) -> &Request<'_> {
        assert_eq!(self.requests.len(), 1, "{:?}", self.lines());
        &self.requests[0]
    }

    /// Method and target of each.
    fn lines(&self) -> Vec<String> {
        self.requests.iter().map(line).collect()
    }

    fn flags(&self) -> Vec<Flags> {
        self.requests.iter().map(|r| r.flags).collect()
    }
}

fn line(request: &Request) -> String {
    let text = |range| String::from_utf8_lossy(request.bytes(range)).into_owned();
    format!("{} {}", text(&request.method), text(&request.target))
}

fn ends() -> Endpoints {
    Endpoints {
        vni: None,
        src: "192.0.2.7:40000".parse().unwrap(),
        dst: "10.0.0.2:80".parse().unwrap(),
    }
}

/// Runs one direction. The n-th event carries time stamp n, counted from 1.
fn run_with(options: HttpOptions, midstream: bool, events: &[Event], end: End) -> Outcome {
    let cap = options.max_held;
    let mut extractor = Extractor::new(options);
    let mut requests = Vec::new();
    let mut out = |request: Request<'_>| requests.push(request.into_owned());
    let dir = DirectionId::new(1, 1);
    let ends = ends();
    extractor.chunk(dir, &ends, Chunk::Open { midstream }, &mut out);
    let mut interest = Interest::Wanted;
    for (n, event) in (1..).zip(events) {
        let data = |bytes, segment_start, conflict| Chunk::Data {
            bytes,
            ts: Timestamp(n),
            segment_start,
            conflict,
        };
        let chunk = match event {
            Segment(bytes) => data(bytes, true, false),
            More(bytes) => data(bytes, false, false),
            Conflict(bytes) => data(bytes, true, true),
            Gap(len) => Chunk::Gap { len: *len },
        };
        interest = extractor.chunk(dir, &ends, chunk, &mut out);
        assert!(extractor.held_bytes() <= cap, "{}", extractor.held_bytes());
    }
    extractor.chunk(dir, &ends, Chunk::Closed(end), &mut out);
    assert_eq!(
        extractor.held_bytes(),
        0,
        "a closed direction holds nothing"
    );
    let counters = extractor.counters();
    assert_eq!(counters.requests, requests.len() as u64);
    for request in &requests {
        check(request);
    }
    Outcome {
        requests,
        counters,
        interest,
    }
}

/// What holds of every request.
fn check(request: &Request) {
    let len = request.raw.len();
    assert!(request.line_start <= request.method.start);
    assert!(request.method.end < request.target.start && request.target.end < request.head_end);
    assert!(
        request.head_end <= request.last_whole_chunk_end && request.last_whole_chunk_end <= len
    );
    assert!(request.body_len <= (len - request.head_end) as u64);
    for header in &request.headers {
        assert!(header.name.start <= header.name.end && header.name.end <= request.head_end);
        if let Some(value) = &header.value {
            assert!(header.name.end < value.start && value.start <= value.end);
            assert!(value.end < request.head_end);
        }
    }
}

/// A connection whose SYN was seen and that the client ended with FIN.
fn run(events: &[Event]) -> Outcome {
    run_with(HttpOptions::default(), false, events, End::Fin)
}

/// The same, in one segment.
fn one(bytes: impl AsRef<[u8]>) -> Outcome {
    run(&[seg(bytes)])
}

fn opaque(outcome: PacketOutcome) -> Interest {
    Interest::Opaque(outcome)
}
