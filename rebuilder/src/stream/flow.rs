//! A connection: its key, and the generations of its two directions.

use std::net::{IpAddr, SocketAddr};

use crate::decode::{Plain, Segment, Seq, TcpFlags, Vni};
use crate::keyed::Keyed;
use crate::prefetch::prefetch;
use crate::time::Timestamp;

use super::direction::{Direction, Env, Reach};
use super::flows::{Links, NIL, RELINK};
use super::{DirectionId, FlowScope, Sink, StreamOptions};

/// Generations of one direction that may live beside each other.
pub(super) const MAX_GENERATIONS: usize = 4;
/// A segment outside all windows opens a new generation when so many before it, one behind the other, were outside
/// too: then the stream went on while a long stretch of it was not captured.
const STRAYS: u32 = 2;
/// How far apart two strays may lie and still be one behind the other.
const STRAY_STEP: i64 = 1 << 16;

/// Which of a flow's two directions: from the lower or from the higher endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Low,
    High,
}

/// An odd number without a pattern (2⁶⁴ by the golden ratio).
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which bits of a key's second word say that an endpoint is an IPv6 one.
const IS_V6: u64 = 0b11 << 62;

/// Both endpoints in order, and the VNI when it counts; packed so that hashing is five words. Of IPv4 the first two tell
/// all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FlowKey([u64; 5]);

/// The key of a flow between IPv4 endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlainKey([u64; 2]);

impl PlainKey {
    /// The key of a segment's flow, and the side that sent it.
    #[inline]
    pub(super) fn of(scope: FlowScope, seg: &Plain<'_>) -> (Self, Side) {
        let ([src, dst], [src_port, dst_port]) = seg.ends;
        let end = |ip: u32, port: u16| u64::from(ip) << 16 | u64::from(port);
        let (src, dst) = (end(src, src_port), end(dst, dst_port));
        let (low, high, side) = if src <= dst {
            (src, dst, Side::Low)
        } else {
            (dst, src, Side::High)
        };
        let rest = scope.vni(seg.vni) << 32 | (low & 0xffff) << 16 | (high & 0xffff);
        (Self([low >> 16 << 32 | high >> 16, rest]), side)
    }

    /// Tells few keys apart, and quickly. Whoever aims at it makes others be looked up by their hash.
    #[inline]
    pub(super) fn near(self) -> usize {
        let [addresses, rest] = self.0;
        let mixed = (addresses ^ rest.rotate_left(24)).wrapping_mul(MIX);
        super::offset::index(mixed >> 32)
    }

    /// As [`FlowKey::hash`].
    #[inline]
    pub(super) fn hash(self, key: Keyed) -> u64 {
        key.words(self.0)
    }

    /// The same key, as flows have it.
    pub(super) fn general(self) -> FlowKey {
        let [addresses, rest] = self.0;
        FlowKey([addresses, rest, 0, 0, 0])
    }
}

impl FlowScope {
    /// What of a key is the VNI's: 0, or what is not more than 2²⁴.
    #[inline]
    fn vni(self, vni: Option<Vni>) -> u64 {
        match (self, vni) {
            (Self::Vni, Some(vni)) => u64::from(vni.0 & 0x00ff_ffff) + 1,
            (Self::Vni, None) | (Self::Global, _) => 0,
        }
    }
}

/// A flow's key with its hash, which is made once a packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Name {
    pub(super) key: FlowKey,
    pub(super) hash: u64,
}

/// The same of a plain segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlainName {
    pub(super) key: PlainKey,
    pub(super) hash: u64,
    /// Where its flow may be; [`NIL`] where nothing is known.
    pub(super) slot: u32,
}

impl PlainName {
    /// Nobody's: no VNI is so large.
    pub(super) const NONE: Self = Self {
        key: PlainKey([u64::MAX; 2]),
        hash: 0,
        slot: NIL,
    };

    /// As [`Name::tag`].
    #[inline]
    pub(super) fn tag(&self, side: Side) -> u64 {
        direction_tag(self.hash, side)
    }

