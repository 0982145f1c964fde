//! See [`rebuilder_fuzz::search`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rebuilder_fuzz::search(data));
