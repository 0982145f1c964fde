//! What holds for every input.

use std::ops::Range;

use proptest::prelude::*;

use super::super::head::{HeadScan, MAX_EMPTY, Reject, Scan, split};
use super::super::plain::plain;
use super::super::wants_hop;
use super::*;

/// A request and, in order, what must be found in it.
#[derive(Clone, Debug)]
struct Sent {
    raw: Vec<u8>,
    line: String,
    body: u64,
    /// Where in `raw` the data of its body stand, chunk framing left out.
    data: Vec<Range<usize>>,
}

fn token() -> impl Strategy<Value = String> {
    "[A-Za-z][A-Za-z0-9-]{0,12}".prop_filter(
        "a field that frames the body is added on purpose",
        |name| {
            ![
                "content-length",
                "transfer-encoding",
                "upgrade",
                "connection",
            ]
            .contains(&name.to_ascii_lowercase().as_str())
        },
    )
}

/// The field that frames a body, the body, the bytes of its data, and where they stand in it.
fn body() -> impl Strategy<Value = (String, Vec<u8>, u64, Vec<Range<usize>>)> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..40);
    let trap = Just(b"\r\n\r\nGET /trap HTTP/1.1\r\nHost: trap\r\n\r\n0\r\n\r\n".to_vec());
    let content = prop_oneof![4 => bytes(), 1 => trap];
    let chunk = (content.clone(), "(;[a-z]{1,5}(=[a-z]{1,5})?)?", "0{0,3}");
    let trailer = "([A-Z][a-z]{0,5}: [a-z]{0,5}\r\n){0,2}";
    prop_oneof![
        Just((String::new(), Vec::new(), 0, Vec::new())),
        content.prop_map(|b| (
            format!("Content-Length: {}\r\n", b.len()),
            b.clone(),
            b.len() as u64,
            std::iter::once(0..b.len()).collect(),
        )),
        (prop::collection::vec(chunk, 0..4), trailer).prop_map(|(chunks, trailer)| {
            let mut raw = Vec::new();
            let mut len = 0;
            let mut ranges = Vec::new();
            for (data, extension, zeros) in chunks.iter().filter(|c| !c.0.is_empty()) {
                raw.extend(format!("{zeros}{:X}{extension}\r\n", data.len()).into_bytes());
                ranges.push(raw.len()..raw.len() + data.len());
                raw.extend(data);
                raw.extend(b"\r\n");
                len += data.len() as u64;
            }
            raw.extend(format!("0\r\n{trailer}\r\n").into_bytes());
            (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                raw,
                len,
                ranges,
            )
        }),
    ]
}

fn sent() -> impl Strategy<Value = Sent> {
    let fields = prop::collection::vec((token(), "[ -~]{0,20}"), 0..5);
    (
        "(\r\n){0,2}",
        "(GET|POST|PUT|M-SEARCH)",
        "/[!-~]{0,20}",
        fields,
        body(),
    )
        .prop_map(
            |(before, method, target, fields, (framing, body, len, ranges))| {
                let mut raw = format!("{before}{method} {target} HTTP/1.1\r\n").into_bytes();
                for (name, value) in fields {
                    raw.extend(format!("{name}: {value}\r\n").into_bytes());
                }
                raw.extend(format!("{framing}\r\n").into_bytes());
                let data = ranges
                    .into_iter()
                    .map(|r| raw.len() + r.start..raw.len() + r.end)
                    .collect();
                raw.extend(body);
                Sent {
                    data,
                    raw,
                    line: format!("{method} {target}"),
                    body: len,
                }
            },
        )
}

fn pipeline() -> impl Strategy<Value = Vec<Sent>> {
    prop::collection::vec(sent(), 1..6)
}

fn concat(sent: &[Sent]) -> Vec<u8> {
    sent.iter().flat_map(|s| s.raw.clone()).collect()
}

/// A fraction of a length.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "any place within will do"
)]
fn place(len: usize, fraction: f64) -> usize {
    (fraction * len as f64) as usize
}

/// Bytes cut at these places, each a fraction of the whole.
fn cut(bytes: &[u8], cuts: &[f64]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|c| place(bytes.len(), *c)).collect();
    places.extend([0, bytes.len()]);
    places.sort_unstable();
    places.dedup();
    places
        .windows(2)
        .map(|w| bytes[w[0]..w[1]].to_vec())
        .collect()
}

fn cuts() -> impl Strategy<Value = Vec<f64>> {
    prop_oneof![
        prop::collection::vec(0.0..1.0, 0..12),
        // Every byte alone.
        Just((0..4000).map(|n| f64::from(n) / 4000.0).collect()),
    ]
}

