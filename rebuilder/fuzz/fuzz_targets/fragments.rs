//! See [`rebuilder_fuzz::fragments`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rebuilder_fuzz::fragments(data));
