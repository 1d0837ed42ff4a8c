//! The client against a server that a test scripts, over in-memory pipes. There is no socket (except in `tcp`), so
//! clocks can be paused and every fault is exact.

// All of this is tests, helpers included: a panic is how they fail.
#![allow(clippy::unwrap_used)]

mod chaos;
mod drops;
mod entries;
mod etcd_model;
mod logs;
mod reading;
mod reconnects;
mod reports;
mod server;
mod tcp;
mod tokens;
mod values;
