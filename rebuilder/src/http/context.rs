//! What a direction needs of its extractor, and the room that it has for what it holds.

use super::Request;
use super::extract::{HttpCounters, HttpOptions};
use super::search::Search;
use crate::budget::{Budget, Source};
use crate::stream::Endpoints;

/// What a direction needs of its extractor.
pub(super) struct Context<'a> {
    pub(super) options: &'a HttpOptions,
    pub(super) counters: &'a mut HttpCounters,
    /// As it was before this chunk.
    pub(super) budget: &'a Budget,
    pub(super) source: Source,
    /// Bytes by which buffers have grown in this chunk.
    pub(super) grown: usize,
    pub(super) ends: &'a Endpoints,
    pub(super) out: &'a mut dyn FnMut(Request<'_>),
}

impl Context<'_> {
    /// Makes room for `more` bytes, or says no because the cap on held bytes is reached. Grows as `Vec` does, but by
    /// an amount that is known beforehand, so that the cap is never passed, and not beyond `all`, the bytes that the
    /// buffer will ever hold as far as is known.
    pub(super) fn admit(&mut self, buffer: &mut Vec<u8>, more: usize, all: usize) -> bool {
        let need = buffer.len().saturating_add(more);
        let growth = Self::growth(buffer.capacity(), need, all);
        if growth > 0 {
            if self.exceeded(growth) {
                return false;
            }
            self.grown += growth;
            buffer.reserve_exact(buffer.capacity() + growth - buffer.len());
        }
        true
    }

    fn growth(capacity: usize, need: usize, all: usize) -> usize {
        if need <= capacity {
            0
        } else {
            // `Vec` never allocates less than 8 bytes.
            need.max((capacity * 2).min(all)).max(8) - capacity
        }
    }

    fn exceeded(&self, growth: usize) -> bool {
        self.budget
            .exceeded(self.source, self.grown.saturating_add(growth))
    }

    /// How long a line `search` may keep over `more` bytes: none without room, so that one that ends in this piece is
    /// still found, but nothing is kept for the next.
    pub(super) fn search_max(&mut self, search: &Search, more: usize) -> usize {
        let need = usize::try_from(search.pending())
            .unwrap_or(usize::MAX)
            .saturating_add(more);
        let growth = Self::growth(search.held(), need, usize::MAX);
        if growth > 0 && self.exceeded(growth) {
            return 0;
        }
        self.grown += growth;
        self.options.max_head
    }
}
