//! Entries to a typed value: one key, or every key below a prefix, into any type that serde can
//! deserialise.
//!
//! Whoever holds a range's entries calls [`decode`]. It is pure: no I/O, no clock, no state between
//! calls. It must never show a value: what a decoder has to say about a value quotes it, so the text
//! of decoders is dropped where it is made, and a [`Rejection`] consists of keys, field names known
//! to the type, positions and words from this module.
//!
//! The rules are those of [`crate::decoding`], which users read.

/// Hands `$with` every kind of target that is read from text, with what to call it.
macro_rules! scalars {
    ($with:ident) => {
        $with! {
            deserialize_bool "a boolean (true or false)",
            deserialize_i8 "an integer (i8)",
            deserialize_i16 "an integer (i16)",
            deserialize_i32 "an integer (i32)",
            deserialize_i64 "an integer (i64)",
            deserialize_i128 "an integer (i128)",
            deserialize_u8 "an integer (u8)",
            deserialize_u16 "an integer (u16)",
            deserialize_u32 "an integer (u32)",
            deserialize_u64 "an integer (u64)",
            deserialize_u128 "an integer (u128)",
            deserialize_f32 "a number (f32)",
            deserialize_f64 "a number (f64)",
            deserialize_char "a character",
            deserialize_str "a string",
            deserialize_string "a string",
            deserialize_identifier "a name",
        }
    };
}

mod failure;
mod format;
mod json;
mod leaf;
mod number;
mod rejection;
mod text;
#[cfg(feature = "toml")]
mod toml;
mod track;
mod tree;
#[cfg(feature = "yaml")]
mod yaml;

#[cfg(test)]
mod tests;

use driftless_proto::{Entry, KeyRange};
use serde::de::DeserializeOwned;

pub use format::Format;
pub use rejection::{Rejection, RejectionKind};

/// The value that `entries`, all that `range` holds, make. `Ok(None)` when the range is one key, it
/// does not exist, and the type cannot be made from nothing. Documents are in `format` where no
/// suffix says another.
///
/// # Errors
/// When the entries are no `T`.
///
/// # Panics
/// Never by itself; a `T` whose own code panics does.
pub(crate) fn decode<T: DeserializeOwned>(
    range: &KeyRange,
    entries: &mut dyn Iterator<Item = &Entry>,
    format: Option<Format>,
) -> Result<Option<T>, Rejection> {
    match range {
        KeyRange::Key(key) => {
            for entry in entries {
                if entry.key == *key {
                    return leaf::decode(entry, format).map(Some);
                }
            }
            Ok(leaf::decode_missing())
        }
        KeyRange::Prefix(prefix) => tree::decode(prefix, entries, format).map(Some),
    }
}
