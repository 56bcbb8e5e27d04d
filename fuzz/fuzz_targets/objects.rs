//! Objects, on their way to the maps.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| svc_fuzz::objects(bytes));
