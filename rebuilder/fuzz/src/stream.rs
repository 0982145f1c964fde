//! The flow table under any sequence of segments, against a map with one cell a byte.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use rebuilder::decode::{Segment, Seq, TcpFlags, Vni};
use rebuilder::stream::{
    Chunk, DirectionId, End, Endpoints, FlowScope, Interest, OverlapPolicy, Sink, StreamOptions,
    Streams,
};
use rebuilder::telemetry::PacketOutcome;
use rebuilder::time::Timestamp;

use crate::bytemap::ByteMap;
use crate::input::Input;

const MS: u64 = 1_000_000;
const START: u64 = 1_700_000_000_000 * MS;

/// More segments than this tell nothing new and only take time.
const MAX_SEGMENTS: usize = 300;

/// The sender of a byte: a flow, and whether it is the client.
type Sender = (u8, bool);

/// What was pushed.
#[derive(Default)]
struct Pushed {
    /// Which of the four values that a byte can have were captured at a sequence number.
    bytes: HashMap<Sender, ByteMap>,
    /// Where segments with payload or a cut began.
    starts: HashSet<(Sender, u32)>,
    /// Where a stream began according to its SYNs.
    syns: HashSet<(Sender, u32)>,
    /// Where FINs stood.
    fins: HashSet<(Sender, u32)>,
    /// Payload bytes that the table said it took.
    taken: usize,
}

/// What is known of a direction that the table opened.
struct Seen {
    ends: Endpoints,
    sender: Sender,
    /// The sequence numbers at which its first byte may stand, given all that it delivered.
    anchors: Vec<u32>,
    /// Bytes delivered or missing so far.
    at: u32,
    closed: bool,
    /// It is told its end and nothing before that.
    opaque: bool,
}

#[derive(Default)]
struct Checker {
    pushed: Pushed,
    seen: BTreeMap<DirectionId, Seen>,
    delivered: usize,
    /// Says that a direction is opaque once it delivers this byte.
    unwanted: Option<u8>,
}

/// The byte at a sequence number, and its other values.
fn byte(sender: Sender, seq: u32, variant: u8) -> u8 {
    let mixed = (seq ^ (u32::from(sender.0) << 28) ^ (u32::from(sender.1) << 27))
        .wrapping_mul(0x9e37_79b1)
        .rotate_left(9);
    let [low, ..] = mixed.to_le_bytes();
    low ^ variant
}

fn addr(sender: Sender) -> SocketAddr {
    let (flow, client) = sender;
    if client {
        SocketAddr::from(([10, 0, 0, 1 + flow / 2], 40_000 + u16::from(flow)))
    } else {
        SocketAddr::from(([10, 0, 1, 1], 80))
    }
}

impl Sink for Checker {
    fn chunk(&mut self, dir: DirectionId, ends: &Endpoints, chunk: Chunk<'_>) -> Interest {
        let pushed = &self.pushed;
        if let Chunk::Open { midstream } = chunk {
            let client = ends.dst.port() == 80;
            let port = if client { ends.src } else { ends.dst }.port();
            let sender = (u8::try_from(port - 40_000).unwrap_or(u8::MAX), client);
            assert_eq!(
                (ends.src, ends.dst),
                (addr(sender), addr((sender.0, !client)))
            );
            let among = if midstream {
                &pushed.starts
            } else {
                &pushed.syns
            };
            let anchors: Vec<u32> = among
                .iter()
                .filter(|(s, _)| *s == sender)
                .map(|(_, at)| *at)
                .collect();
            assert!(!anchors.is_empty(), "opened where nothing was pushed");
            let seen = Seen {
                ends: *ends,
                sender,
                anchors,
                at: 0,
                closed: false,
                opaque: false,
            };
            assert!(
                self.seen.insert(dir, seen).is_none(),
                "{dir:?} opened twice"
            );
            return Interest::Wanted;
        }
        let Some(seen) = self.seen.get_mut(&dir) else {
            panic!("{dir:?} was not opened");
        };
        assert_eq!(&seen.ends, ends);
        assert!(!seen.closed, "{dir:?} goes on after its end");
        match chunk {
            Chunk::Data {
                bytes,
                segment_start,
                ..
            } => {
                assert!(!bytes.is_empty());
                let (sender, at) = (seen.sender, seen.at);
                let known = pushed.bytes.get(&sender);
                let fits = |anchor: &u32| {
                    let first = anchor.wrapping_add(at);
                    let known = known?;
                    let as_pushed = known.all(first, bytes.len(), |i, seen| {
                        let seq = first.wrapping_add(u32::try_from(i).unwrap_or(0));
                        let variant = byte(sender, seq, 0) ^ bytes[i];
                        variant < 8 && seen & 1 << variant != 0
                    });
                    let starts = !segment_start || pushed.starts.contains(&(sender, first));
                    Some(starts && as_pushed)
                };
                seen.anchors.retain(|anchor| fits(anchor).unwrap_or(false));
                assert!(
                    !seen.anchors.is_empty(),
                    "{dir:?} delivers bytes that were not sent there"
                );
                seen.at = seen
                    .at
                    .wrapping_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
                self.delivered += bytes.len();
                if self.unwanted.is_some_and(|mark| bytes.contains(&mark)) {
                    seen.opaque = true;
                    return Interest::Opaque(PacketOutcome::NotHttp);
                }
            }
            Chunk::Gap { len } => {
                assert!(len > 0);
                // Modulo 2³², as sequence numbers are.
                #[allow(clippy::cast_possible_truncation)]
                let len = len as u32;
                seen.at = seen.at.wrapping_add(len);
            }
            Chunk::Closed(end) => {
                seen.closed = true;
                if end == End::Fin && !seen.opaque {
                    let fins = |anchor: &u32| {
                        let at = anchor.wrapping_add(seen.at);
                        pushed.fins.contains(&(seen.sender, at))
                    };
                    assert!(
                        seen.anchors.iter().any(fins),
                        "{dir:?} ends where no FIN was"
                    );
                }
            }
            Chunk::Open { .. } => {}
        }
        Interest::Wanted
    }
}

