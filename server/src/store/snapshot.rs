//! The immutable keyspace of one prefix at one revision.
//!
//! Two persistent maps that share their entries: by key, for snapshots, and by mod revision (with
//! tombstones for what was deleted), so that "what changed since R" costs what changed and not what
//! exists. Persistent means that the writer's next state shares all but the changed paths with this
//! one: cloning is a few reference counts.

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use imbl::OrdMap;

/// An entry and its hash, computed once when it arrives.
#[derive(Debug)]
pub struct Stored {
    /// The entry.
    pub entry: Entry,
    /// Its share in the digest of every range that it is in.
    pub hash: Digest,
}

impl Stored {
    /// Hashes the entry.
    pub fn new(entry: Entry) -> Self {
        let hash = Digest::of(&entry);
        Self { entry, hash }
    }
}

/// A place in the order of changes: what was changed last at this revision, up to this key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position(Revision, Bytes);

impl Position {
    /// After everything that was changed last at `revision` or before.
    pub const fn after(revision: Revision) -> Self {
        Self(revision.next(), Bytes::new())
    }
}

/// What became of a key that changed.
#[derive(Clone, Debug)]
pub enum Changed {
    /// It has this entry.
    Live(Arc<Stored>),
    /// It is gone.
    Gone,
}

/// The keyspace of one prefix at one revision.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) by_key: OrdMap<Key, Arc<Stored>>,
    pub(super) by_mod: OrdMap<Position, Changed>,
    pub(super) floor: Revision,
}

impl Snapshot {
    /// Empty, at `revision`; deletes before it are unknown.
    pub(super) fn empty(epoch: Epoch, revision: Revision) -> Self {
        Self {
            epoch,
            revision,
            by_key: OrdMap::new(),
            by_mod: OrdMap::new(),
            floor: revision,
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

    /// From which revision on [`Snapshot::changed`] knows of every delete.
    pub const fn floor(&self) -> Revision {
        self.floor
    }

    /// The entry of a key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.by_key.get(key)
    }

    /// The entries of `range` in ascending order of keys, those after `after` only.
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

    /// What was changed last after `position`, in the order of revisions, whatever its range; with
    /// the position of each.
    pub fn changed(
        &self,
        position: &Position,
    ) -> impl Iterator<Item = (&Position, Revision, &Bytes, &Changed)> {
        let from = (Bound::Excluded(position.clone()), Bound::Unbounded);
        self.by_mod
            .range(from)
            .map(|(at, changed)| (at, at.0, &at.1, changed))
    }

    /// When the key that was put last, of those that are there, was put.
    pub fn last_put(&self) -> Revision {
        let latest = self.by_mod.iter().rev();
        let mut puts = latest.filter(|(_, changed)| matches!(changed, Changed::Live(_)));
        puts.next().map_or(Revision::NONE, |(at, _)| at.0)
    }

    pub(super) fn insert(&mut self, stored: Arc<Stored>) -> Option<Arc<Stored>> {
        let key = stored.entry.key.clone();
        let at = Position(stored.entry.mod_revision, key.as_bytes().clone());
        let old = self.by_key.insert(key, Arc::clone(&stored));
        if let Some(old) = &old {
            self.forget(old.entry.mod_revision, &old.entry.key);
        }
        // After that, in case the two are of one revision.
        self.by_mod.insert(at, Changed::Live(stored));
        old
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Stored>> {
        let old = self.by_key.remove(key)?;
        self.forget(old.entry.mod_revision, key);
        Some(old)
    }

    pub(super) fn bury(&mut self, revision: Revision, key: &Key) {
        self.by_mod
            .insert(Position(revision, key.as_bytes().clone()), Changed::Gone);
    }

    pub(super) fn forget(&mut self, revision: Revision, key: &Key) {
        self.by_mod
            .remove(&Position(revision, key.as_bytes().clone()));
    }
}
