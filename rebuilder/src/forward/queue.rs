//! What waits for a connection. Pure.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use super::answer::AnswerTo;
use super::sharing::Sharing;
use super::turns::Turns;

/// What a waiting request costs beyond its bytes, so that a flood of tiny ones is bounded too: its entry, and that of a
/// source that has no other one, in tables and lines that have just grown (see the test).
pub const ITEM_OVERHEAD: usize = 576;

/// Whose requests share a part of the connections that carry one request: the inner source address, an IPv6 one by its
/// /64.
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

    /// Where it waits, and so what kind of connection it gets.
    #[must_use]
    pub(super) fn line(&self) -> Line {
        match self.sharing {
            _ if self.failures > 0 => Line::Quarantine,
            Sharing::Followed => Line::Shared,
            Sharing::Last => Line::Leaving,
            Sharing::Alone => Line::Quarantine,
        }
    }
}

/// The three ways to the analyser. Each has connections, and bytes in flight, of its own: what happens on one does not
/// slow down another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Several requests on a connection.
    Shared,
    /// Well framed, but the analyser may close or leave HTTP behind it: a connection for each.
    Leaving,
    /// Disputed, or charged with a failure: a connection for each.
    Quarantine,
}

/// Why a new request is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// The whole queue, or what one source may take of it.
    Queue,
    /// The same of a disputed request, or what those may take of it.
    Quarantine,
}

/// How many connections that carry one request a source may have at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct PerSource {
    pub(super) leaving: usize,
    pub(super) quarantine: usize,
}

/// Requests that wait: one line for the shared connections, and two where the sources take turns.
///
/// Disputed requests take half of the bytes at most; above half of the total, those of one source a quarter at most. So
/// who floods is refused, while others find room.
///
/// Invariants, checked by [`Queue::check`]: `shared_bytes` are those of `shared`; `sources` has the bytes of each source
/// that has any; and those of [`Turns`].
#[derive(Debug)]
pub(super) struct Queue {
    // Its keys are chosen by strangers: the standard library's hash is keyed.
    sources: HashMap<Source, usize>,
    shared: VecDeque<Item>,
    shared_bytes: usize,
    leaving: Turns,
    quarantine: Turns,
    bytes_max: usize,
}

impl Queue {
    /// Holds at most `bytes_max` bytes of new requests.
    #[must_use]
    pub(super) fn new(bytes_max: usize, per_source: PerSource) -> Self {
        Self {
            sources: HashMap::new(),
            shared: VecDeque::new(),
            shared_bytes: 0,
            leaving: Turns::new(per_source.leaving),
            quarantine: Turns::new(per_source.quarantine),
            bytes_max,
        }
    }

    /// Takes a new request in, or says which cap is reached.
    pub(super) fn push(&mut self, item: Item) -> Result<(), Full> {
        let (half, quarter) = (self.bytes_max / 2, self.bytes_max / 4);
        let after = |waiting: usize| waiting.saturating_add(item.cost());
        let own = self.sources.get(&item.source).copied().unwrap_or(0);
        let full = after(self.bytes()) > self.bytes_max
            || (after(self.bytes()) > half && after(own) > quarter);
        match item.line() {
            Line::Quarantine if full || after(self.quarantine.bytes()) > half => {
                Err(Full::Quarantine)
            }
            Line::Shared | Line::Leaving if full => Err(Full::Queue),
            _ => {
                self.enter(item, false);
                Ok(())
            }
        }
    }

    /// Takes a request back that was on a connection. Always: its bytes were within the cap of what is in flight.
    pub(super) fn put_back(&mut self, item: Item) {
        self.enter(item, true);
    }

    fn enter(&mut self, item: Item, first: bool) {
        *self.sources.entry(item.source).or_default() += item.cost();
        match item.line() {
            Line::Shared => {
                self.shared_bytes = self.shared_bytes.saturating_add(item.cost());
                if first {
                    self.shared.push_front(item);
                } else {
                    self.shared.push_back(item);
                }
            }
            Line::Leaving => self.leaving.enter(item, first),
            Line::Quarantine => self.quarantine.enter(item, first),
        }
    }

    /// What the next one of a line costs, if one may go.
    #[must_use]
    pub(super) fn next_cost(&self, line: Line, now: Instant) -> Option<usize> {
        match line {
            Line::Shared => self.shared.front(),
            Line::Leaving => self.leaving.next(now),
            Line::Quarantine => self.quarantine.next(now),
        }
        .map(Item::cost)
    }