    /// The same, as flows have it.
    pub(super) fn general(&self) -> Name {
        Name {
            key: self.key.general(),
            hash: self.hash,
        }
    }
}

impl Name {
    /// What names one direction to the ISN cache: nobody who lacks the hash's key can make two alike.
    pub(super) fn tag(&self, side: Side) -> u64 {
        direction_tag(self.hash, side)
    }
}

const fn direction_tag(hash: u64, side: Side) -> u64 {
    match side {
        Side::Low => hash,
        Side::High => hash.rotate_left(32),
    }
}

impl FlowKey {
    /// The key of a segment's flow, and the side that sent it.
    pub(super) fn of(scope: FlowScope, seg: &Segment<'_>) -> (Self, Side) {
        let vni = scope.vni(seg.vni);
        if endpoint(seg.src) <= endpoint(seg.dst) {
            (Self::pack(vni, seg.src, seg.dst), Side::Low)
        } else {
            (Self::pack(vni, seg.dst, seg.src), Side::High)
        }
    }

    /// Its hash.
    pub(super) fn hash(&self, key: Keyed) -> u64 {
        let [a, rest, ..] = self.0;
        if rest & IS_V6 == 0 {
            key.words([a, rest])
        } else {
            key.words(self.0)
        }
    }

    /// Whether it is this key of IPv4 endpoints. The second word tells the families, so that the others need not be looked
    /// at.
    #[inline]
    pub(super) fn is(&self, PlainKey(plain): PlainKey) -> bool {
        let [a, rest, ..] = self.0;
        [a, rest] == plain
    }

    fn pack(vni: u64, low: SocketAddr, high: SocketAddr) -> Self {
        // Bits 63 and 62 tell IPv6 endpoints from mapped IPv4 ones, bits 56 and below hold the VNI plus one.
        let families = u64::from(low.is_ipv6()) << 31 | u64::from(high.is_ipv6()) << 30;
        let ports = u64::from(low.port()) << 16 | u64::from(high.port());
        let rest = (families | vni) << 32 | ports;
        if let (IpAddr::V4(low), IpAddr::V4(high)) = (low.ip(), high.ip()) {
            let addresses = u64::from(low.to_bits()) << 32 | u64::from(high.to_bits());
            return Self([addresses, rest, 0, 0, 0]);
        }
        let [a, b] = halves(low.ip());
        let [c, d] = halves(high.ip());
        Self([a, rest, b, c, d])
    }
}

/// An order of endpoints; any would do.
fn endpoint(addr: SocketAddr) -> (IpAddr, u16) {
    (addr.ip(), addr.port())
}

