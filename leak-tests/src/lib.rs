//! Proof that what is dropped is gone.
//!
//! A [`Witness`] counts what may leak and does not rely on the code under test: the runtime's own
//! count of [tasks](Tasks), the kernel's of [descriptors](Descriptors) and [threads](Threads), the
//! allocator's of [bytes](Allocated), and the other side's, [scraped](Scraped) from its metrics. Take
//! a [`Baseline`] once everything is warm, do something, drop it, and wait for the counts to
//! [return](Baseline::returned):
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use leak_tests::Witnesses;
//!
//! let before = Witnesses::of_the_process().baseline().await?;
//! let task = tokio::spawn(std::future::pending::<()>());
//! task.abort();
//! before.returned().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What to do between the two
//!
//! * [`rounds()`]: something many times over. It finds what does not return, and what grows.
//! * [`at_every_poll`] with [`poll_times`]: a future, dropped at each of its awaits.
//! * [`at_every_operation`] with a [`Stall`]: a driftless client whose network stops at each of its
//!   operations.
//!
//! # Where it runs
//!
//! On Linux. The counts are those of the whole process, so a test should have a process of its own: one
//! test in a file, or all of them one after the other. This library depends on neither the driftless
//! server nor etcd, so that a service can use it in its own CI.

mod baseline;
mod curve;
mod descriptors;
mod heap;
#[doc(hidden)]
pub mod memory;
mod outcome;
mod polls;
mod report;
mod rounds;
mod scrape;
mod stall;
mod tasks;
mod threads;
mod witness;

pub use baseline::{Baseline, Difference, Leaked, RETURN_WITHIN};
pub use curve::{Curve, Point};
pub use descriptors::Descriptors;
pub use heap::HEAP_PROFILE;
pub use memory::{Allocated, GROWTH_SLACK};
pub use outcome::{Leak, Outcome};
pub use polls::{at_every_poll, poll_times};
pub use report::{Plot, Record, write_report};
pub use rounds::{Rounds, rounds};
pub use scrape::Scraped;
pub use stall::{Stall, at_every_operation};
pub use tasks::Tasks;
pub use threads::Threads;
pub use witness::{Reading, Rule, Unreadable, Witness, Witnesses, bounded_gauge, gauge};

/// The examples in the README compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
