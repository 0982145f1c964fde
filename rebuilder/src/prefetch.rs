//! Asks memory for what will be needed some hundred nanoseconds later. That is how long a line takes that no cache holds, and
//! of thousands of connections few are in one: whoever waits for each line in turn waits longer than he works.

/// Bytes that memory gives at once.
const LINE: usize = 64;

/// Has the first `lines` lines of something, each 64 bytes, brought near while something else is done. A hint, without effect
/// on what is computed; where the machine has no such instruction it does nothing.
#[inline]
pub(crate) fn prefetch<T: ?Sized>(what: &T, lines: usize) {
    let at = std::ptr::from_ref(what).cast::<u8>();
    for line in 0..lines.min(size_of_val(what).div_ceil(LINE)) {
        prefetch_line(at.wrapping_add(line * LINE));
    }
}

#[inline]
#[allow(unsafe_code)]
fn prefetch_line(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every such processor has it; it reads nothing that could be seen and faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above; it writes nothing and changes no flag.
    unsafe {
        std::arch::asm!(
            "prfm pldl1keep, [{at}]",
            at = in(reg) at,
            options(nostack, preserves_flags, readonly)
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = at;
}

/// Memory that is read from front to back, piece by piece, and that no cache holds: frames in a file or in a ring. Where the
/// next one begins stands in the one before, so that whoever asked for them one by one would wait for each.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The address up to which memory was asked.
    asked: usize,
}

/// How far ahead of what is read memory is asked: the frames that are decoded together, and as much again.
const DISTANCE: usize = 24 << 10;

/// Lines that are asked for at once. Frames are long and short; a loop over their lines would be guessed wrong each time.
const LINES: usize = 16;

impl Ahead {
    /// A piece is read now.
    #[inline]
    pub(crate) fn read(&mut self, piece: &[u8]) {
        let at = piece.as_ptr();
        let behind = at.addr() + piece.len() + DISTANCE;
        if behind.wrapping_sub(self.asked) > DISTANCE {
            // It begins, or goes on elsewhere.
            self.asked = behind - LINES * LINE;
        }
        // Once a piece is enough, as few are longer than this, and gentler than all lines of a long one at once.
        if behind - self.asked >= LINES * LINE {
            let from = at.wrapping_add(self.asked.wrapping_sub(at.addr()));
            for line in 0..LINES {
                prefetch_line(from.wrapping_add(line * LINE));
            }
            self.asked += LINES * LINE;
        }
    }
}
