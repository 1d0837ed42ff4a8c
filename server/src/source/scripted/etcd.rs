//! A small model of etcd, and a server's link to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::watch;

use super::etcd_source::ScriptedEtcdSource;
use super::op::Op;
use crate::source::SourceRequests;
use crate::store::{BackfillEvent, PastChange, PastTransaction, Span};

/// A model of one etcd cluster. Clones are the same cluster.
#[derive(Clone, Debug)]
pub struct ScriptedEtcd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    model: Mutex<Model>,
    /// Counts the modifications of the model, to wake the sources.
    modified: watch::Sender<u64>,
}

#[derive(Debug)]
pub(super) struct Model {
    pub(super) epoch: Epoch,
    /// Goes up with each restore. Revisions of two histories are not comparable.
    pub(super) history: u64,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) connected: bool,
    pub(super) entries: BTreeMap<Key, Entry>,
    /// Every transaction of this history that changed something.
    log: BTreeMap<Revision, Vec<Edit>>,
    /// Transactions that no source reports.
    unreported: BTreeSet<Revision>,
}

impl Default for ScriptedEtcd {
    fn default() -> Self {
        Self::new(Epoch::of_cluster(1, ""))
    }
}

impl ScriptedEtcd {
    /// Empty, connected, and at revision 1, as etcd is.
    pub fn new(epoch: Epoch) -> Self {
        Self(Arc::new(Shared {
            model: Mutex::new(Model {
                epoch,
                history: 0,
                revision: Revision::new(1),
                compacted: Revision::NONE,
                connected: true,
                entries: BTreeMap::new(),
                log: BTreeMap::new(),
                unreported: BTreeSet::new(),
            }),
            modified: watch::channel(0).0,
        }))
    }

    pub(super) fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock()
    }

    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let changed = change(&mut self.model());
        self.0.modified.send_modify(|modified| *modified += 1);
        changed
    }

    /// Puts a value. Returns the revision.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Revision {
        self.txn([Op::put(key, value)])
    }

    /// Deletes a key. Returns the revision, which stays the same when there was no such key.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Revision {
        self.txn([Op::delete(key)])
    }

    /// Applies all operations in one transaction. Returns the revision, which stays the same when
    /// nothing changed. etcd rejects a transaction that changes a key twice; here the last operation
    /// counts.
    pub fn txn(&self, ops: impl IntoIterator<Item = Op>) -> Revision {
        self.change(|model| model.txn(ops))
    }

    /// As [`ScriptedEtcd::txn`], but no source reports the transaction after its state: as if etcd, the
    /// source or the store had a bug.
    pub fn txn_unreported(&self, ops: impl IntoIterator<Item = Op>) -> Revision {
        self.change(|model| {
            let before = model.revision;
            let revision = model.txn(ops);
            if revision > before {
                model.unreported.insert(revision);
            }
            revision
        })
    }

    /// Drops the changes up to and including this revision; the state stays. Has no effect for a
    /// revision that is compacted or has not happened.
    pub fn compact(&self, revision: Revision) {
        self.change(|model| {
            if revision > model.compacted && revision <= model.revision {
                model.compacted = revision;
            }
        });
    }

    /// Disconnects the sources. They cannot connect before [`ScriptedEtcd::connect`].
    pub fn disconnect(&self) {
        self.change(|model| model.connected = false);
    }

    /// Lets the sources connect again.
    pub fn connect(&self) {
        self.change(|model| model.connected = true);
    }

    /// Goes back to its state at this revision, as when etcd is restored from a backup. Later revisions
    /// are used again. Sources are disconnected, and detect the restore when they reconnect. The epoch
    /// stays, as with etcd.
    ///
    /// # Panics
    /// When the revision has not happened.
    pub fn restore(&self, revision: Revision) {
        self.change(|model| {
            #[expect(clippy::expect_used, reason = "a test's mistake")]
            let entries = model.state_at(revision).expect("the revision is known");
            model.entries = entries;
            model.revision = revision;
            model.compacted = model.compacted.min(revision);
            model.log.retain(|at, _| *at <= revision);
            model.unreported.retain(|at| *at <= revision);
            model.history += 1;
        });
    }

    /// Becomes another, empty cluster.
    pub fn replace(&self, epoch: Epoch) {
        self.change(|model| {
            model.epoch = epoch;
            model.history += 1;
            model.revision = Revision::new(1);
            model.compacted = Revision::NONE;
            model.entries.clear();
            model.log.clear();
            model.unreported.clear();
        });
    }

    /// The revision.
    pub fn revision(&self) -> Revision {
        self.model().revision
    }

    /// The epoch that sources report.
    pub fn epoch(&self) -> Epoch {
        self.model().epoch.clone()
    }

    /// How often it was restored or replaced. Revisions are comparable within one history only.
    pub fn history(&self) -> u64 {
        self.model().history
    }

    /// The entries in the range now, in ascending order of keys.
    pub fn state(&self, range: &KeyRange) -> Vec<Entry> {
        in_range(&self.model().entries, range)
    }

    /// The entries in the range at this revision of the current history, compacted or not. `None` for a
    /// revision that has not happened.
    pub fn state_at(&self, range: &KeyRange, revision: Revision) -> Option<Vec<Entry>> {
        let entries = self.model().state_at(revision)?;
        Some(in_range(&entries, range))
    }

    /// What a source of the range answers to a request for this span.
    #[cfg(test)]
    pub(crate) fn backfill(&self, span: Span, range: &KeyRange) -> VecDeque<BackfillEvent> {
        self.model().backfill(span, range)
    }

    /// A source for the keys in the range.
    pub fn source(&self, range: KeyRange, requests: SourceRequests) -> ScriptedEtcdSource {
        self.link().source(range, requests)
    }

    /// One server's link to it, which can be cut by itself.
    pub fn link(&self) -> Link {
        Link {
            etcd: self.clone(),
            cut: Arc::default(),
        }
    }
}