    /// Takes the next one of a line. Of one that goes alone, [`Queue::alone_done`] gives the source's place back.
    pub(super) fn pop(&mut self, line: Line, now: Instant) -> Option<Item> {
        let item = match line {
            Line::Shared => {
                let item = self.shared.pop_front()?;
                self.shared_bytes = self.shared_bytes.saturating_sub(item.cost());
                Some(item)
            }
            Line::Leaving => self.leaving.pop(now),
            Line::Quarantine => self.quarantine.pop(now),
        }?;
        if let Entry::Occupied(mut own) = self.sources.entry(item.source) {
            *own.get_mut() = own.get().saturating_sub(item.cost());
            if *own.get() == 0 {
                own.remove();
            }
        }
        Some(item)
    }

    /// The connection of a request that went alone has ended.
    pub(super) fn alone_done(&mut self, line: Line, source: Source) {
        match line {
            Line::Shared => {}
            Line::Leaving => self.leaving.done(source),
            Line::Quarantine => self.quarantine.done(source),
        }
    }

    /// Requests that wait.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.shared.len() + self.leaving.len() + self.quarantine.len()
    }

    /// Requests that wait for a shared connection.
    #[must_use]
    pub(super) fn shared_len(&self) -> usize {
        self.shared.len()
    }

    /// Bytes that wait, [`ITEM_OVERHEAD`] included.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        self.shared_bytes
            .saturating_add(self.leaving.bytes())
            .saturating_add(self.quarantine.bytes())
    }

    /// Throws everything away; says how many requests that were.
    pub(super) fn clear(&mut self) -> usize {
        let thrown = self.len();
        self.sources = HashMap::new();
        self.shared = VecDeque::new();
        self.shared_bytes = 0;
        self.leaving.clear();
        self.quarantine.clear();
        thrown
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let shared: usize = self.shared.iter().map(Item::cost).sum();
        assert_eq!(self.shared_bytes, shared);
        assert!(self.shared.iter().all(|item| item.line() == Line::Shared));
        let mut sources = HashMap::new();
        let alone = self.leaving.waiting().chain(self.quarantine.waiting());
        for item in self.shared.iter().chain(alone) {
            *sources.entry(item.source).or_default() += item.cost();
        }
        assert_eq!(self.sources, sources);
        self.leaving.check();
        self.quarantine.check();
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

    const PER_SOURCE: PerSource = PerSource {
        leaving: 3,
        quarantine: 2,
    };

    #[test]
    fn the_byte_cap_is_reached_and_the_next_request_is_not_taken() {
        let mut queue = Queue::new(10 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        for source in 0..10 {
            queue.push(item(source, false, 1000)).unwrap();
        }
        assert_eq!(queue.push(item(11, false, 0)), Err(Full::Queue));
        assert_eq!(queue.push(item(11, true, 0)), Err(Full::Quarantine));
        // Requests that come back from a connection are never refused.
        queue.put_back(item(1, false, 1000));
        assert_eq!(queue.bytes(), 11 * (1000 + ITEM_OVERHEAD));
        queue.check();
    }

    /// How many requests of a source are taken in, one after the other.
    fn taken(queue: &mut Queue, source: u8, alone: bool) -> usize {
        let taken = (0..100)
            .take_while(|_| queue.push(item(source, alone, 1000)).is_ok())
            .count();
        queue.check();
        taken
    }

    #[test]
    fn disputed_requests_fill_half_of_the_queue() {
        let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        // Below half of the total nobody is limited by the source.
        assert_eq!(taken(&mut queue, 1, true), 20);
        assert_eq!(queue.push(item(2, true, 1000)), Err(Full::Quarantine));
        // The other half is left to the others.
        assert_eq!(taken(&mut queue, 2, false), 10);
        assert_eq!(taken(&mut queue, 3, false), 10);
        assert_eq!(queue.push(item(4, false, 1000)), Err(Full::Queue));
    }

    #[test]
    fn above_half_of_the_queue_a_source_has_a_quarter() {
        for alone in [false, true] {
            let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
            assert_eq!(taken(&mut queue, 9, false), 20);
            assert_eq!(taken(&mut queue, 1, alone), 10);
            assert_eq!(taken(&mut queue, 2, alone), 10);
            assert!(queue.push(item(3, alone, 1000)).is_err(), "all of it");
        }
    }

    #[test]
    fn what_a_request_costs_beside_its_bytes_is_charged() {
        let mut queue = Queue::new(usize::MAX, PER_SOURCE);
        let mut most = 0;
        // As many sources as requests, through several doublings of the tables.
        for number in 0..20_000_u32 {
            let source = Source::of(std::net::Ipv4Addr::from_bits(number).into());
            let alone = Item {
                source,
                ..item(0, true, 0)
            };
            queue.push(alone).unwrap();
            if number > 100 && number.is_power_of_two() || number % 1000 == 17 {
                // As in `Turns`: seven of eight buckets are filled, each has a byte more.
                let buckets = queue.sources.capacity() * 8 / 7;
                let sources = buckets * (size_of::<(Source, usize)>() + 1);
                most = most.max((sources + queue.quarantine.overhead()) / queue.len());
            }
        }
        // 32 for what the allocator adds to the two blocks of a request.
        assert!(most + 32 <= ITEM_OVERHEAD, "{most}");
        assert!(most > ITEM_OVERHEAD / 2, "charged more than twice: {most}");
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
        let mut queue = Queue::new(usize::MAX, PER_SOURCE);
        for _ in 0..100 {
            queue.push(item(1, true, 1)).unwrap();
        }
        queue.push(item(2, true, 1)).unwrap();
        let taken: Vec<Source> = std::iter::from_fn(|| queue.pop(Line::Quarantine, now))
            .map(|item| item.source)
            .collect();
        assert_eq!(taken.len(), 3);
        let two = Source::of(IpAddr::from([10, 0, 0, 2]));
        assert_eq!(taken.iter().filter(|s| **s == two).count(), 1);
        queue.check();
        queue.alone_done(Line::Quarantine, taken[0]);
        queue.check();
        assert!(queue.pop(Line::Quarantine, now).is_some());
        assert!(queue.pop(Line::Quarantine, now).is_none());
    }

    #[test]
    fn who_has_to_wait_holds_up_no_other_source() {
        let now = Instant::now();
        let later = now + std::time::Duration::from_millis(1);
        let mut queue = Queue::new(usize::MAX, PER_SOURCE);
        queue.push(item(1, true, 1)).unwrap();
        queue.put_back(Item {
            not_before: Some(later),
            ..item(1, true, 2)
        });
        queue.push(item(2, true, 3)).unwrap();
        let lens: Vec<usize> = std::iter::from_fn(|| queue.pop(Line::Quarantine, now))
            .map(|item| item.bytes.len())
            .collect();
        assert_eq!(lens, [1, 3]);
        assert_eq!(queue.next_cost(Line::Quarantine, now), None);
        queue.check();
        assert_eq!(queue.pop(Line::Quarantine, later).unwrap().bytes.len(), 2);
        queue.check();
    }

    proptest! {
        #[test]
        fn the_invariants_hold_after_every_step(
            steps in prop::collection::vec((0_u8..8, 0_u8..4, 0_u8..3, 0_usize..50), 0..200),
        ) {
            let now = Instant::now();
            let mut queue = Queue::new(6000, PER_SOURCE);
            let mut out: Vec<(Line, Item)> = Vec::new();
            let mut waiting = 0;
            for (step, source, kind, len) in steps {
                let sharing = [Sharing::Followed, Sharing::Last, Sharing::Alone][usize::from(kind)];
                let line = [Line::Shared, Line::Leaving, Line::Quarantine][usize::from(kind)];
                match step {
                    0..3 => {
                        let new = Item { sharing, ..item(source, false, len) };
                        waiting += usize::from(queue.push(new).is_ok());
                    }
                    3..6 => if let Some(item) = queue.pop(line, now) {
                        waiting -= 1;
                        out.push((line, item));
                    },
                    6 => if let Some((line, mut item)) = out.pop() {
                        queue.alone_done(line, item.source);
                        item.failures += u8::from(len % 2 == 0);
                        queue.put_back(item);
                        waiting += 1;
                    },
                    _ => if let Some((line, item)) = out.pop() { queue.alone_done(line, item.source) },
                }
                queue.check();
                prop_assert_eq!(queue.len(), waiting);
            }
        }
    }
}
