//! See [`rebuilder_fuzz::vxlan`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rebuilder_fuzz::vxlan(data));
