//! TLS on real processes: who is let in, what those are told who are not, and files that are replaced
//! while everything runs.
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
