//! Captures of several connections through the whole path: frames in, requests out.

use std::collections::HashMap;
use std::net::SocketAddr;

use rebuilder::handover::Alone;
use rebuilder::http::{Flags, HttpOptions, Request};
use rebuilder::pipeline::{Pipeline, PipelineOptions};
use rebuilder::receive::{Frame, LinkType};
use rebuilder::stream::{End, OverlapPolicy, StreamOptions};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::forwarded;
use crate::http::{Piece, run};
use crate::input::Input;
use crate::requests;
use crate::wire::{self, Ends, Tcp};

const MS: u64 = 1_000_000;

/// Frames behind which a script ends.
const MAX_STEPS: usize = 150;

/// One connection, as its two ends know it.
struct Flow {
    ends: Ends,
    ports: (u16, u16),
    isn: u32,
    /// What the client sends, and how much of it was sent once.
    client: Vec<u8>,
    sent: usize,
    finished: bool,
}

impl Flow {
    fn source(&self) -> SocketAddr {
        SocketAddr::new(self.ends.src, self.ports.0)
    }

    fn seq(&self, at: usize) -> u32 {
        let at = u32::try_from(at).unwrap_or(u32::MAX);
        self.isn.wrapping_add(1).wrapping_add(at)
    }

    /// A segment of the client.
    fn segment(&self, seq: u32, flags: u8, payload: &[u8]) -> (Ends, Vec<u8>) {
        let tcp = Tcp {
            ports: self.ports,
            seq,
            ack: 5001,
            flags,
            options: 0,
        };
        (self.ends, wire::tcp(self.ends, &tcp, payload))
    }

    /// A segment of the server, which acknowledges what the client sent so far.
    fn answer(&self, seq: u32, flags: u8, payload: &[u8]) -> (Ends, Vec<u8>) {
        let ends = Ends {
            src: self.ends.dst,
            dst: self.ends.src,
        };
        let tcp = Tcp {
            ports: (self.ports.1, self.ports.0),
            seq,
            ack: self.seq(self.sent),
            flags: flags | wire::ACK,
            options: 0,
        };
        (ends, wire::tcp(ends, &tcp, payload))
    }
}

/// The path and what came out of it.
struct Lab {
    pipeline: Pipeline,
    requests: Vec<Request<'static>>,
    outcomes: Vec<PacketOutcome>,
    /// What was done, to be done once more.
    steps: Vec<Step>,
    packets: u64,
    now: u64,
    most_held: usize,
}

/// What the path was given.
enum Step {
    Frame(Timestamp, LinkType, Vec<u8>),
    Advance(Timestamp),
}

impl Lab {
    fn frame(&mut self, link: LinkType, data: &[u8]) {
        self.packets += 1;
        self.now += 1_000;
        let frame = Frame {
            ts: Timestamp(self.now),
            link,
            data,
        };
        // One packet, one outcome: the type says so. That it is a known one is what the metrics need.
        let outcome = self.pipeline.frame(&frame, &mut |request| {
            self.requests.push(request.into_owned());
        });
        assert!(!outcome.label().is_empty());
        self.outcomes.push(outcome);
        self.steps.push(Step::Frame(frame.ts, link, data.to_vec()));
        assert!(self.pipeline.held_bytes() <= self.most_held);
        assert!(self.pipeline.cut_frames() <= self.packets);
    }

    fn advance(&mut self) {
        let now = Timestamp(self.now);
        self.pipeline.advance(now, &mut |request| {
            self.requests.push(request.into_owned());
        });
        self.steps.push(Step::Advance(now));
    }
}

