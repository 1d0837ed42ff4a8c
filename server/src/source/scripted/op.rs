//! One operation of a transaction.

use bytes::Bytes;
use driftless_proto::Key;

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a value.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Bytes,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// The key.
        key: Key,
    },
}

impl Op {
    /// Puts a value.
    ///
    /// # Panics
    /// When the key is empty.
    pub fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        Self::Put {
            key: to_key(key),
            value: Bytes::copy_from_slice(value.as_ref()),
        }
    }

    /// Deletes a key.
    ///
    /// # Panics
    /// When the key is empty.
    pub fn delete(key: impl AsRef<[u8]>) -> Self {
        Self::Delete { key: to_key(key) }
    }

    pub(super) const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

fn to_key(key: impl AsRef<[u8]>) -> Key {
    #[expect(clippy::expect_used, reason = "a test's mistake")]
    Key::new(Bytes::copy_from_slice(key.as_ref())).expect("a key has at least one byte")
}
