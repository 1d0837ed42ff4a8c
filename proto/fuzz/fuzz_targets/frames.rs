//! Decoding a stream's frames and applying them: see `frames` in `tests/fuzz/properties.rs`.

#![no_main]
#![allow(dead_code)] // Each target uses a part.

#[path = "../../tests/frames/mod.rs"]
mod frames;
#[path = "../../tests/fuzz/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::frames(input));
