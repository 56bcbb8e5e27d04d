//! Real packets, mutated.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| svc_fuzz::frames(bytes));