fn halves(ip: IpAddr) -> [u64; 2] {
    match ip {
        IpAddr::V4(ip) => [0, u64::from(ip.to_bits())],
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            // Two halves of 64 bits each.
            #[allow(clippy::cast_possible_truncation)]
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

/// Where a segment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The generation of this index.
    In(usize),
    /// A generation that has ended or began behind the segment, unless a remembered SYN explains the segment.
    Doubtful(usize),
    /// No generation; all that are there have ended.
    Free,
    /// No generation, and there are live ones.
    Stray,
}

/// One direction's generations: as a rule one.
#[derive(Default)]
pub(super) struct Half {
    pub(super) generations: Vec<Direction>,
    /// Where the last stray ended, and how many came in a row.
    stray: Option<(Seq, u32)>,
    /// Whether there is one generation, and it was plain when [`Flows::settle`](super::flows::Flows::settle) last looked:
    /// it is then, for only the full way and time change that, and they end there.
    plain: bool,
    /// Of that generation, where it is told bytes: so that memory can be asked for what the stage behind has there before
    /// the generation itself has come.
    behind: Option<DirectionId>,
}

impl Half {
    /// The only generation, where nothing is in doubt about it.
    #[inline]
    pub(super) fn plain(&mut self) -> Option<&mut Direction> {
        self.generations.first_mut().filter(|_| self.plain)
    }

    fn is_plain(&self) -> bool {
        matches!(&*self.generations, [only] if only.is_plain())
    }

    /// Where a segment of `len` bytes at `seq` belongs: first the generation of which it is the very next byte, then
    /// the nearest live one, then (unless a remembered SYN says otherwise) one that has ended or that began later.
    pub(super) fn place(&self, seq: Seq, len: u64, opts: &StreamOptions) -> Place {
        let mut live: Option<(Reach, usize)> = None;
        let mut doubtful: Option<(Reach, usize)> = None;
        let mut any_live = false;
        for (index, generation) in self.generations.iter().enumerate() {
            any_live |= !generation.is_ended();
            let Some(reach) = generation.reach(seq, len, opts.window) else {
                continue;
            };
            if reach.distance == 0 {
                return Place::In(index);
            }
            let best = if generation.is_ended() || reach.before_start {
                &mut doubtful
            } else {
                &mut live
            };
            if best.is_none_or(|(least, _)| reach < least) {
                *best = Some((reach, index));
            }
        }
        match (live, doubtful) {
            (Some((_, index)), _) => Place::In(index),
            (None, Some((_, index))) => Place::Doubtful(index),
            (None, None) if any_live => Place::Stray,
            (None, None) => Place::Free,
        }
    }

    /// Takes what a segment without payload tells: what it acknowledges, and that its sender has come to where it stands.
    pub(super) fn note_bare(&mut self, seg: &Segment<'_>, env: &mut Env<'_>, sink: &mut impl Sink) {
        for generation in &mut self.generations {
            if generation.reach(seg.seq, 0, env.opts.window).is_none() {
                continue;
            }
            if seg.flags.contains(TcpFlags::URG) {
                generation.note_urgent(seg.seq, seg.urgent);
            }
            if seg.flags.contains(TcpFlags::ACK) {
                generation.note_sent_ack(seg.ack);
                generation.note_taken(seg.seq, env, sink);
            }
        }
    }

    /// Notes a segment outside all windows. `true` when enough came in a row to believe that the stream went on there.
    pub(super) fn note_stray(&mut self, seq: Seq, end: Seq) -> bool {
        let count = match self.stray {
            Some((last, count))
                if (0..=STRAY_STEP).contains(&super::offset::distance(last, seq)) =>
            {
                count + 1
            }
            _ => 1,
        };
        if count > STRAYS {
            self.stray = None;
            return true;
        }
        self.stray = Some((end, count));
        false
    }

    /// The generation that must go before another may open: the one silent longest, if it has ended or been silent
    /// longer than any hole is waited for. `Err` when none may go.
    pub(super) fn make_room(
        &self,
        now: Timestamp,
        opts: &StreamOptions,
    ) -> Result<Option<usize>, ()> {
        if self.generations.len() < MAX_GENERATIONS {
            return Ok(None);
        }
        self.generations
            .iter()
            .enumerate()
            .filter(|(_, g)| g.is_ended() || now.since(g.last) > opts.gap_after.max(opts.linger))
            .min_by_key(|(_, g)| g.last)
            .map(|(index, _)| Some(index))
            .ok_or(())
    }

    /// When time alone changes something here. A generation beside a newer one ends by idle time of its own.
    pub(super) fn due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        let newest = self.generations.iter().map(|g| g.last).max();
        self.generations
            .iter()
            .flat_map(|g| {
                let idle = (Some(g.last) < newest).then(|| g.last + opts.idle);
                [g.due(opts), idle]
            })
            .flatten()
            .min()
    }
}

/// A connection in the table. What a packet in order needs of it stands in front, as in [`Direction`].
#[repr(C, align(64))]
pub(super) struct Flow {
    pub(super) name: Name,
    /// Flow time of the last packet of either direction.
    pub(super) last: Timestamp,
    /// When it was put where it stands in the lists.
    pub(super) linked: Timestamp,
    low: Half,
    high: Half,
    /// When the table will look at it again.
    pub(super) armed: Option<Timestamp>,
    /// Neighbours in the order of silence, among all flows and among those of its owner.
    pub(super) all: Links,
    pub(super) kin: Links,
    /// Who answers for its state.
    pub(super) owner: u32,
    /// What its state is charged.
    pub(super) charged: usize,
    /// By how much it holds, and where it stands among its like.
    pub(super) size: u8,
    pub(super) size_at: u32,
}

