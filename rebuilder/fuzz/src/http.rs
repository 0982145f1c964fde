//! The bytes of one direction through the extractor, and each request on through what is forwarded of it.

use std::ops::Range;

use rebuilder::http::{Extractor, Flags, Framing, HttpCounters, HttpOptions, Request, write_json};
use rebuilder::stream::{Chunk, DirectionId, End, Endpoints, Interest};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::forwarded;
use crate::input::Input;

/// A piece of a direction.
pub(crate) enum Piece {
    /// These bytes of the input; whether a segment began there.
    Data(Range<usize>, bool),
    /// So many bytes never came.
    Gap(u64),
}

/// What came of a direction.
pub(crate) struct Outcome {
    pub(crate) requests: Vec<Request<'static>>,
    pub(crate) counters: HttpCounters,
    pub(crate) interest: Interest,
}

/// Random numbers that the input decides (Marsaglia's xorshift, seeded by an FNV-1a hash): where raw bytes are cut.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn of(data: &[u8]) -> Self {
        let hash = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Self(hash | 1)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap_or(0) % n.max(1)
    }

    /// `len` bytes in up to `n` pieces.
    pub(crate) fn cut(&mut self, len: usize, n: usize) -> Vec<Range<usize>> {
        let mut places: Vec<usize> = (0..n).map(|_| self.below(len + 1)).collect();
        places.extend([0, len]);
        places.sort_unstable();
        places.dedup();
        places.windows(2).map(|w| w[0]..w[1]).collect()
    }
}

pub(crate) fn ends() -> Endpoints {
    Endpoints {
        vni: None,
        src: ([192, 0, 2, 7], 40_000).into(),
        dst: ([10, 0, 0, 2], 80).into(),
    }
}

/// Runs one direction and holds it to what is true of every one.
pub(crate) fn run(
    data: &[u8],
    pieces: &[Piece],
    options: &HttpOptions,
    midstream: bool,
    end: End,
) -> Outcome {
    let mut extractor = Extractor::new(options.clone());
    let mut requests = Vec::new();
    let mut out = |request: Request<'_>| requests.push(request.into_owned());
    let (dir, ends) = (DirectionId::new(1, 1), ends());
    extractor.chunk(dir, &ends, Chunk::Open { midstream }, &mut out);
    let mut interest = Interest::Wanted;
    for (n, piece) in (1..).zip(pieces) {
        let chunk = match piece {
            Piece::Data(range, segment_start) => Chunk::Data {
                bytes: &data[range.clone()],
                ts: Timestamp(n),
                segment_start: *segment_start,
                conflict: false,
            },
            Piece::Gap(len) => Chunk::Gap { len: *len },
        };
        interest = extractor.chunk(dir, &ends, chunk, &mut out);
        assert!(extractor.held_bytes() <= options.max_held);
        if let Interest::Opaque(outcome) | Interest::Presumed(outcome) = interest {
            let known = [
                PacketOutcome::Response,
                PacketOutcome::Tls,
                PacketOutcome::Http2,
                PacketOutcome::NotHttp,
                PacketOutcome::Tunnel,
            ];
            assert!(known.contains(&outcome), "{outcome}");
        }
    }
    extractor.chunk(dir, &ends, Chunk::Closed(end), &mut out);
    assert_eq!(extractor.held_bytes(), 0, "a closed direction holds bytes");
    let counters = extractor.counters();
    assert_eq!(counters.requests, requests.len() as u64);
    requests.iter().for_each(check);
    Outcome {
        requests,
        counters,
        interest,
    }
}

/// The request's ranges lie where they must, and its parts are what the bytes say.
fn check(request: &Request) {
    let len = request.raw.len();
    let head_end = request.head_end;
    assert!(request.line_start <= request.method.start);
    assert!(request.method.start < request.method.end);
    assert!(request.method.end < request.target.start && request.target.end < head_end);
    assert!(head_end <= request.last_whole_chunk_end && request.last_whole_chunk_end <= len);
    assert!(request.body_len <= (len - head_end) as u64);
    assert!(request.raw[..head_end].ends_with(b"\n"));
    let token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    assert!(request.bytes(&request.method).iter().all(token));
    let mut at = request.target.end;
    for header in &request.headers {
        assert!(at < header.name.start + 1 && header.name.start <= header.name.end);
        at = header.name.end;
        if let Some(value) = &header.value {
            assert!(at < value.start && value.start <= value.end);
            at = value.end;
        }
        assert!(at < head_end);
    }
    let damaged = request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED);
    match request.framing {
        Framing::None => assert!(!damaged && len == head_end),
        Framing::Length(n) => {
            assert_eq!(request.body_len, (len - head_end) as u64);
            assert!(request.body_len == n || (damaged && request.body_len < n));
        }
        Framing::Chunked => {}
    }
}

