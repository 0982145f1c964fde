//! The connections in the table: by key, by silence, by what they cost, by when time changes something in them.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::time::Timestamp;

use super::DirectionId;
use super::direction::Direction;
use super::flow::{Flow, MAX_GENERATIONS, Name, PlainName, Side};
use super::index::Index;
use super::offset::index;
use crate::budget::{Budget, Source};
use crate::prefetch::prefetch;

/// What a flow costs beside its directions, the stages behind included: its slot (216 bytes), its share of the index, of
/// the timers, and of what is known of its owner, each in a table that may be less than half full.
pub(super) const FLOW_BYTES: usize = 576;
/// What each generation of a direction costs, the extractor's state for it included (half-full tables again).
pub(super) const DIRECTION_BYTES: usize = 832;
/// More would have more directions than there are places for them.
const FLOWS_MOST: usize = DirectionId::PLACES / (2 * MAX_GENERATIONS);
/// A flow moves up in the order of silence no more often than this: packets come by the microsecond, and each move
/// touches four other flows.
pub(super) const RELINK: Duration = Duration::from_secs(1);
/// So many flows at the head of a list are looked at for the one that was silent longest.
const LOOKED_AT: usize = 8;
/// How many places for directions are kept for flows to come: half a megabyte.
const ROOMS: usize = 1024;
/// Powers of two that a flow can hold bytes by.
const SIZES: usize = usize::BITS as usize + 1;
/// No slot.
pub(super) const NIL: u32 = u32::MAX;

/// A flow's neighbours in a list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    older: u32,
    newer: u32,
}

impl Links {
    pub(super) const NONE: Self = Self {
        older: NIL,
        newer: NIL,
    };
}

/// The two ends of a list.
#[derive(Clone, Copy, Debug)]
struct Ends {
    oldest: u32,
    newest: u32,
}

impl Ends {
    const EMPTY: Self = Self {
        oldest: NIL,
        newest: NIL,
    };
}

/// Whoever the state of flows is charged to.
#[derive(Debug)]
struct Owner {
    source: Source,
    flows: Ends,
    bytes: usize,
}

/// What [`Flows::settle`] needs to know of a flow.
struct Cost {
    owner: u32,
    before: usize,
    after: usize,
}

/// The flows of one worker.
pub(super) struct Flows {
    /// Small enough to stay near the processor, and as a rule nothing else must be looked at to find a slot.
    index: Index,
    slots: Vec<Option<Flow>>,
    free: Vec<u32>,
    /// What directions of flows that are gone stood in, [`ROOMS`] at most.
    rooms: Vec<Vec<Direction>>,
    /// All flows in the order of silence.
    all: Ends,
    /// When to look at a flow again, at most one entry a flow. May be earlier than needed, never later.
    timers: BTreeSet<(Timestamp, u32)>,
    owners: Vec<Option<Owner>>,
    owner_of: HashMap<Source, u32>,
    free_owners: Vec<u32>,
    /// Owners of more than a quarter of what flows may cost: three at most, for as long as the cap holds.
    heavy: Vec<u32>,
    /// Flows that hold bytes, by the power of two of how many.
    holders: [Vec<u32>; SIZES],
    /// What all flows cost.
    bytes: usize,
    cap: usize,
    max: usize,
}

