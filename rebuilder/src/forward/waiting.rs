//! Requests that wait, in two orders: in which they may go, and of their age. Each step takes the same time however many
//! wait, because it is at its busiest when there is no time. Pure.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::time::Instant;

use super::queue::{Item, Line, PerSource, Source};
use crate::keyed::Keyed;

/// A place in [`Waiting::nodes`].
type Index = u32;

/// No place.
const NONE: Index = Index::MAX;

/// As many requests can wait; who has a cap in bytes has it far below.
pub(super) const REQUESTS_MAX: usize = NONE as usize - 1;

/// The lists that a request stands in.
#[derive(Clone, Copy)]
enum By {
    /// All of its line.
    Age,
    /// Those of its line and source.
    Own,
}

/// A request's neighbours in a list.
#[derive(Clone, Copy, Debug)]
struct Links {
    before: Index,
    behind: Index,
}

/// Where a list begins and ends; both [`NONE`] or none of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ends {
    first: Index,
    last: Index,
}

const EMPTY: Ends = Ends {
    first: NONE,
    last: NONE,
};

#[derive(Debug)]
struct Node {
    item: Item,
    age: Links,
    own: Links,
}

impl Node {
    const fn links(&mut self, by: By) -> &mut Links {
        match by {
            By::Age => &mut self.age,
            By::Own => &mut self.own,
        }
    }
}

/// What one source has in a line.
#[derive(Clone, Copy, Debug)]
struct Own {
    list: Ends,
    /// Connections that it has.
    active: u32,
    /// Whether it stands in [`Waiting::turns`].
    in_turn: bool,
}

/// One source's share.
#[derive(Debug)]
struct Share {
    bytes: usize,
    lines: [Own; Line::ALL.len()],
}

impl Default for Share {
    fn default() -> Self {
        let own = Own {
            list: EMPTY,
            active: 0,
            in_turn: false,
        };
        Self {
            bytes: 0,
            lines: [own; _],
        }
    }
}

/// All of one line.
#[derive(Clone, Copy, Debug)]
struct OfLine {
    /// Oldest first.
    list: Ends,
    bytes: usize,
    len: usize,
}

/// See the module. In [`Line::Shared`] the oldest goes first; in the other two the sources take turns, and each goes on
/// until it has as many connections as it may.
///
/// Invariants, checked by [`Waiting::check`]: each request stands in both of its lists; bytes and lengths are those of
/// what stands in them; a source stands in the turns of a line exactly when it has something waiting and a connection
/// left; one that has neither waiting nor active is gone.
#[derive(Debug)]
pub(super) struct Waiting {
    nodes: Vec<Option<Node>>,
    free: Vec<Index>,
    lines: [OfLine; Line::ALL.len()],
    // Its keys are chosen by strangers.
    shares: HashMap<Source, Share, Keyed>,
    turns: [VecDeque<Source>; Line::ALL.len()],
    per_source: PerSource,
}

