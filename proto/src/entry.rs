//! A key with its value and its revisions: one element of a range.

use std::fmt;

use bytes::Bytes;

use crate::{Key, Revision, v1};

/// A key with its value and its revisions. Cheap to clone.
///
/// `Debug` shows the value's length, never its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value; may be empty.
    pub value: Bytes,
    /// Revision at which the key was created. A key that was deleted and put again has a new one.
    pub create_revision: Revision,
    /// Revision of the last change.
    pub mod_revision: Revision,
    /// Number of changes since the key was created, the creation included.
    pub version: i64,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value", &format_args!("{} bytes", self.value.len()))
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .field("version", &self.version)
            .finish()
    }
}

impl From<&Entry> for v1::Entry {
    /// The whole entry in one piece.
    fn from(entry: &Entry) -> Self {
        Self {
            key: entry.key.as_bytes().clone(),
            value: entry.value.clone(),
            create_revision: entry.create_revision.get(),
            mod_revision: entry.mod_revision.get(),
            version: entry.version,
            offset: 0,
            total: 0,
        }
    }
}