/// What one segment of the script is.
struct Step {
    sender: Sender,
    seq: u32,
    ack: u32,
    flags: TcpFlags,
    payload: Vec<u8>,
    /// Which of its values each byte of the payload has.
    variant: u8,
    cut: u32,
    vni: Option<Vni>,
}

/// A script of segments, times and ends of file.
///
/// Asserts: of each direction `Open` comes first and `Closed` last, each once, and between them every byte is one that
/// was captured at that sequence number; a segment starts where one did; no more is delivered than was taken; the
/// invariants of the table hold after every step, the caps with them; at the end nothing is held and everything is
/// closed. In a calm script (nothing lost, cut, late or over a cap) every captured byte is delivered exactly once,
/// whatever SYN, FIN, RST and acknowledgements stand between.
pub fn stream(data: &[u8]) {
    let mut input = Input::new(data);
    let calm = input.get::<bool>();
    let small = !calm && input.get::<bool>();
    let options = StreamOptions {
        flow_scope: input.pick(&[FlowScope::Global, FlowScope::Vni]),
        overlap: input.pick(&[OverlapPolicy::First, OverlapPolicy::Linux]),
        flow_cap: if small { 3000 } else { 1 << 20 },
        // One flow's state alone, with four generations a side, is charged 7,232 bytes, and it cannot give way to itself.
        total_cap: if small { 8000 } else { 8 << 20 },
        max_flows: if small { 3 } else { 64 },
        isn_entries: 1024,
        ..StreamOptions::default()
    };
    let total_cap = options.total_cap;
    let max_flows = options.max_flows;
    let scope = options.flow_scope;
    let bases: [u32; 2] = [
        input.pick(&[1, 0, u32::MAX, u32::MAX - 700, 0x7fff_ff00]),
        input.get(),
    ];
    let mut streams = Streams::new(options);
    let mut checker = Checker {
        unwanted: (!calm && input.below(4) == 0).then(|| input.get()),
        ..Checker::default()
    };
    let mut now = START;
    let mut left = MAX_SEGMENTS;
    while !input.is_empty() && left > 0 {
        left -= 1;
        match input.below(16) {
            0 if !calm => {
                let ms = input.pick(&[
                    1, 50, 51, 99, 100, 999, 1000, 2000, 2001, 121_000, 3_700_000,
                ]);
                now += ms * MS;
                if input.get::<bool>() {
                    streams.advance(Timestamp(now), &mut checker);
                }
            }
            1 if !calm && input.below(4) == 0 => now -= u64::from(input.get::<u16>()) * MS,
            2 if !calm && input.below(8) == 0 => {
                streams.finish(End::Idle, &mut checker);
                assert_eq!((streams.held_bytes(), streams.flows()), (0, 0));
            }
            kind => {
                let step = step(&mut input, kind, bases, calm, scope);
                // Far from 50 ms in all.
                now += 100_000;
                push(&mut streams, &mut checker, &step, now);
            }
        }
        streams.check();
        assert!(streams.held_bytes() <= total_cap);
        assert!(streams.flows() <= max_flows);
        assert!(
            checker.delivered <= checker.pushed.taken,
            "bytes were invented"
        );
    }
    streams.advance(Timestamp(now) + Duration::from_millis(1), &mut checker);
    streams.finish(End::Eof, &mut checker);
    streams.check();
    assert_eq!((streams.held_bytes(), streams.flows()), (0, 0));
    assert!(checker.seen.values().all(|seen| seen.closed));
    assert!(checker.delivered <= checker.pushed.taken);
    if calm {
        let sent: usize = checker.pushed.bytes.values().map(ByteMap::len).sum();
        assert_eq!(checker.delivered, sent, "not every byte came out");
    }
}

