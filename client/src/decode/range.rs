//! The entries of a range to one value.

use driftless_proto::{Entry, KeyRange};
use serde::de::DeserializeOwned;

use super::format::Format;
use super::{leaf, tree};
use crate::error::Rejection;

/// Decodes `entries`, which are all that `range` holds. `Ok(None)` if the range is one key, it does not exist,
/// and the type has no value for that. Documents without a suffix have the format `format`.
///
/// # Errors
/// When the entries do not decode as `T`.
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
