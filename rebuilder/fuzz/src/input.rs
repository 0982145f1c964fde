//! Reads a structured input: numbers and byte strings off the front of what the fuzzer gives.

use arbitrary::{Arbitrary, Unstructured};

/// An input that is used up from front to back; behind its end everything is zero or empty, so that every input means
/// something, and one byte changed by the fuzzer changes one decision.
pub(crate) struct Input<'a>(Unstructured<'a>);

impl<'a> Input<'a> {
    pub(crate) fn new(data: &'a [u8]) -> Self {
        Self(Unstructured::new(data))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number or a boolean.
    pub(crate) fn get<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// Less than `n`, which is not zero; from one byte.
    pub(crate) fn below(&mut self, n: u8) -> u8 {
        self.get::<u8>() % n
    }

    /// One of a list that is not empty.
    pub(crate) fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        let n = u8::try_from(list.len()).unwrap_or(u8::MAX);
        list[usize::from(self.below(n))]
    }

    /// At most `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        self.0.bytes(n.min(self.0.len())).unwrap_or_default()
    }

    /// A length that is mostly small and sometimes large, at most `most`.
    pub(crate) fn len(&mut self, most: usize) -> usize {
        let n = match self.get::<u8>() {
            n @ 0..=199 => usize::from(n),
            _ => usize::from(self.get::<u16>()),
        };
        n.min(most)
    }
}
