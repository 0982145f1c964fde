//! See [`rebuilder_fuzz::text`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rebuilder_fuzz::text(data));
