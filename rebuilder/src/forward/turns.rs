//! Requests of many sources that wait for connections of their own, the sources in turn. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::queue::{Item, Source};

/// One source's share.
#[derive(Debug, Default)]
struct Share {
    waiting: VecDeque<Item>,
    /// Connections that it has.
    active: usize,
    /// Whether it stands in `Turns::turns`.
    in_turn: bool,
}

/// See the module.
///
/// Invariants, checked by [`Turns::check`]: `bytes` and `len` are those of what waits; a source stands in `turns`
/// exactly when it has something waiting and a connection left; a source that has neither waiting nor active is gone.
#[derive(Debug)]
pub(super) struct Turns {
    // The map's keys are chosen by strangers: the standard library's hash is keyed.
    shares: HashMap<Source, Share>,
    turns: VecDeque<Source>,
    bytes: usize,
    len: usize,
    per_source: usize,
}

impl Turns {
    /// At most `per_source` connections of one source at a time, at least one.
    #[must_use]
    pub(super) fn new(per_source: usize) -> Self {
        Self {
            shares: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
            len: 0,
            per_source: per_source.max(1),
        }
    }

    /// Takes a request in; one that comes back from a connection goes `first`.
    pub(super) fn enter(&mut self, item: Item, first: bool) {
        let (source, cost) = (item.source, item.cost());
        self.bytes = self.bytes.saturating_add(cost);
        self.len += 1;
        let share = self.shares.entry(source).or_default();
        if !share.in_turn && share.active < self.per_source {
            share.in_turn = true;
            self.turns.push_back(source);
        }
        // Who has to wait does so at the end: at the front, one after the other would hold up the source for ever.
        if first && item.not_before.is_none() {
            share.waiting.push_front(item);
        } else {
            share.waiting.push_back(item);
        }
    }

    /// Whose turn is next: the first source whose oldest request need not wait any more.
    fn turn(&self, now: Instant) -> Option<(usize, &Item)> {
        let oldest = |source| self.shares.get(source)?.waiting.front();
        self.turns
            .iter()
            .enumerate()
            .filter_map(|(turn, source)| Some((turn, oldest(source)?)))
            .find(|(_, item)| item.not_before.is_none_or(|at| at <= now))
    }

    /// The next request.
    #[must_use]
    pub(super) fn next(&self, now: Instant) -> Option<&Item> {
        self.turn(now).map(|(_, item)| item)
    }

    /// Takes the next request; its source has one connection more until [`Turns::done`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<Item> {
        let (turn, _) = self.turn(now)?;
        let source = self.turns.remove(turn)?;
        let share = self.shares.get_mut(&source)?;
        share.in_turn = false;
        let item = share.waiting.pop_front()?;
        share.active += 1;
        if !share.waiting.is_empty() && share.active < self.per_source {
            share.in_turn = true;
            self.turns.push_back(source);
        }
        self.bytes = self.bytes.saturating_sub(item.cost());
        self.len -= 1;
        Some(item)
    }

    /// A connection that [`Turns::pop`] was for has ended.
    pub(super) fn done(&mut self, source: Source) {
        let Some(share) = self.shares.get_mut(&source) else {
            return;
        };
        share.active = share.active.saturating_sub(1);
        if share.waiting.is_empty() {
            if share.active == 0 {
                self.shares.remove(&source);
            }
        } else if !share.in_turn && share.active < self.per_source {
            share.in_turn = true;
            self.turns.push_back(source);
        }
    }

    /// Requests that wait.
    #[must_use]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Bytes that wait.
    #[must_use]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Throws away what waits.
    pub(super) fn clear(&mut self) {
        self.shares.retain(|_, share| {
            share.waiting = VecDeque::new();
            share.in_turn = false;
            share.active > 0
        });
        self.turns = VecDeque::new();
        self.bytes = 0;
        self.len = 0;
    }

    /// What waits, in no particular order.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Item> {
        self.shares.values().flat_map(|share| &share.waiting)
    }

    /// Bytes of memory that it takes beside those of the requests themselves.
    #[cfg(test)]
    pub(super) fn overhead(&self) -> usize {
        // The map keeps a byte for each bucket and fills seven of eight (std's hashbrown).
        let buckets = self.shares.capacity() * 8 / 7;
        let entries = self.shares.values().map(|share| share.waiting.capacity());
        buckets * (size_of::<(Source, Share)>() + 1)
            + entries.sum::<usize>() * size_of::<Item>()
            + self.turns.capacity() * size_of::<Source>()
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert_eq!(self.len, self.waiting().count());
        assert_eq!(self.bytes, self.waiting().map(Item::cost).sum::<usize>());
        for (source, share) in &self.shares {
            assert!(share.active <= self.per_source);
            assert!(share.active > 0 || !share.waiting.is_empty());
            let may = !share.waiting.is_empty() && share.active < self.per_source;
            assert_eq!(share.in_turn, may);
            assert_eq!(
                self.turns.iter().filter(|s| *s == source).count(),
                usize::from(may)
            );
        }
    }
}
