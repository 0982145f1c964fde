//! The places for connections, most of them empty at most times: a turn looks at those that are taken. Pure.

use std::ops::Range;

/// Places by number; a place's number is the token of its connection's events.
#[derive(Debug)]
pub(super) struct Slots<T> {
    places: Vec<Option<Box<T>>>,
    /// A bit for each place that is taken.
    taken: Vec<u64>,
}

impl<T> Slots<T> {
    /// So many, all empty.
    #[must_use]
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: std::iter::repeat_with(|| None).take(places).collect(),
            taken: vec![0; places.div_ceil(64)],
        }
    }

    /// What is there.
    #[must_use]
    pub(super) fn get(&self, place: usize) -> Option<&T> {
        self.places.get(place)?.as_deref()
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, place: usize) -> Option<&mut T> {
        self.places.get_mut(place)?.as_deref_mut()
    }

    /// Empties the place.
    pub(super) fn take(&mut self, place: usize) -> Option<Box<T>> {
        let was = self.places.get_mut(place)?.take();
        if let Some(bits) = self.taken.get_mut(place / 64) {
            *bits &= !(1 << (place % 64));
        }
        was
    }

    /// Fills the place.
    pub(super) fn put(&mut self, place: usize, with: Box<T>) {
        if let (Some(at), Some(bits)) = (self.places.get_mut(place), self.taken.get_mut(place / 64))
        {
            *at = Some(with);
            *bits |= 1 << (place % 64);
        }
    }

    /// The first one from `place` on that is taken. By number, so that whoever goes through them may change them.
    #[must_use]
    pub(super) fn next(&self, place: usize) -> Option<usize> {
        let mut word = place / 64;
        let mut bits = self.taken.get(word)? & (u64::MAX << (place % 64));
        while bits == 0 {
            word += 1;
            bits = *self.taken.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }

    /// The first empty one of these.
    #[must_use]
    pub(super) fn empty(&self, mut among: Range<usize>) -> Option<usize> {
        among.find(|&place| matches!(self.places.get(place), Some(None)))
    }

    /// What is in these, with its place, in order.
    pub(super) fn among(&self, places: Range<usize>) -> impl Iterator<Item = (usize, &T)> {
        let mut from = places.start;
        std::iter::from_fn(move || {
            let place = self.next(from).filter(|&place| place < places.end)?;
            from = place + 1;
            Some((place, self.get(place)?))
        })
    }

    /// What is in any, in order.
    pub(super) fn all(&self) -> impl Iterator<Item = &T> {
        self.among(0..self.places.len()).map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn places_hold_what_was_put_there(
            places in 0_usize..200,
            steps in prop::collection::vec((0_usize..210, any::<bool>()), 0..300),
            from in 0_usize..210,
            to in 0_usize..210,
        ) {
            let mut slots = Slots::new(places);
            let mut model = BTreeMap::new();
            for (number, (place, put)) in steps.into_iter().enumerate() {
                if put {
                    slots.put(place, Box::new(number));
                    if place < places {
                        model.insert(place, number);
                    }
                } else {
                    prop_assert_eq!(slots.take(place).map(|at| *at), model.remove(&place));
                }
            }
            let of = |places: Range<usize>| model.iter().filter(move |(p, _)| places.contains(p));
            let got: Vec<(usize, usize)> = slots.among(from..to).map(|(p, &n)| (p, n)).collect();
            prop_assert_eq!(got, of(from..to).map(|(&p, &n)| (p, n)).collect::<Vec<_>>());
            prop_assert!(slots.all().eq(model.values()));
            let empty = (from..to).find(|p| *p < places && !model.contains_key(p));
            prop_assert_eq!(slots.empty(from..to), empty);
            prop_assert_eq!(slots.get(from), model.get(&from));
        }
    }
}
