//! IP packets that were sent in pieces (RFC 791 §3.2, RFC 8200 §4.5) become whole again.
//!
//! **As the server does it.** Where we make a packet that the server does not make, or the other way round, a client can
//! show us what the server does not see. So the rules are those of Linux since 4.19, for both versions: a piece that
//! lies wholly within what has come is a copy, and the bytes that came first stay; one that overlaps otherwise, has no
//! bytes, or disagrees about the packet's end makes the whole packet be thrown away (RFC 5722 says so for IPv6, Linux
//! does it in IPv4 too). A packet is given up 30 s after its first piece in IPv4, 60 s in IPv6. In IPv4 a piece before
//! the last is cut to a multiple of 8 bytes; in IPv6 it is refused, as is a first piece that ends inside the TCP or UDP
//! header. Not followed: `ipfrag_max_dist` (copies reordered by a mirror would trip it) and the marks of ECN.
//!
//! **A piece cut by the mirror** leaves a hole of known length. When all pieces are there, the packet is given up to the
//! first hole, and the rest as `missing`; a better copy that comes later gives it again.
//!
//! **Copies.** A packet mirrored twice under one identifier has each piece twice. A packet that became whole is kept for
//! [`REMEMBER`], so that late copies of its pieces end as `duplicate` and cannot become part of a later packet that has
//! the same name (16 bits of it in IPv4). Pieces under different identifiers never meet: a VPC cannot write into another
//! one's packets, and a packet mirrored under two becomes whole twice.
//!
//! **Caps.** All that is held, bookkeeping included, stays below [`MAX_FRAGMENT_BYTES`]. When more is needed, first what
//! is whole is forgotten, then what waits longest is given up. Above half of the cap, a sender (an IPv4 address, a /64
//! of IPv6) that holds a quarter is refused, so that one that never completes anything pushes out nobody.
//! Every byte that was held and given up, or refused, is counted.

mod packet;

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use self::packet::{Piece, Waiting, Whole};
use super::Vni;
use super::ip::{self, Fragment, IpPacket, Opened};
use crate::budget::{Budget, Source};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

/// The most that pieces may hold, in bytes, their bookkeeping included.
pub const MAX_FRAGMENT_BYTES: usize = 4 << 20;

/// How long an IPv4 packet waits for its pieces, in flow time, from its first (Linux: `net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIMEOUT_V4: Duration = Duration::from_secs(30);

/// The same for IPv6 (RFC 8200 §4.5, Linux: `net.ipv6.ip6frag_time`).
pub const FRAGMENT_TIMEOUT_V6: Duration = Duration::from_secs(60);

/// How long a packet that became whole is remembered, in flow time: as long as a closed connection.
const REMEMBER: Duration = Duration::from_secs(2);

/// The longest payload of a packet that was sent in pieces: what 13 bits of offset reach.
const MAX_PAYLOAD: usize = 65_535;

/// What a packet costs beyond its pieces (map and queue entries, rounded up).
const PACKET_COST: usize = 512;

/// What a piece may cost beyond its bytes: an entry in each of two maps.
const PIECE_COST: usize = 320;

/// What the pieces of one packet have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    vni: Option<Vni>,
    src: IpAddr,
    dst: IpAddr,
    id: u32,
    /// Zero in IPv6, where it is no part of the identity.
    protocol: u8,
}

#[derive(Debug)]
enum State {
    Waiting(Waiting),
    Whole(Whole),
}

#[derive(Debug)]
struct Packet {
    /// Tells it from others with the same key in the queues.
    serial: u64,
    /// The first piece's time, or when it became whole.
    since: Timestamp,
    state: State,
}

impl Packet {
    fn cost(&self) -> usize {
        PACKET_COST
            + match &self.state {
                State::Waiting(waiting) => waiting.cost(),
                State::Whole(whole) => whole.cost(),
            }
    }

