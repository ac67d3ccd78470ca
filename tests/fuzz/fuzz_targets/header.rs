//! Any text as the header of a token.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| thv::auth::properties::header(text));
