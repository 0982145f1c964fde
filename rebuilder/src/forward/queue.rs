//! What waits for a connection. Pure.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use super::answer::AnswerTo;
use super::sharing::Sharing;

/// What a waiting request costs beyond its bytes, so that a flood of tiny ones is bounded too.
pub const ITEM_OVERHEAD: usize = 256;

/// Whose requests share a quarter of the quarantine: the inner source address, an IPv6 one by its /64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source(IpAddr);

impl Source {
    /// The source that `address` belongs to.
    #[must_use]
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            v4 @ IpAddr::V4(_) => Self(v4),
            IpAddr::V6(v6) => {
                let net = v6.to_bits() & !(u128::from(u64::MAX));
                Self(IpAddr::V6(Ipv6Addr::from_bits(net)))
            }
        }
    }
}

/// A request on its way: kept until it is answered.
#[derive(Debug)]
pub(super) struct Item {
    /// What is sent.
    pub(super) bytes: Vec<u8>,
    /// What may stand behind it.
    pub(super) sharing: Sharing,
    /// What its answer's framing depends on.
    pub(super) answer: AnswerTo,
    /// Whose it is.
    pub(super) source: Source,
    /// Connections that ended with this request as the oldest unanswered one.
    pub(super) failures: u8,
    /// It waits until then: an analyser that is going down takes connections for a moment longer, and who tries again at
    /// once is charged twice for one death.
    pub(super) not_before: Option<Instant>,
}

impl Item {
    /// Bytes that it is charged for.
    #[must_use]
    pub(super) fn cost(&self) -> usize {
        self.bytes.capacity().saturating_add(ITEM_OVERHEAD)
    }

    /// Whether it goes on a connection of its own: disputed, or charged with a failure.
    #[must_use]
    pub(super) fn is_alone(&self) -> bool {
        self.sharing == Sharing::Alone || self.failures > 0
    }
}

/// One source's share of the quarantine.
#[derive(Debug, Default)]
struct Share {
    waiting: VecDeque<Item>,
    active: usize,
    /// Whether it stands in `Queue::turns`.
    in_turn: bool,
}

/// Requests that wait: one line for the shared connections, one for each source in quarantine.
///
/// Invariants, checked by [`Queue::check`]: `bytes` and `len` are those of what waits; a source stands in `turns`
/// exactly when it has something waiting and a connection left; a source that has neither waiting nor active is gone.
#[derive(Debug)]
pub(super) struct Queue {
    shared: VecDeque<Item>,
    alone: HashMap<Source, Share>,
    turns: VecDeque<Source>,
    bytes: usize,
    len: usize,
    bytes_max: usize,
    per_source: usize,
}

impl Queue {
    /// Holds at most `bytes_max` bytes of new requests; at most `per_source` connections of one source in quarantine.
    #[must_use]
    pub(super) fn new(bytes_max: usize, per_source: usize) -> Self {
        Self {
            shared: VecDeque::new(),
            alone: HashMap::new(),
            turns: VecDeque::new(),
            bytes: 0,
            len: 0,
            bytes_max,
            per_source: per_source.max(1),
        }
    }

    /// Takes a new request in, or gives it back when the byte cap is reached.
    pub(super) fn push(&mut self, item: Item) -> Result<(), Item> {
        if self.bytes.saturating_add(item.cost()) > self.bytes_max {
            return Err(item);
        }
        self.enter(item, false);
        Ok(())
    }

    /// Takes a request back that was on a connection. Always: its bytes were within the cap of what is in flight.
    pub(super) fn put_back(&mut self, item: Item) {
        self.enter(item, true);
    }

    fn enter(&mut self, item: Item, first: bool) {
        self.bytes += item.cost();
        self.len += 1;
        let line = if item.is_alone() {
            let source = item.source;
            let share = self.alone.entry(source).or_default();
            if !share.in_turn && share.active < self.per_source {
                share.in_turn = true;
                self.turns.push_back(source);
            }
            &mut share.waiting
        } else {
            &mut self.shared
        };
        // Who has to wait does so at the end: at the front, one after the other would hold up the source for ever.
        if first && item.not_before.is_none() {
            line.push_front(item);
        } else {
            line.push_back(item);
        }
    }

    /// What the next one on a shared connection costs.
    #[must_use]
    pub(super) fn next_shared_cost(&self) -> Option<usize> {
        self.shared.front().map(Item::cost)
    }

    /// Takes the next one for a shared connection.
    pub(super) fn pop_shared(&mut self) -> Option<Item> {
        let item = self.shared.pop_front()?;
        self.left(&item);
        Some(item)
    }

    /// Whose turn in quarantine is next: the first source whose oldest request need not wait any more.
    fn next_turn(&self, now: Instant) -> Option<(usize, &Item)> {
        let oldest = |source| self.alone.get(source)?.waiting.front();
        self.turns
            .iter()
            .enumerate()
            .filter_map(|(turn, source)| Some((turn, oldest(source)?)))
            .find(|(_, item)| item.not_before.is_none_or(|at| at <= now))
    }

    /// What the next one in quarantine costs.
    #[must_use]
    pub(super) fn next_alone_cost(&self, now: Instant) -> Option<usize> {
        self.next_turn(now).map(|(_, item)| item.cost())
    }

    /// Takes the next one for a connection of its own, the sources in turn; [`Queue::alone_done`] gives the place back.
    pub(super) fn pop_alone(&mut self, now: Instant) -> Option<Item> {
        let (turn, _) = self.next_turn(now)?;
        let source = self.turns.remove(turn)?;
        let share = self.alone.get_mut(&source)?;
        share.in_turn = false;
        let item = share.waiting.pop_front()?;
        share.active += 1;
        if !share.waiting.is_empty() && share.active < self.per_source {
            share.in_turn = true;
            self.turns.push_back(source);
        }
        self.left(&item);
        Some(item)
    }

