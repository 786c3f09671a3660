//! See `sluice_tests::fuzz::expression`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::expression::run(input));
