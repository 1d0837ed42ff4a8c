//! What is held of a range, and how old it is. Knows nothing of servers, and nothing of decoding.

mod cell;
mod entries;
mod freshness;
mod status;

pub(crate) use cell::{Cached, Cell, Published, Version, Versioned};
pub use cell::{Loaded, ValueSource};
pub use entries::{Entries, EntriesChange, EntryChange};
pub(crate) use freshness::{Freshness, Proof, Proven};
pub use status::{RejectedState, Status, WatchState};
