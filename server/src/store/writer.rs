//! The one writer of a prefix's keyspace: takes transactions and whole states, yields batches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Key, Revision};

use super::batch::{Batch, Change, OldValue};
use super::snapshot::{Snapshot, Stored};
use super::state::{History, State};

/// How many deleted keys are remembered, so that a client that was away can be told of them in a
/// diff. At about 320 bytes each, a key of 30 included, that is some 20 MiB a prefix at most; a client
/// that was away for longer gets a snapshot.
const TOMBSTONES: usize = 65_536;

/// What taking over a whole state came to.
#[derive(Debug)]
pub enum Replaced {
    /// Nothing that was said before counts: the first state, or another history.
    Anew,
    /// The same history went on, and this changed.
    Continued(Batch),
    /// The same history went on, and nothing changed.
    Unchanged,
}

/// The exclusive writer.
#[derive(Debug)]
pub struct Writer {
    snapshot: Snapshot,
    /// When each of the deleted keys was. In a tree: a hash table marks the places of what is removed from
    /// it, and doubles once enough of them are.
    tombstones: BTreeMap<Key, Revision>,
    /// Tombstones in the order in which they came, some of them replaced since.
    graves: VecDeque<(Revision, Key)>,
    /// How many graves there may be.
    most_graves: usize,
}

impl Writer {
    /// Takes over the first state.
    pub fn new(state: State) -> Self {
        Self::bounded(state, TOMBSTONES)
    }

    pub(super) fn bounded(state: State, most_graves: usize) -> Self {
        let mut snapshot = Snapshot::empty(state.epoch, state.revision);
        for entry in state.entries {
            snapshot.insert(Arc::new(Stored::new(entry)));
        }
        Self {
            snapshot,
            tombstones: BTreeMap::new(),
            graves: VecDeque::new(),
            most_graves,
        }
    }

    #[cfg(test)]
    pub(super) fn graves(&self) -> usize {
        assert!(self.tombstones.len() <= self.graves.len());
        self.graves.len()
    }

    /// The state now.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Nothing changed up to `revision`.
    pub fn advance(&mut self, revision: Revision) {
        self.snapshot.revision = self.snapshot.revision.max(revision);
    }

    /// One transaction. `None` when it is not newer than the state.
    pub fn apply(&mut self, revision: Revision, edits: Vec<Edit>) -> Option<Batch> {
        (revision > self.snapshot.revision)
            .then(|| self.commit(revision, edits, false))
            .flatten()
    }

    /// A whole state, in place of this one: the difference of the two, deletes included.
    pub fn replace(&mut self, state: State) -> Replaced {
        let continues = state.history == History::Continues
            && state.epoch == self.snapshot.epoch
            && state.revision >= self.snapshot.revision;
        if !continues {
            *self = Self::bounded(state, self.most_graves);
            return Replaced::Anew;
        }
        let edits = self.difference(&state.entries, state.revision);
        if edits.is_empty() {
            self.advance(state.revision);
            return Replaced::Unchanged;
        }
        // One revision with two states, or a change that happened before now and was not there:
        // whatever the source believes, the history broke. And what changed since an earlier
        // revision is found by the revision of the change.
        let was_not_there = |edit: &Edit| match edit {
            Edit::Put(entry) => entry.mod_revision <= self.snapshot.revision,
            Edit::Delete { .. } => state.revision == self.snapshot.revision,
        };
        if edits.iter().any(was_not_there) {
            *self = Self::bounded(state, self.most_graves);
            return Replaced::Anew;
        }
        match self.commit(state.revision, edits, true) {
            Some(batch) => Replaced::Continued(batch),
            None => Replaced::Unchanged,
        }
    }

