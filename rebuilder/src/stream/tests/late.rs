//! More than one reading: late copies, urgent bytes, and what options do not change.

use crate::http::{Extractor, Flags, HttpOptions, Request};
use crate::stream::Compared;
use crate::telemetry::PacketOutcome;

use super::*;

/// The extractor as a sink.
struct Http {
    extractor: Extractor,
    requests: Vec<Request<'static>>,
}

impl Sink for Http {
    fn compare(&mut self, dir: DirectionId, behind: u64, copy: &[u8]) -> Compared {
        self.extractor.compare(dir, behind, copy)
    }

    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        let requests = &mut self.requests;
        self.extractor
            .chunk(dir, ends, chunk, &mut |r| requests.push(r.into_owned()))
    }
}

/// The requests of a client that sends these segments, and what the table counted.
fn requests(segs: &[Seg]) -> (Vec<Request<'static>>, crate::stream::Stats) {
    let mut streams = Streams::new(StreamOptions::default());
    let mut http = Http {
        extractor: Extractor::new(HttpOptions::default()),
        requests: Vec::new(),
    };
    streams.push(&segment(&seg(99, b"").syn(), START), &mut http);
    for s in segs {
        streams.push(&segment(s, START), &mut http);
        streams.check();
    }
    streams.finish(End::Eof, &mut http);
    (http.requests, streams.stats())
}

fn conflicts(segs: &[Seg]) -> u64 {
    requests(segs).1.late_conflicts
}

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123456789";

/// Cuts `POST` at a place.
fn two(at: usize) -> [Seg; 2] {
    let (a, b) = POST.split_at(at);
    [seg(100, a), seg(100 + u32::try_from(at).unwrap(), b)]
}

#[test]
fn a_late_copy_that_disagrees_marks_a_request_that_is_not_complete() {
    // In the head, at its end, in the body.
    for at in [10, 47, 52] {
        let [first, second] = two(at);
        for from in [0, 3] {
            let mut copy = first.clone();
            copy.payload[from + 2] ^= 1;
            copy.payload.drain(..from);
            copy.seq += u32::try_from(from).unwrap();
            let (requests, stats) = requests(&[first.clone(), copy, second.clone()]);
            assert_eq!(requests[0].raw, POST, "the first copy stays");
            assert_eq!(
                requests[0].flags,
                Flags::AMBIGUOUS,
                "cut at {at}, copy from {from}"
            );
            assert_eq!((stats.late_conflicts, stats.conflicting_bytes), (1, 1));
        }
    }
}

#[test]
fn a_late_copy_that_agrees_marks_nothing() {
    for at in [10, 47, 52] {
        let [first, second] = two(at);
        let (requests, stats) = requests(&[
            first.clone(),
            first.clone(),
            seg(103, &first.payload[3..]),
            second.clone(),
            seg(100, POST),
            second.clone(),
            seg(101, &POST[1..5]),
        ]);
        assert_eq!((requests.len(), requests[0].flags), (1, Flags::empty()));
        assert_eq!((stats.late_conflicts, stats.conflicting_bytes), (0, 0));
    }
}

#[test]
fn a_late_copy_over_the_end_of_what_was_given_is_compared_as_far_as_that() {
    let [first, second] = two(20);
    let mut longer = seg(100, &POST[..30]);
    longer.payload[19] ^= 1;
    let (requests, stats) = requests(&[first, longer, second]);
    assert_eq!(requests[0].raw, POST);
    assert_eq!(requests[0].flags, Flags::AMBIGUOUS);
    assert_eq!(stats.conflicting_bytes, 1);
}

/// The classic evasion: a harmless request that the server never takes, then the true one in its place.
#[test]
fn a_late_copy_that_disagrees_with_a_request_that_is_gone_is_counted() {
    let bogus = b"GET /harmless HTTP/1.1\r\nHost: a\r\n\r\n";
    let true_one = b"GET /passwd?? HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(conflicts(&[seg(100, bogus), seg(100, true_one)]), 1);
    assert_eq!(conflicts(&[seg(100, bogus), seg(100, bogus)]), 0);
    // A longer copy covers it.
    let longer = [&true_one[..], b"GET "].concat();
    assert_eq!(conflicts(&[seg(100, bogus), seg(100, &longer)]), 1);
    // The last four segments are remembered.
    let len = u32::try_from(bogus.len()).unwrap();
    let many: Vec<Seg> = (0..5).map(|n| seg(100 + n * len, bogus)).collect();
    for (n, counted) in [(0, 0), (1, 1), (4, 1)] {
        let copy = seg(100 + n * len, true_one);
        assert_eq!(
            conflicts(&[many.clone(), vec![copy]].concat()),
            counted,
            "{n}"
        );
    }
}