/// The requests stand in the runs between gaps, in order and apart from each other.
pub(crate) fn assert_found_in(requests: &[Request], runs: &[Vec<u8>]) {
    let (mut run, mut from) = (0, 0);
    for request in requests {
        loop {
            let Some(bytes) = runs.get(run) else {
                panic!(
                    "bytes were invented: {:?}",
                    String::from_utf8_lossy(&request.raw)
                );
            };
            if let Some(at) = memchr::memmem::find(&bytes[from..], &request.raw) {
                from += at + request.raw.len();
                break;
            }
            (run, from) = (run + 1, 0);
        }
    }
}

/// All that the bytes decide; time stamps are a matter of the segments.
fn view(outcome: &Outcome) -> (Vec<Request<'static>>, HttpCounters, Interest) {
    let requests = outcome.requests.iter().map(|request| Request {
        ts: Timestamp(0),
        ..request.clone()
    });
    (requests.collect(), outcome.counters, outcome.interest)
}

/// Raw bytes as what a client sent.
///
/// Asserts: the same requests however the bytes are cut; each request's ranges and framing agree with its bytes; the
/// requests are pieces of the input, in order, and of a whole input each byte stands in a request or is counted as
/// skipped, with and without gaps, under generous and tight caps; what is held never exceeds the cap; of what is
/// forwarded, see `forwarded.rs`.
pub fn http(data: &[u8]) {
    each_way(data, &HttpOptions::default());
}

/// The same with requests that are built and then damaged.
pub fn http_built(data: &[u8]) {
    let mut input = Input::new(data);
    let bytes = crate::requests::build(&mut input, 200 << 10);
    each_way(&bytes, &HttpOptions::default());
}

pub(crate) fn each_way(data: &[u8], options: &HttpOptions) {
    if data.is_empty() {
        return;
    }
    let mut dice = Dice::of(data);
    let whole = run(
        data,
        &[Piece::Data(0..data.len(), true)],
        options,
        false,
        End::Fin,
    );
    account(data, &whole);
    assert_found_in(&whole.requests, &[data.to_vec()]);

    // The beginning of a segment is evidence, a cut is not.
    let count = [1, 3, 40, 4000][dice.below(4)];
    let cut = dice.cut(data.len(), count);
    let pieces: Vec<Piece> = cut
        .into_iter()
        .map(|range| Piece::Data(range.clone(), range.start == 0))
        .collect();
    let again = run(data, &pieces, options, false, End::Fin);
    assert_eq!(
        format!("{:?}", view(&whole)),
        format!("{:?}", view(&again)),
        "where the bytes are cut matters"
    );

    // In segments, with gaps, from anywhere, under caps that are reached.
    let tight = dice.below(2) == 0;
    let options = if tight {
        HttpOptions {
            max_head: 60,
            max_request: 80,
            max_search: 100,
            max_held: 70,
            ..options.clone()
        }
    } else {
        options.clone()
    };
    let mut pieces = Vec::new();
    let mut runs = vec![Vec::new()];
    let count = dice.below(12);
    for range in dice.cut(data.len(), count) {
        if dice.below(4) == 0 {
            pieces.push(Piece::Gap(1 + dice.below(200) as u64));
            runs.push(Vec::new());
        }
        if let Some(run) = runs.last_mut() {
            run.extend(&data[range.clone()]);
        }
        pieces.push(Piece::Data(range, true));
    }
    let end = [End::Fin, End::Reset, End::Idle, End::Eof][dice.below(4)];
    let midstream = dice.below(3) == 0;
    let damaged = run(data, &pieces, &options, midstream, end);
    assert_found_in(&damaged.requests, &runs);
    if tight {
        let given: usize = damaged.requests.iter().map(|r| r.raw.len()).sum();
        assert!(given <= data.len());
    } else {
        account(data, &damaged);
    }

    for request in whole.requests.iter().chain(&damaged.requests) {
        forwarded::check(request);
        assert_one_line(request);
    }
}

/// The row of `inspect --json` is one JSON object on one line.
fn assert_one_line(request: &Request) {
    let mut row = Vec::new();
    assert!(write_json(request, &mut row).is_ok());
    let line = row.strip_suffix(b"\n").unwrap_or_default();
    assert!(!line.is_empty() && !line.contains(&b'\n'));
    let parsed: Result<serde_json::Value, _> = serde_json::from_slice(line);
    let body_len = parsed.ok().and_then(|row| row.get("body_len")?.as_u64());
    assert_eq!(body_len, Some(request.body_len));
}

/// No byte is lost without a number.
fn account(data: &[u8], outcome: &Outcome) {
    let given: u64 = outcome.requests.iter().map(|r| r.raw.len() as u64).sum();
    let all = data.len() as u64;
    if outcome.interest == Interest::Wanted && outcome.counters.proxy_headers == 0 {
        assert_eq!(
            given + outcome.counters.skipped_bytes,
            all,
            "{:?}",
            outcome.counters
        );
    } else {
        assert!(given <= all);
    }
}
