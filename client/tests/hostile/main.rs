//! The client against servers that are broken, or mean harm: what a service sees of each, how often the client
//! tries again, what it costs in bytes, and that it recovers as soon as a good server follows.
//!
//! All run in one process of their own, one at a time, because its allocator counts every byte.

// All of this is tests, helpers included: a panic is how they fail.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "uses a part of what the tests share")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what each play cost is its result"
)]

mod connections;
#[path = "../scripted/etcd_model.rs"]
mod etcd_model;
mod greetings;
mod grpc;
mod http2;
mod messages;
mod raw;
mod sizes;
mod stage;

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;
