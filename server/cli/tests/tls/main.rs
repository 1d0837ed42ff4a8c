//! TLS on real processes: who is let in, what those are told who are not, and files that are replaced
//! while everything runs.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../common/mod.rs"]
mod common;

mod certificates;
mod logged;
mod place;

mod handshakes;
mod rotation;
mod starts;
mod tools;
