//! See `sluice_tests::fuzz::publish`.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| sluice_tests::fuzz::publish::run(input));