/// All that the bytes decide; the time stamp depends on the segments.
fn same(a: &Outcome, b: &Outcome) -> Result<(), TestCaseError> {
    let view = |outcome: &Outcome| -> Vec<Request<'static>> {
        outcome
            .requests
            .iter()
            .map(|r| Request {
                ts: Timestamp(0),
                ..r.clone()
            })
            .collect()
    };
    prop_assert_eq!(format!("{:?}", view(a)), format!("{:?}", view(b)));
    prop_assert_eq!(a.counters, b.counters);
    prop_assert_eq!(a.interest, b.interest);
    Ok(())
}

#[derive(Clone, Debug)]
enum Mutation {
    Replace(f64, u8),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    Copy(f64, f64, usize),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let place = || 0.0..1.0f64;
    let words = prop::sample::select(vec![
        &b"\r\n"[..],
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\0",
        b"\r\n\r\n",
        b"HTTP/1.1",
        b"GET / HTTP/1.1\r\n\r\n",
        b"Content-Length: 7\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Upgrade: x\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"ffffffffffffffff",
        b"0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\x16\x03\x01",
        b"GET\t/\tHTTP/1.1\r\n",
        b"HTTP/1.10",
        b"Expect: 100-continue\r\n",
        &[b'\n'; 5000],
    ]);
    let one = prop_oneof![
        (place(), any::<u8>()).prop_map(|(p, b)| Mutation::Replace(p, b)),
        (place(), words).prop_map(|(p, w)| Mutation::Insert(p, w.to_vec())),
        (place(), 1..20usize).prop_map(|(p, n)| Mutation::Remove(p, n)),
        (place(), place(), 1..60usize).prop_map(|(p, q, n)| Mutation::Copy(p, q, n)),
    ];
    prop::collection::vec(one, 0..6)
}

fn mutate(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let at = |p: &f64| place(bytes.len(), *p);
        match mutation {
            Mutation::Replace(p, b) => {
                let at = at(p);
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = *b;
                }
            }
            Mutation::Insert(p, w) => {
                let at = at(p);
                bytes.splice(at..at, w.iter().copied());
            }
            Mutation::Remove(p, n) => {
                let at = at(p);
                let end = (at + n).min(bytes.len());
                bytes.drain(at..end);
            }
            Mutation::Copy(p, q, n) => {
                let (from, to) = (at(p), at(q));
                let copy = bytes[from..(from + n).min(bytes.len())].to_vec();
                bytes.splice(to..to, copy);
            }
        }
    }
    bytes
}

/// Whether each request's bytes stand in a run of bytes without a gap, in order and apart from each other.
fn each_stands_in_the_input(requests: &[Request], runs: &[Vec<u8>]) -> bool {
    let mut run = 0;
    let mut from = 0;
    requests.iter().all(|request| {
        while let Some(bytes) = runs.get(run) {
            let rest = &bytes[from..];
            if let Some(at) = rest
                .windows(request.raw.len())
                .position(|w| w == &*request.raw)
            {
                from += at + request.raw.len();
                return true;
            }
            run += 1;
            from = 0;
        }
        false
    })
}

