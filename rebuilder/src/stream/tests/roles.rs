//! Which direction asks and which answers, where their beginning was not seen.

use crate::http::{Extractor, HttpOptions, Request};

use super::*;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n";
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

struct Http {
    extractor: Extractor,
    requests: Vec<Request<'static>>,
}

impl Sink for Http {
    fn asks(&self, dir: DirectionId) -> bool {
        self.extractor.asks(dir)
    }

    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        let requests = &mut self.requests;
        self.extractor
            .chunk(dir, ends, chunk, &mut |r| requests.push(r.into_owned()))
    }
}

/// Pushes segments 100 ms apart. The outcome of each packet, and who sent requests.
fn run(segs: &[Seg]) -> (Vec<PacketOutcome>, Vec<SocketAddr>) {
    let mut streams = Streams::new(StreamOptions::default());
    let mut http = Http {
        extractor: Extractor::new(HttpOptions::default()),
        requests: Vec::new(),
    };
    let mut outcomes = Vec::new();
    for (n, s) in (0..).zip(segs) {
        outcomes.push(streams.push(&segment(s, START + n * 100 * MS), &mut http));
        streams.check();
    }
    streams.finish(End::Eof, &mut http);
    let senders = http.requests.iter().map(|r| r.endpoints.src).collect();
    (outcomes, senders)
}

fn after(seq: u32, before: &[u8]) -> u32 {
    seq + u32::try_from(before.len()).unwrap()
}

use PacketOutcome::{Control, Response, Stream};

/// A body that an attacker writes, seen from the middle of it on.
#[test]
fn a_body_that_looks_like_an_answer_hides_no_request_behind_it() {
    let at = 5000;
    let segs = [
        seg(at, b"the middle of a body"),
        seg(after(at, b"the middle of a body"), ANSWER),
        seg(after(at + 20, ANSWER), b"more"),
        seg(after(at + 24, ANSWER), GET),
    ];
    let (outcomes, senders) = run(&segs);
    assert_eq!(outcomes, [Stream, Response, Response, Stream]);
    assert_eq!(senders, [CLIENT.parse().unwrap()]);
    // Nor does it help to have the server send what reads like a request, as TRACE does.
    let mut echoed = vec![reply(70, b"x"), reply(71, GET)];
    echoed.extend(segs);
    let (_, senders) = run(&echoed);
    assert_eq!(senders.len(), 2);
    assert!(senders.contains(&CLIENT.parse().unwrap()));
}

/// A body with a request line at the start of a segment is no request where the other direction is known to ask,
/// whichever was seen first.
#[test]
fn the_body_of_an_answer_gives_no_request_where_the_other_direction_asks() {
    for syn in [false, true] {
        let mut segs = vec![];
        if syn {
            segs.push(seg(999, b"").syn());
        }
        segs.push(seg(1000, GET));
        segs.extend([
            reply(70, ANSWER),
            reply(after(70, ANSWER), GET),
            seg(after(1000, GET), GET),
        ]);
        let (outcomes, senders) = run(&segs);
        assert_eq!(
            outcomes[usize::from(syn)..],
            [Stream, Stream, Response, Stream]
        );
        assert_eq!(senders, [CLIENT.parse().unwrap(); 2]);

        // The answer first: its own bytes tell what it is, the request what they are not.
        let at = usize::from(syn);
        segs.swap(at, at + 1);
        let (_, senders) = run(&segs);
        assert_eq!(senders, [CLIENT.parse().unwrap(); 2]);
    }
    // A connection that listens on the higher port asks with its SYN only.
    for (syn, others) in [(true, 0), (false, 1)] {
        let client = |seq, bytes| seg(seq, bytes).src("10.0.0.1:70");
        let server = |seq, bytes| {
            let mut s = reply(seq, bytes);
            s.dst = "10.0.0.1:70".parse().unwrap();
            s
        };
        let mut segs = vec![client(1000, GET), server(70, ANSWER)];
        segs.push(server(after(70, ANSWER), GET));
        if syn {
            segs.insert(0, client(999, b"").syn());
        }
        let (outcomes, senders) = run(&segs);
        assert_eq!(outcomes[0] == Control, syn);
        assert_eq!(senders.len(), 1 + others);
    }
}
