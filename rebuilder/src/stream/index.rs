//! Where the flow of a hash is.
//!
//! Open addressing, linear, in entries of eight bytes. hashbrown's tables are as good at finding, but do not say which memory
//! they will look at; of tens of thousands of flows an entry is in no near cache, and each packet would wait for it.

use super::offset::index;
use crate::prefetch::prefetch;

/// The least number of entries; a power of two, as all others.
const LEAST: usize = 64;

/// Slots by keyed hash. What two flows have in common is for the caller to find out.
pub(super) struct Index {
    /// The lower half of a hash in the upper half, one more than a slot in the lower; zero where there is nothing. An entry
    /// stands where its hash says or, with no empty place between, behind.
    entries: Vec<u64>,
    len: usize,
}

/// What is kept of a hash. Its lower bits tell the place, so that a table can grow without knowing more.
const fn tag(hash: u64) -> u64 {
    hash << 32 >> 32
}

impl Index {
    /// Room for so many slots; it grows beyond.
    pub(super) fn with_capacity(slots: usize) -> Self {
        // Of zeros the system gives no page before it is written to.
        let entries = vec![0; entries_for(slots)];
        Self { entries, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Asks memory for what a look-up of this hash needs.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(entry) = self.entries.get(self.place(tag(hash))) {
            prefetch(entry, 1);
        }
    }

    /// The first slot of this hash that is it. Of others one in thousands is asked for.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let tag = tag(hash);
        let mut at = self.place(tag);
        loop {
            let entry = *self.entries.get(at).filter(|entry| **entry != 0)?;
            if entry >> 32 == tag && is_it(slot(entry)) {
                return Some(slot(entry));
            }
            at = self.behind(at);
        }
    }

    /// Enters a slot that is not in it.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) {
        if entries_for(self.len + 1) > self.entries.len() {
            let larger = vec![0; self.entries.len() * 2];
            for entry in std::mem::replace(&mut self.entries, larger) {
                if entry != 0 {
                    self.put(entry);
                }
            }
        }
        self.put(tag(hash) << 32 | (u64::from(slot) + 1));
        self.len += 1;
    }

    /// Takes a slot out, if it is there.
    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let wanted = tag(hash) << 32 | (u64::from(slot) + 1);
        let mut hole = self.place(tag(hash));
        loop {
            match self.entries.get(hole) {
                None | Some(0) => return,
                Some(entry) if *entry == wanted => break,
                Some(_) => hole = self.behind(hole),
            }
        }
        self.len -= 1;
        // Whoever stands behind for want of a place moves up, so that no empty place comes between.
        let mut at = hole;
        loop {
            at = self.behind(at);
            let entry = self.entries.get(at).copied().unwrap_or(0);
            if entry == 0 {
                break;
            }
            if self.steps(self.place(entry >> 32), at) >= self.steps(hole, at) {
                self.set(hole, entry);
                hole = at;
            }
        }
        self.set(hole, 0);
    }

    pub(super) fn clear(&mut self) {
        *self = Self {
            entries: vec![0; self.entries.len()],
            len: 0,
        };
    }

    fn put(&mut self, entry: u64) {
        let mut at = self.place(entry >> 32);
        // A quarter of the places is empty.
        while self.entries.get(at).is_some_and(|other| *other != 0) {
            at = self.behind(at);
        }
        self.set(at, entry);
    }

    fn set(&mut self, at: usize, entry: u64) {
        if let Some(place) = self.entries.get_mut(at) {
            *place = entry;
        }
    }

    /// Where the entries of a tag begin.
    #[inline]
    fn place(&self, tag: u64) -> usize {
        index(tag) & (self.entries.len() - 1)
    }

    #[inline]
    fn behind(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn steps(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len() - 1)
    }
}

/// How many entries there are for so many slots: a quarter of them stays empty at least.
fn entries_for(slots: usize) -> usize {
    slots
        .saturating_add(slots / 3 + 1)
        .next_power_of_two()
        .max(LEAST)
}

/// The slot of an entry that is not empty.
#[allow(clippy::cast_possible_truncation)]
const fn slot(entry: u64) -> u32 {
    debug_assert!(entry as u32 != 0);
    (entry as u32).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Hashes of a few bits at both ends of the table: many have the same place, and their entries wrap round its end.
        #[test]
        fn it_holds_what_a_map_does(
            steps in prop::collection::vec((any::<bool>(), 0_u64..12, 0_u32..300), 0..600)
        ) {
            let mut index = Index::with_capacity(1);
            let mut map: HashMap<u32, u64> = HashMap::new();
            for (enter, low, slot) in steps {
                // The upper half of a hash tells nothing here.
                let hash = (u64::from(slot) << 40) | (low.wrapping_sub(6) & 0xffff_ffff);
                if enter && !map.contains_key(&slot) {
                    index.insert(hash, slot);
                    map.insert(slot, hash);
                } else if let Some(hash) = map.remove(&slot) {
                    index.remove(hash, slot);
                } else {
                    index.remove(hash, slot);
                }
                prop_assert_eq!(index.len(), map.len());
            }
            for (slot, hash) in &map {
                prop_assert_eq!(index.find(*hash, |found| found == *slot), Some(*slot));
            }
            for low in 0..12_u64 {
                let hash = low.wrapping_sub(6) & 0xffff_ffff;
                let mut of_hash = Vec::new();
                let none = index.find(hash, |slot| { of_hash.push(slot); false });
                prop_assert_eq!(none, None);
                of_hash.sort_unstable();
                let mut expected: Vec<u32> = map
                    .iter()
                    .filter(|(_, other)| tag(**other) == tag(hash))
                    .map(|(slot, _)| *slot)
                    .collect();
                expected.sort_unstable();
                prop_assert_eq!(of_hash, expected);
            }
        }
    }
}
