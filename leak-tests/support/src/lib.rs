//! What the tests of several packages share: an [`Etcd`], the [`Driftless`] program, a [`Proxy`], bare
//! HTTP/2 [`frames`], [`certificates`], the page of [`wrong_inputs`], and waiting with a deadline.
//!
//! For dev-dependencies only. It depends on neither the server nor the client, so that both can
//! depend on it. Everything fails by panicking. It works on Linux.
//!
//! Each test has its own processes, on free ports of loopback, so that tests run in parallel. A
//! process ends when its handle is dropped, also while a panic unwinds. Should the test's own process
//! be killed, the kernel kills them: see [`guarded`].
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod certificates;
mod driftless;
mod etcd;
pub mod files;
pub mod frames;
pub mod http;
pub mod proc;
mod process;
mod proxy;
mod wait;
pub mod wrong_inputs;

pub use driftless::{Driftless, ServerProcess, add_serve, addresses};
pub use etcd::{Etcd, etcdctl};
pub use process::{Finished, Output, Process, find_on_path, guarded, guarded_on_path, run};
pub use proxy::Proxy;
pub use wait::{PATIENCE, eventually, free_port, in_time, wait_for, wait_until};
