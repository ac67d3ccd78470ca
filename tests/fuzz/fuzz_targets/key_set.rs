//! Any text as a key set.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| thv::auth::properties::key_set(text));
