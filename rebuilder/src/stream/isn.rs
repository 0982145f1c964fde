//! Initial sequence numbers of connections that have not sent a byte yet.
//!
//! A SYN alone allocates no flow (DESIGN §2 rule 9): a flood of them costs this cache, whose size is fixed, and nothing
//! else. What a flood pushes out is not lost either: its connection is then joined midway, 50 ms later.

use std::time::Duration;

use crate::decode::Seq;
use crate::prefetch::prefetch;
use crate::time::Timestamp;

use super::offset::{advance, distance};

/// Slots that one direction may fall into: four cache lines, looked at only for a SYN and for the first byte behind it.
/// With half as many, 10,000 connections that wait for their first byte would lose a dozen SYNs of 65,536 slots.
const WAYS: usize = 8;
/// Of these, so many hold SYNs of one direction at most: the SYN of a connection and candidates beside it.
const PER_DIRECTION: usize = 3;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Keyed hash of the direction. 64 bits of a hash that an attacker cannot compute name it well enough.
    tag: u64,
    isn: Seq,
    /// How far behind the SYN the urgent byte lies that the sender has announced; zero when none.
    urgent: u16,
    /// When it came first.
    seen: Timestamp,
}

/// What is known of a direction before its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    pub(super) isn: Seq,
    /// The sequence number of an urgent byte to come.
    pub(super) urgent: Option<Seq>,
}

#[cfg(test)]
pub(super) const ENTRY_BYTES: usize = size_of::<Option<Entry>>();

/// A set-associative table of fixed size.
#[derive(Debug)]
pub(super) struct IsnCache {
    sets: Box<[[Option<Entry>; WAYS]]>,
    max_age: Duration,
}

impl IsnCache {
    /// Room for about `entries`, rounded up to a power of two.
    pub(super) fn new(entries: usize, max_age: Duration) -> Self {
        let sets = entries.div_ceil(WAYS).max(1).next_power_of_two();
        Self {
            sets: vec![[None; WAYS]; sets].into_boxed_slice(),
            max_age,
        }
    }

    fn place(&self, tag: u64) -> usize {
        super::offset::index(tag) & (self.sets.len() - 1)
    }

    fn set(&mut self, tag: u64) -> Option<&mut [Option<Entry>; WAYS]> {
        let at = self.place(tag);
        self.sets.get_mut(at)
    }

    /// Asks memory for what is held of the SYNs of a direction.
    #[inline]
    pub(super) fn prefetch(&self, tag: u64) {
        if let Some(set) = self.sets.get(self.place(tag)) {
            prefetch(set, usize::MAX);
        }
    }

    /// Remembers a SYN. It takes, in this order: the place of its own earlier copy; of the latest of three others of the
    /// direction, so that whoever forges many does not push out the one that was there before; a free slot; the place
    /// of the oldest of the set.
    pub(super) fn insert(&mut self, tag: u64, isn: Seq, now: Timestamp) {
        let max_age = self.max_age;
        let Some(set) = self.set(tag) else { return };
        let entry = Entry {
            tag,
            isn,
            urgent: 0,
            seen: now,
        };
        if set.iter().flatten().any(|e| e.tag == tag && e.isn == isn) {
            return;
        }
        let of_direction = set.iter().flatten().filter(|e| e.tag == tag).count();
        let victim = if of_direction >= PER_DIRECTION {
            set.iter_mut()
                .filter(|slot| slot.is_some_and(|e| e.tag == tag))
                .max_by_key(|slot| slot.map(|e| (now.since(e.seen) > max_age, e.seen)))
        } else {
            // `None` is the least: a free slot goes first.
            set.iter_mut().min_by_key(|slot| slot.map(|e| e.seen))
        };
        if let Some(slot) = victim {
            *slot = Some(entry);
        }
    }

    /// Remembers where the urgent byte of a connection lies that has not sent a byte.
    pub(super) fn note_urgent(&mut self, tag: u64, at: Seq) {
        let Some(set) = self.set(tag) else { return };
        for entry in set.iter_mut().flatten().filter(|e| e.tag == tag) {
            if let Ok(urgent) = u16::try_from(distance(entry.isn, at)) {
                entry.urgent = urgent;
            }
        }
    }