proptest! {
    #[test]
    fn what_was_sent_is_what_is_found_however_it_is_cut(sent in pipeline(), cuts in cuts()) {
        let bytes = concat(&sent);
        let events: Vec<Event> = cut(&bytes, &cuts).into_iter().map(Segment).collect();
        let outcome = run(&events);
        prop_assert_eq!(outcome.requests.len(), sent.len());
        for (request, sent) in outcome.requests.iter().zip(&sent) {
            prop_assert_eq!(&request.raw, &sent.raw);
            prop_assert_eq!(line(request), sent.line.clone());
            prop_assert_eq!(request.body_len, sent.body);
            prop_assert!((request.flags - Flags::SPOOFED).is_empty());
        }
        prop_assert_eq!(outcome.counters.skipped_bytes, 0);
        same(&outcome, &one(&bytes))?;
    }

    #[test]
    fn where_the_bytes_are_cut_changes_nothing_for_damaged_bytes_either(
        sent in pipeline(), mutations in mutations(), cuts in cuts(),
    ) {
        let bytes = mutate(concat(&sent), &mutations);
        prop_assume!(!bytes.is_empty());
        // One captured segment, handed over in pieces: the beginning of a segment is evidence, a cut is not.
        let mut events: Vec<Event> = cut(&bytes, &cuts).into_iter().map(More).collect();
        let first = match &events[0] {
            More(bytes) => Segment(bytes.clone()),
            _ => unreachable!("all are pieces"),
        };
        events[0] = first;
        same(&run(&events), &one(&bytes))?;
    }

    #[test]
    fn no_byte_is_invented_and_none_is_lost_without_a_number(
        sent in pipeline(),
        mutations in mutations(),
        cuts in cuts(),
        gaps in prop::collection::vec((0..40usize, 1..60u64), 0..4),
        midstream in any::<bool>(),
        end in prop::sample::select(vec![End::Fin, End::Reset, End::Idle, End::Eof]),
        tight in any::<bool>(),
    ) {
        let bytes = mutate(concat(&sent), &mutations);
        let mut events = Vec::new();
        let mut runs = vec![Vec::new()];
        for (n, piece) in cut(&bytes, &cuts).into_iter().enumerate() {
            for (_, len) in gaps.iter().filter(|(at, _)| *at == n) {
                events.push(Gap(*len));
                runs.push(Vec::new());
            }
            runs.last_mut().unwrap().extend(&piece);
            events.push(Segment(piece));
        }
        let options = if tight {
            HttpOptions { max_head: 60, max_request: 80, max_search: 100, max_held: 70, ..HttpOptions::default() }
        } else {
            HttpOptions::default()
        };
        let outcome = run_with(options, midstream, &events, end);
        prop_assert!(each_stands_in_the_input(&outcome.requests, &runs), "{:?}", outcome.lines());
        let given: u64 = outcome.requests.iter().map(|r| r.raw.len() as u64).sum();
        let all = bytes.len() as u64;
        if outcome.interest == Interest::Wanted && outcome.counters.proxy_headers == 0 {
            prop_assert_eq!(given + outcome.counters.skipped_bytes, all);
        } else {
            prop_assert!(given <= all);
        }
    }

    /// Rule 3: a gap inside a body of known length, or inside the data of a chunk, keeps the framing. So it costs no
    /// other request, and its own is given up to the first missing byte.
    #[test]
    fn a_gap_inside_the_data_of_bodies_costs_no_other_request(
        sent in pipeline(),
        gaps in prop::collection::vec((any::<prop::sample::Index>(), 0.0..1.0f64, 0.0..=1.0f64), 1..6),
        cuts in cuts(),
    ) {
        let bytes = concat(&sent);
        let mut present = vec![true; bytes.len()];
        let starts: Vec<usize> = sent
            .iter()
            .scan(0, |at, s| Some(std::mem::replace(at, *at + s.raw.len())))
            .collect();
        let data: Vec<Range<usize>> = sent
            .iter()
            .zip(&starts)
            .flat_map(|(s, at)| s.data.iter().map(move |r| at + r.start..at + r.end))
            .filter(|r| !r.is_empty())
            .collect();
        prop_assume!(!data.is_empty());
        for (which, from, part) in gaps {
            let range = which.get(&data);
            let from = range.start + place(range.len(), from).min(range.len() - 1);
            let len = 1 + place(range.end - from - 1, part);
            present[from..from + len].fill(false);
        }
        let mut cut_at: Vec<usize> = cuts.iter().map(|c| place(bytes.len(), *c)).collect();
        cut_at.sort_unstable();
        let mut events = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let same = present[at..].iter().take_while(|p| **p == present[at]).count();
            let end = if present[at] {
                let next = cut_at.iter().find(|c| **c > at).copied().unwrap_or(usize::MAX);
                let end = next.min(at + same);
                events.push(seg(&bytes[at..end]));
                end
            } else {
                events.push(Gap(same as u64));
                at + same
            };
            at = end;
        }
        let outcome = run(&events);
        prop_assert_eq!(outcome.requests.len(), sent.len());
        prop_assert_eq!(outcome.counters.lost_framings, 0);
        let mut skipped = 0;
        for ((request, sent), at) in outcome.requests.iter().zip(&sent).zip(starts) {
            let there = &present[at..at + sent.raw.len()];
            let whole = there.iter().take_while(|p| **p).count();
            prop_assert_eq!(&request.raw[..], &sent.raw[..whole]);
            prop_assert_eq!(request.flags.contains(Flags::TRUNCATED), whole < sent.raw.len());
            prop_assert!((request.flags - Flags::SPOOFED - Flags::TRUNCATED).is_empty());
            skipped += there[whole..].iter().filter(|p| **p).count() as u64;
        }
        prop_assert_eq!(outcome.counters.skipped_bytes, skipped);
    }

    #[test]
    fn what_the_fast_path_takes_the_full_one_takes_and_alike(sent in sent(), mutations in mutations()) {
        let bytes = mutate(sent.raw, &mutations);
        let Some((head, len)) = plain(&bytes) else {
            return Ok(());
        };
        for cut in 0..len {
            prop_assert_eq!(plain(&bytes[..cut]), None);
        }
        let mut scan = HeadScan::new(false);
        prop_assert_eq!(scan.scan(&bytes, usize::MAX), Scan::Complete(len));
        prop_assert_eq!(scan.line_start(), 0);
        prop_assert_eq!(split(&bytes[..len], 0), Some(head));
    }

    #[test]
    fn hop_is_set_where_the_forward_stage_would_rewrite(
        line in "(GET|PUT) / HTTP/1\\.[01]\r\n",
        lists in prop::collection::vec(
            ("(Connection|CONNECTION |connection|Connections)", "(close|Keep-Alive|CLOSE|x|, ){0,3}"),
            0..3,
        ),
    ) {
        let mut raw = line.into_bytes();
        for (name, value) in lists {
            raw.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        raw.extend(b"\r\n");
        let outcome = one(&raw);
        let request = outcome.only();
        prop_assert_eq!(request.flags.contains(Flags::HOP), wants_hop(request));
    }

    #[test]
    fn wherever_httparse_accepts_a_head_so_do_we_and_alike(sent in sent(), mutations in mutations()) {
        let bytes = mutate(sent.raw, &mutations);
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut theirs = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = theirs.parse(&bytes) else {
            return Ok(());
        };
        let empty = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        let mut scan = HeadScan::new(false);
        if empty > MAX_EMPTY {
            // They take any number of empty lines; here the head is found behind those that are passed over.
            prop_assert_eq!(scan.scan(&bytes, usize::MAX), Scan::Reject(Reject::Flood));
            return Ok(());
        }
        prop_assert_eq!(scan.scan(&bytes, usize::MAX), Scan::Complete(len));
        let ours = split(&bytes[..len], scan.line_start()).unwrap();
        prop_assert_eq!(&bytes[ours.method], theirs.method.unwrap().as_bytes());
        prop_assert_eq!(&bytes[ours.target], theirs.path.unwrap().as_bytes());
        prop_assert_eq!(ours.version, (1, theirs.version.unwrap()));
        let list: Vec<(&[u8], &[u8])> = ours
            .headers
            .iter()
            .map(|h| (&bytes[h.name.clone()], &bytes[h.value.clone().unwrap()]))
            .collect();
        let expected: Vec<(&[u8], &[u8])> =
            theirs.headers.iter().map(|h| (h.name.as_bytes(), h.value)).collect();
        prop_assert_eq!(list, expected);
    }
}

