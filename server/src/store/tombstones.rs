//! Tombstones: which keys were deleted lately, and at which revision.

use std::collections::{BTreeMap, VecDeque};

use driftless_proto::{Key, Revision};

/// How many tombstones are kept, so that a client that was away can be told of deletes in a diff. At
/// about 320 bytes each, with keys of 30 bytes, they take at most some 20 MiB a prefix. A client that
/// was away for longer gets a snapshot.
pub(super) const TOMBSTONES: usize = 65_536;

/// The latest deletes of a prefix.
#[derive(Debug)]
pub(super) struct Tombstones {
    /// The revision of each delete. A tree, since a hash table marks the slots of removed entries, and
    /// doubles once enough of them are.
    revisions: BTreeMap<Key, Revision>,
    /// In the order of their revisions. Those of keys that came back are still in it, and count: they
    /// take memory.
    by_age: VecDeque<(Revision, Key)>,
    /// How many there are at most.
    limit: usize,
}

impl Tombstones {
    /// None yet.
    pub(super) const fn new(limit: usize) -> Self {
        Self {
            revisions: BTreeMap::new(),
            by_age: VecDeque::new(),
            limit,
        }
    }

    /// As [`Tombstones::new`], with the same limit.
    pub(super) const fn cleared(&self) -> Self {
        Self::new(self.limit)
    }

    /// When the key was deleted.
    pub(super) fn get(&self, key: &Key) -> Option<Revision> {
        self.revisions.get(key).copied()
    }

    /// The key came back. Returns when it was deleted.
    pub(super) fn remove(&mut self, key: &Key) -> Option<Revision> {
        self.revisions.remove(key)
    }

    /// Records a delete that is newer than all others.
    pub(super) fn record(&mut self, revision: Revision, key: Key) {
        self.revisions.insert(key.clone(), revision);
        self.by_age.push_back((revision, key));
    }

    /// Records a delete that is older than all others. False if there is no room.
    pub(super) fn record_past(&mut self, revision: Revision, key: Key) -> bool {
        let has_room = self.by_age.len() < self.limit;
        if has_room {
            self.revisions.insert(key.clone(), revision);
            self.by_age.push_front((revision, key));
        }
        has_room
    }

    /// Removes and returns the oldest tombstone beyond the limit.
    pub(super) fn take_excess(&mut self) -> Option<(Revision, Key)> {
        while self.by_age.len() > self.limit {
            let (revision, key) = self.by_age.pop_front()?;
            if self.get(&key) == Some(revision) {
                self.revisions.remove(&key);
                return Some((revision, key));
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        assert!(self.revisions.len() <= self.by_age.len());
        self.by_age.len()
    }
}
