//! What waits for a connection. Pure.

use std::net::IpAddr;
use std::time::Instant;

use super::answer::AnswerTo;
use super::sharing::Sharing;
use super::waiting::{REQUESTS_MAX, Waiting};

/// What a waiting request costs beyond its bytes, so that a flood of tiny ones is bounded too: its entry, and that of a
/// source that has no other one, in tables and lines that have just grown (see the test).
pub const ITEM_OVERHEAD: usize = 576;

/// Whose requests share a part of the connections that carry one request: the inner source address, an IPv6 one by its
/// /64. As two words, because it is hashed with every request: an IPv4 address as the IPv6 address that it is mapped to, whose
/// lower half is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    high: u64,
    low: u64,
}

impl Source {
    /// The source that `address` belongs to.
    #[must_use]
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self {
                high: 0,
                low: 0xffff_0000_0000 | u64::from(v4.to_bits()),
            },
            IpAddr::V6(v6) => Self {
                // The upper half fits.
                high: u64::try_from(v6.to_bits() >> 64).unwrap_or(0),
                low: 0,
            },
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
    /// Which one it is of all that were submitted, by [`Queue::push`].
    pub(super) number: u64,
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

impl Line {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Shared, Self::Leaving, Self::Quarantine];

    /// Its place among them.
    #[must_use]
    pub(super) const fn index(self) -> usize {
        self as usize
    }
}

/// How many connections that carry one request a source may have at a time; at least one.
#[derive(Clone, Copy, Debug)]
pub(super) struct PerSource {
    pub(super) leaving: u32,
    pub(super) quarantine: u32,
}

impl PerSource {
    /// In this line; in the shared one there are none to have.
    #[must_use]
    pub(super) const fn of(self, line: Line) -> u32 {
        match line {
            Line::Shared => 0,
            Line::Leaving => self.leaving,
            Line::Quarantine => self.quarantine,
        }
    }
}

/// Requests that wait: one line for the shared connections, and two where the sources take turns.
///
/// Disputed requests take half of the bytes at most; above half of the total, those of one source a quarter at most.
/// Whatever is new finds room: what is oldest makes it, and what an analyser would be told late is worth less than what
/// it can still be told in time. A source above its quarter makes room before all others, so who floods sheds what is its
/// own.
///
/// Invariants, checked by [`Queue::check`]: `over` are the sources that have more than a quarter waiting; and those of
/// [`Waiting`].
#[derive(Debug)]
pub(super) struct Queue {
    waiting: Waiting,
    /// Never more than a few.
    over: Vec<Source>,
    bytes_max: usize,
    pushed: u64,
}

impl Queue {
    /// Holds at most `bytes_max` bytes of new requests.
    #[must_use]
    pub(super) fn new(bytes_max: usize, per_source: PerSource) -> Self {
        Self {
            waiting: Waiting::new(per_source),
            over: Vec::new(),
            bytes_max: bytes_max.min(REQUESTS_MAX.saturating_mul(ITEM_OVERHEAD)),
            pushed: 0,
        }
    }

    /// Takes a new request in. What has to make room for it is given to `shed`, oldest first; so is the new one itself,
    /// where it is larger than what there may be of its kind.
    pub(super) fn push(&mut self, mut item: Item, mut shed: impl FnMut(Item)) {
        self.pushed += 1;
        item.number = self.pushed;
        if !self.can_ever_fit(&item) {
            shed(item);
            return;
        }
        while let Some(reason) = self.too_much(&item) {
            let oldest = match reason {
                TooMuch::OfSource => self.take_own(item.source, &Line::ALL),
                TooMuch::Disputed => self.take_oldest(&[Line::Quarantine]),
                TooMuch::InAll => self.take_oldest(&Line::ALL),
            };
            match oldest {
                Some(oldest) => shed(oldest),
                // Not where `can_ever_fit` is right.
                None => {
                    shed(item);
                    return;
                }
            }
        }
        self.enter(item, false);
    }

    /// Whether a new request would fit if all were gone that may have to make room for it.
    fn can_ever_fit(&self, item: &Item) -> bool {
        let cost = item.cost();
        if cost > self.bytes_max || (item.line() == Line::Quarantine && cost > self.bytes_max / 2) {
            return false;
        }
        // Above its quarter by itself: only its own source makes room for it.
        cost <= self.bytes_max / 4 || {
            let others = self
                .bytes()
                .saturating_sub(self.waiting.bytes_of(item.source));
            others.saturating_add(cost) <= self.bytes_max / 2
        }
    }

