//! What a service holds: watchers, and what is made of them.
//!
//! Each file holds a type, and the method of [`Watcher`] that makes it.

mod builder;
mod callback;
mod entries;
mod part;
mod reader;
mod status;
mod updates;
mod watcher;

pub use builder::WatchBuilder;
pub use callback::CallbackGuard;
pub use entries::{EntriesBuilder, EntriesWatcher};
pub use part::{LoadedPart, PartWatcher};
pub use reader::ValueReader;
pub use status::StatusWatcher;
pub use updates::{ValueUpdate, ValueUpdates};
pub use watcher::{ValueChange, Watcher};