/// Frames that are given together come to what they come to one by one.
fn together(mut pipeline: Pipeline, lab: &Lab) {
    let (mut requests, mut outcomes) = (Vec::new(), Vec::new());
    let mut out = |request: Request| requests.push(request.into_owned());
    for steps in lab
        .steps
        .chunk_by(|a, b| matches!((a, b), (Step::Frame(..), Step::Frame(..))))
    {
        if let [Step::Advance(now)] = steps {
            pipeline.advance(*now, &mut out);
            continue;
        }
        let frames = steps.iter().filter_map(|step| match step {
            Step::Frame(ts, link, data) => Some(Frame {
                ts: *ts,
                link: *link,
                data,
            }),
            Step::Advance(_) => None,
        });
        let ended = |outcome| outcomes.push(outcome);
        pipeline.frames(frames, Alone, ended, &mut out);
    }
    pipeline.finish(End::Eof, &mut out);
    assert_eq!(outcomes, lab.outcomes);
    let bytes = |requests: &[Request<'static>]| -> Vec<_> {
        let of = |r: &Request<'static>| (r.raw.clone(), r.flags, r.ts, r.endpoints);
        requests.iter().map(of).collect()
    };
    assert_eq!(bytes(&requests), bytes(&lab.requests));
}

/// How a packet is put into frames.
#[derive(Clone, Copy)]
struct Wrapping {
    vlan: bool,
    vni: Option<u32>,
    /// In pieces of so many bytes; the first holds the whole TCP header, as IPv6 wants it.
    pieces: Option<usize>,
    backwards: bool,
    /// Bytes that the mirror cut off the end.
    cut: usize,
}

impl Wrapping {
    fn of(input: &mut Input<'_>, calm: bool) -> Self {
        let bits = input.get::<u8>();
        Self {
            vlan: bits & 1 != 0,
            vni: (bits & 2 != 0).then_some(u32::from(bits >> 5)),
            pieces: (bits & 12 == 12).then(|| 24 + 8 * usize::from(input.get::<u8>())),
            backwards: bits & 16 != 0,
            cut: if calm || bits & 0xe0 != 0xe0 {
                0
            } else {
                input.get::<u8>().into()
            },
        }
    }

    fn frames(self, id: u32, ends: Ends, segment: &[u8]) -> Vec<(LinkType, Vec<u8>)> {
        let size = self.pieces.unwrap_or(usize::MAX).min(segment.len().max(8));
        let count = segment.len().div_ceil(size).max(1);
        let mut packets: Vec<Vec<u8>> = (0..count)
            .map(|n| {
                let part = &segment[n * size..((n + 1) * size).min(segment.len())];
                let piece = (count > 1).then_some(wire::Piece {
                    id,
                    offset: n * size,
                    more: n + 1 < count,
                });
                wire::ip(ends, wire::TCP, piece, part)
            })
            .collect();
        if self.backwards {
            packets.reverse();
        }
        let tags: &[u16] = if self.vlan { &[0x8100] } else { &[] };
        let frames = packets.into_iter().map(|packet| {
            let mut frame = wire::ethernet(tags, wire::ethertype(ends.src), &packet);
            frame.truncate(frame.len().saturating_sub(self.cut).max(14));
            match self.vni {
                None => (LinkType::Ethernet, frame),
                Some(vni) => (LinkType::Vxlan, wire::vxlan(vni, &frame)),
            }
        });
        frames.collect()
    }
}

