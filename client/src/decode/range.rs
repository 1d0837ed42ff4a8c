//! The entries of a range to one value.

use driftless_proto::{Entry, KeyRange};
use serde::de::DeserializeOwned;

use super::format::Format;
use super::{leaf, tree};
use crate::error::Rejection;

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
