//! Which bytes of which connection were sent, and which of them got through.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::copy::Segment;

/// Sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds `from..to`.
    pub fn add(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        // All that overlap or touch become one.
        let first = self.0.partition_point(|&(_, end)| end < from);
        let behind = self.0.partition_point(|&(start, _)| start <= to);
        let (mut start, mut end) = (from, to);
        if let (Some(lowest), Some(highest)) = (
            self.0.get(first).filter(|_| first < behind),
            behind.checked_sub(1).and_then(|last| self.0.get(last)),
        ) {
            (start, end) = (from.min(lowest.0), to.max(highest.1));
        }
        self.0.splice(first..behind.max(first), [(start, end)]);
    }

    /// Whether all of `from..to` is in.
    #[must_use]
    pub fn holds(&self, from: u64, to: u64) -> bool {
        from >= to || self.end_of(from) >= to
    }

    /// Where the first byte at or behind `from` stands that is not in.
    #[must_use]
    pub fn end_of(&self, from: u64) -> u64 {
        let at = self.0.partition_point(|&(_, end)| end <= from);
        match self.0.get(at) {
            Some(&(start, end)) if start <= from => end,
            _ => from,
        }
    }

    /// How many bytes of `from..to` are in.
    #[must_use]
    pub fn within(&self, from: u64, to: u64) -> u64 {
        let overlap = |&(start, end): &(u64, u64)| end.min(to).saturating_sub(start.max(from));
        let first = self.0.partition_point(|&(_, end)| end <= from);
        let ranges = self.0.get(first..).unwrap_or_default().iter();
        ranges
            .take_while(|&&(start, _)| start < to)
            .map(overlap)
            .sum()
    }

    /// How many bytes are in.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether nothing is in.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// One direction of one connection. Offsets are those of the stream: 0 is the first byte behind the SYN.
#[derive(Clone, Debug, Default)]
pub struct Flow {
    isn: u32,
    /// The offset that the next segment is thought to be near, for sequence numbers that wrap.
    near: u64,
    /// A copy of the SYN got through.
    pub syn_captured: bool,
    /// Bytes that were sent.
    pub sent: Ranges,
    /// Bytes of which a copy got through.
    pub captured: Ranges,
    /// Where segments begin of which a copy got through, ascending, each once.
    pub starts: Vec<u64>,
    /// Bytes cut off by the mirror: the IP header said that there were more.
    pub cut_bytes: u64,
    /// Segments of one byte.
    pub one_byte: u64,
}

impl Flow {
    fn place(&mut self, segment: &Segment) -> u64 {
        let first = self.isn.wrapping_add(1);
        // The offset that is congruent to the sequence number and nearest to the last one.
        let low = segment
            .seq
            .wrapping_sub(first)
            .wrapping_add(u32::from(segment.syn));
        let near = u32::try_from(self.near & u64::from(u32::MAX)).unwrap_or(0);
        let ahead = low.wrapping_sub(near).cast_signed();
        let at = self.near.saturating_add_signed(i64::from(ahead));
        self.near = at;
        at
    }

    /// Whether a copy of a segment that begins at this offset got through.
    #[must_use]
    pub fn begins_segment(&self, at: u64) -> bool {
        self.starts.binary_search(&at).is_ok()
    }
}

/// All connections whose SYN came by, by source and destination.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    flows: HashMap<(SocketAddr, SocketAddr), Flow>,
    reused: Option<String>,
}

impl Ledger {
    /// Notes that a segment was sent.
    pub(super) fn sent(&mut self, segment: &Segment) {
        let key = (segment.from, segment.to);
        if segment.syn {
            let flow = self.flows.entry(key).or_insert_with(|| Flow {
                isn: segment.seq,
                ..Flow::default()
            });
            if flow.isn != segment.seq {
                self.reused = Some(format!("{} to {}", segment.from, segment.to));
            }
        }
        if let Some(flow) = self.flows.get_mut(&key) {
            let at = flow.place(segment);
            flow.sent.add(at, at + u64::from(segment.on_wire));
            flow.one_byte += u64::from(segment.on_wire == 1);
            flow.cut_bytes += u64::from(segment.on_wire) - u64::from(segment.captured);
        }
    }

    /// Notes that a copy of it got through.
    pub(super) fn captured(&mut self, segment: &Segment) {
        if let Some(flow) = self.flows.get_mut(&(segment.from, segment.to)) {
            let at = flow.place(segment);
            flow.syn_captured |= segment.syn;
            flow.captured.add(at, at + u64::from(segment.captured));
            if segment.captured > 0
                && let Err(place) = flow.starts.binary_search(&at)
            {
                flow.starts.insert(place, at);
            }
        }
    }

