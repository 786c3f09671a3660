//! See `sluice_tests::fuzz::jwt`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::jwt::run(input));
