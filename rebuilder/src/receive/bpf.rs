//! Instructions of classic BPF (bpf(4) of the BSDs; Documentation/networking/filter.rst of Linux), by which the kernel
//! is told what to receive and who receives it. A load beyond the end of the packet ends a program with 0.

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_LD, BPF_W, SKF_AD_OFF, c_int, sock_filter};

/// Not among `libc`'s: an unconditional jump is zero.
pub(super) const BPF_JA: u32 = 0x00;

/// An instruction that does not jump.
pub(super) fn op(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// An instruction; `yes` and `no` are how many to skip.
pub(super) fn jump(code: u32, k: u32, yes: usize, no: usize) -> sock_filter {
    sock_filter {
        // All codes are below 256, and all blocks below 64 instructions.
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt: u8::try_from(yes).unwrap_or(u8::MAX),
        jf: u8::try_from(no).unwrap_or(u8::MAX),
        k,
    }
}

pub(super) fn load_word(at: u32) -> sock_filter {
    op(BPF_LD | BPF_W | BPF_ABS, at)
}

pub(super) fn load_half(at: u32) -> sock_filter {
    op(BPF_LD | BPF_H | BPF_ABS, at)
}

pub(super) fn load_byte(at: u32) -> sock_filter {
    op(BPF_LD | BPF_B | BPF_ABS, at)
}

/// Loads what the kernel knows of a packet and no byte of it says (`SKF_AD_…`).
pub(super) fn load_ancillary(what: c_int) -> sock_filter {
    // The kernel's convention: a negative offset, in an unsigned field.
    load_word((SKF_AD_OFF + what).cast_unsigned())
}