    fn queue(&self, key: &Key) -> usize {
        match self.state {
            State::Whole(_) => WHOLE,
            State::Waiting(_) if key.src.is_ipv4() => WAITING_V4,
            State::Waiting(_) => WAITING_V6,
        }
    }
}

/// Packets by the time for which they are kept, oldest first. Entries of packets that are gone stay until they reach
/// the front or outnumber the others.
type Queue = VecDeque<(Timestamp, Key, u64)>;

/// The queues, and how long their packets are kept.
const WAITING_V4: usize = 0;
const WAITING_V6: usize = 1;
const WHOLE: usize = 2;
const KEPT: [Duration; 3] = [FRAGMENT_TIMEOUT_V4, FRAGMENT_TIMEOUT_V6, REMEMBER];

/// Holds pieces until they make a packet.
#[derive(Debug)]
pub(super) struct Reassembler {
    /// Keyed per process: names are chosen by strangers.
    packets: HashMap<Key, Packet, RandomState>,
    queues: [Queue; 3],
    budget: Budget,
    serial: u64,
    lost_bytes: u64,
    conflict_bytes: u64,
}

impl Default for Reassembler {
    fn default() -> Self {
        Self {
            packets: HashMap::default(),
            queues: Default::default(),
            budget: Budget::new(MAX_FRAGMENT_BYTES),
            serial: 0,
            lost_bytes: 0,
            conflict_bytes: 0,
        }
    }
}

/// Where a piece stands, if it can stand there.
///
/// # Errors
/// `bad_ip` where the receiver drops this piece and keeps the packet's others.
fn place<'a>(piece: &Fragment<'a>) -> Result<Piece<'a>, PacketOutcome> {
    let packet = &piece.packet;
    let mut bytes = packet.payload;
    let mut len = usize::try_from(packet.missing)
        .ok()
        .and_then(|missing| bytes.len().checked_add(missing))
        .ok_or(PacketOutcome::BadIp)?;
    if piece.more && len % 8 != 0 {
        if packet.src.is_ipv6() {
            return Err(PacketOutcome::BadIp);
        }
        len &= !7;
        bytes = bytes.get(..len).unwrap_or(bytes);
    }
    let end = piece.offset + len;
    if end > MAX_PAYLOAD || (piece.offset == 0 && packet.src.is_ipv6() && ends_early(packet)) {
        return Err(PacketOutcome::BadIp);
    }
    Ok(Piece {
        start: piece.offset,
        end,
        last: !piece.more,
        bytes,
        protocol: packet.protocol,
        sized: packet.sized,
    })
}

/// Whether a first piece ends inside the TCP or UDP header (RFC 7112 §5; `ipv6frag_thdr_truncated`).
fn ends_early(first: &IpPacket<'_>) -> bool {
    let Ok(Opened::Whole(behind)) = ip::walk(*first) else {
        return false;
    };
    let header = match behind.protocol {
        ip::TCP => 20,
        ip::UDP => 8,
        _ => 1,
    };
    behind.payload.len() < header && behind.missing == 0
}

impl Reassembler {
    /// Captured bytes of pieces that never became a packet, or stood behind a hole in one.
    pub(super) fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Bytes of pieces that disagreed with copies that had come before.
    pub(super) fn conflict_bytes(&self) -> u64 {
        self.conflict_bytes
    }

