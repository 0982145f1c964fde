//! IP packets that were sent in pieces (RFC 791 §3.2, RFC 8200 §4.5) become whole again.
//!
//! Pieces are held until they cover their packet, within a cap in bytes and for a time; the oldest packet makes room
//! for a new one. Where two pieces overlap, the bytes that came first stay. A piece cut by the mirror leaves a hole:
//! in the last piece it becomes the packet's `missing`, in any other one the packet waits for another copy.
//!
//! Pieces of packets mirrored under different network identifiers never meet: a VPC cannot write into another one's
//! packets, and a packet mirrored twice becomes whole twice.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::Vni;
use super::ip::{self, Fragment, IpPacket, Opened};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

/// The most that pieces may hold, in bytes, their bookkeeping included.
pub const MAX_FRAGMENT_BYTES: usize = 4 << 20;

/// How long a packet waits for its pieces, in flow time, from its first: as long as Linux does
/// (`net.ipv4.ipfrag_time`).
pub const FRAGMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest payload of a packet that was sent in pieces: what 13 bits of offset reach.
const MAX_PAYLOAD: usize = 65_535;

/// What a piece costs beyond its bytes, and a packet beyond its pieces (map entries and allocations, rounded up).
const PIECE_COST: usize = 96;
const PACKET_COST: usize = 512;

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
struct Partial {
    /// Tells a packet from a later one with the same key.
    serial: u64,
    /// By offset; they do not overlap, and none is empty.
    pieces: BTreeMap<usize, Vec<u8>>,
    /// The sum of their lengths.
    held: usize,
    /// Where the last piece ends, and how many bytes before that were not captured.
    end: Option<(usize, u32)>,
    /// As the first piece says.
    protocol: Option<u8>,
    /// Whether every piece said how long it is.
    sized: bool,
}

impl Partial {
    fn cost(&self) -> usize {
        PACKET_COST + self.held + self.pieces.len() * PIECE_COST
    }

    /// Takes what is new in the bytes at `offset`, as far as the packet goes.
    fn fill(&mut self, offset: usize, data: &[u8]) {
        let limit = self.end.map_or(usize::MAX, |(end, _)| end);
        let end = limit.min(offset + data.len());
        let mut at = offset;
        // Begins before and may reach into the new bytes.
        if let Some((start, piece)) = self.pieces.range(..=offset).next_back() {
            at = at.max(start + piece.len());
        }
        while at < end {
            let (gap_end, resume) = match self.pieces.range(at..).next() {
                Some((start, piece)) if *start < end => (*start, start + piece.len()),
                _ => (end, end),
            };
            if let Some(new) = data.get(at - offset..gap_end - offset)
                && !new.is_empty()
            {
                self.pieces.insert(at, new.to_vec());
                self.held += new.len();
            }
            at = resume;
        }
    }

    /// Takes what the last piece says about the end. What lies beyond (only a sender that lies has put it there)
    /// is forgotten, so that a sum tells whether the packet is whole.
    fn ends_at(&mut self, end: usize, missing: u32) {
        match &mut self.end {
            // Another copy of the last piece, perhaps less cut.
            Some((known, lost)) if *known == end => *lost = missing.min(*lost),
            // What came first stays.
            Some(_) => {}
            none => {
                *none = Some((end, missing));
                self.pieces.split_off(&end);
                if let Some((start, piece)) = self.pieces.iter_mut().next_back() {
                    piece.truncate(end - start);
                }
                self.held = self.pieces.values().map(Vec::len).sum();
            }
        }
    }

    /// The length of the payload, once the pieces cover all of it that was captured.
    fn whole(&self) -> Option<usize> {
        let (end, missing) = self.end?;
        let known = end.checked_sub(usize::try_from(missing).ok()?)?;
        if self.protocol.is_none() || self.held < known {
            return None;
        }
        let covered: usize = self
            .pieces
            .range(..known)
            .map(|(start, piece)| piece.len().min(known - start))
            .sum();
        (covered == known).then_some(known)
    }
}

/// Holds pieces until they make a packet.
#[derive(Debug, Default)]
pub(super) struct Reassembler {
    partial: HashMap<Key, Partial>,
    /// Oldest first; entries of packets that are gone stay until they reach the front or outnumber the others.
    order: VecDeque<(Timestamp, Key, u64)>,
    /// The cost of all in `partial`.
    bytes: usize,
    serial: u64,
    /// The packet that was made whole last.
    whole: Vec<u8>,
}

