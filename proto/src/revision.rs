//! Revisions, and the history that they belong to.

use std::fmt;

use bytes::Bytes;

/// A revision of etcd: one per transaction, increasing, never reused within one [`Epoch`].
///
/// Never negative. [`Revision::NONE`] (0) is lower than every revision of etcd.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// No revision: lower than every revision of etcd.
    pub const NONE: Self = Self(0);

    /// A revision from the wire, where it is a signed integer. A negative number means none.
    pub const fn new(revision: i64) -> Self {
        Self(if revision < 0 { 0 } else { revision })
    }

    /// The number on the wire, which is etcd's.
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The etcd history that revisions belong to. Opaque to clients.
///
/// Never compare revisions of two epochs. Equal epochs do not prove one history: an etcd that was
/// restored from a backup can keep its identity.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Bytes);

impl Epoch {
    /// An epoch from the wire.
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The epoch of the etcd cluster with this id, in the operator's `generation`: a text that is the
    /// same on all servers. An operator changes it after etcd was restored from a backup.
    pub fn of_cluster(cluster_id: u64, generation: &str) -> Self {
        let mut bytes = Vec::with_capacity(8 + generation.len());
        bytes.extend_from_slice(&cluster_id.to_be_bytes());
        bytes.extend_from_slice(generation.as_bytes());
        Self(bytes.into())
    }

    /// The bytes on the wire.
    pub const fn as_bytes(&self) -> &Bytes {
        &self.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Epoch({self})")
    }
}
