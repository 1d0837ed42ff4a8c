//! The keyspace of one served prefix: what it is now, and what changed from one state to the next.
//!
//! - [`Snapshot`]: the immutable state at one revision. Cloning it costs nanoseconds.
//! - [`Writer`]: the one writer. The prefix's ingest task owns it.
//! - [`Batch`]: what changed between two states, as plain data.
//! - [`Proof`]: how old a state is at most.
//!
//! This room must not know about streams, encodings or etcd. Nothing in it waits or locks.

mod batch;
mod past;
mod snapshot;
mod state;
mod sums;
#[cfg(test)]
mod tests;
mod tombstones;
mod writer;

pub use batch::{Batch, Change, OldValue};
pub use past::{BackfillEvent, PastChange, PastTransaction, Span};
pub use snapshot::{Changed, Position, Snapshot, Stored};
pub use state::{History, Proof, State};
pub use writer::{Replaced, Writer};
