//! Configuration space and registers of a model.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::configuration(data));
