//! See `sluice_tests::fuzz::journal`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::journal::run(input));