impl Reassembler {
    /// Takes a piece; gives the packet that it completes.
    ///
    /// # Errors
    /// `fragment` while the packet is not whole; `bad_ip` where the piece lies about its place.
    pub(super) fn add(
        &mut self,
        now: Timestamp,
        vni: Option<Vni>,
        piece: &Fragment<'_>,
    ) -> Result<IpPacket<'_>, PacketOutcome> {
        let IpPacket {
            src,
            dst,
            protocol,
            payload,
            missing,
            sized,
            ..
        } = piece.packet;
        let promised = usize::try_from(missing)
            .ok()
            .and_then(|m| payload.len().checked_add(m))
            .ok_or(PacketOutcome::BadIp)?;
        let end = piece.offset + promised;
        if end > MAX_PAYLOAD || (piece.more && promised % 8 != 0) {
            return Err(PacketOutcome::BadIp);
        }
        self.expire(now);
        let key = Key {
            vni,
            src,
            dst,
            id: piece.id,
            protocol: if src.is_ipv4() { protocol } else { 0 },
        };
        if !self.partial.contains_key(&key) {
            self.serial += 1;
            self.order.push_back((now, key, self.serial));
            let partial = Partial {
                serial: self.serial,
                pieces: BTreeMap::new(),
                held: 0,
                end: None,
                protocol: None,
                sized: true,
            };
            self.bytes += partial.cost();
            self.partial.insert(key, partial);
        }
        let partial = self.partial.get_mut(&key).ok_or(PacketOutcome::Fragment)?;
        self.bytes -= partial.cost();
        partial.sized &= sized;
        if piece.offset == 0 {
            partial.protocol.get_or_insert(protocol);
        }
        if !piece.more {
            partial.ends_at(end, missing);
        }
        partial.fill(piece.offset, payload);
        self.bytes += partial.cost();
        let whole = partial.whole();
        let done = whole.and_then(|len| Some((len, self.remove(&key)?)));
        self.make_room();
        let (len, partial) = done.ok_or(PacketOutcome::Fragment)?;
        self.whole.clear();
        for piece in partial.pieces.values() {
            self.whole.extend_from_slice(piece);
        }
        self.whole.truncate(len);
        let packet = IpPacket {
            src,
            dst,
            protocol: partial.protocol.unwrap_or(protocol),
            payload: &self.whole,
            missing: partial.end.map_or(0, |(_, missing)| missing),
            sized: partial.sized,
            // Each piece had one of its own.
            v4_header: &[],
        };
        // In IPv6 further extension headers may have been among what was cut in pieces.
        match ip::walk(packet)? {
            Opened::Whole(packet) => Ok(packet),
            Opened::Fragment(_) => Err(PacketOutcome::Fragment),
        }
    }

    fn remove(&mut self, key: &Key) -> Option<Partial> {
        let partial = self.partial.remove(key)?;
        self.bytes -= partial.cost();
        Some(partial)
    }

    /// Gives up the oldest packet.
    fn drop_oldest(&mut self) {
        if let Some((_, key, serial)) = self.order.pop_front()
            && self.partial.get(&key).is_some_and(|p| p.serial == serial)
        {
            self.remove(&key);
        }
    }

    /// Gives up what waited too long.
    fn expire(&mut self, now: Timestamp) {
        while self
            .order
            .front()
            .is_some_and(|(since, ..)| now.since(*since) > FRAGMENT_TIMEOUT)
        {
            self.drop_oldest();
        }
    }

    fn make_room(&mut self) {
        while self.bytes > MAX_FRAGMENT_BYTES && !self.order.is_empty() {
            self.drop_oldest();
        }
        // Each packet costs at least `PACKET_COST`, so that this bounds the queue too.
        if self.order.len() > 2 * self.partial.len() + 64 {
            let partial = &self.partial;
            self.order
                .retain(|(_, key, serial)| partial.get(key).is_some_and(|p| p.serial == *serial));
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Reassembler {
    /// Bytes held, by counting anew what the running sum should say.
    pub(super) fn bytes(&self) -> usize {
        let counted: usize = self.partial.values().map(Partial::cost).sum();
        assert_eq!(counted, self.bytes);
        for partial in self.partial.values() {
            let held: usize = partial.pieces.values().map(Vec::len).sum();
            assert_eq!(held, partial.held);
            let mut end = 0;
            for (start, piece) in &partial.pieces {
                assert!(*start >= end && !piece.is_empty());
                end = start + piece.len();
            }
        }
        assert!(self.order.len() >= self.partial.len());
        self.bytes
    }

    /// Entries of the queue.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.order.len()
    }
}
