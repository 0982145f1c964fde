//! Asks memory for what will be needed some hundred nanoseconds later. That is how long a line takes that no cache holds, and
//! of thousands of connections few are in one: whoever waits for each line in turn waits longer than he works.

/// Bytes that memory gives at once.
const LINE: usize = 64;

/// Has the first `lines` lines of something, each 64 bytes, brought near while something else is done. A hint, without effect
/// on what is computed; where the machine has no such instruction it does nothing.
#[inline]
#[allow(unsafe_code)]
pub(crate) fn prefetch<T: ?Sized>(what: &T, lines: usize) {
    for line in 0..lines.min(size_of_val(what).div_ceil(LINE)) {
        let at = std::ptr::from_ref(what)
            .cast::<i8>()
            .wrapping_add(line * LINE);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every such processor has it; it reads nothing that could be seen and faults at no address.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at);
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
}
