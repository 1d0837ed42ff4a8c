//! Ranges and keys: see `ranges` in `tests/fuzz/properties.rs`.

#![no_main]
#![allow(dead_code)] // Each target uses a part.

#[path = "../../tests/frames/mod.rs"]
mod frames;
#[path = "../../tests/fuzz/properties.rs"]
mod properties;

libfuzzer_sys::fuzz_target!(|input: &[u8]| properties::ranges(input));