/// A script of what a mirror delivers of up to four connections that carry built requests: segments in any order, lost,
/// doubled, cut, in fragments, tagged, wrapped; SYN, FIN, RST, answers; other bytes; time.
///
/// Asserts: what is held stays within the caps; the requests that come out are those that are counted; each stands in
/// what its sender sent; what is forwarded of it, see `forwarded.rs`; at the end nothing is held. In a calm script
/// (nothing lost, cut, late or changed) each connection gives exactly the requests that its bytes give in one piece.
pub fn pipeline(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.get::<u8>();
    let calm = mode & 1 != 0;
    // Only frames that somebody changed can bring bytes that nobody sent.
    let wild = !calm && mode & 2 != 0;
    let small = !calm && mode & 4 != 0;
    let mut flows: Vec<Flow> = (0..=input.below(3)).map(|n| flow(&mut input, n)).collect();
    let stream = StreamOptions {
        overlap: if mode & 8 != 0 {
            OverlapPolicy::Linux
        } else {
            OverlapPolicy::First
        },
        isn_entries: 1024,
        ..StreamOptions::default()
    };
    let options = if small {
        PipelineOptions {
            stream: StreamOptions {
                flow_cap: 6_000,
                total_cap: 16_000,
                max_flows: 2,
                ..stream
            },
            http: HttpOptions {
                max_head: 300,
                max_request: 1_000,
                max_held: 2_000,
                max_search: 2_000,
                ..HttpOptions::default()
            },
            ..PipelineOptions::default()
        }
    } else {
        PipelineOptions {
            stream,
            ..PipelineOptions::default()
        }
    };
    let most_held = options.stream.total_cap + options.http.max_held;
    let again = Pipeline::new(options.clone());
    let mut lab = Lab {
        pipeline: Pipeline::new(options),
        requests: Vec::new(),
        outcomes: Vec::new(),
        steps: Vec::new(),
        packets: 0,
        now: 1_700_000_000_000 * MS,
        most_held,
    };
    let mut delayed: Vec<(LinkType, Vec<u8>)> = Vec::new();
    if calm {
        for flow in &flows {
            let (ends, segment) = flow.segment(flow.isn, wire::SYN, b"");
            lab.frame(LinkType::Raw, &wire::ip(ends, wire::TCP, None, &segment));
        }
    }
    for step in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        // Far from 50 ms in all.
        lab.now += 100_000;
        let id = u32::try_from(step).unwrap_or(0);
        script(
            &mut input,
            &mut lab,
            &mut flows,
            &mut delayed,
            id,
            calm,
            wild,
        );
    }
    if calm {
        finish_calmly(&mut lab, &mut flows, delayed);
    }
    let requests = &mut lab.requests;
    lab.pipeline
        .finish(End::Eof, &mut |request| requests.push(request.into_owned()));
    assert_eq!((lab.pipeline.held_bytes(), lab.pipeline.flows()), (0, 0));
    assert_eq!(
        lab.pipeline.http_counters().requests,
        lab.requests.len() as u64
    );
    together(again, &lab);
    judge(&lab, &flows, calm, wild);
}

fn flow(input: &mut Input<'_>, n: u8) -> Flow {
    let ends = if input.get::<bool>() {
        Ends::v6(n, 200)
    } else {
        Ends::v4(n, 200)
    };
    let len = usize::from(input.get::<u8>());
    let mut own = Input::new(input.bytes(len));
    Flow {
        ends,
        ports: (40_000 + u16::from(n), 80),
        isn: input.pick(&[0, 1, u32::MAX, u32::MAX - 11, u32::MAX - 500, 1 << 31]),
        client: requests::build(&mut own, 6_000),
        sent: 0,
        finished: false,
    }
}

