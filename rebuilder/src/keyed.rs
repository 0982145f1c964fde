//! The hash over what strangers choose: addresses, ports, MAC addresses.
//!
//! SipHash-1-3, as std has it, under a key of its own: who does not know the key cannot aim at a bucket. It takes 10 ns a
//! packet more than foldhash, which does not claim to withstand somebody who sees what hangs on it. std's hasher takes no
//! key, and a capture file must give the same result each time, also where a table of fixed size has to forget something.

use std::hash::{BuildHasher, RandomState};

use siphasher::sip::SipHasher13;

/// A key. The default is a random one.
#[derive(Clone, Copy, Debug)]
pub struct Keyed {
    key: [u64; 2],
}

impl Keyed {
    /// The same key each time: for files, of which nobody can see what the last one did.
    pub const FIXED: Self = Self { key: [0, 0] };

    /// A key that nobody knows.
    #[must_use]
    pub fn random() -> Self {
        let random = RandomState::new();
        Self {
            key: [random.hash_one(0_u8), random.hash_one(1_u8)],
        }
    }
}

impl Keyed {
    /// The hash of some words: a third of what it takes to give them to a hasher one by one.
    #[must_use]
    pub fn words<const N: usize>(&self, words: [u64; N]) -> u64 {
        let [a, b] = self.key;
        SipHasher13::new_with_keys(a, b).hash(words.map(u64::to_le_bytes).as_flattened())
    }
}

impl Default for Keyed {
    fn default() -> Self {
        Self::random()
    }
}

impl BuildHasher for Keyed {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        let [a, b] = self.key;
        SipHasher13::new_with_keys(a, b)
    }
}
