//! Revisions and the history that they belong to, as types that cannot be mixed up.

use std::fmt;

use bytes::Bytes;

/// A revision of etcd: one per transaction, growing, never reused within one [`Epoch`].
///
/// Never negative. [`Revision::NONE`] (0) stands before every revision.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(i64);

impl Revision {
    /// Before anything happened.
    pub const NONE: Self = Self(0);

    /// From the wire, where it is a signed integer; negative numbers mean none.
    pub const fn new(revision: i64) -> Self {
        Self(if revision < 0 { 0 } else { revision })
    }

    /// As it travels, and as etcd says it.
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

/// The history of etcd that revisions belong to. Opaque to clients.
///
/// Revisions of two epochs must never be compared. Equal epochs are necessary for a comparison and
/// not sufficient: an etcd that was restored from a backup can keep its identity.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Epoch(Bytes);

impl Epoch {
    /// From the wire.
    pub const fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// The history of the etcd cluster with this id, in the operator's `generation`: a text that is
    /// the same on all servers and is changed by hand when etcd was restored from a backup.
    pub fn of_cluster(cluster_id: u64, generation: &str) -> Self {
        let mut bytes = Vec::with_capacity(8 + generation.len());
        bytes.extend_from_slice(&cluster_id.to_be_bytes());
        bytes.extend_from_slice(generation.as_bytes());
        Self(bytes.into())
    }

    /// As it travels.
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
