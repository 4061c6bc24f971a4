//! Bytes on the socket, with descriptors.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| harness::socket(data));
