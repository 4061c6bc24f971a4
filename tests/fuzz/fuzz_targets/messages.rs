//! Sequences of messages.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::messages(data));