impl Flow {
    pub(super) fn new(name: Name, now: Timestamp) -> Self {
        Self {
            name,
            low: Half::default(),
            high: Half::default(),
            last: now,
            armed: None,
            linked: now,
            all: Links::NONE,
            kin: Links::NONE,
            owner: NIL,
            charged: 0,
            size: 0,
            size_at: NIL,
        }
    }

    pub(super) fn half(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Low => &mut self.low,
            Side::High => &mut self.high,
        }
    }

    pub(super) fn other(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Low => &mut self.high,
            Side::High => &mut self.low,
        }
    }

    /// The half of the side, and the other one.
    pub(super) fn halves_mut(&mut self, side: Side) -> (&mut Half, &mut Half) {
        match side {
            Side::Low => (&mut self.low, &mut self.high),
            Side::High => (&mut self.high, &mut self.low),
        }
    }

    /// Whether its place in the order of silence is so old that a packet moves it.
    #[inline]
    pub(super) fn is_to_move(&self, now: Timestamp) -> bool {
        self.linked + RELINK <= now
    }

    /// Where its directions stand.
    pub(super) fn into_rooms(self) -> [Vec<Direction>; 2] {
        [self.low.generations, self.high.generations]
    }

    /// Notes whether the short way is open to its next packet.
    pub(super) fn note_plain(&mut self) {
        for half in [&mut self.low, &mut self.high] {
            half.plain = half.is_plain();
            let only = half.generations.first().filter(|_| half.plain);
            half.behind = only.and_then(Direction::behind);
        }
    }

    /// Asks memory for what a packet in order needs of the directions; `behind` does it for the stage behind.
    pub(super) fn prefetch_directions(&self, mut behind: impl FnMut(DirectionId)) {
        for half in [&self.low, &self.high] {
            if let Some(only) = half.generations.first().filter(|_| half.plain) {
                prefetch(only, 3);
            }
            half.behind.map(&mut behind);
        }
    }

    /// Asks memory for all of the directions.
    pub(super) fn prefetch_whole_directions(&self) {
        for half in [&self.low, &self.high] {
            prefetch(half.generations.as_slice(), usize::MAX);
        }
    }

    /// Generations of both directions.
    pub(super) fn directions(&self) -> usize {
        self.low.generations.len() + self.high.generations.len()
    }

    /// Where the direction stands that appeared first.
    pub(super) fn eldest(&self) -> Option<(Side, usize)> {
        let of = |half: &Half, side| {
            let first = half
                .generations
                .iter()
                .enumerate()
                .min_by_key(|(_, g)| g.id)?;
            Some((first.1.id, (side, first.0)))
        };
        let (low, high) = (of(&self.low, Side::Low), of(&self.high, Side::High));
        let first = low.into_iter().chain(high).min_by_key(|(id, _)| *id);
        first.map(|(_, place)| place)
    }

    /// Bytes that its directions hold, bookkeeping included.
    pub(super) fn held(&self) -> usize {
        let generations = self.low.generations.iter().chain(&self.high.generations);
        generations.map(Direction::charged).sum()
    }

    /// The direction that holds most.
    pub(super) fn largest(&mut self) -> Option<&mut Direction> {
        let generations = self
            .low
            .generations
            .iter_mut()
            .chain(&mut self.high.generations);
        generations.max_by_key(|generation| generation.charged())
    }

    /// Panics where the short way would be taken with something in doubt.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check_plain(&self) {
        for half in [&self.low, &self.high] {
            assert!(!half.plain || half.is_plain(), "a doubtful half is plain");
        }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn halves(&self) -> [&Half; 2] {
        [&self.low, &self.high]
    }

    pub(super) fn is_empty(&self) -> bool {
        self.low.generations.is_empty() && self.high.generations.is_empty()
    }

    pub(super) fn due(&self, opts: &StreamOptions) -> Option<Timestamp> {
        self.low
            .due(opts)
            .into_iter()
            .chain(self.high.due(opts))
            .min()
    }
}