/// One server's link to a [`ScriptedEtcd`]. Clones are the same link.
#[derive(Clone, Debug)]
pub struct Link {
    etcd: ScriptedEtcd,
    cut: Arc<AtomicBool>,
}

impl Link {
    /// Disconnects its sources. They cannot connect before [`Link::mend`]. They report what happened
    /// meanwhile after it, as after any disconnect.
    pub fn cut(&self) {
        self.etcd
            .change(|_| self.cut.store(true, Ordering::Relaxed));
    }

    /// Lets its sources connect again, if etcd is connected.
    pub fn mend(&self) {
        self.etcd
            .change(|_| self.cut.store(false, Ordering::Relaxed));
    }

    /// A source for the keys in the range.
    pub fn source(&self, range: KeyRange, requests: SourceRequests) -> ScriptedEtcdSource {
        ScriptedEtcdSource::new(self.clone(), range, requests)
    }

    pub(super) const fn etcd(&self) -> &ScriptedEtcd {
        &self.etcd
    }

    /// True if sources of this link can reach etcd.
    pub(super) fn is_connected(&self, model: &Model) -> bool {
        model.connected && !self.cut.load(Ordering::Relaxed)
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.etcd.0.modified.subscribe()
    }
}

impl Model {
    fn txn(&mut self, ops: impl IntoIterator<Item = Op>) -> Revision {
        let ops: BTreeMap<Key, Op> = ops.into_iter().map(|op| (op.key().clone(), op)).collect();
        let at = self.revision.next();
        let mut changes = Vec::new();
        for op in ops.into_values() {
            match op {
                Op::Put { key, value } => {
                    let old = self.entries.get(&key);
                    let entry = Entry {
                        create_revision: old.map_or(at, |old| old.create_revision),
                        version: old.map_or(0, |old| old.version) + 1,
                        mod_revision: at,
                        key: key.clone(),
                        value,
                    };
                    self.entries.insert(key, entry.clone());
                    changes.push(Edit::Put(entry));
                }
                Op::Delete { key } => {
                    if self.entries.remove(&key).is_some() {
                        changes.push(Edit::Delete {
                            key,
                            mod_revision: at,
                        });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.revision = at;
            self.log.insert(at, changes);
        }
        self.revision
    }

    /// Built from the log: a model in a test is small.
    pub(super) fn state_at(&self, revision: Revision) -> Option<BTreeMap<Key, Entry>> {
        if revision > self.revision {
            return None;
        }
        let mut entries = BTreeMap::new();
        for change in self.log.range(..=revision).flat_map(|(_, changes)| changes) {
            match change {
                Edit::Put(entry) => entries.insert(entry.key.clone(), entry.clone()),
                Edit::Delete { key, .. } => entries.remove(key),
            };
        }
        Some(entries)
    }

    /// What changed in the span, as far as it is not compacted, a few transactions at a time.
    pub(super) fn backfill(&self, span: Span, range: &KeyRange) -> VecDeque<BackfillEvent> {
        /// So that an answer has several parts.
        const AT_A_TIME: usize = 8;
        let after = span.after.max(self.compacted);
        let Some(state) = self.state_at(after).filter(|_| after < span.up_to) else {
            let reason = "it is compacted".to_owned();
            return [BackfillEvent::Failed { reason }].into();
        };
        let mut state = state;
        let mut transactions = Vec::new();
        for (revision, edits) in self.log.range(after.next()..=span.up_to) {
            let mut changes = Vec::new();
            for edit in edits {
                let previous = match edit {
                    Edit::Put(entry) => state.insert(entry.key.clone(), entry.clone()),
                    Edit::Delete { key, .. } => state.remove(key),
                };
                if range.contains(edit.key().as_ref()) {
                    let edit = edit.clone();
                    changes.push(PastChange { edit, previous });
                }
            }
            if !changes.is_empty() {
                let revision = *revision;
                transactions.push(PastTransaction { revision, changes });
            }
        }
        let parts = transactions.chunks(AT_A_TIME);
        let parts = parts.map(|part| BackfillEvent::Transactions(part.to_vec()));
        [BackfillEvent::Begin { after }]
            .into_iter()
            .chain(parts)
            .chain([BackfillEvent::End])
            .collect()
    }

    /// The first transaction after `after` that changed something in the range.
    pub(super) fn changes_after(
        &self,
        after: Revision,
        range: &KeyRange,
    ) -> Option<(Revision, Vec<Edit>)> {
        self.log
            .range(after.next()..)
            .filter(|(revision, _)| !self.unreported.contains(revision))
            .find_map(|(revision, changes)| {
                let changes: Vec<Edit> = changes
                    .iter()
                    .filter(|change| range.contains(change.key().as_ref()))
                    .cloned()
                    .collect();
                (!changes.is_empty()).then_some((*revision, changes))
            })
    }
}

pub(super) fn in_range(entries: &BTreeMap<Key, Entry>, range: &KeyRange) -> Vec<Entry> {
    let entries = entries
        .range(range.start().clone()..)
        .map(|(_, entry)| entry);
    entries
        .take_while(|entry| range.contains(entry.key.as_ref()))
        .cloned()
        .collect()
}
