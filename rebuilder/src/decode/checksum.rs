//! Whether a frame's checksums are right, and when a wrong one counts against it.
//!
//! The server drops a segment whose checksum is wrong, so a rebuilder that takes it can be fed bytes that the server
//! never saw (Ptacek and Newsham's "insertion"). But where a card computes the sum, the mirror copies the frame before
//! it is there, and every sum that the machine sends is wrong. Both are told apart by what the same interface sent in
//! the same direction just before: see [`ChecksumPolicy::Auto`].
//!
//! Checked are the TCP checksum (RFC 9293 §3.1) and, in IPv4, the header's (RFC 791 §3.1), of frames that are *whole*:
//! a frame cut by the mirror, or one whose IP length is zero because a card was to cut it into segments, holds no sum
//! that could be right. The pieces of an IPv4 packet are checked by their header, and the packet, once whole, by TCP's.
//! The sums of tunnel headers are not looked at: AWS sends the mirror's UDP with none.

use std::hash::BuildHasher;
use std::net::IpAddr;

use super::Vni;
use super::ip::{self, IpPacket};
use crate::keyed::Keyed;

/// What a wrong checksum does to a frame that is whole (`--checksum`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChecksumPolicy {
    /// The frame is dropped where at least 99 % of the last 1,000 checked frames of the same interface in the same
    /// direction were right, of at least 100; else it is only counted.
    #[default]
    Auto,
    /// It is counted.
    Count,
    /// The frame is dropped.
    Drop,
}

/// How many frames of an interface and direction are looked back on.
pub(super) const WINDOW: u16 = 1_000;

/// How many there must be before a wrong one is dropped: with fewer, one wrong frame is more than 1 %, so that "99 %
/// were right" would mean "all were". Until then a wrong one is taken: a fresh interface whose card computes the sums
/// loses nothing, even when some packets that it only passes on were right.
pub(super) const LEAST: u16 = 100;

/// The table is `SETS` times `WAYS` windows of about 170 bytes; in a full set the one not used for longest gives way.
const SETS: usize = 1_024;
const WAYS: usize = 8;

/// How many slots are found without a hash, a power of two; and an odd number without a pattern (2⁶⁴ by the golden ratio).
const RECENT: usize = 16;
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// The most interfaces and directions that a worker looks back on. Those beyond begin anew.
pub const MAX_CHECKSUM_WINDOWS: usize = SETS * WAYS;

/// The sum of `data` as 16-bit words, unfolded. In the machine's byte order: one's complement sums do not depend on it
/// (RFC 1071 §2 (B)).
#[inline]
pub(super) fn sum(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if data.len() >= avx2::LEAST && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        #[allow(unsafe_code)]
        return unsafe { avx2::sum(data) };
    }
    sum_by_lanes(data)
}

/// The lanes let the compiler use vectors.
pub(super) fn sum_by_lanes(data: &[u8]) -> u64 {
    let (blocks, rest) = data.as_chunks::<32>();
    let mut lanes = [0; 8];
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let mut sum = lanes.iter().sum::<u64>();
    let (words, rest) = rest.as_chunks::<4>();
    for word in words {
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let (halves, odd) = rest.as_chunks::<2>();
    for half in halves {
        sum += u64::from(u16::from_ne_bytes(*half));
    }
    if let [odd] = odd {
        sum += u64::from(u16::from_ne_bytes([*odd, 0]));
    }
    sum
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi32, _mm256_and_si256, _mm256_loadu_si256, _mm256_madd_epi16,
        _mm256_set1_epi16, _mm256_setzero_si256, _mm256_storeu_si256, _mm256_xor_si256,
    };

    /// Bytes that are added in one step, and the least that [`sum`] takes.
    pub(super) const LEAST: usize = 64;

    /// So many blocks add up to less than 2³¹ in each lane: two words each and neither farther from zero than 2¹⁵.
    const AT_ONCE: usize = 1 << 13;

    /// Nothing of the first block, all of the second one.
    static MASK: [[u8; LEAST]; 2] = [[0; LEAST], [0xff; LEAST]];

    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    fn load(block: &[u8; LEAST]) -> [__m256i; 2] {
        let at: *const __m256i = block.as_ptr().cast();
        // SAFETY: two halves of 32 bytes, which may lie anywhere.
        unsafe { [_mm256_loadu_si256(at), _mm256_loadu_si256(at.add(1))] }
    }

    /// As [`super::sum_by_lanes`], of at least a block, in a third of the time: sixteen words are added to their neighbours
    /// at once. The instruction takes them for signed, so 2¹⁵ is taken off each before and added after.
    #[target_feature(enable = "avx2")]
    #[allow(unsafe_code)]
    pub(super) fn sum(data: &[u8]) -> u64 {
        let middle = _mm256_set1_epi16(i16::MIN);
        let one = _mm256_set1_epi16(1);
        let add = |lanes: &mut [__m256i; 2], [a, b]: [__m256i; 2]| {
            let pairs = |words| _mm256_madd_epi16(_mm256_xor_si256(words, middle), one);
            lanes[0] = _mm256_add_epi32(lanes[0], pairs(a));
            lanes[1] = _mm256_add_epi32(lanes[1], pairs(b));
        };
        let total = |[a, b]: [__m256i; 2]| {
            let mut lanes = [0_i32; 8];
            // SAFETY: eight lanes are 32 bytes.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(a, b)) };
            lanes.iter().map(|lane| i64::from(*lane)).sum::<i64>()
        };
        let (even, odd) = data.split_at(data.len() & !1);
        let (blocks, rest) = even.as_chunks::<LEAST>();
        let mut sum = 0;
        let mut lanes = [_mm256_setzero_si256(); 2];
        for some in blocks.chunks(AT_ONCE) {
            for block in some {
                add(&mut lanes, load(block));
            }
            sum += total(std::mem::replace(&mut lanes, [_mm256_setzero_si256(); 2]));
        }
        // What is left may have any length; a loop over it would be guessed wrong each time. So the last block is taken once
        // more, without what was added before.
        if let (Some(last), Some(mask)) = (
            even.last_chunk(),
            MASK.as_flattened()
                .get(rest.len()..)
                .and_then(<[u8]>::first_chunk),
        ) {
            let ([a, b], [mask_a, mask_b]) = (load(last), load(mask));
            add(
                &mut lanes,
                [_mm256_and_si256(a, mask_a), _mm256_and_si256(b, mask_b)],
            );
            sum += total(lanes);
        }
        let words = (blocks.len() + 1) * (LEAST / 2);
        let odd = odd.first().map_or(0, |odd| u16::from_ne_bytes([*odd, 0]));
        ((words as u64) << 15).wrapping_add_signed(sum) + u64::from(odd)
    }
}