    /// What leads from the state to `entries`.
    fn difference(&self, entries: &[Entry], revision: Revision) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut old = self.snapshot.by_key.iter().peekable();
        let gone = |key: &Key| Edit::Delete {
            key: key.clone(),
            mod_revision: revision,
        };
        for entry in entries {
            while let Some((key, _)) = old.next_if(|(key, _)| **key < entry.key) {
                edits.push(gone(key));
            }
            let held = old.next_if(|(key, _)| **key == entry.key);
            if held.is_none_or(|(_, stored)| stored.entry != *entry) {
                edits.push(Edit::Put(entry.clone()));
            }
        }
        edits.extend(old.map(|(key, _)| gone(key)));
        edits
    }

    /// Makes the edits. `None` when they turn out to change nothing.
    fn commit(&mut self, to: Revision, edits: Vec<Edit>, conflated: bool) -> Option<Batch> {
        let from = self.snapshot.revision;
        // Sorted, and the last of several edits of a key counts.
        let edits: BTreeMap<Key, Edit> = edits
            .into_iter()
            .map(|edit| (edit.key().clone(), edit))
            .collect();
        let mut changes = Vec::with_capacity(edits.len());
        let mut replaced = Vec::new();
        for edit in edits.into_values() {
            let delta = match &edit {
                Edit::Put(entry) => {
                    let (delta, old) = self.put(entry);
                    let change = changes.len();
                    let old = old.filter(|_| !conflated);
                    replaced.extend(old.map(|old| OldValue { change, old }));
                    delta
                }
                Edit::Delete { key, mod_revision } => match self.delete(*mod_revision, key) {
                    Some(delta) => delta,
                    None => continue,
                },
            };
            changes.push(Change { edit, delta });
        }
        self.snapshot.revision = to;
        self.bury_in_bounds();
        (!changes.is_empty()).then_some(Batch {
            from,
            to,
            conflated,
            changes,
            replaced,
        })
    }

    /// Returns what that does to the digest, and what was there before.
    fn put(&mut self, entry: &Entry) -> (Digest, Option<Arc<Stored>>) {
        let stored = Arc::new(Stored::new(entry.clone()));
        let hash = stored.hash;
        if let Some(buried) = self.tombstones.remove(&entry.key) {
            self.snapshot.forget(buried, &entry.key);
        }
        let old = self.snapshot.insert(stored);
        let was = old.as_ref().map_or(Digest::EMPTY, |old| old.hash);
        (hash - was, old)
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> Option<Digest> {
        let old = self.snapshot.remove(key)?;
        self.snapshot.bury(revision, key);
        self.tombstones.insert(key.clone(), revision);
        self.graves.push_back((revision, key.clone()));
        Some(Digest::EMPTY - old.hash)
    }

    /// Forgets the oldest tombstones beyond the bound. Clients from before them get a snapshot.
    fn bury_in_bounds(&mut self) {
        // Graves of keys that came back are counted too: they are memory as well.
        while self.graves.len() > self.most_graves {
            let Some((revision, key)) = self.graves.pop_front() else {
                break;
            };
            if self.tombstones.get(&key) == Some(&revision) {
                self.tombstones.remove(&key);
                self.snapshot.forget(revision, &key);
                self.snapshot.floor = self.snapshot.floor.max(revision);
            }
        }
    }

    /// When a missing key was deleted; `None` without a tombstone.
    pub fn deleted_at(&self, key: &Key) -> Option<Revision> {
        self.tombstones.get(key).copied()
    }

    /// Records a delete that is older than all recorded ones, unless the key changed since. Returns
    /// `false` when there is no room.
    pub fn record_past_tombstone(&mut self, revision: Revision, key: Key) -> bool {
        if self.snapshot.by_key.contains_key(&key) || self.tombstones.contains_key(&key) {
            return true;
        }
        if self.graves.len() >= self.most_graves {
            return false;
        }
        self.snapshot.bury(revision, &key);
        self.tombstones.insert(key.clone(), revision);
        self.graves.push_front((revision, key));
        true
    }

    /// Every delete after `floor` is recorded now, up to `up_to`.
    pub fn lower_floor(&mut self, floor: Revision, up_to: Revision) {
        // Unless tombstones after that were dropped.
        if self.snapshot.floor <= up_to {
            self.snapshot.floor = self.snapshot.floor.min(floor);
        }
    }
}
