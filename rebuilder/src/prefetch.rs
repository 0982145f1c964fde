//! Asks memory for what will be needed some hundred nanoseconds later. That is how long a line takes that no cache holds, and
//! of thousands of connections few are in one: whoever waits for each line in turn waits longer than he works.

/// Bytes that memory gives at once.
const LINE: usize = 64;

/// Asks for the first `lines` lines of something, each 64 bytes. A hint: it changes nothing, and where the machine has no such
/// instruction (here: is not an x86-64) it does nothing.
#[inline]
#[allow(unsafe_code)]
pub(crate) fn prefetch<T>(what: &T, lines: usize) {
    for line in 0..lines.min(size_of::<T>().div_ceil(LINE)) {
        let at = std::ptr::from_ref(what)
            .cast::<i8>()
            .wrapping_add(line * LINE);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch reads nothing that could be seen and faults nowhere, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}
