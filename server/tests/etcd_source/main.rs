//! The etcd source against a real etcd: its updates lead to what etcd holds, across restarts,
//! compaction, silence and restores, and it leaves no watch behind at etcd.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod age;
mod audit;
mod backfill;
mod cleanup;
mod history;
mod list_and_watch;
mod reconnect;
mod subject;