/// Bytes that drip in one by one, in every state that a direction can be in. Quadratic work over 128 KiB would be minutes
/// in a debug build. `MIRRORFLEET_DRIP_MB=20` makes the body as long (and takes 2 GB).
#[test]
fn one_byte_segments_cost_no_more_than_their_number() {
    let megabytes: usize =
        std::env::var("MIRRORFLEET_DRIP_MB").map_or(1, |mb| mb.parse().expect("a number"));
    let head = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(128_000));
    let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "a:\r\n".repeat(32_000));
    let body = format!(
        "POST / HTTP/1.1\r\nContent-Length: {0}\r\n\r\n{1}",
        megabytes << 20,
        "x".repeat(megabytes << 20)
    );
    let chunked = format!(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n",
        "1;a\r\nx\r\n".repeat(16_000)
    );
    let trailers = format!(
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n",
        "A: b\r\n".repeat(20_000)
    );
    let empty = format!("{}GET / HTTP/1.1\r\n\r\n", "\r\n".repeat(64_000));
    let proxy = format!(
        "\r\n\r\n\0\r\nQUIT\n\x21\x00\x7f\x7f{}GET / HTTP/1.1\r\n\r\n",
        "x".repeat(0x7f7f)
    );
    let token = "a".repeat(128_000);
    let spaces = "a ".repeat(64_000);
    for (name, midstream, requests, text) in [
        ("head", false, 1, head),
        ("fields", false, 1, fields),
        ("body", false, 1, body),
        ("chunked", false, 1, chunked),
        ("trailers", false, 1, trailers),
        ("empty", false, 1, empty),
        ("proxy", false, 1, proxy),
        ("token", true, 0, token),
        ("spaces", true, 0, spaces),
    ] {
        let events: Vec<Event> = text.bytes().map(|b| seg([b])).collect();
        let began = std::time::Instant::now();
        let outcome = run_with(HttpOptions::default(), midstream, &events, End::Fin);
        let took = began.elapsed();
        eprintln!("{name}: {} segments of one byte in {took:?}", events.len());
        assert_eq!(outcome.requests.len(), requests, "{name}");
        assert!(
            took.as_secs() < 5 + 3 * megabytes as u64,
            "{name}: {took:?}"
        );
    }
}
