//! From one prefix's changes to the streams whose range they touch.
//!
//! - [`Publisher`]: the publishing end of a prefix. The prefix's ingest task owns it, and calls
//!   [`Publisher::tick`] when the publisher's own work is due.
//! - [`Fanout`]: the subscribing end. Cheap to clone.
//! - [`Subscriber`]: one stream's place in a scope, which is what all streams of a range share.
//! - [`ChangeLog`]: a window of the latest batches, each encoded once.
//!
//! There is no queue per stream: a stream has a cursor, and reads from the change log through the
//! scope of its range.
//!
//! One lock per prefix guards what is published, so that a snapshot and a scope's digest are always
//! of the same moment. It is held for as long as it takes to swap pointers and to tell the scopes
//! that a batch touches; never across an await, never while something is encoded or hashed. The
//! holder may take a scope's lock, and the holder of that may take a batch's; never the other way.
//!
//! This room must not know about sources, connections or gRPC.

mod change_log;
mod change_refs;
mod handle;
mod next;
mod pace;
mod pending;
mod progress;
mod proofs;
mod publisher;
mod responses;
mod run;
mod schedule;
mod scope;
mod scopes;
mod shared;
mod slots;
mod subscriber;
#[cfg(test)]
mod tests;

pub use change_log::ChangeLog;
pub use handle::{Fanout, RangeView, Unavailable};
pub use next::Next;
pub use pace::PACE;
pub use pending::{PatchEncoder, PendingDelta};
pub use publisher::Publisher;
pub use schedule::EVICT_EVERY;
pub use scopes::ScopeCursor;
pub use shared::{Ending, Limits, fanout};
pub use subscriber::Subscriber;