    /// What a new request would be too much of.
    fn too_much(&self, item: &Item) -> Option<TooMuch> {
        let (half, quarter) = (self.bytes_max / 2, self.bytes_max / 4);
        let after = |waiting: usize| waiting.saturating_add(item.cost());
        let all = after(self.bytes());
        if all > half && after(self.waiting.bytes_of(item.source)) > quarter {
            Some(TooMuch::OfSource)
        } else if item.line() == Line::Quarantine
            && after(self.waiting.bytes(Line::Quarantine)) > half
        {
            Some(TooMuch::Disputed)
        } else if all > self.bytes_max {
            Some(TooMuch::InAll)
        } else {
            None
        }
    }

    /// Takes the oldest request of these lines out: of a source that has more than a quarter, else of all.
    fn take_oldest(&mut self, lines: &[Line]) -> Option<Item> {
        let has = |source: &Source| {
            let of = |line: &Line| self.waiting.oldest_of(*source, *line).is_some();
            lines.iter().any(of)
        };
        if let Some(&source) = self.over.iter().find(|source| has(source)) {
            return self.take_own(source, lines);
        }
        let oldest = |line: &&Line| Some(self.waiting.oldest(**line)?.number);
        let line = *lines
            .iter()
            .filter(|line| oldest(line).is_some())
            .min_by_key(oldest)?;
        let item = self.waiting.take_oldest(line);
        self.taken(item)
    }

    /// Takes the oldest request of a source in these lines out.
    fn take_own(&mut self, source: Source, lines: &[Line]) -> Option<Item> {
        let oldest = |line: &&Line| Some(self.waiting.oldest_of(source, **line)?.number);
        let line = *lines
            .iter()
            .filter(|line| oldest(line).is_some())
            .min_by_key(oldest)?;
        let item = self.waiting.take_oldest_of(source, line);
        self.taken(item)
    }

    /// Takes a request back that was on a connection. Always: its bytes were within the cap of what is in flight.
    pub(super) fn put_back(&mut self, item: Item) {
        self.enter(item, true);
    }

    fn enter(&mut self, item: Item, first: bool) {
        let source = item.source;
        self.waiting.enter(item, first);
        // No source has more than a quarter where all have less.
        if self.bytes() > self.bytes_max / 4 && !self.over.contains(&source) && self.is_over(source)
        {
            self.over.push(source);
        }
    }

    fn is_over(&self, source: Source) -> bool {
        self.waiting.bytes_of(source) > self.bytes_max / 4
    }

    /// A request was taken out.
    fn taken(&mut self, item: Option<Item>) -> Option<Item> {
        let item = item?;
        if let Some(place) = self.over.iter().position(|source| *source == item.source)
            && !self.is_over(item.source)
        {
            self.over.swap_remove(place);
        }
        Some(item)
    }

    /// What the next one of a line costs, if one may go.
    #[must_use]
    pub(super) fn next_cost(&self, line: Line, now: Instant) -> Option<usize> {
        self.waiting.next(line, now).map(Item::cost)
    }

    /// Takes the next one of a line. Of one that goes alone, [`Queue::alone_done`] gives the source's place back.
    pub(super) fn pop(&mut self, line: Line, now: Instant) -> Option<Item> {
        let item = self.waiting.pop(line, now);
        self.taken(item)
    }

    /// The connection of a request that went alone has ended.
    pub(super) fn alone_done(&mut self, line: Line, source: Source) {
        self.waiting.done(line, source);
    }

    /// Requests that wait.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        Line::ALL.iter().map(|&line| self.waiting.len(line)).sum()
    }

    /// Requests that wait for a shared connection.
    #[must_use]
    pub(super) const fn shared_len(&self) -> usize {
        self.waiting.len(Line::Shared)
    }

    /// Bytes that wait, [`ITEM_OVERHEAD`] included.
    #[must_use]
    pub(super) fn bytes(&self) -> usize {
        let all = Line::ALL.iter().map(|&line| self.waiting.bytes(line));
        all.fold(0, usize::saturating_add)
    }

    /// Throws everything away; says how many requests that were.
    pub(super) fn clear(&mut self) -> usize {
        let thrown = self.len();
        self.waiting.clear();
        self.over.clear();
        thrown
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.waiting.check();
        assert!(self.over.iter().all(|&source| self.is_over(source)));
        for source in self.waiting.sources() {
            let times = self.over.iter().filter(|over| **over == source).count();
            assert_eq!(times, usize::from(self.is_over(source)));
        }
    }
}