/// The sum of a few 4-byte words, as [`sum`] gives it.
#[inline]
pub(super) fn words<const N: usize>(data: &[u8; N]) -> u64 {
    const { assert!(N.is_multiple_of(4)) };
    let (words, _) = data.as_chunks::<4>();
    words
        .iter()
        .map(|word| u64::from(u32::from_ne_bytes(*word)))
        .sum()
}

/// The sum of what an IP packet of TCP carries, with what of the pseudo-header (RFC 9293 §3.1) is no address.
#[inline]
pub(super) fn of_tcp(data: &[u8]) -> u64 {
    // No IP packet is longer.
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be();
    u64::from(len) + u64::from(u16::from_ne_bytes([0, ip::TCP])) + sum(data)
}

/// Whether a sum that includes the checksum says that nothing was changed: all ones (RFC 1071 §1 (3)). Folding keeps the
/// remainder by 2¹⁶ - 1, and makes no other sum zero.
#[inline]
pub(super) fn right(sum: u64) -> bool {
    sum != 0 && sum.is_multiple_of(0xffff)
}

/// Whether the checksum of an IPv4 header is right; other packets have none.
pub(super) fn header_is_right(packet: &IpPacket<'_>) -> bool {
    packet.v4_header.is_empty() || right(sum(packet.v4_header))
}

/// Whether the checksums of a packet that carries TCP are right; `None` where that cannot be told.
pub(super) fn verdict(packet: &IpPacket<'_>) -> Option<bool> {
    if !packet.is_whole() {
        return None;
    }
    let addresses = match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => sum(&src.octets()) + sum(&dst.octets()),
        (IpAddr::V6(src), IpAddr::V6(dst)) => sum(&src.octets()) + sum(&dst.octets()),
        _ => return None,
    };
    Some(header_is_right(packet) && right(addresses + of_tcp(packet.payload)))
}

/// An interface in one direction: the mirror session, and who sends to whom on the link. In a VPC one of the two is
/// the mirrored interface, whose address no packet can fake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Path {
    pub(super) vni: Option<Vni>,
    /// As [`super::link::ends`] gives it; zero where the link names nobody.
    pub(super) ends: [u8; 12],
}

impl Path {
    /// Tells few paths apart, and quickly. Whoever aims at it makes others be looked up by their keyed hash.
    #[inline]
    fn near(&self) -> usize {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.ends;
        let (low, high) = ([a, b, c, d, e, f, g, h], [i, j, k, l]);
        let vni = self.vni.map_or(0, |vni| vni.0);
        let rest = u64::from(u32::from_ne_bytes(high) ^ vni);
        let mixed = (u64::from_ne_bytes(low) ^ rest << 32).wrapping_mul(MIX);
        // The upper bits are those that all others reach.
        #[allow(clippy::cast_possible_truncation)]
        let near = (mixed >> (u64::BITS - RECENT.ilog2())) as usize;
        near
    }
}

/// The verdicts on the last [`WINDOW`] frames.
#[derive(Clone, Debug)]
struct Window {
    /// One bit a frame, set for a wrong one; a ring.
    wrong: [u64; 16],
    /// Where the next one goes.
    at: u16,
    seen: u16,
    wrongs: u16,
}

impl Window {
    const NEW: Self = Self {
        wrong: [0; 16],
        at: 0,
        seen: 0,
        wrongs: 0,
    };