impl Waiting {
    /// Nothing.
    #[must_use]
    pub(super) fn new(per_source: PerSource) -> Self {
        let line = OfLine {
            list: EMPTY,
            bytes: 0,
            len: 0,
        };
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            lines: [line; _],
            shares: HashMap::default(),
            turns: Default::default(),
            per_source,
        }
    }

    /// Takes a request in, at most [`REQUESTS_MAX`] of them. One that comes back from a connection goes `first`: it is
    /// older than all that wait.
    pub(super) fn enter(&mut self, item: Item, first: bool) {
        let (source, line, cost) = (item.source, item.line(), item.cost());
        // Who has to wait does so at the end: at the front, one after the other would hold up the source for ever.
        let first_of_own = first && item.not_before.is_none();
        let alone = Links {
            before: NONE,
            behind: NONE,
        };
        let node = Some(Node {
            item,
            age: alone,
            own: alone,
        });
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.nodes.push(None);
                Index::try_from(self.nodes.len() - 1).unwrap_or(NONE)
            }
        };
        if let Some(place) = self.nodes.get_mut(index as usize) {
            *place = node;
        }

        let of = &mut self.lines[line.index()];
        of.bytes = of.bytes.saturating_add(cost);
        of.len += 1;
        of.list = link(&mut self.nodes, By::Age, of.list, index, first);

        let per_source = self.per_source.of(line);
        let share = self.shares.entry(source).or_default();
        share.bytes = share.bytes.saturating_add(cost);
        let own = &mut share.lines[line.index()];
        own.list = link(&mut self.nodes, By::Own, own.list, index, first_of_own);
        if !own.in_turn && own.active < per_source {
            own.in_turn = true;
            self.turns[line.index()].push_back(source);
        }
    }

    fn item(&self, index: Index) -> Option<&Item> {
        let node = self.nodes.get(index as usize)?.as_ref()?;
        Some(&node.item)
    }

    /// Whose turn is next: the first source whose next request need not wait any more.
    fn turn(&self, line: Line, now: Instant) -> Option<(usize, Index)> {
        self.turns[line.index()]
            .iter()
            .enumerate()
            .filter_map(|(turn, source)| {
                let share = self.shares.get(source)?;
                Some((turn, share.lines[line.index()].list.first))
            })
            .find(|&(_, index)| {
                self.item(index)
                    .is_some_and(|item| item.not_before.is_none_or(|at| at <= now))
            })
    }

    /// The next request of a line, if one may go.
    #[must_use]
    pub(super) fn next(&self, line: Line, now: Instant) -> Option<&Item> {
        match line {
            Line::Shared => self.oldest(line),
            Line::Leaving | Line::Quarantine => self.item(self.turn(line, now)?.1),
        }
    }

    /// Takes the next request of a line. Where it goes alone, its source has one connection more until
    /// [`Waiting::done`].
    pub(super) fn pop(&mut self, line: Line, now: Instant) -> Option<Item> {
        if line == Line::Shared {
            return self.remove(self.lines[line.index()].list.first);
        }
        let (turn, index) = self.turn(line, now)?;
        let turns = &mut self.turns[line.index()];
        let source = turns.remove(turn)?;
        let own = &mut self.shares.get_mut(&source)?.lines[line.index()];
        own.active += 1;
        // At the end, if it may have another and has one.
        own.in_turn = own.active < self.per_source.of(line) && own.list.first != own.list.last;
        if own.in_turn {
            turns.push_back(source);
        }
        self.remove(index)
    }

    /// A connection that [`Waiting::pop`] was for has ended.
    pub(super) fn done(&mut self, line: Line, source: Source) {
        let Entry::Occupied(mut entry) = self.shares.entry(source) else {
            return;
        };
        let own = &mut entry.get_mut().lines[line.index()];
        own.active = own.active.saturating_sub(1);
        if line != Line::Shared
            && own.list != EMPTY
            && !own.in_turn
            && own.active < self.per_source.of(line)
        {
            own.in_turn = true;
            self.turns[line.index()].push_back(source);
        }
        if entry.get().is_idle() {
            entry.remove();
        }
    }

    /// The oldest request of a line.
    #[must_use]
    pub(super) fn oldest(&self, line: Line) -> Option<&Item> {
        self.item(self.lines[line.index()].list.first)
    }

    /// Takes the oldest request of a line out.
    pub(super) fn take_oldest(&mut self, line: Line) -> Option<Item> {
        self.remove(self.lines[line.index()].list.first)
    }

    fn first_of(&self, source: Source, line: Line) -> Index {
        let share = self.shares.get(&source);
        share.map_or(NONE, |share| share.lines[line.index()].list.first)
    }

    /// The request of a line and a source that is its next.
    #[must_use]
    pub(super) fn oldest_of(&self, source: Source, line: Line) -> Option<&Item> {
        self.item(self.first_of(source, line))
    }

    /// Takes it out.
    pub(super) fn take_oldest_of(&mut self, source: Source, line: Line) -> Option<Item> {
        self.remove(self.first_of(source, line))
    }

    /// Takes a request out, wherever it stands.
    fn remove(&mut self, index: Index) -> Option<Item> {
        let (source, line, cost) = {
            let item = self.item(index)?;
            (item.source, item.line(), item.cost())
        };
        let of = &mut self.lines[line.index()];
        of.bytes = of.bytes.saturating_sub(cost);
        of.len = of.len.saturating_sub(1);
        of.list = unlink(&mut self.nodes, By::Age, of.list, index);
        if let Entry::Occupied(mut entry) = self.shares.entry(source) {
            let share = entry.get_mut();
            share.bytes = share.bytes.saturating_sub(cost);
            let own = &mut share.lines[line.index()];
            own.list = unlink(&mut self.nodes, By::Own, own.list, index);
            if own.in_turn && own.list == EMPTY {
                own.in_turn = false;
                // Only where it was taken out of turn. Who has the oldest stands near the front.
                let turns = &mut self.turns[line.index()];
                if let Some(turn) = turns.iter().position(|other| *other == source) {
                    turns.remove(turn);
                }
            }
            if entry.get().is_idle() {
                entry.remove();
            }
        }
        let node = self.nodes.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(node.item)
    }

    /// Requests that wait in a line.
    #[must_use]
    pub(super) const fn len(&self, line: Line) -> usize {
        self.lines[line.index()].len
    }

    /// Bytes that wait in a line.
    #[must_use]
    pub(super) const fn bytes(&self, line: Line) -> usize {
        self.lines[line.index()].bytes
    }

    /// Bytes of a source that wait.
    #[must_use]
    pub(super) fn bytes_of(&self, source: Source) -> usize {
        self.shares.get(&source).map_or(0, |share| share.bytes)
    }

    /// Throws away what waits.
    pub(super) fn clear(&mut self) {
        let fresh = Self::new(self.per_source);
        let Self { mut shares, .. } = std::mem::replace(self, fresh);
        shares.retain(|_, share| {
            share.bytes = 0;
            for own in &mut share.lines {
                own.list = EMPTY;
                own.in_turn = false;
            }
            !share.is_idle()
        });
        self.shares = shares;
    }

    /// Bytes of memory that it takes beside those of the requests themselves.
    #[cfg(test)]
    pub(super) fn overhead(&self) -> usize {
        // The map keeps a byte for each bucket and fills seven of eight (std's hashbrown).
        let buckets = self.shares.capacity() * 8 / 7;
        let turns: usize = self.turns.iter().map(VecDeque::capacity).sum();
        buckets * (size_of::<(Source, Share)>() + 1)
            + self.nodes.capacity() * size_of::<Option<Node>>()
            + self.free.capacity() * size_of::<Index>()
            + turns * size_of::<Source>()
    }

    /// Who has something waiting or active.
    #[cfg(test)]
    pub(super) fn sources(&self) -> impl Iterator<Item = Source> {
        self.shares.keys().copied()
    }

    /// The requests of a list, from its beginning.
    #[cfg(test)]
    fn list(&self, by: By, ends: Ends) -> Vec<&Item> {
        let mut found = Vec::new();
        let (mut before, mut at) = (NONE, ends.first);
        while at != NONE {
            let node = self.nodes[at as usize].as_ref().unwrap();
            let links = match by {
                By::Age => node.age,
                By::Own => node.own,
            };
            assert_eq!(links.before, before);
            found.push(&node.item);
            (before, at) = (at, links.behind);
        }
        assert_eq!(ends.last, before);
        found
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let mut all = 0;
        for line in Line::ALL {
            let of = &self.lines[line.index()];
            let list = self.list(By::Age, of.list);
            assert!(list.iter().all(|item| item.line() == line));
            assert_eq!(of.len, list.len());
            assert_eq!(of.bytes, list.iter().map(|item| item.cost()).sum::<usize>());
            let own = |share: &Share| self.list(By::Own, share.lines[line.index()].list).len();
            assert_eq!(of.len, self.shares.values().map(own).sum::<usize>());
            all += of.len;
        }
        assert_eq!(self.nodes.iter().flatten().count(), all);
        assert_eq!(self.nodes.len(), all + self.free.len());
        for (source, share) in &self.shares {
            let mut bytes = 0;
            for line in Line::ALL {
                let own = &share.lines[line.index()];
                let list = self.list(By::Own, own.list);
                let is_own = |item: &&Item| item.source == *source && item.line() == line;
                assert!(list.iter().all(is_own));
                bytes += list.iter().map(|item| item.cost()).sum::<usize>();
                assert!(own.active <= self.per_source.of(line));
                let may = !list.is_empty() && own.active < self.per_source.of(line);
                assert_eq!(own.in_turn, may);
                let turns = self.turns[line.index()].iter();
                assert_eq!(turns.filter(|s| *s == source).count(), usize::from(may));
            }
            assert_eq!(share.bytes, bytes);
            assert!(!share.is_idle());
        }
    }
}

