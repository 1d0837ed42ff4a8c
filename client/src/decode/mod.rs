//! Entries to a typed value: one key, or every key below a prefix, into any type that serde can
//! deserialise.
//!
//! Whoever holds a range's entries calls [`decode`]. It is pure: no I/O, no clock, no state between
//! calls. It must never show a value: what a decoder has to say about a value quotes it, so the text
//! of decoders is dropped where it is made, and a [`Rejection`] consists of keys, field names known
//! to the type, positions and words from this module.
//!
//! # One key
//!
//! The target says how the value is read, and the key's suffix may say more:
//!
//! * a string takes the value as text, exactly; bytes take it as it is; a `char` takes one;
//! * a boolean (`true`, `false`), an integer and a finite float are parsed from the text, with white
//!   space around it ignored;
//! * a variant without data is named by the text, likewise trimmed (a text that starts with `"` or
//!   `{` is JSON);
//! * a struct, map, list, tuple and `()` are read from JSON; so is a variant with data;
//! * an `Option` is `Some` of the above when the key exists, and a newtype is what it holds;
//! * a target that takes anything (`serde_json::Value`, internally tagged and untagged enums) gets
//!   the value as JSON.
//!
//! When the key does not exist, an `Option` is `None` and for every other type there is no value.
//!
//! # Every key below a prefix
//!
//! The prefix is cut off; what is left is split at `/` into segments. A struct's fields are
//! segments, nested as deep as the type is, and a value at the end of a path is read as for one key
//! but for targets that take anything: these get text (and JSON when the key ends in `.json`),
//! because what looks like a number or not must not depend on the value. So use plain structs, or
//! `.json` keys, where numbers sit behind `#[serde(flatten)]` or in untagged enums. A variant with
//! data may be keys as well: `mode/custom/rps` is field `rps` of variant `custom` of field `mode`.
//!
//! A key's suffix `.json`, `.toml` or `.yaml` says what its value is written in and does not belong
//! to the field's name: `limits.json` is field `limits`. It matters only where a document is asked
//! for; a string takes the text in any case. This build reads JSON only.
//!
//! **Maps.** A map whose values are read from text (strings, numbers, booleans, variants, `Option`s
//! and newtypes of these) has as its keys the whole paths below it exactly as they are, slashes and
//! suffixes included. Any other map has one segment a key, as a struct does, with what lies below it
//! in the value.
//!
//! **Two keys for one thing.** A key that has a value and others below it (`a` and `a/b`), or two
//! that differ by suffix only, are refused where the type reads them other than as a map of whole
//! paths; where it ignores them, so does this.
//!
//! **Missing and unknown.** Both are serde's to decide: a missing field takes its
//! `#[serde(default)]`, is `None`, or is refused with the key that would set it; an unknown key is
//! ignored unless the type says `deny_unknown_fields`. No key at all is an empty map, a struct of
//! defaults, or `None`.
//!
//! **Edges.** An empty segment is a name like any other, the empty one: `/config//x`, a key that
//! ends in `/`, and the prefix itself as a key have one, and a struct ignores it as unknown. A
//! prefix that does not end in `/` is cut off all the same, so the first segment is the rest of a
//! name: give structs a prefix with a slash at its end. Keys below the prefix must be UTF-8.

/// Hands `$with` every kind of target that is read from text, with what to call it.
macro_rules! scalars {
    ($with:ident) => {
        $with! {
            deserialize_bool "a boolean",
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
mod leaf;
mod rejection;
mod text;
mod track;
mod tree;

#[cfg(test)]
mod tests;

use driftless_proto::{Entry, KeyRange};
use serde::de::DeserializeOwned;

pub use rejection::{Rejection, RejectionKind};

/// The value that `entries`, all that `range` holds, make. `Ok(None)` when the range is one key, it
/// does not exist, and the type cannot be made from nothing.
///
/// # Errors
/// When the entries are no `T`.
///
/// # Panics
/// Never by itself; a `T` whose own code panics does.
pub(crate) fn decode<T: DeserializeOwned>(
    range: &KeyRange,
    entries: &mut dyn Iterator<Item = &Entry>,
) -> Result<Option<T>, Rejection> {
    match range {
        KeyRange::Key(key) => {
            for entry in entries {
                if entry.key == *key {
                    return leaf::decode(entry).map(Some);
                }
            }
            Ok(leaf::decode_missing())
        }
        KeyRange::Prefix(prefix) => tree::decode(prefix, entries).map(Some),
    }
}