    /// Takes a piece; gives the packet that it completes.
    ///
    /// # Errors
    /// `fragment` while the packet is not whole; `duplicate` where the piece says nothing new; `over_cap` where its
    /// sender holds its share; `bad_ip` where the piece lies about its place, or contradicts others.
    pub(super) fn add(
        &mut self,
        now: Timestamp,
        vni: Option<Vni>,
        fragment: &Fragment<'_>,
    ) -> Result<IpPacket<'_>, PacketOutcome> {
        let IpPacket {
            src, dst, protocol, ..
        } = fragment.packet;
        let piece = place(fragment)?;
        let key = Key {
            vni,
            src,
            dst,
            id: fragment.id,
            protocol: if src.is_ipv4() { protocol } else { 0 },
        };
        self.expire(now, &key);
        if self.repeats(&key, &piece) {
            return Err(PacketOutcome::Duplicate);
        }
        if !self.make_room(Source::of(src), piece.bytes.len()) {
            self.lost_bytes += piece.bytes.len() as u64;
            return Err(PacketOutcome::OverCap);
        }
        let taken = self.take(now, key, &piece);
        // A packet that another one begins with cost more than the piece.
        self.trim();
        let Some(taken) = taken else {
            return Err(PacketOutcome::BadIp);
        };
        self.conflict_bytes += taken.conflicts as u64;
        if !taken.completes {
            return Err(if taken.new == 0 && !piece.bytes.is_empty() {
                PacketOutcome::Duplicate
            } else {
                PacketOutcome::Fragment
            });
        }
        let whole = self.complete(now, key).ok_or(PacketOutcome::Fragment)?;
        let packet = IpPacket {
            src,
            dst,
            protocol: whole.protocol,
            missing: u32::try_from(whole.len - whole.payload.len())
                .map_err(|_| PacketOutcome::BadIp)?,
            payload: &whole.payload,
            sized: whole.sized,
            // Each piece had one of its own.
            v4_header: &[],
        };
        // In IPv6 further extension headers may have been among what was cut in pieces.
        match ip::walk(packet)? {
            Opened::Whole(packet) => Ok(packet),
            Opened::Fragment(_) => Err(PacketOutcome::Fragment),
        }
    }

    /// Whether the piece only says again what a packet that is whole said.
    fn repeats(&mut self, key: &Key, piece: &Piece<'_>) -> bool {
        let Some(packet) = self.packets.get_mut(key) else {
            return false;
        };
        let before = packet.cost();
        let State::Whole(whole) = &mut packet.state else {
            return false;
        };
        let repeats = whole.repeats(piece);
        let after = packet.cost();
        self.budget.change(Source::of(key.src), before, after);
        self.trim();
        repeats
    }

    /// Puts a piece to the others of its packet; `None` where that is thrown away for it.
    fn take(&mut self, now: Timestamp, key: Key, piece: &Piece<'_>) -> Option<packet::Taken> {
        let source = Source::of(key.src);
        let (before, packet) = match self.packets.entry(key) {
            Entry::Occupied(entry) => (entry.get().cost(), entry.into_mut()),
            Entry::Vacant(entry) => (
                0,
                entry.insert(Packet {
                    serial: 0,
                    since: now,
                    state: State::Waiting(Waiting::default()),
                }),
            ),
        };
        if let State::Whole(whole) = &mut packet.state {
            let whole = std::mem::take(whole);
            packet.state = State::Waiting(whole.into_next());
            packet.serial = 0;
        }
        if packet.serial == 0 {
            self.serial += 1;
            packet.serial = self.serial;
            packet.since = now;
            self.queues[packet.queue(&key)].push_back((now, key, self.serial));
        }
        let State::Waiting(waiting) = &mut packet.state else {
            return None;
        };
        let taken = waiting.take(piece);
        let after = packet.cost();
        self.budget.change(source, before, after);
        match taken {
            Ok(taken) => Some(taken),
            Err(packet::Unsound) => {
                self.lost_bytes += piece.bytes.len() as u64;
                self.give_up(&key);
                None
            }
        }
    }

    /// Makes a packet of pieces a whole one, and remembers it.
    fn complete(&mut self, now: Timestamp, key: Key) -> Option<&Whole> {
        let packet = self.packets.get_mut(&key)?;
        let before = packet.cost();
        let State::Waiting(waiting) = &mut packet.state else {
            return None;
        };
        let (whole, beyond) = std::mem::take(waiting).into_whole();
        self.lost_bytes += beyond as u64;
        self.serial += 1;
        packet.serial = self.serial;
        packet.since = now;
        packet.state = State::Whole(whole);
        let after = packet.cost();
        self.budget.change(Source::of(key.src), before, after);
        self.queues[WHOLE].push_back((now, key, self.serial));
        match &self.packets.get(&key)?.state {
            State::Whole(whole) => Some(whole),
            State::Waiting(_) => None,
        }
    }

    /// Gives up all that waits, and forgets what is whole.
    pub(super) fn clear(&mut self) {
        for queue in 0..KEPT.len() {
            while self.give_up_oldest(queue) {}
        }
    }

    fn give_up(&mut self, key: &Key) {
        let Some(packet) = self.packets.remove(key) else {
            return;
        };
        self.budget.change(Source::of(key.src), packet.cost(), 0);
        if let State::Waiting(waiting) = packet.state {
            self.lost_bytes += waiting.held() as u64;
        }
    }

    /// Gives up the oldest packet of a queue; `false` when the queue is empty.
    fn give_up_oldest(&mut self, queue: usize) -> bool {
        let Some((_, key, serial)) = self.queues[queue].pop_front() else {
            return false;
        };
        if self.packets.get(&key).is_some_and(|p| p.serial == serial) {
            self.give_up(&key);
        }
        true
    }

    /// Gives up what was kept for its time; certainly the packet that is asked for.
    fn expire(&mut self, now: Timestamp, key: &Key) {
        for (queue, kept) in KEPT.into_iter().enumerate() {
            while let Some((since, ..)) = self.queues[queue].front()
                && now.since(*since) > kept
            {
                self.give_up_oldest(queue);
            }
        }
        // Time stamps need not ascend, so that it may stand behind a younger one.
        if let Some(packet) = self.packets.get(key)
            && now.since(packet.since) > KEPT[packet.queue(key)]
        {
            self.give_up(key);
        }
        let most = 2 * self.packets.len() + 64;
        for queue in &mut self.queues {
            // Each packet costs at least `PACKET_COST`, so that this bounds the queues too.
            if queue.len() > most {
                let packets = &self.packets;
                queue.retain(|(_, key, serial)| {
                    packets.get(key).is_some_and(|p| p.serial == *serial)
                });
            }
        }
    }

    /// Makes room for a piece of `source`; `false` where it is refused.
    fn make_room(&mut self, source: Source, bytes: usize) -> bool {
        let more = PACKET_COST + PIECE_COST + bytes;
        while self.budget.exceeded(source, more) {
            if self.give_up_oldest(WHOLE) {
                continue;
            }
            if self.budget.over_share(source, more) || !self.give_up_longest_waiting() {
                return false;
            }
        }
        true
    }

    fn trim(&mut self) {
        while self.budget.total() > MAX_FRAGMENT_BYTES
            && (self.give_up_oldest(WHOLE) || self.give_up_longest_waiting())
        {}
    }

    fn give_up_longest_waiting(&mut self) -> bool {
        let since = |queue: usize| self.queues[queue].front().map(|(since, ..)| *since);
        let queue = match (since(WAITING_V4), since(WAITING_V6)) {
            (Some(four), Some(six)) if six < four => WAITING_V6,
            (None, _) => WAITING_V6,
            _ => WAITING_V4,
        };
        self.give_up_oldest(queue)
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Reassembler {
    /// Bytes held, by counting anew what the running sums should say.
    pub(super) fn bytes(&self) -> usize {
        let counted: usize = self.packets.values().map(Packet::cost).sum();
        self.budget.check(counted);
        let queued = |queue: &Queue| queue.iter().map(|(.., serial)| *serial).collect();
        let queued: [std::collections::HashSet<u64>; 3] = self.queues.each_ref().map(queued);
        for (key, packet) in &self.packets {
            match &packet.state {
                State::Waiting(waiting) => waiting.check(),
                State::Whole(whole) => whole.check(),
            }
            assert!(
                queued[packet.queue(key)].contains(&packet.serial),
                "a packet that no time ends"
            );
        }
        counted
    }

    /// Entries of the queues.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.queues.iter().map(VecDeque::len).sum()
    }
}