impl Share {
    /// It has neither waiting nor active.
    fn is_idle(&self) -> bool {
        self.lines
            .iter()
            .all(|own| own.list == EMPTY && own.active == 0)
    }
}

fn links(nodes: &mut [Option<Node>], by: By, index: Index) -> Option<&mut Links> {
    let node = nodes.get_mut(index as usize)?.as_mut()?;
    Some(node.links(by))
}

/// Puts a request that stands in no such list at its beginning or its end.
fn link(nodes: &mut [Option<Node>], by: By, ends: Ends, index: Index, first: bool) -> Ends {
    let (before, behind) = if first {
        (NONE, ends.first)
    } else {
        (ends.last, NONE)
    };
    if let Some(links) = links(nodes, by, index) {
        *links = Links { before, behind };
    }
    if let Some(links) = links(nodes, by, before) {
        links.behind = index;
    }
    if let Some(links) = links(nodes, by, behind) {
        links.before = index;
    }
    Ends {
        first: if before == NONE { index } else { ends.first },
        last: if behind == NONE { index } else { ends.last },
    }
}

/// Takes a request out of such a list.
fn unlink(nodes: &mut [Option<Node>], by: By, ends: Ends, index: Index) -> Ends {
    let Some(&mut Links { before, behind }) = links(nodes, by, index) else {
        return ends;
    };
    if let Some(links) = links(nodes, by, before) {
        links.behind = behind;
    }
    if let Some(links) = links(nodes, by, behind) {
        links.before = before;
    }
    Ends {
        first: if before == NONE { behind } else { ends.first },
        last: if behind == NONE { before } else { ends.last },
    }
}