#[test]
fn a_copy_of_bytes_that_were_given_up_disagrees_with_nothing() {
    let mut lab = Lab::after_syn(99);
    lab.push(&seg(100, b"ab"));
    lab.push(&seg(105, b"fgh"));
    lab.wait(SECOND + 1);
    assert_eq!(lab.push(&seg(102, b"cde")), PacketOutcome::Duplicate);
    assert_eq!(lab.push(&seg(101, b"bcde")), PacketOutcome::Duplicate);
    assert_eq!(lab.streams.stats().late_conflicts, 0);
    assert_eq!(lab.push(&seg(101, b"bcdexyz")), PacketOutcome::Duplicate);
    assert_eq!(lab.streams.stats().late_conflicts, 1);
}

#[test]
fn the_octet_of_a_keep_alive_probe_is_no_conflict_and_any_other_is() {
    let [first, second] = two(30);
    let probe = |byte: u8| seg(129, &[byte]);
    assert_eq!(conflicts(&[first.clone(), probe(0), second.clone()]), 0);
    let (requests, _) = requests(&[first, probe(b'!'), second]);
    assert_eq!(requests[0].flags, Flags::AMBIGUOUS);
    assert_eq!(requests[0].raw, POST);
}

fn suspects(lab: &Lab) -> Vec<(String, bool)> {
    lab.log()
        .iter()
        .filter_map(|e| match e {
            Event::Data {
                bytes, conflict, ..
            } => Some((String::from_utf8(bytes.clone()).unwrap(), *conflict)),
            _ => None,
        })
        .collect()
}

/// `<scXript>` with an urgent X is `<script>` to a server that does not read urgent data in line.
#[test]
fn an_urgent_byte_stays_in_line_and_is_marked() {
    let mut lab = Lab::after_syn(99);
    lab.push_all(&[
        seg(100, b"<sc"),
        seg(103, b"X").urgent(1),
        seg(104, b"ript>"),
    ]);
    assert_eq!(
        suspects(&lab),
        [
            ("<sc".into(), false),
            ("X".into(), true),
            ("ript>".into(), false)
        ]
    );
}

#[test]
fn an_urgent_pointer_marks_the_segment_that_it_points_into() {
    // Ahead of its byte, on a segment without data, out of order, and zero.
    let cases: [(&[Seg], [bool; 2]); 5] = [
        (
            &[seg(100, b"abc").urgent(5), seg(103, b"def")],
            [false, true],
        ),
        (
            &[seg(100, b"abc").urgent(3), seg(103, b"def")],
            [true, false],
        ),
        (
            &[seg(100, b"").urgent(4), seg(100, b"abc"), seg(103, b"def")],
            [false, true],
        ),
        (
            &[seg(103, b"def").urgent(2), seg(100, b"abc")],
            [false, true],
        ),
        (
            &[seg(100, b"abc").urgent(0), seg(103, b"def")],
            [true, false],
        ),
    ];
    for (segs, want) in cases {
        let mut lab = Lab::after_syn(99);
        lab.push_all(segs);
        let marks: Vec<bool> = suspects(&lab).into_iter().map(|(_, mark)| mark).collect();
        assert_eq!(
            (lab.text().as_str(), &marks[..]),
            ("abcdef", &want[..]),
            "{segs:?}"
        );
    }
}

#[test]
fn an_urgent_pointer_without_its_bit_means_nothing() {
    let mut lab = Lab::after_syn(99);
    let mut s = seg(100, b"abc").urgent(2);
    s.flags -= TcpFlags::URG;
    lab.push(&s);
    assert_eq!(suspects(&lab), [("abc".into(), false)]);
}
