//! See `sluice_tests::fuzz::guest_edits`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::guest_edits::run(input));