impl Flows {
    /// Room for flows that cost `cap` bytes, and for `max` of them.
    pub(super) fn new(cap: usize, max: usize) -> Self {
        let max = max.clamp(1, FLOWS_MOST);
        // Reserved at once: a table that grows is for a while there twice. Pages that are not used cost nothing.
        let room = (cap / (FLOW_BYTES + DIRECTION_BYTES)).min(max) + 1;
        Self {
            index: Index::with_capacity(room),
            slots: Vec::with_capacity(room),
            free: Vec::new(),
            rooms: Vec::new(),
            all: Ends::EMPTY,
            timers: BTreeSet::new(),
            owners: Vec::new(),
            owner_of: HashMap::new(),
            free_owners: Vec::new(),
            heavy: Vec::new(),
            holders: [const { Vec::new() }; SIZES],
            bytes: 0,
            cap,
            max,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// What all of them cost, the bytes that they hold aside.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn find(&self, name: &Name) -> Option<u32> {
        let is_it = |slot| self.get(slot).is_some_and(|f| f.name.key == name.key);
        self.index.find(name.hash, is_it)
    }

    /// The same of a name that a plain segment has.
    #[inline]
    pub(super) fn find_plain(&self, name: &PlainName) -> Option<u32> {
        let is_it = |slot: u32| self.get(slot).is_some_and(|f| f.name.key.is(name.key));
        if is_it(name.slot) {
            return Some(name.slot);
        }
        self.index.find(name.hash, is_it)
    }

    /// Where the flow of a name with this hash is, if it is in the table: as a rule, and found without a look at the flow.
    pub(super) fn probably(&self, hash: u64) -> Option<u32> {
        self.index.find(hash, |_| true)
    }

    /// Asks memory for what finding a flow needs.
    #[inline]
    pub(super) fn prefetch_place(&self, hash: u64) {
        self.index.prefetch(hash);
    }

    /// Asks memory for what a packet in order needs of a flow.
    pub(super) fn prefetch(&self, slot: u32) {
        if let Some(place) = self.get_place(slot) {
            prefetch(place, 3);
        }
    }

    #[inline]
    pub(super) fn get(&self, slot: u32) -> Option<&Flow> {
        self.slots.get(index(u64::from(slot)))?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Flow> {
        self.slots.get_mut(index(u64::from(slot)))?.as_mut()
    }

    /// All flows, each with its slot.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Flow)> {
        let slots = (0..).zip(&mut self.slots);
        slots.filter_map(|(slot, flow)| Some((slot, flow.as_mut()?)))
    }

    /// Gives a side that had no direction yet the room that a flow left which is gone, if there is some: one is made and
    /// freed with each connection.
    pub(super) fn furnish(&mut self, slot: u32, side: Side) {
        let place = self.slots.get_mut(index(u64::from(slot)));
        if let Some(flow) = place.and_then(Option::as_mut)
            && flow.half(side).generations.capacity() == 0
            && let Some(room) = self.rooms.pop()
        {
            flow.half(side).generations = room;
        }
    }

    /// Enters a flow whose state `source` answers for. [`Flows::settle`] charges it.
    pub(super) fn insert(&mut self, mut flow: Flow, source: Source) -> u32 {
        let hash = flow.name.hash;
        flow.owner = self.owner(source);
        let slot = match self.free.pop() {
            Some(slot) => {
                if let Some(place) = self.slots.get_mut(index(u64::from(slot))) {
                    *place = Some(flow);
                }
                slot
            }
            None => {
                self.slots.push(Some(flow));
                // The table holds what its cap allows; 2³² flows do not fit any memory.
                u32::try_from(self.slots.len() - 1).unwrap_or(NIL)
            }
        };
        self.index.insert(hash, slot);
        self.link(slot);
        slot
    }

    /// Takes a flow out; what it was charged goes.
    pub(super) fn remove(&mut self, slot: u32, budget: &mut Budget) {
        self.unlink(slot);
        let Some(flow) = self
            .slots
            .get_mut(index(u64::from(slot)))
            .and_then(Option::take)
        else {
            return;
        };
        if let Some(armed) = flow.armed {
            self.timers.remove(&(armed, slot));
        }
        self.index.remove(flow.name.hash, slot);
        self.free.push(slot);
        self.leave_holders(flow.size, flow.size_at);
        self.charge(
            &Cost {
                owner: flow.owner,
                before: flow.charged,
                after: 0,
            },
            budget,
        );
        if let Some(place) = self.owners.get_mut(index(u64::from(flow.owner)))
            && let Some(owner) = place
            && owner.flows.oldest == NIL
        {
            self.owner_of.remove(&owner.source);
            *place = None;
            self.free_owners.push(flow.owner);
        }
        for mut room in flow.into_rooms() {
            room.clear();
            if room.capacity() == 1 && self.rooms.len() < ROOMS {
                self.rooms.push(room);
            }
        }
    }

    /// Forgets all flows; what they were charged goes.
    pub(super) fn clear(&mut self, budget: &mut Budget) {
        for owner in self.owners.drain(..).flatten() {
            budget.change(owner.source, owner.bytes, 0);
        }
        self.index.clear();
        self.slots.clear();
        self.free.clear();
        self.rooms.clear();
        self.all = Ends::EMPTY;
        self.timers.clear();
        self.owner_of.clear();
        self.free_owners.clear();
        self.heavy.clear();
        self.holders = [const { Vec::new() }; SIZES];
        self.bytes = 0;
    }

    fn owner(&mut self, source: Source) -> u32 {
        if let Some(owner) = self.owner_of.get(&source) {
            return *owner;
        }
        let owner = Owner {
            source,
            flows: Ends::EMPTY,
            bytes: 0,
        };
        let at = match self.free_owners.pop() {
            Some(at) => {
                if let Some(place) = self.owners.get_mut(index(u64::from(at))) {
                    *place = Some(owner);
                }
                at
            }
            None => {
                self.owners.push(Some(owner));
                u32::try_from(self.owners.len() - 1).unwrap_or(NIL)
            }
        };
        self.owner_of.insert(source, at);
        at
    }

    fn owned_bytes(&self, owner: u32) -> usize {
        self.owners
            .get(index(u64::from(owner)))
            .and_then(Option::as_ref)
            .map_or(0, |owner| owner.bytes)
    }

    /// Charges a flow for the directions that it has now, and notes how much it holds.
    pub(super) fn settle(&mut self, slot: u32, budget: &mut Budget) {
        let Some(flow) = self.get_mut(slot) else {
            return;
        };
        flow.note_plain();
        let after = FLOW_BYTES + DIRECTION_BYTES * flow.directions();
        let cost = Cost {
            owner: flow.owner,
            before: std::mem::replace(&mut flow.charged, after),
            after,
        };
        let size = size(flow.held());
        let (old, old_at) = (flow.size, flow.size_at);
        if size != old {
            self.leave_holders(old, old_at);
            let holders = self.holders.get_mut(usize::from(size));
            let at = match holders {
                Some(holders) if size > 0 => {
                    holders.push(slot);
                    u32::try_from(holders.len() - 1).unwrap_or(NIL)
                }
                _ => NIL,
            };
            if let Some(flow) = self.get_mut(slot) {
                (flow.size, flow.size_at) = (size, at);
            }
        }
        if cost.before != cost.after {
            self.charge(&cost, budget);
        }
    }

    fn leave_holders(&mut self, size: u8, at: u32) {
        let Some(holders) = self.holders.get_mut(usize::from(size)) else {
            return;
        };
        if at == NIL {
            return;
        }
        let at_index = index(u64::from(at));
        holders.swap_remove(at_index);
        if let Some(moved) = holders.get(at_index).copied()
            && let Some(flow) = self.get_mut(moved)
        {
            flow.size_at = at;
        }
    }

    fn charge(&mut self, cost: &Cost, budget: &mut Budget) {
        self.bytes = self.bytes.saturating_sub(cost.before) + cost.after;
        let quarter = self.cap / 4;
        let Some(owner) = self
            .owners
            .get_mut(index(u64::from(cost.owner)))
            .and_then(Option::as_mut)
        else {
            return;
        };
        budget.change(owner.source, cost.before, cost.after);
        let was = owner.bytes > quarter;
        owner.bytes = owner.bytes.saturating_sub(cost.before) + cost.after;
        let is = owner.bytes > quarter;
        if is && !was {
            self.heavy.push(cost.owner);
        } else if was && !is {
            self.heavy.retain(|owner| *owner != cost.owner);
        }
    }

    /// The flow that gives way because the table is full, or because the owner of the flow in `slot` has more than its
    /// share. Never the one in `slot`.
    pub(super) fn victim(&self, slot: u32) -> Option<u32> {
        let owner = self.get(slot)?.owner;
        let over = self.bytes > self.cap || self.len() > self.max;
        let greedy = self.bytes > self.cap / 2 && self.owned_bytes(owner) > self.cap / 4;
        let own = greedy.then(|| self.oldest_of(owner, slot)).flatten();
        if own.is_some() || !over {
            return own;
        }
        let heavy = self.heavy.last();
        heavy
            .and_then(|heavy| self.oldest_of(*heavy, slot))
            .or_else(|| self.silent(self.all, slot, |flow| &flow.all))
    }

    /// The first flow in the order of silence: to within [`RELINK`], the one that was silent longest.
    pub(super) fn oldest(&self) -> Option<u32> {
        (self.all.oldest != NIL).then_some(self.all.oldest)
    }

    /// Among the first flows of a list, the one that was silent longest, the one in `but` left out: others may be as
    /// old as it.
    fn silent(&self, ends: Ends, but: u32, links: fn(&Flow) -> &Links) -> Option<u32> {
        let next = |slot: &u32| self.get(*slot).map(|flow| links(flow).newer);
        std::iter::successors(Some(ends.oldest), next)
            .take(LOOKED_AT)
            .filter(|slot| *slot != but)
            .filter_map(|slot| Some((self.get(slot)?.last, slot)))
            .min_by_key(|(last, _)| *last)
            .map(|(_, slot)| slot)
    }

    fn oldest_of(&self, owner: u32, but: u32) -> Option<u32> {
        let owner = self.owners.get(index(u64::from(owner)))?.as_ref()?;
        self.silent(owner.flows, but, |flow| &flow.kin)
    }

    /// A flow that holds as many bytes as any, to within a factor of two, and the size of its kind.
    pub(super) fn largest(&self) -> Option<(u32, u8)> {
        let (size, holders) = self
            .holders
            .iter()
            .enumerate()
            .rev()
            .find(|(_, holders)| !holders.is_empty())?;
        Some((*holders.last()?, u8::try_from(size).ok()?))
    }

    /// A flow had a packet.
    #[inline]
    pub(super) fn touch(&mut self, slot: u32, now: Timestamp) {
        let Some(flow) = self.get_mut(slot) else {
            return;
        };
        flow.last = now;
        if flow.is_to_move(now) {
            self.relink(slot);
        }
    }

    fn relink(&mut self, slot: u32) {
        self.unlink(slot);
        self.link(slot);
    }

    fn link(&mut self, slot: u32) {
        let Some(flow) = self.get_mut(slot) else {
            return;
        };
        flow.linked = flow.last;
        let owner = flow.owner;
        let mut all = self.all;
        self.append(&mut all, slot, |flow| &mut flow.all);
        self.all = all;
        if let Some(mut kin) = self.kin(owner).copied() {
            self.append(&mut kin, slot, |flow| &mut flow.kin);
            if let Some(place) = self.kin(owner) {
                *place = kin;
            }
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Some(owner) = self.get(slot).map(|flow| flow.owner) else {
            return;
        };
        let mut all = self.all;
        self.detach(&mut all, slot, |flow| &mut flow.all);
        self.all = all;
        if let Some(mut kin) = self.kin(owner).copied() {
            self.detach(&mut kin, slot, |flow| &mut flow.kin);
            if let Some(place) = self.kin(owner) {
                *place = kin;
            }
        }
    }

    fn kin(&mut self, owner: u32) -> Option<&mut Ends> {
        let owner = self.owners.get_mut(index(u64::from(owner)))?.as_mut()?;
        Some(&mut owner.flows)
    }

    fn append(&mut self, ends: &mut Ends, slot: u32, links: fn(&mut Flow) -> &mut Links) {
        let before = std::mem::replace(&mut ends.newest, slot);
        if let Some(flow) = self.get_mut(slot) {
            *links(flow) = Links {
                older: before,
                newer: NIL,
            };
        }
        match self.get_mut(before) {
            Some(flow) => links(flow).newer = slot,
            None => ends.oldest = slot,
        }
    }

    fn detach(&mut self, ends: &mut Ends, slot: u32, links: fn(&mut Flow) -> &mut Links) {
        let Some(flow) = self.get_mut(slot) else {
            return;
        };
        let Links { older, newer } = std::mem::replace(links(flow), Links::NONE);
        match self.get_mut(older) {
            Some(flow) => links(flow).newer = newer,
            None => ends.oldest = newer,
        }
        match self.get_mut(newer) {
            Some(flow) => links(flow).older = older,
            None => ends.newest = older,
        }
    }

    /// Sees to it that the flow is looked at no later than `due`.
    pub(super) fn arm(&mut self, slot: u32, due: Timestamp) {
        let Some(flow) = self.get_mut(slot) else {
            return;
        };
        if flow.armed.is_some_and(|armed| armed <= due) {
            return;
        }
        if let Some(armed) = flow.armed.replace(due) {
            self.timers.remove(&(armed, slot));
        }
        self.timers.insert((due, slot));
    }

    /// When the first flow is to be looked at, and which one it is.
    pub(super) fn next_timer(&self) -> Option<(Timestamp, u32)> {
        self.timers.first().copied()
    }

    /// Asks memory for all of a flow; it has had no packet for a while.
    pub(super) fn prefetch_whole(&self, slot: u32) {
        if let Some(flow) = self.get_place(slot) {
            prefetch(flow, usize::MAX);
        }
    }

    /// Asks memory for what closing a flow needs beside it, which is near by: its directions, its places in the tables, and
    /// the flows beside it in the order of silence.
    pub(super) fn prefetch_around(&self, slot: u32) {
        let Some(flow) = self.get(slot) else {
            return;
        };
        flow.prefetch_whole_directions();
        self.index.prefetch(flow.name.hash);
        if let Some(owner) = self.owners.get(index(u64::from(flow.owner))) {
            prefetch(owner, usize::MAX);
        }
        self.prefetch_neighbours(flow);
    }

    /// Asks memory for what moving a flow in the order of silence needs, where its next packet does that.
    pub(super) fn prefetch_move(&self, flow: &Flow, now: Timestamp) {
        if flow.is_to_move(now) {
            self.prefetch_neighbours(flow);
        }
    }

    fn prefetch_neighbours(&self, flow: &Flow) {
        let (all, kin) = (&flow.all, &flow.kin);
        for neighbour in [all.older, all.newer, kin.older, kin.newer] {
            if let Some(place) = self.get_place(neighbour) {
                prefetch(place, usize::MAX);
            }
        }
    }

    /// Where a flow would be, without a look at whether it is.
    #[inline]
    fn get_place(&self, slot: u32) -> Option<&Option<Flow>> {
        self.slots.get(index(u64::from(slot)))
    }

    /// A flow that is to be looked at by now.
    pub(super) fn pop_timer(&mut self, now: Timestamp) -> Option<u32> {
        let &(due, slot) = self.timers.first()?;
        if due > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(flow) = self.get_mut(slot) {
            flow.armed = None;
        }
        Some(slot)
    }

    /// Panics where an invariant does not hold. `each` looks at every flow.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn check(&self, mut each: impl FnMut(&Flow)) {
        let mut armed = 0;
        let mut bytes = 0;
        let mut holding = 0;
        for (slot, flow) in self.slots.iter().enumerate() {
            let Some(flow) = flow else { continue };
            let slot = u32::try_from(slot).unwrap_or(NIL);
            each(flow);
            flow.check_plain();
            assert_eq!(self.find(&flow.name), Some(slot));
            if let Some(at) = flow.armed {
                assert!(self.timers.contains(&(at, slot)));
                armed += 1;
            }
            assert_eq!(
                flow.charged,
                FLOW_BYTES + DIRECTION_BYTES * flow.directions()
            );
            bytes += flow.charged;
            assert_eq!(
                flow.size,
                size(flow.held()),
                "a flow is held for another size"
            );
            if flow.size > 0 {
                holding += 1;
                let holders = &self.holders[usize::from(flow.size)];
                assert_eq!(holders[index(u64::from(flow.size_at))], slot);
            }
            assert!(flow.last.since(flow.linked) < RELINK);
        }
        assert_eq!(holding, self.holders.iter().map(Vec::len).sum::<usize>());
        assert_eq!(armed, self.timers.len());
        assert_eq!(bytes, self.bytes);
        // A table of one flow cannot evict another.
        assert!(self.len() <= self.max);
        assert!(
            self.bytes <= self.cap || self.len() == 1,
            "flows over their cap"
        );
        self.check_list(self.all, self.len(), |flow| flow.all);
        let mut kin = 0;
        for (at, owner) in self.owners.iter().enumerate() {
            let Some(owner) = owner else { continue };
            let at = u32::try_from(at).unwrap_or(NIL);
            assert_eq!(self.owner_of.get(&owner.source), Some(&at));
            let of = |flow: &&Flow| flow.owner == at;
            let flows = || self.slots.iter().flatten().filter(of);
            assert_eq!(owner.bytes, flows().map(|f| f.charged).sum::<usize>());
            assert_eq!(self.heavy.contains(&at), owner.bytes > self.cap / 4);
            self.check_list(owner.flows, flows().count(), |flow| flow.kin);
            kin += flows().count();
        }
        assert_eq!(kin, self.len());
    }

    /// The list holds so many flows, in the order of silence.
    #[cfg(any(test, feature = "fuzzing"))]
    fn check_list(&self, ends: Ends, len: usize, links: fn(&Flow) -> Links) {
        let mut seen = 0;
        let mut at = ends.oldest;
        let mut before = Timestamp(0);
        while let Some(flow) = self.get(at) {
            assert!(flow.linked + RELINK >= before, "a list is out of order");
            before = flow.linked;
            seen += 1;
            at = links(flow).newer;
        }
        assert_eq!(seen, len);
    }
}

/// The kind of a flow that holds `bytes`: zero when none, else one more than the power of two.
pub(super) fn size(bytes: usize) -> u8 {
    bytes
        .checked_ilog2()
        .map_or(0, |log| u8::try_from(log + 1).unwrap_or(u8::MAX))
}
