//! The keyspace of one served prefix: what it is now, and what changed lately.
//!
//! One exclusive [`Writer`] (owned by the prefix's ingest task) and any number of cheap readers: a
//! [`Snapshot`] is immutable and cloned in nanoseconds, a [`Log`] likewise. Nothing here knows about
//! streams or etcd, waits or locks.

mod earlier;
mod log;
mod past;
mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use earlier::{Earlier, Misfit, Settling};
pub use log::{Base, Batch, Change, Log, Past, Patch};
pub use past::{BackfillEvent, PastChange, PastTransaction, Span};
pub use snapshot::{Changed, Position, Snapshot, Stored};
pub use state::{History, State};
pub use writer::{Replaced, Writer};
