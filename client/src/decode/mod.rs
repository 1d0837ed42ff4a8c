//! Entries to a typed value: one key, or every key below a prefix, into any type that serde can
//! deserialise.
//!
//! Decoding is pure: no I/O, no clock, no state between calls. It must never reveal a value. A decoder's
//! error text quotes the value, so it is dropped where it is made, and a
//! [`Rejection`](crate::error::Rejection) holds only keys, field names that the type declares, positions and
//! texts from this module. A [`TypedDecoder`] keeps a watcher's cell at the last good value.
//!
//! The rules are those of [`crate::decoding`], which users read.

#[macro_use]
mod scalars;

mod decoder;
mod failure;
mod format;
mod json;
mod leaf;
mod number;
mod range;
mod text;
#[cfg(feature = "toml")]
mod toml;
mod track;
mod tree;
#[cfg(feature = "yaml")]
mod yaml;

#[cfg(test)]
mod tests;

pub(crate) use decoder::{Decoder, Outcome, TypedDecoder, Validate, VersionedState};
pub use format::Format;
