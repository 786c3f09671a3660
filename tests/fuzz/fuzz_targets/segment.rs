//! See `sluice_tests::fuzz::segment`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::segment::run(input));