    /// A connection that [`Queue::pop_alone`] was for has ended.
    pub(super) fn alone_done(&mut self, source: Source) {
        let Some(share) = self.alone.get_mut(&source) else {
            return;
        };
        share.active = share.active.saturating_sub(1);
        if share.waiting.is_empty() {
            if share.active == 0 {
                self.alone.remove(&source);
            }
        } else if !share.in_turn && share.active < self.per_source {
            share.in_turn = true;
            self.turns.push_back(source);
        }
    }

    fn left(&mut self, item: &Item) {
        self.bytes = self.bytes.saturating_sub(item.cost());
        self.len -= 1;
    }

    /// Requests that wait.
    #[must_use]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Requests that wait for a shared connection.
    #[must_use]
    pub(super) fn shared_len(&self) -> usize {
        self.shared.len()
    }

    /// Bytes that wait, [`ITEM_OVERHEAD`] included.
    #[must_use]
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Throws everything away; says how many requests that were.
    pub(super) fn clear(&mut self) -> usize {
        let thrown = self.len;
        self.shared = VecDeque::new();
        self.alone.retain(|_, share| {
            share.waiting = VecDeque::new();
            share.in_turn = false;
            share.active > 0
        });
        self.turns = VecDeque::new();
        self.bytes = 0;
        self.len = 0;
        thrown
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let waiting = || {
            self.shared
                .iter()
                .chain(self.alone.values().flat_map(|share| &share.waiting))
        };
        assert_eq!(self.len, waiting().count());
        assert_eq!(self.bytes, waiting().map(Item::cost).sum::<usize>());
        for (source, share) in &self.alone {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn item(source: u8, alone: bool, len: usize) -> Item {
        Item {
            bytes: vec![b'x'; len],
            sharing: if alone {
                Sharing::Alone
            } else {
                Sharing::Followed
            },
            answer: AnswerTo::Other,
            source: Source::of(IpAddr::from([10, 0, 0, source])),
            failures: 0,
            not_before: None,
        }
    }

    #[test]
    fn the_byte_cap_is_reached_and_the_next_request_comes_back() {
        let mut queue = Queue::new(10 * (1000 + ITEM_OVERHEAD), 16);
        for _ in 0..10 {
            queue.push(item(1, false, 1000)).unwrap();
        }
        assert_eq!(queue.push(item(1, false, 0)).unwrap_err().bytes.len(), 0);
        // Requests that come back from a connection are never refused.
        queue.put_back(item(1, false, 1000));
        assert_eq!(queue.bytes(), 11 * (1000 + ITEM_OVERHEAD));
        queue.check();
    }

    #[test]
    fn an_ipv6_source_is_its_64() {
        let a = Source::of("2001:db8:1:2::1".parse().unwrap());
        let b = Source::of("2001:db8:1:2:ffff::9".parse().unwrap());
        let c = Source::of("2001:db8:1:3::1".parse().unwrap());
        assert_eq!(a, b);
        assert_ne!(a, c);
        assert_ne!(
            Source::of("10.0.0.1".parse().unwrap()),
            Source::of("10.0.0.2".parse().unwrap())
        );
    }

    #[test]
    fn one_source_does_not_take_the_whole_quarantine() {
        let now = Instant::now();
        let mut queue = Queue::new(usize::MAX, 2);
        for _ in 0..100 {
            queue.push(item(1, true, 1)).unwrap();
        }
        queue.push(item(2, true, 1)).unwrap();
        let taken: Vec<Source> = std::iter::from_fn(|| queue.pop_alone(now))
            .map(|item| item.source)
            .collect();
        assert_eq!(taken.len(), 3);
        let two = Source::of(IpAddr::from([10, 0, 0, 2]));
        assert_eq!(taken.iter().filter(|s| **s == two).count(), 1);
        queue.check();
        queue.alone_done(taken[0]);
        queue.check();
        assert!(queue.pop_alone(now).is_some());
        assert!(queue.pop_alone(now).is_none());
    }

    #[test]
    fn who_has_to_wait_holds_up_no_other_source() {
        let now = Instant::now();
        let later = now + std::time::Duration::from_millis(1);
        let mut queue = Queue::new(usize::MAX, 2);
        queue.push(item(1, true, 1)).unwrap();
        queue.put_back(Item {
            not_before: Some(later),
            ..item(1, true, 2)
        });
        queue.push(item(2, true, 3)).unwrap();
        let lens: Vec<usize> = std::iter::from_fn(|| queue.pop_alone(now))
            .map(|item| item.bytes.len())
            .collect();
        assert_eq!(lens, [1, 3]);
        assert_eq!(queue.next_alone_cost(now), None);
        queue.check();
        assert_eq!(queue.pop_alone(later).unwrap().bytes.len(), 2);
        queue.check();
    }

    proptest! {
        #[test]
        fn the_invariants_hold_after_every_step(
            steps in prop::collection::vec((0_u8..6, 0_u8..4, any::<bool>(), 0_usize..50), 0..200),
        ) {
            let now = Instant::now();
            let mut queue = Queue::new(3000, 3);
            let mut out: Vec<Item> = Vec::new();
            for (step, source, alone, len) in steps {
                match step {
                    0 | 1 => drop(queue.push(item(source, alone, len))),
                    2 => drop(queue.pop_shared()),
                    3 => out.extend(queue.pop_alone(now)),
                    4 => if let Some(item) = out.pop() {
                        queue.alone_done(item.source);
                        queue.put_back(item);
                    },
                    _ => if let Some(item) = out.pop() { queue.alone_done(item.source) },
                }
                queue.check();
            }
        }
    }
}
