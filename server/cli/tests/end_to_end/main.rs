//! The whole path on real processes: etcd, the server's binary, and the client library in the
//! process of the test.
//!
//! What needs a paused clock or faults that a real etcd does not commit on demand is in
//! `scripted.rs`; here is what only the real thing shows.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod counters;
mod direct;
mod world;

mod absence;
mod audits;
mod fan_out;
mod history;
mod keys;
mod random;
mod restarts;
mod shutdown;
mod stall;
mod transactions;
mod values;

use driftless_test_support::Driftless;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));