    fn is_trusted(&self) -> bool {
        self.seen >= LEAST && u32::from(self.wrongs) * 100 <= u32::from(self.seen)
    }

    #[inline]
    fn record(&mut self, wrong: bool) {
        // As a rule none was wrong, and all bits are zero.
        if wrong || self.wrongs > 0 {
            self.record_bit(wrong);
        }
        self.at = if self.at + 1 == WINDOW {
            0
        } else {
            self.at + 1
        };
        self.seen = (self.seen + 1).min(WINDOW);
    }

    fn record_bit(&mut self, wrong: bool) {
        let bit = 1 << (self.at % 64);
        let Some(word) = self.wrong.get_mut(usize::from(self.at / 64)) else {
            return;
        };
        // Of a ring that is not full yet, the bit is zero.
        self.wrongs -= u16::from(*word & bit != 0);
        *word &= !bit;
        if wrong {
            *word |= bit;
            self.wrongs += 1;
        }
    }
}

#[derive(Debug)]
struct Slot {
    path: Path,
    used: u64,
    window: Window,
}

/// Decides on frames by their verdicts, and counts.
#[derive(Debug)]
pub(super) struct Checksums {
    policy: ChecksumPolicy,
    /// Keyed, so that no sender can aim at a set.
    hasher: Keyed,
    slots: Vec<Slot>,
    /// Which slots are in each set.
    sets: Vec<Vec<u16>>,
    /// Slots that were asked for lately, by [`Path::near`]: few interfaces send at the same time, and hashing costs more
    /// than looking.
    recent: [u16; RECENT],
    uses: u64,
    taken: u64,
}

impl Checksums {
    pub(super) fn new(policy: ChecksumPolicy, hasher: Keyed) -> Self {
        Self {
            policy,
            hasher,
            slots: Vec::new(),
            sets: Vec::new(),
            recent: [0; RECENT],
            uses: 0,
            taken: 0,
        }
    }

    /// How many wrong frames were taken all the same.
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether a frame with this verdict is taken. The path is asked for only where it matters.
    #[inline]
    pub(super) fn admit(&mut self, is_right: bool, path: impl FnOnce() -> Path) -> bool {
        let trusted = match self.policy {
            ChecksumPolicy::Auto => {
                let window = self.window(&path());
                let trusted = window.is_trusted();
                window.record(!is_right);
                trusted
            }
            ChecksumPolicy::Count => false,
            ChecksumPolicy::Drop => true,
        };
        is_right || self.may_pass(!trusted)
    }

    /// The same for a piece of a packet. It is judged by what the frames of its interface did and is no evidence
    /// itself: its header says nothing about the TCP checksum, and there may be two thousand pieces to a sum.
    pub(super) fn admit_piece(&mut self, is_right: bool, path: impl FnOnce() -> Path) -> bool {
        if is_right {
            return true;
        }
        let trusted = match self.policy {
            ChecksumPolicy::Auto => self.window(&path()).is_trusted(),
            ChecksumPolicy::Count => false,
            ChecksumPolicy::Drop => true,
        };
        self.may_pass(!trusted)
    }

    fn may_pass(&mut self, passes: bool) -> bool {
        self.taken += u64::from(passes);
        passes
    }

    #[inline]
    fn window(&mut self, path: &Path) -> &mut Window {
        let near = path.near();
        let slot = self.slots.get(usize::from(self.recent[near]));
        if slot.is_none_or(|slot| slot.path != *path) {
            self.recent[near] = self.find(*path);
        }
        self.uses += 1;
        let slot = &mut self.slots[usize::from(self.recent[near])];
        slot.used = self.uses;
        &mut slot.window
    }

    /// The slot of `path`, which there is then.
    fn find(&mut self, path: Path) -> u16 {
        if self.sets.is_empty() {
            self.sets.resize_with(SETS, Vec::new);
        }
        // A remainder of SETS.
        #[allow(clippy::cast_possible_truncation)]
        let at = (self.hasher.hash_one(path) % SETS as u64) as usize;
        let (set, slots) = (&mut self.sets[at], &mut self.slots);
        if let Some(slot) = set
            .iter()
            .find(|slot| slots[usize::from(**slot)].path == path)
        {
            return *slot;
        }
        let fresh = Slot {
            path,
            used: 0,
            window: Window::NEW,
        };
        let oldest = set
            .iter()
            .min_by_key(|slot| slots[usize::from(**slot)].used);
        if let Some(oldest) = oldest.filter(|_| set.len() == WAYS) {
            slots[usize::from(*oldest)] = fresh;
            return *oldest;
        }
        // MAX_CHECKSUM_WINDOWS at most.
        #[allow(clippy::cast_possible_truncation)]
        let slot = slots.len() as u16;
        slots.push(fresh);
        set.push(slot);
        slot
    }
}

#[cfg(test)]
impl Checksums {
    /// How many windows there are.
    pub(super) fn windows(&self) -> usize {
        self.slots.len()
    }
}
