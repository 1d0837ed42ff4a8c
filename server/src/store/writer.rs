//! The one writer of a prefix's keyspace: applies transactions and whole states, returns batches.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Key, Revision};

use super::batch::{Batch, Change, OldValue};
use super::snapshot::{Snapshot, Stored};
use super::state::{History, State};
use super::tombstones::{TOMBSTONES, Tombstones};

/// The result of [`Writer::replace`].
#[derive(Debug)]
pub enum Replaced {
    /// The state is of another history: earlier revisions do not count any more.
    Anew,
    /// The same history continues, and this changed.
    Continued(Batch),
    /// The same history continues, and nothing changed.
    Unchanged,
}

/// The exclusive writer of one prefix.
#[derive(Debug)]
pub struct Writer {
    snapshot: Snapshot,
    tombstones: Tombstones,
}

impl Writer {
    /// A writer with the first state.
    pub fn new(state: State) -> Self {
        Self::with(state, Tombstones::new(TOMBSTONES))
    }

    /// As [`Writer::new`], with room for so many tombstones.
    #[cfg(test)]
    pub(super) fn bounded(state: State, tombstones: usize) -> Self {
        Self::with(state, Tombstones::new(tombstones))
    }

    fn with(state: State, tombstones: Tombstones) -> Self {
        let mut snapshot = Snapshot::empty(state.epoch, state.revision);
        for entry in state.entries {
            snapshot.insert(Arc::new(Stored::new(entry)));
        }
        Self {
            snapshot,
            tombstones,
        }
    }

    #[cfg(test)]
    pub(super) fn tombstones_kept(&self) -> usize {
        self.tombstones.len()
    }

    /// The state now.
    pub const fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Moves to `revision`, up to which nothing changed.
    pub fn advance(&mut self, revision: Revision) {
        self.snapshot.revision = self.snapshot.revision.max(revision);
    }

    /// Applies one transaction. `None` if it is not newer than the state, or changes nothing.
    pub fn apply(&mut self, revision: Revision, edits: Vec<Edit>) -> Option<Batch> {
        (revision > self.snapshot.revision)
            .then(|| self.commit(revision, edits, false))
            .flatten()
    }

    /// Replaces the state. What changed is the difference of the two states, deletes included.
    pub fn replace(&mut self, state: State) -> Replaced {
        let continues = state.history == History::Continues
            && state.epoch == self.snapshot.epoch
            && state.revision >= self.snapshot.revision;
        if !continues {
            return self.start_over(state);
        }
        let edits = self.difference(&state.entries, state.revision);
        if edits.is_empty() {
            self.advance(state.revision);
            return Replaced::Unchanged;
        }
        // One revision with two states, or an older change that was not there before: the history
        // broke, whatever the source reports. Readers find changes since a revision by their mod
        // revision, so they would miss such a change.
        let was_not_there = |edit: &Edit| match edit {
            Edit::Put(entry) => entry.mod_revision <= self.snapshot.revision,
            Edit::Delete { .. } => state.revision == self.snapshot.revision,
        };
        if edits.iter().any(was_not_there) {
            return self.start_over(state);
        }
        match self.commit(state.revision, edits, true) {
            Some(batch) => Replaced::Continued(batch),
            None => Replaced::Unchanged,
        }
    }

    /// Takes a state of another history.
    fn start_over(&mut self, state: State) -> Replaced {
        let overwritten = self.snapshot.overwritten() + self.snapshot.bytes();
        *self = Self::with(state, self.tombstones.cleared());
        self.snapshot.overwritten += overwritten;
        Replaced::Anew
    }

    /// The edits that lead from the state to `entries`.
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

    /// Makes the edits. `None` if they change nothing.
    fn commit(&mut self, to: Revision, edits: Vec<Edit>, conflated: bool) -> Option<Batch> {
        let from = self.snapshot.revision;
        // Sorted. The last of several edits of a key counts.
        let edits: BTreeMap<Key, Edit> = edits
            .into_iter()
            .map(|edit| (edit.key().clone(), edit))
            .collect();
        let mut changes = Vec::with_capacity(edits.len());
        let mut replaced = Vec::new();
        let mut sum = Digest::EMPTY;
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
            sum += delta;
            changes.push(Change { edit, sum });
        }
        self.snapshot.revision = to;
        self.drop_old_tombstones();
        (!changes.is_empty()).then_some(Batch {
            from,
            to,
            conflated,
            changes,
            replaced,
        })
    }

    /// Returns what the put does to the digest, and the entry before it.
    fn put(&mut self, entry: &Entry) -> (Digest, Option<Arc<Stored>>) {
        let stored = Arc::new(Stored::new(entry.clone()));
        let hash = stored.hash;
        if let Some(deleted) = self.tombstones.remove(&entry.key) {
            self.snapshot.forget(deleted, &entry.key);
        }
        let old = self.snapshot.insert(stored);
        let was = old.as_ref().map_or(Digest::EMPTY, |old| old.hash);
        (hash - was, old)
    }

    fn delete(&mut self, revision: Revision, key: &Key) -> Option<Digest> {
        let old = self.snapshot.remove(key)?;
        self.snapshot.record_tombstone(revision, key);
        self.tombstones.record(revision, key.clone());
        Some(Digest::EMPTY - old.hash)
    }

    /// Drops the oldest tombstones beyond the limit. Clients from before them get a snapshot.
    fn drop_old_tombstones(&mut self) {
        while let Some((revision, key)) = self.tombstones.take_excess() {
            self.snapshot.forget(revision, &key);
            self.snapshot.floor = self.snapshot.floor.max(revision);
        }
    }

    /// When a missing key was deleted; `None` without a tombstone.
    pub fn deleted_at(&self, key: &Key) -> Option<Revision> {
        self.tombstones.get(key)
    }

    /// Records a delete that is older than all recorded ones, unless the key changed since. Returns
    /// `false` when there is no room.
    pub fn record_past_tombstone(&mut self, revision: Revision, key: Key) -> bool {
        if self.snapshot.by_key.contains_key(&key) || self.tombstones.get(&key).is_some() {
            return true;
        }
        let recorded = self.tombstones.record_past(revision, key.clone());
        if recorded {
            self.snapshot.record_tombstone(revision, &key);
        }
        recorded
    }

    /// Every delete after `floor` is recorded now, up to `up_to`.
    pub fn lower_floor(&mut self, floor: Revision, up_to: Revision) {
        // Unless tombstones after that were dropped.
        if self.snapshot.floor <= up_to {
            self.snapshot.floor = self.snapshot.floor.min(floor);
        }
    }
}