    /// The SYN in whose window `seq` lies, by preference the one just before it, else the one that came first; it is
    /// taken out.
    pub(super) fn take(
        &mut self,
        tag: u64,
        seq: Seq,
        window: u32,
        now: Timestamp,
    ) -> Option<Opening> {
        let max_age = self.max_age;
        let window = i64::from(window);
        let slot = self
            .set(tag)?
            .iter_mut()
            .filter_map(|slot| {
                let entry = slot.filter(|e| e.tag == tag && now.since(e.seen) <= max_age)?;
                // A keep-alive probe repeats the byte before the first one: the place of the SYN itself.
                let ahead = distance(entry.isn, seq);
                (0..=window)
                    .contains(&ahead)
                    .then_some(((ahead > 1, entry.seen), slot))
            })
            .min_by_key(|(order, _)| *order)?
            .1;
        slot.take().map(|e| Opening {
            isn: e.isn,
            urgent: (e.urgent > 0).then(|| advance(e.isn, u64::from(e.urgent))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: u32 = 1 << 20;

    fn cache() -> IsnCache {
        IsnCache::new(64, Duration::from_secs(120))
    }

    fn taken(cache: &mut IsnCache, tag: u64, seq: u32, now: Timestamp) -> Option<Seq> {
        cache.take(tag, Seq(seq), WINDOW, now).map(|o| o.isn)
    }

    #[test]
    fn an_urgent_byte_that_was_announced_is_found_with_the_syn() {
        let mut cache = cache();
        cache.insert(9, Seq(u32::MAX), Timestamp(1));
        cache.note_urgent(9, Seq(4));
        cache.note_urgent(8, Seq(5));
        cache.insert(9, Seq(u32::MAX), Timestamp(2)); // the SYN again
        let opening = Opening {
            isn: Seq(u32::MAX),
            urgent: Some(Seq(4)),
        };
        assert_eq!(cache.take(9, Seq(0), WINDOW, Timestamp(2)), Some(opening));
    }

    #[test]
    fn a_syn_is_found_by_any_byte_of_its_window_and_only_once() {
        let mut cache = cache();
        cache.insert(9, Seq(u32::MAX), Timestamp(1));
        assert_eq!(
            taken(&mut cache, 9, u32::MAX - 1, Timestamp(2)),
            None,
            "a byte before the SYN"
        );
        assert_eq!(
            taken(&mut cache, 8, 0, Timestamp(2)),
            None,
            "another direction"
        );
        assert_eq!(taken(&mut cache, 9, 500, Timestamp(2)), Some(Seq(u32::MAX)));
        assert_eq!(taken(&mut cache, 9, 500, Timestamp(2)), None);
    }

    #[test]
    fn a_forged_syn_does_not_hide_the_true_one() {
        for forged_first in [true, false] {
            let mut cache = cache();
            let (first, second) = if forged_first {
                (990, 1000)
            } else {
                (1000, 990)
            };
            cache.insert(9, Seq(first), Timestamp(1));
            cache.insert(9, Seq(second), Timestamp(2));
            assert_eq!(taken(&mut cache, 9, 1001, Timestamp(2)), Some(Seq(1000)));
        }
    }

    #[test]
    fn many_forged_syns_do_not_push_out_the_one_that_was_there() {
        let mut cache = cache();
        cache.insert(9, Seq(1000), Timestamp(1));
        for n in 0..100_u32 {
            cache.insert(9, Seq(900 + 3 * n), Timestamp(2 + u64::from(n)));
        }
        assert_eq!(taken(&mut cache, 9, 1500, Timestamp(200)), Some(Seq(1000)));
        // And the latest is there, too.
        assert_eq!(taken(&mut cache, 9, 1198, Timestamp(200)), Some(Seq(1197)));
    }

    #[test]
    fn a_syn_flood_stays_within_the_fixed_size_and_pushes_out_the_oldest() {
        let mut cache = cache();
        for n in 0..100_000 {
            cache.insert(n, Seq(1), Timestamp(n));
        }
        assert_eq!(cache.sets.len() * WAYS, 64);
        assert_eq!(taken(&mut cache, 0, 2, Timestamp(100_000)), None);
        assert_eq!(
            taken(&mut cache, 99_999, 2, Timestamp(100_000)),
            Some(Seq(1))
        );
    }

    #[test]
    fn a_syn_older_than_the_idle_time_is_not_consulted() {
        let mut cache = cache();
        cache.insert(9, Seq(1), Timestamp(0));
        assert_eq!(
            taken(&mut cache, 9, 2, Timestamp(0) + Duration::from_secs(121)),
            None
        );
    }
}
