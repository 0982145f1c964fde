//! What is to come of a body, by its length or by its chunks.

use super::chunked::{Chunked, Step};
use super::context::Context;
use super::search::{Origin, Search};

/// What is to come of a body.
#[derive(Debug)]
pub(super) enum Rest {
    Length(u64),
    Chunked {
        coding: Chunked,
        /// Reads along where a byte may break the coding: that byte may be in the middle of a request line.
        search: Search,
    },
}

impl Rest {
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Length(_) => 0,
            Self::Chunked { search, .. } => search.held(),
        }
    }

    /// Lets go of what is held: a request line that has begun will not be found.
    pub(super) fn forget(&mut self) {
        if let Self::Chunked { search, .. } = self {
            search.reset();
        }
    }

    /// Bytes taken that would be read anew were the next one to break the coding.
    pub(super) fn doubtful(&self) -> usize {
        match self {
            Self::Length(_) => 0,
            Self::Chunked { coding, .. } => coding.doubtful().unwrap_or(0),
        }
    }

    /// Whether a strict reader refuses what was seen.
    pub(super) fn odd(&self) -> bool {
        match self {
            Self::Length(_) => false,
            Self::Chunked { coding, .. } => coding.odd(),
        }
    }

    /// How many of the next `len` bytes can belong to the body.
    pub(super) fn at_most(&self, len: usize) -> usize {
        match self {
            Self::Length(left) => usize::try_from(*left).map_or(len, |left| left.min(len)),
            Self::Chunked { .. } => len,
        }
    }

    pub(super) fn feed(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Length(left) => {
                let here = bytes.len() as u64;
                if here < *left {
                    *left -= here;
                    Step::More
                } else {
                    let take = usize::try_from(*left).unwrap_or(bytes.len());
                    *left = 0;
                    Step::End(take)
                }
            }
            Self::Chunked { coding, .. } => coding.feed(bytes),
        }
    }

    /// After a piece that ends where the next byte may break the coding: the search sees the bytes that are in doubt.
    pub(super) fn read_along(&mut self, cx: &mut Context<'_>, bytes: &[u8], origin: Origin) {
        let Self::Chunked { coding, search } = self else {
            return;
        };
        let Some(doubtful) = coding.doubtful() else {
            search.reset();
            return;
        };
        let from = bytes.len().saturating_sub(doubtful);
        if doubtful <= bytes.len() {
            search.reset();
        }
        let origin = Origin {
            segment_start: origin.segment_start && from == 0 && doubtful > 0,
            ..origin
        };
        // A size line holds no line end, so nothing can be found yet.
        let max = cx.search_max(search, bytes.len() - from);
        let _ = search.feed(bytes.get(from..).unwrap_or_default(), origin, max);
    }
}
