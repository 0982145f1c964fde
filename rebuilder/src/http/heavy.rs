//! Which directions hold most: they give way where all that may be held is held.

use hashbrown::HashMap;

use crate::stream::{DirectionId, Endpoints};

/// Who holds less is not listed, in bytes. Every direction has a flow, whose state is charged to a cap of its own, so that
/// a table full of smaller ones is not reached.
const LEAST: usize = 1024;

/// Where a direction is listed.
#[derive(Debug)]
struct Place {
    class: usize,
    at: usize,
    ends: Endpoints,
}

/// Directions by the power of two that they hold. Finding one that holds most, to within a factor of two, is a look
/// at 64 lists, whatever their length.
#[derive(Debug, Default)]
pub(super) struct Heavy {
    classes: Vec<Vec<DirectionId>>,
    /// Keyed by our own running number, so no stranger chooses the keys.
    places: HashMap<DirectionId, Place, foldhash::fast::RandomState>,
}

impl Heavy {
    /// `None`: not listed.
    fn class(held: usize) -> Option<usize> {
        (held >= LEAST).then(|| usize::try_from(held.ilog2()).unwrap_or(usize::MAX))
    }

    /// What a direction holds went from `before` to `after` bytes.
    pub(super) fn change(
        &mut self,
        dir: DirectionId,
        ends: &Endpoints,
        before: usize,
        after: usize,
    ) {
        let (from, to) = (Self::class(before), Self::class(after));
        if from == to {
            return;
        }
        if from.is_some() {
            self.remove(dir);
        }
        if let Some(class) = to {
            if self.classes.len() <= class {
                self.classes.resize_with(class + 1, Vec::new);
            }
            if let Some(list) = self.classes.get_mut(class) {
                let at = list.len();
                list.push(dir);
                let ends = *ends;
                self.places.insert(dir, Place { class, at, ends });
            }
        }
    }

    fn remove(&mut self, dir: DirectionId) {
        let Some(Place { class, at, .. }) = self.places.remove(&dir) else {
            return;
        };
        let Some(list) = self.classes.get_mut(class) else {
            return;
        };
        if at < list.len() {
            list.swap_remove(at);
        }
        if let Some(moved) = list.get(at).and_then(|moved| self.places.get_mut(moved)) {
            moved.at = at;
        }
    }

    /// One that holds most.
    pub(super) fn heaviest(&self) -> Option<(DirectionId, Endpoints)> {
        let dir = self.classes.iter().rev().find_map(|list| list.last())?;
        Some((*dir, self.places.get(dir)?.ends))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_heaviest_is_known_through_any_changes() {
        let mut heavy = Heavy::default();
        let ends = Endpoints {
            vni: None,
            src: "192.0.2.7:40000".parse().unwrap(),
            dst: "10.0.0.2:80".parse().unwrap(),
        };
        let mut held = vec![0_usize; 50];
        let mut random = 1_u64;
        for _ in 0..20_000 {
            // Knuth's MMIX generator: the same changes in every run.
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let n = usize::try_from(random >> 33).unwrap() % held.len();
            let after = match (random >> 20) % 4 {
                0 => 0,
                _ => 1 << ((random >> 24) % 24),
            };
            heavy.change(DirectionId::new(n as u64, n), &ends, held[n], after);
            held[n] = after;
            let most = *held.iter().max().unwrap();
            match heavy.heaviest() {
                Some((dir, _)) => {
                    let found = held[dir.place()];
                    assert!(found * 2 > most && found >= LEAST, "{found} of {most}");
                }
                None => assert!(most < LEAST),
            }
            let listed = held.iter().filter(|held| **held >= LEAST).count();
            assert_eq!(heavy.places.len(), listed);
        }
    }
}