fn script(
    input: &mut Input<'_>,
    lab: &mut Lab,
    flows: &mut [Flow],
    delayed: &mut Vec<(LinkType, Vec<u8>)>,
    id: u32,
    calm: bool,
    wild: bool,
) {
    let n = usize::from(input.get::<u8>()) % flows.len();
    let flow = &mut flows[n];
    let kind = input.below(20);
    let (ends, segment) = match kind {
        0 => flow.segment(flow.isn, wire::SYN, b""),
        1 if !calm => flow.segment(input.get(), wire::SYN, b""),
        2 => flow.answer(5000, wire::SYN, b""),
        3 => flow.answer(5001, 0, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        4 => flow.answer(5001, 0, b""),
        5 => {
            flow.finished = true;
            flow.segment(flow.seq(flow.client.len()), wire::FIN | wire::ACK, b"")
        }
        6 => {
            let at = usize::from(input.get::<u16>()) % (flow.client.len() + 1);
            flow.segment(flow.seq(at), wire::RST, b"")
        }
        7 if !calm => {
            let ms = input.pick(&[1, 50, 100, 999, 1001, 2001, 31_000, 121_000, 3_700_000]);
            lab.now += ms * MS;
            if input.get::<bool>() {
                lab.advance();
            }
            return;
        }
        8 if wild => {
            let link = input.pick(&[
                LinkType::Ethernet,
                LinkType::Vxlan,
                LinkType::Raw,
                LinkType::LinuxSll,
            ]);
            let len = usize::from(input.get::<u8>());
            lab.frame(link, input.bytes(len));
            return;
        }
        9 => {
            let count = delayed.len();
            if count > 0 {
                let at = usize::from(input.get::<u8>()) % count;
                let (link, frame) = delayed.swap_remove(at);
                lab.frame(link, &frame);
            }
            return;
        }
        // Something that was sent before, or is still to come.
        10 | 11 => {
            let at = usize::from(input.get::<u16>()) % (flow.client.len() + 1);
            let len = input.len(1460);
            let end = (at + len).min(flow.client.len());
            flow.segment(flow.seq(at), wire::ACK, &flow.client[at..end])
        }
        _ => {
            let len = 1 + input.len(1460);
            let end = (flow.sent + len).min(flow.client.len());
            let at = flow.sent;
            flow.sent = end;
            // Lost.
            if kind == 12 && !calm {
                return;
            }
            flow.segment(flow.seq(at), wire::ACK, &flow.client[at..end])
        }
    };
    let wrapping = Wrapping::of(input, calm);
    let copies = if kind == 13 { 2 } else { 1 };
    for copy in 0..copies {
        let wrapping = Wrapping {
            vni: wrapping.vni.map(|vni| vni + copy),
            ..wrapping
        };
        for (link, mut frame) in wrapping.frames(id, ends, &segment) {
            if wild && kind == 14 {
                let at = usize::from(input.get::<u16>()) % frame.len();
                frame[at] = input.get();
            }
            if kind >= 17 {
                delayed.push((link, frame));
            } else {
                lab.frame(link, &frame);
            }
        }
    }
}

/// Everything that is still to come does come.
fn finish_calmly(lab: &mut Lab, flows: &mut [Flow], delayed: Vec<(LinkType, Vec<u8>)>) {
    for (link, frame) in delayed {
        lab.frame(link, &frame);
    }
    for flow in flows {
        let rest = flow.sent;
        flow.sent = flow.client.len();
        for (n, part) in flow.client[rest..].chunks(1460).enumerate() {
            let (ends, segment) = flow.segment(flow.seq(rest + n * 1460), wire::ACK, part);
            let packet = wire::ip(ends, wire::TCP, None, &segment);
            lab.frame(LinkType::Raw, &packet);
        }
    }
}

fn judge(lab: &Lab, flows: &[Flow], calm: bool, wild: bool) {
    let mut of: HashMap<SocketAddr, Vec<&Request>> = HashMap::new();
    for request in &lab.requests {
        forwarded::check(request);
        of.entry(request.endpoints.src).or_default().push(request);
        let sender = flows
            .iter()
            .find(|flow| flow.source() == request.endpoints.src);
        if wild {
            continue;
        }
        let Some(sender) = sender else {
            panic!("a request of nobody: {:?}", request.endpoints);
        };
        assert!(
            memchr::memmem::find(&sender.client, &request.raw).is_some(),
            "bytes were invented: {:?}",
            String::from_utf8_lossy(&request.raw)
        );
    }
    if !calm {
        return;
    }
    for flow in flows.iter().filter(|flow| !flow.client.is_empty()) {
        let whole = [Piece::Data(0..flow.client.len(), true)];
        let end = if flow.finished { End::Fin } else { End::Eof };
        let expected = run(&flow.client, &whole, &HttpOptions::default(), false, end);
        // Where the framing is lost, a request may be found again at the beginning of a segment, and segments differ.
        if expected.counters.lost_framings > 0 {
            continue;
        }
        let got = of.remove(&flow.source()).unwrap_or_default();
        let ours: Vec<_> = got.iter().map(|r| essence(r)).collect();
        let theirs: Vec<_> = expected.requests.iter().map(essence).collect();
        assert_eq!(ours, theirs);
    }
}

/// What does not depend on how and when the bytes came.
fn essence(request: &Request) -> (String, String, usize, Flags) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let flags = request.flags - Flags::TRUNCATED - Flags::ABORTED;
    (
        text(&request.raw),
        text(request.bytes(&request.target)),
        request.head_end,
        flags,
    )
}
