//! Any text as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| thv::auth::properties::json(text));