fn step(input: &mut Input<'_>, kind: u8, bases: [u32; 2], calm: bool, scope: FlowScope) -> Step {
    let who = input.get::<u8>();
    let sender = (who & 3, who & 4 != 0);
    let base = bases[usize::from(sender.1)];
    let place = |input: &mut Input<'_>| {
        let near = base.wrapping_add(u32::from(input.get::<u16>()) % 6000);
        if calm {
            return near;
        }
        match input.below(12) {
            0 => near.wrapping_sub(3000),
            1 => near.wrapping_add(1 << 31),
            2 => near.wrapping_add(16 << 20),
            3 => input.get(),
            _ => near,
        }
    };
    let mut flags = TcpFlags::ACK;
    let ack_base = bases[usize::from(!sender.1)];
    let ack = match input.below(4) {
        0 => ack_base.wrapping_add(u32::from(input.get::<u16>()) % 7000),
        _ => ack_base,
    };
    let mut seq = place(input);
    let mut payload = Vec::new();
    let mut variant = 0;
    let mut cut = 0;
    match kind {
        3 => {
            flags = TcpFlags::SYN;
            // The connection's own, or, far away, another's.
            seq = base.wrapping_sub(1);
            if calm {
                seq = seq.wrapping_add(u32::from(input.get::<bool>()) << 30);
            } else if input.get::<bool>() {
                seq = place(input);
            }
        }
        4 => {
            flags = TcpFlags::RST
                | if input.get() {
                    TcpFlags::ACK
                } else {
                    TcpFlags::empty()
                }
        }
        5 => flags |= TcpFlags::FIN,
        6 => {}
        7 if !calm => flags = TcpFlags::from_bits_truncate(input.get()),
        _ => {}
    }
    if kind >= 7 && (calm || kind != 8) {
        let len = input.len(1500);
        let odd = if calm { 0 } else { input.below(16) };
        variant = if odd < 4 { odd } else { 0 };
        let first = seq.wrapping_add(u32::from(flags.contains(TcpFlags::SYN)));
        payload = (0..u32::try_from(len).unwrap_or(0))
            .map(|i| byte(sender, first.wrapping_add(i), variant))
            .collect();
        if kind == 15 {
            flags |= TcpFlags::FIN;
        }
    }
    if !calm && (kind == 8 || kind == 9) {
        cut = match input.below(8) {
            0 => input.get(),
            _ => u32::from(input.get::<u8>()) * 4,
        };
    }
    let vni = (scope == FlowScope::Vni).then_some(Vni(1));
    Step {
        sender,
        seq,
        ack,
        flags,
        payload,
        variant,
        cut,
        vni,
    }
}

fn push(streams: &mut Streams, checker: &mut Checker, step: &Step, now: u64) {
    let syn = step.flags.contains(TcpFlags::SYN);
    let first = step.seq.wrapping_add(u32::from(syn));
    let pushed = &mut checker.pushed;
    if !step.flags.contains(TcpFlags::RST) {
        if syn {
            pushed.syns.insert((step.sender, first));
        }
        if !step.payload.is_empty() || step.cut > 0 {
            pushed.starts.insert((step.sender, first));
        }
        if step.flags.contains(TcpFlags::FIN) {
            let len = u32::try_from(step.payload.len()).unwrap_or(0);
            let end = first.wrapping_add(len).wrapping_add(step.cut);
            pushed.fins.insert((step.sender, end));
        }
        let known = pushed.bytes.entry(step.sender).or_default();
        known.note(first, &vec![step.variant; step.payload.len()]);
    }
    let (flow, client) = step.sender;
    // What is taken is known only afterwards, and delivered before that.
    let before = pushed.taken;
    pushed.taken += step.payload.len();
    let segment = Segment {
        ts: Timestamp(now),
        vni: step.vni,
        src: addr(step.sender),
        dst: addr((flow, !client)),
        seq: Seq(step.seq),
        ack: Seq(step.ack),
        flags: step.flags,
        urgent: 1,
        payload: &step.payload,
        cut: step.cut,
    };
    let outcome = streams.push(&segment, checker);
    if step.payload.is_empty() || step.flags.contains(TcpFlags::RST) {
        assert_eq!(outcome, PacketOutcome::Control);
    } else {
        assert!(
            matches!(
                outcome,
                PacketOutcome::Stream
                    | PacketOutcome::Duplicate
                    | PacketOutcome::OutOfWindow
                    | PacketOutcome::OverCap
                    | PacketOutcome::NotHttp
            ),
            "{outcome}"
        );
    }
    if !matches!(outcome, PacketOutcome::Stream | PacketOutcome::NotHttp) {
        checker.pushed.taken = before;
    }
}
