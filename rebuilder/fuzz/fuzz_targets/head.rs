//! See [`rebuilder_fuzz::head`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rebuilder_fuzz::head(data));
