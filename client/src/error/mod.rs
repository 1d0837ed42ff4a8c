//! What can go wrong, and whether a retry helps.
//!
//! No error carries a value or a decoder's text: decoders quote the input that they could not read.
//!
//! `Debug` output is for people too, because `unwrap` and a `main` that returns an error print it. It is
//! the variant's name followed by the `Display` text.

#[macro_use]
mod debug;

mod build;
mod closed;
mod get;
mod refused;
mod rejection;
mod stale;
mod watch;

pub use build::BuildError;
pub use closed::Closed;
pub use get::GetError;
pub(crate) use refused::too_large;
pub use refused::{Refused, RefusedReason};
pub(crate) use rejection::Facts;
pub use rejection::{Rejection, RejectionKind};
pub use stale::Stale;
pub(crate) use watch::{NO_FOLDER, is_folder};
pub use watch::{NoValue, WatchError};
