//! Proof that what is dropped is gone.
//!
//! [`Counts`] says what the process and its runtime hold at a moment, by witnesses that do not rely
//! on the code under test: the runtime's own count of tasks, and the kernel's of descriptors and
//! threads. Take them once everything is warm, do something, drop it, and wait for them to
//! [return](Counts::returned_to):
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use leak_tests::Counts;
//!
//! let before = Counts::now();
//! let task = tokio::spawn(std::future::pending::<()>());
//! assert_eq!(Counts::now().tasks, before.tasks + 1);
//! task.abort();
//! Counts::returned_to(before).await.unwrap();
//! # }
//! ```
//!
//! This library depends on neither the driftless server nor etcd, so that a service can use it in
//! its own CI. It works on Linux.

mod counts;

pub use counts::{Counts, Leaked, RETURN_WITHIN};
