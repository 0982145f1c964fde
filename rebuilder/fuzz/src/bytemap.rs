//! A map with one cell a byte: what an oracle knows of a stream.

use std::collections::HashMap;

const BLOCK: usize = 64;

/// Which of eight values were seen at each place, as a bit each. Places wrap at 2³² as sequence numbers do.
#[derive(Default)]
pub(crate) struct ByteMap {
    blocks: HashMap<u32, [u8; BLOCK]>,
    /// Cells that are not zero.
    len: usize,
}

impl ByteMap {
    fn split(at: u32) -> (u32, usize) {
        (at / 64, at as usize % BLOCK)
    }

    /// Notes that value number `variant` was seen at `at`.
    pub(crate) fn note(&mut self, at: u32, variant: u8) {
        let (block, place) = Self::split(at);
        let cell = &mut self.blocks.entry(block).or_insert([0; BLOCK])[place];
        self.len += usize::from(*cell == 0);
        *cell |= 1 << (variant & 7);
    }

    /// The values that were seen at `at`, as bits.
    pub(crate) fn seen(&self, at: u32) -> u8 {
        let (block, place) = Self::split(at);
        self.blocks.get(&block).map_or(0, |cells| cells[place])
    }

    /// How many places were seen.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
