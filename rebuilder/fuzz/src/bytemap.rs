//! A map with one cell a byte: what an oracle knows of a stream.

const BLOCK: usize = 4096;

/// Which of eight values were seen at each place, as a bit each. Places wrap at 2³² as sequence numbers do.
#[derive(Default)]
pub(crate) struct ByteMap {
    /// Few, since scripts stay near a few places: a list is faster than a tree.
    blocks: Vec<(u32, Box<[u8; BLOCK]>)>,
    /// Cells that are not zero.
    len: usize,
}

impl ByteMap {
    fn split(at: u32) -> (u32, usize) {
        (at >> 12, at as usize % BLOCK)
    }

    fn block(&self, number: u32) -> Option<&[u8; BLOCK]> {
        let found = self.blocks.iter().find(|(n, _)| *n == number);
        found.map(|(_, cells)| &**cells)
    }

    /// Notes that from `at` on the values with these numbers (less than eight) were seen.
    pub(crate) fn note(&mut self, mut at: u32, mut variants: &[u8]) {
        while !variants.is_empty() {
            let (number, place) = Self::split(at);
            let known = self.blocks.iter().position(|(n, _)| *n == number);
            let index = known.unwrap_or_else(|| {
                self.blocks.push((number, Box::new([0; BLOCK])));
                self.blocks.len() - 1
            });
            let cells = &mut self.blocks[index].1[place..];
            let here = cells.len().min(variants.len());
            for (cell, variant) in cells.iter_mut().zip(variants) {
                self.len += usize::from(*cell == 0);
                *cell |= 1 << (variant & 7);
            }
            variants = &variants[here..];
            at = at.wrapping_add(u32::try_from(here).unwrap_or(0));
        }
    }

    /// Whether each of `n` places from `at` on satisfies `fits`, which is given the offset and what was seen there, as
    /// bits.
    pub(crate) fn all(
        &self,
        mut at: u32,
        n: usize,
        mut fits: impl FnMut(usize, u8) -> bool,
    ) -> bool {
        let mut done = 0;
        while done < n {
            let (number, place) = Self::split(at);
            let here = (BLOCK - place).min(n - done);
            let fit = match self.block(number) {
                Some(cells) => (0..here).all(|i| fits(done + i, cells[place + i])),
                None => (0..here).all(|i| fits(done + i, 0)),
            };
            if !fit {
                return false;
            }
            done += here;
            at = at.wrapping_add(u32::try_from(here).unwrap_or(0));
        }
        true
    }

    /// How many places were seen.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
