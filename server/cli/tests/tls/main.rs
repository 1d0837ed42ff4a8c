//! TLS with real processes: accepted and rejected clients, and files that are replaced at run time.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod logged;
mod place;

mod handshakes;
mod rotation;
mod starts;
mod tools;

use driftless_test_support::Driftless;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));