    /// One direction of one connection.
    #[must_use]
    pub fn flow(&self, from: SocketAddr, to: SocketAddr) -> Option<&Flow> {
        self.flows.get(&(from, to))
    }

    /// All of them, in no order.
    pub fn flows(&self) -> impl Iterator<Item = (&(SocketAddr, SocketAddr), &Flow)> {
        self.flows.iter()
    }

    /// A connection that was opened twice with the same ports, if there is one.
    #[must_use]
    pub fn reused(&self) -> Option<&str> {
        self.reused.as_deref()
    }
}

#[cfg(test)]
impl Ledger {
    /// One connection, whose SYN got through or not, with segments: offset, length, bytes that got through.
    pub(crate) fn of(
        from: SocketAddr,
        to: SocketAddr,
        syn: bool,
        segments: &[(u32, u32, u32)],
    ) -> Self {
        let mut ledger = Self::default();
        let mut segment = Segment {
            from,
            to,
            seq: 0,
            syn: true,
            on_wire: 0,
            captured: 0,
        };
        ledger.sent(&segment);
        if syn {
            ledger.captured(&segment);
        }
        segment.syn = false;
        for &(at, on_wire, captured) in segments {
            (segment.seq, segment.on_wire, segment.captured) = (1 + at, on_wire, captured);
            ledger.sent(&segment);
            if captured > 0 {
                ledger.captured(&segment);
            }
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn ranges_agree_with_a_map_of_bytes() {
        let mut random = Random::new(1);
        for _ in 0..200 {
            let (mut ranges, mut map) = (Ranges::default(), [false; 80]);
            for _ in 0..random.below(20) {
                let from = random.below(60);
                let to = from + random.below(20);
                ranges.add(from as u64, to as u64);
                map[from..to].fill(true);
            }
            assert_eq!(
                ranges.len(),
                map.iter().filter(|in_it| **in_it).count() as u64
            );
            for from in 0..80 {
                let end = (from..80).find(|&at| !map[at]).unwrap_or(80);
                assert_eq!(
                    ranges.end_of(from as u64),
                    end as u64,
                    "{from} in {ranges:?}"
                );
            }
            let (from, to) = (random.below(60), 60 + random.below(20));
            let within = map[from..to].iter().filter(|in_it| **in_it).count();
            assert_eq!(ranges.within(from as u64, to as u64), within as u64);
            for pair in ranges.0.windows(2) {
                assert!(pair[0].1 < pair[1].0, "{ranges:?}");
            }
        }
    }

    fn segment(seq: u32, syn: bool, on_wire: u32, captured: u32) -> Segment {
        Segment {
            from: "10.0.0.1:1024".parse().unwrap(),
            to: "10.0.0.2:80".parse().unwrap(),
            seq,
            syn,
            on_wire,
            captured,
        }
    }

    #[test]
    fn offsets_go_on_where_sequence_numbers_wrap() {
        let mut ledger = Ledger::default();
        let isn = u32::MAX - 10;
        for (seq, syn, length) in [
            (isn, true, 0),
            (isn.wrapping_add(1), false, 30),
            (20, false, 5),
        ] {
            ledger.sent(&segment(seq, syn, length, length));
            ledger.captured(&segment(seq, syn, length, length));
        }
        let (_, flow) = ledger.flows().next().unwrap();
        // The second byte is ISN + 1: ten behind it is 0, and 20 is twenty farther.
        assert_eq!(flow.starts, [0, 30]);
        assert!(flow.sent.holds(0, 35) && flow.syn_captured);
    }

    #[test]
    fn a_dropped_and_a_cut_segment_are_sent_and_not_captured() {
        let mut ledger = Ledger::default();
        ledger.sent(&segment(0, true, 0, 0));
        ledger.sent(&segment(1, false, 100, 100));
        let cut = segment(101, false, 100, 60);
        ledger.sent(&cut);
        ledger.captured(&cut);
        let (_, flow) = ledger.flows().next().unwrap();
        assert!(flow.sent.holds(0, 200) && !flow.syn_captured);
        assert_eq!(
            (flow.captured.end_of(0), flow.captured.end_of(100)),
            (0, 160)
        );
        assert_eq!((flow.cut_bytes, flow.begins_segment(100)), (40, true));
    }

    #[test]
    fn a_second_connection_with_the_same_ports_is_noticed() {
        let mut ledger = Ledger::default();
        ledger.sent(&segment(0, true, 0, 0));
        ledger.sent(&segment(0, true, 0, 0));
        assert_eq!(ledger.reused(), None, "a SYN sent again");
        ledger.sent(&segment(77, true, 0, 0));
        assert!(ledger.reused().is_some());
    }
}
