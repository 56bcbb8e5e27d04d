//! Sequences of packets and changes of the tables.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| svc_fuzz::sequences(bytes));