/// Why somebody has to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TooMuch {
    /// Above half of the total, more than a quarter of one source.
    OfSource,
    /// Disputed requests take more than half.
    Disputed,
    /// More than there may be.
    InAll,
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
            number: 0,
        }
    }

    const PER_SOURCE: PerSource = PerSource {
        leaving: 3,
        quarantine: 2,
    };

    const NOBODY: [u64; 0] = [];

    /// Puts a request in; says which had to go, by number.
    fn push(queue: &mut Queue, item: Item) -> Vec<u64> {
        let mut gone = Vec::new();
        queue.push(item, |item| gone.push(item.number));
        queue.check();
        gone
    }

    #[test]
    fn the_byte_cap_is_reached_and_the_oldest_makes_room() {
        let mut queue = Queue::new(10 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        for source in 0..10 {
            assert_eq!(push(&mut queue, item(source, false, 1000)), NOBODY);
        }
        assert_eq!(push(&mut queue, item(11, false, 1000)), [1]);
        assert_eq!(push(&mut queue, item(12, true, 1001)), [2, 3]);
        assert_eq!(push(&mut queue, item(13, true, 0)), NOBODY);
        // Requests that come back from a connection are never refused, and are the oldest.
        queue.put_back(item(1, false, 2000));
        assert!(queue.bytes() > 10 * (1000 + ITEM_OVERHEAD));
        assert_eq!(push(&mut queue, item(14, false, 1000)), [0, 4]);
    }

    #[test]
    fn a_request_that_can_never_fit_makes_nobody_go() {
        let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        for source in 0..25 {
            assert_eq!(push(&mut queue, item(source, false, 1000)), NOBODY);
        }
        for (alone, times) in [(false, 41), (true, 21), (false, 11)] {
            let large = item(1, alone, times * (1000 + ITEM_OVERHEAD));
            assert_eq!(push(&mut queue, large), [queue.pushed], "{times}");
        }
        assert_eq!(queue.len(), 25);
        // In an empty queue one source may have half, and in a queue that others do not fill to the half the rest of that.
        let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        assert_eq!(push(&mut queue, item(1, false, 1000)), NOBODY);
        assert_eq!(push(&mut queue, item(2, false, 1000)), NOBODY);
        assert_eq!(
            push(
                &mut queue,
                item(2, false, 19 * (1000 + ITEM_OVERHEAD) - ITEM_OVERHEAD)
            ),
            [2]
        );
    }

    /// Pushes a hundred requests of a source; says how many of its own wait then, and how many of others had to go.
    fn flood(queue: &mut Queue, source: u8, alone: bool) -> (usize, usize) {
        let name = item(source, alone, 0).source;
        let mut others = 0;
        for _ in 0..100 {
            queue.push(item(source, alone, 1000), |item| {
                others += usize::from(item.source != name);
            });
            queue.check();
        }
        (
            queue.waiting.bytes_of(name) / (1000 + ITEM_OVERHEAD),
            others,
        )
    }

    #[test]
    fn disputed_requests_fill_half_of_the_queue() {
        let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
        // Below half of the total nobody is limited by the source.
        assert_eq!(flood(&mut queue, 1, true), (20, 0));
        // Another one's disputed request finds room, because the first one has more than its share.
        assert_eq!(push(&mut queue, item(2, true, 1000)).len(), 1);
        assert_eq!(flood(&mut queue, 3, true), (10, 10));
        // The other half is left to the others.
        assert_eq!(flood(&mut queue, 4, false), (10, 0));
        assert_eq!(flood(&mut queue, 5, false), (10, 0));
        assert_eq!(queue.waiting.bytes(Line::Quarantine), queue.bytes_max / 2);
        assert_eq!(queue.bytes(), queue.bytes_max);
    }

    #[test]
    fn above_half_of_the_queue_a_source_has_a_quarter_and_sheds_its_own() {
        for alone in [false, true] {
            let mut queue = Queue::new(40 * (1000 + ITEM_OVERHEAD), PER_SOURCE);
            assert_eq!(flood(&mut queue, 9, false), (20, 0));
            assert_eq!(flood(&mut queue, 1, alone), (10, 0));
            assert_eq!(flood(&mut queue, 2, alone), (10, 0));
            // Who has more than a quarter makes room for everybody, however old the others' requests are.
            for _ in 0..10 {
                let mut gone = Vec::new();
                queue.push(item(3, false, 1000), |item| gone.push(item.source));
                assert_eq!(gone, [item(9, false, 0).source]);
            }
            assert!(queue.over.is_empty());
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
            queue.push(alone, |_| unreachable!());
            if number > 100 && number.is_power_of_two() || number % 1000 == 17 {
                most = most.max(queue.waiting.overhead() / queue.len());
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
            push(&mut queue, item(1, true, 1));
        }
        push(&mut queue, item(2, true, 1));
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
        push(&mut queue, item(1, true, 1));
        queue.put_back(Item {
            not_before: Some(later),
            ..item(1, true, 2)
        });
        push(&mut queue, item(2, true, 3));
        let lens: Vec<usize> = std::iter::from_fn(|| queue.pop(Line::Quarantine, now))
            .map(|item| item.bytes.len())
            .collect();
        assert_eq!(lens, [1, 3]);
        assert_eq!(queue.next_cost(Line::Quarantine, now), None);
        queue.check();
        assert_eq!(queue.pop(Line::Quarantine, later).unwrap().bytes.len(), 2);
        queue.check();
    }

    /// The same rules over a plain list, by looking at all of it each time.
    #[derive(Default)]
    struct Model(Vec<(u64, Source, Line, usize)>);

    impl Model {
        fn bytes(&self, is: impl Fn(&(u64, Source, Line, usize)) -> bool) -> usize {
            self.0.iter().filter(|w| is(w)).map(|w| w.3).sum()
        }

        /// The oldest of these goes.
        fn shed(&mut self, is: impl Fn(&(u64, Source, Line, usize)) -> bool) -> u64 {
            let of = |at: &usize| self.0[*at].0;
            let oldest = (0..self.0.len())
                .filter(|&at| is(&self.0[at]))
                .min_by_key(of);
            self.0.remove(oldest.unwrap()).0
        }

        fn push(&mut self, max: usize, number: u64, item: &Item) -> Vec<u64> {
            let (source, line, cost) = (item.source, item.line(), item.cost());
            let mut gone = Vec::new();
            let others = self.bytes(|w| w.1 != source);
            let disputed = line == Line::Quarantine;
            if cost > max || disputed && cost > max / 2 || cost > max / 4 && others + cost > max / 2
            {
                return vec![number];
            }
            loop {
                let all = self.bytes(|_| true) + cost;
                let over: Vec<Source> = self
                    .0
                    .iter()
                    .map(|w| w.1)
                    .filter(|&s| self.bytes(|w| w.1 == s) > max / 4)
                    .collect();
                let quarantine = self.bytes(|w| w.2 == Line::Quarantine) + cost;
                if all > max / 2 && self.bytes(|w| w.1 == source) + cost > max / 4 {
                    gone.push(self.shed(|w| w.1 == source));
                } else if (disputed && quarantine > max / 2) || all > max {
                    let kind = |w: &(u64, Source, Line, usize)| {
                        !(disputed && quarantine > max / 2) || w.2 == Line::Quarantine
                    };
                    let first = self.0.iter().any(|w| over.contains(&w.1) && kind(w));
                    gone.push(self.shed(|w| kind(w) && (!first || over.contains(&w.1))));
                } else {
                    self.0.push((number, source, line, cost));
                    return gone;
                }
            }
        }
    }

    proptest! {
        /// Costs of few kinds, so that no two sources are above their quarter at a time.
        #[test]
        fn who_makes_room_is_who_the_rules_say(
            steps in prop::collection::vec((0_u8..6, 0_u8..3, 0_usize..4000, any::<bool>()), 0..200),
        ) {
            const MAX: usize = 40_000;
            let now = Instant::now();
            let mut queue = Queue::new(MAX, PER_SOURCE);
            let mut model = Model::default();
            for (source, kind, len, pop) in steps {
                let sharing = [Sharing::Followed, Sharing::Last, Sharing::Alone][usize::from(kind)];
                // One source floods.
                let new = Item { sharing, ..item(source.saturating_sub(2), false, len) };
                let expected = model.push(MAX, queue.pushed + 1, &new);
                let several_over = queue.over.len() > 1;
                let gone = push(&mut queue, new);
                if several_over {
                    // Then either may be first.
                    prop_assert_eq!(gone.is_empty(), expected.is_empty());
                    return Ok(());
                }
                prop_assert_eq!(gone, expected);
                prop_assert!(queue.bytes() <= MAX);
                prop_assert!(queue.waiting.bytes(Line::Quarantine) <= MAX / 2);
                if pop && let Some(item) = queue.pop(Line::ALL[usize::from(kind)], now) {
                    queue.alone_done(item.line(), item.source);
                    model.0.retain(|w| w.0 != item.number);
                }
                prop_assert_eq!(queue.len(), model.0.len());
            }
        }

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
                        waiting += 1;
                        waiting -= push(&mut queue, new).len();
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
