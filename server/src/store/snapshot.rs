//! The immutable keyspace of one prefix at one revision.
//!
//! Two persistent maps share their entries: one by key, for snapshots, and one by mod revision (with
//! tombstones of deleted keys), so that the changes since a revision cost what changed and not what
//! exists. Persistent means that the writer's next state shares all but the changed paths with this
//! one: a clone costs a few reference counts.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use imbl::OrdMap;

use super::sums::Sums;

/// Estimated bytes of an entry besides its key and value: its record, and its part of the maps.
const ENTRY_OVERHEAD: u64 = 384;

/// Estimated bytes of the maps that a change makes anew while an earlier state keeps the old ones.
const PATH_OVERHEAD: u64 = 3072;

/// An entry and its hash, computed once when it arrives.
#[derive(Debug)]
pub struct Stored {
    /// The entry.
    pub entry: Entry,
    /// Its part of the digest of every range that holds it.
    pub hash: Digest,
}

impl Stored {
    /// Hashes the entry.
    pub fn new(entry: Entry) -> Self {
        let hash = Digest::of(&entry);
        Self { entry, hash }
    }

    fn bytes(&self) -> u64 {
        let Entry { key, value, .. } = &self.entry;
        (key.as_ref().len() + value.len()) as u64 + ENTRY_OVERHEAD
    }
}

/// A place in the order of changes: by the revision of a key's last change, then by key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(Revision, Bytes);

impl Position {
    /// The place after everything that last changed at `revision` or before.
    pub const fn after(revision: Revision) -> Self {
        Self(revision.next(), Bytes::new())
    }
}

/// The state of a key that changed.
#[derive(Clone, Debug)]
pub enum Changed {
    /// It exists, with this entry.
    Live(Arc<Stored>),
    /// It was deleted.
    Gone,
}

/// The keyspace of one prefix at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) by_key: OrdMap<Key, Arc<Stored>>,
    pub(super) by_mod: OrdMap<Position, Changed>,
    pub(super) sums: Sums,
    pub(super) floor: Revision,
    bytes: u64,
    pub(super) overwritten: u64,
}

impl Snapshot {
    /// An empty snapshot at `revision`. Deletes before it are unknown.
    pub(super) fn empty(epoch: Epoch, revision: Revision) -> Self {
        Self {
            epoch,
            revision,
            by_key: OrdMap::new(),
            by_mod: OrdMap::new(),
            sums: Sums::new(),
            floor: revision,
            bytes: 0,
            overwritten: 0,
        }
    }

    /// The history that the revision belongs to.
    pub const fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    /// The revision.
    pub const fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision from which on [`Snapshot::changed`] knows every delete.
    pub const fn floor(&self) -> Revision {
        self.floor
    }

    /// Estimated bytes of all that it has.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Estimated bytes of all that was overwritten or deleted before it, from the first state on. Of two
    /// states, the earlier one keeps what this grew by in between, and no more than all it has.
    pub const fn overwritten(&self) -> u64 {
        self.overwritten
    }

    /// The entry of a key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.by_key.get(key)
    }

    /// The entries of `range` after the key `after`, in ascending order of keys.
    pub fn entries<'a>(
        &'a self,
        range: &'a KeyRange,
        after: Option<&Key>,
    ) -> impl Iterator<Item = &'a Arc<Stored>> {
        let from = after.map_or_else(
            || Bound::Included(range.start().clone()),
            |after| Bound::Excluded(after.clone()),
        );
        self.by_key
            .range((from, Bound::Unbounded))
            .map(|(_, stored)| stored)
            .take_while(|stored| range.contains(stored.entry.key.as_ref()))
    }

    /// The digest of `range`. Costs a few look-ups, however many keys it has.
    pub fn digest(&self, range: &KeyRange) -> Digest {
        self.sums.digest(range, &self.by_key)
    }

    /// Keys of any range that last changed after `position`, in the order of changes, each with its
    /// position.
    pub fn changed(
        &self,
        position: &Position,
    ) -> impl Iterator<Item = (&Position, Revision, &Bytes, &Changed)> {
        let from = (Bound::Excluded(position.clone()), Bound::Unbounded);
        self.by_mod
            .range(from)
            .map(|(at, changed)| (at, at.0, &at.1, changed))
    }

    /// The highest mod revision of the keys that exist.
    pub fn last_put(&self) -> Revision {
        let latest = self.by_mod.iter().rev();
        let mut puts = latest.filter(|(_, changed)| matches!(changed, Changed::Live(_)));
        puts.next().map_or(Revision::NONE, |(at, _)| at.0)
    }

    pub(super) fn insert(&mut self, stored: Arc<Stored>) -> Option<Arc<Stored>> {
        let key = stored.entry.key.clone();
        let at = Position(stored.entry.mod_revision, key.as_bytes().clone());
        self.bytes += stored.bytes();
        self.overwritten += PATH_OVERHEAD;
        let old = self.by_key.insert(key, Arc::clone(&stored));
        self.sums.inserted(&stored, old.as_deref(), &self.by_key);
        if let Some(old) = &old {
            self.overwrite(old);
            self.forget(old.entry.mod_revision, &old.entry.key);
        }
        // After that, in case both have the same revision.
        self.by_mod.insert(at, Changed::Live(stored));
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let old = self.by_key.remove(key)?;
        self.sums.removed(&old);
        self.overwritten += PATH_OVERHEAD;
        self.overwrite(&old);
        self.forget(old.entry.mod_revision, key);
        Some(old)
    }

    fn overwrite(&mut self, old: &Stored) {
        self.bytes -= old.bytes();
        self.overwritten += old.bytes();
    }

    pub(super) fn record_tombstone(&mut self, revision: Revision, key: &Key) {
        self.by_mod
            .insert(Position(revision, key.as_bytes().clone()), Changed::Gone);
    }

    pub(super) fn forget(&mut self, revision: Revision, key: &Key) {
        self.by_mod
            .remove(&Position(revision, key.as_bytes().clone()));
    }
}
