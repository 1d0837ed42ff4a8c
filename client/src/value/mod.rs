//! The state of a range, its values, and how old they are. Knows nothing of servers or of decoding.

mod cell;
mod entries;
mod freshness;
mod status;

pub(crate) use cell::{Cached, Cell, Published, Version, Versioned};
pub use cell::{Loaded, ValueSource};
pub use entries::{Entries, EntriesChange, EntryChange};
pub(crate) use freshness::{Freshness, Proof, Proven};
pub use status::{RejectedState, Status, WatchState};
