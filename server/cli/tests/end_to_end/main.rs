//! The whole path with real processes: etcd, the server's binary, and the client library in the test's
//! process.
//!
//! Tests that need a paused clock, or faults that a real etcd does not produce on demand, are in
//! `scripted.rs`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod counters;
mod direct;
mod world;

mod absence;
mod age;
mod audits;
mod backfill;
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
