//! Sources that need no etcd, for tests: deterministic, on tokio's paused clock too.
//!
//! [`ScriptedSource`] says what a test tells it to. [`ScriptedEtcd`] is a small model of etcd that
//! counts revisions and versions as etcd does, and can be lost, compacted and restored; its sources
//! say what an [`EtcdSource`](super::etcd::EtcdSource) would say.
//!
//! Who owns it: tests, by the feature `test-util`. Nothing here must be reachable without it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use tokio::sync::{mpsc, watch};

use super::{History, Questions, Source, State, Update};

/// Updates of a script that may wait: a test that says more waits until they are taken.
const WAITING_UPDATES: usize = 16;

/// How often the model's idle sources say how far they are, as with etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A source that says what its [`Script`] says.
#[derive(Debug)]
pub struct ScriptedSource {
    updates: mpsc::Receiver<Update>,
    answer: watch::Receiver<Option<Revision>>,
    questions: Option<Questions>,
}

/// Tells a [`ScriptedSource`] what to say. Once it is dropped, the source says nothing more.
#[derive(Debug)]
pub struct Script {
    updates: mpsc::Sender<Update>,
    answer: watch::Sender<Option<Revision>>,
}

impl ScriptedSource {
    /// A source, and the script for it.
    pub fn new(questions: Questions) -> (Script, Self) {
        let (say, updates) = mpsc::channel(WAITING_UPDATES);
        let (set_answer, answer) = watch::channel(None);
        let script = Script {
            updates: say,
            answer: set_answer,
        };
        let source = Self {
            updates,
            answer,
            questions: Some(questions),
        };
        (script, source)
    }
}

impl Script {
    /// Says this next. `false` when the source is gone.
    ///
    /// # Cancel safety
    /// Cancel-safe: the update is said or not.
    pub async fn say(&self, update: Update) -> bool {
        self.updates.send(update).await.is_ok()
    }

    /// What questions are answered with from now on; `None`, as at the start, for no answer.
    pub fn answer(&self, revision: Option<Revision>) {
        self.answer.send_replace(revision);
    }
}

impl Source for ScriptedSource {
    async fn next(&mut self) -> Update {
        loop {
            tokio::select! {
                biased;
                Some(update) = self.updates.recv() => return update,
                question = question(&mut self.questions) => {
                    if let (Some(question), Some(revision)) = (question, *self.answer.borrow()) {
                        let _ = question.send(revision);
                    }
                }
            }
        }
    }
}

/// The next question; `None` once, when there will be no more.
async fn question(
    questions: &mut Option<Questions>,
) -> Option<tokio::sync::oneshot::Sender<Revision>> {
    let Some(open) = questions else {
        return std::future::pending().await;
    };
    let question = open.recv().await;
    if question.is_none() {
        *questions = None;
    }
    question
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Puts a value.
    Put {
        /// Where.
        key: Key,
        /// What.
        value: Bytes,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// Which.
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

    const fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

fn to_key(key: impl AsRef<[u8]>) -> Key {
    #[expect(clippy::expect_used, reason = "a test's mistake")]
    Key::new(Bytes::copy_from_slice(key.as_ref())).expect("a key has at least one byte")
}

/// A model of one etcd cluster. Clones are the same cluster.
#[derive(Clone, Debug)]
pub struct ScriptedEtcd(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    model: Mutex<Model>,
    /// Wakes the sources; counts what happened.
    happened: watch::Sender<u64>,
}

#[derive(Debug)]
struct Model {
    epoch: Epoch,
    /// Goes up with each restore: revisions of two of them are not the same.
    history: u64,
    revision: Revision,
    compacted: Revision,
    connected: bool,
    entries: BTreeMap<Key, Entry>,
    /// Every transaction that changed something, in this history.
    log: BTreeMap<Revision, Vec<Edit>>,
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
            }),
            happened: watch::channel(0).0,
        }))
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        // A test that panicked elsewhere is failing already.
        self.0.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Model) -> T) -> T {
        let changed = change(&mut self.model());
        self.0.happened.send_modify(|happened| *happened += 1);
        changed
    }

    /// Puts a value. Returns the revision.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Revision {
        self.txn([Op::put(key, value)])
    }

    /// Deletes a key. Returns the revision, which stands still when there was none.
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Revision {
        self.txn([Op::delete(key)])
    }

    /// Does all of it in one transaction. Returns the revision, which stands still when nothing
    /// changed. etcd refuses a transaction that changes a key twice; here the last operation counts.
    pub fn txn(&self, ops: impl IntoIterator<Item = Op>) -> Revision {
        self.change(|model| model.txn(ops))
    }

    /// Forgets the changes up to and including this revision; the state there stays. No effect on
    /// what is forgotten or has not happened.
    pub fn compact(&self, revision: Revision) {
        self.change(|model| {
            if revision > model.compacted && revision <= model.revision {
                model.compacted = revision;
            }
        });
    }

    /// Sources lose their connection, and do not get one before [`ScriptedEtcd::connect`].
    pub fn disconnect(&self) {
        self.change(|model| model.connected = false);
    }

    /// Sources can connect again.
    pub fn connect(&self) {
        self.change(|model| model.connected = true);
    }

    /// Goes back to what it was at this revision, as when it is restored from a backup. Revisions
    /// after it are used anew. Sources lose their connection by that, and notice when they have
    /// one again. The epoch stays, as it does with etcd.
    ///
    /// # Panics
    /// When the state at that revision is not known.
    pub fn restore(&self, revision: Revision) {
        self.change(|model| {
            #[expect(clippy::expect_used, reason = "a test's mistake")]
            let entries = model.state_at(revision).expect("the revision is known");
            model.entries = entries;
            model.revision = revision;
            model.log.retain(|at, _| *at <= revision);
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
        });
    }

    /// The revision.
    pub fn revision(&self) -> Revision {
        self.model().revision
    }

    /// The epoch that sources say.
    pub fn epoch(&self) -> Epoch {
        self.model().epoch.clone()
    }

    /// How many times it was restored or replaced: revisions are comparable within one history.
    pub fn history(&self) -> u64 {
        self.model().history
    }

    /// What is in the range now, in ascending order of keys.
    pub fn state(&self, range: &KeyRange) -> Vec<Entry> {
        in_range(&self.model().entries, range)
    }

    /// What was in the range at this revision of the present history, compacted or not. `None` for
    /// a revision that has not happened.
    pub fn state_at(&self, range: &KeyRange, revision: Revision) -> Option<Vec<Entry>> {
        let entries = self.model().state_at(revision)?;
        Some(in_range(&entries, range))
    }

    /// A source for the keys in the range.
    pub fn source(&self, range: KeyRange, questions: Questions) -> ScriptedEtcdSource {
        ScriptedEtcdSource {
            happened: self.0.happened.subscribe(),
            etcd: self.clone(),
            range,
            questions: Some(questions),
            said: None,
            lost: false,
            promised: Revision::NONE,
            pulse: tokio::time::Instant::now() + PROGRESS_INTERVAL,
        }
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
    fn state_at(&self, revision: Revision) -> Option<BTreeMap<Key, Entry>> {
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

    /// The first transaction after `after` that changed something in the range.
    fn changes_after(&self, after: Revision, range: &KeyRange) -> Option<(Revision, Vec<Edit>)> {
        self.log
            .range(after.next()..)
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

fn in_range(entries: &BTreeMap<Key, Entry>, range: &KeyRange) -> Vec<Entry> {
    let entries = entries
        .range(range.start().clone()..)
        .map(|(_, entry)| entry);
    entries
        .take_while(|entry| range.contains(entry.key.as_ref()))
        .cloned()
        .collect()
}

/// A source of a [`ScriptedEtcd`].
#[derive(Debug)]
pub struct ScriptedEtcdSource {
    etcd: ScriptedEtcd,
    range: KeyRange,
    happened: watch::Receiver<u64>,
    questions: Option<Questions>,
    /// The history and how far it was said; `None` before the first state.
    said: Option<(u64, Revision)>,
    lost: bool,
    /// The highest revision that a question was answered with.
    promised: Revision,
    pulse: tokio::time::Instant,
}

impl ScriptedEtcdSource {
    /// What there is to say at once.
    fn ready(&mut self) -> Option<Update> {
        let model = self.etcd.model();
        // A restore takes the connection away, however short it was.
        let restored = self
            .said
            .is_some_and(|(history, _)| history != model.history);
        if !model.connected || restored {
            if !self.lost {
                self.lost = true;
                return Some(Update::Lost {
                    reason: "as the script says".to_owned(),
                });
            }
            if !model.connected {
                return None;
            }
        }
        let found = std::mem::take(&mut self.lost);
        let Some((_, said)) = self.said.filter(|_| !restored) else {
            return Some(Self::state(
                &mut self.said,
                &mut self.promised,
                &model,
                &self.range,
            ));
        };
        // A watch that hears live does not mind a compaction; one that has to look back does.
        let back = found
            || model
                .changes_after(said, &self.range)
                .is_some_and(|(at, _)| at <= model.compacted);
        if back && said < model.compacted {
            return Some(Self::state(
                &mut self.said,
                &mut self.promised,
                &model,
                &self.range,
            ));
        }
        if found {
            return Some(Update::Contact);
        }
        if let Some((revision, changes)) = model.changes_after(said, &self.range) {
            self.said = Some((model.history, revision));
            return Some(Update::Changes { revision, changes });
        }
        (said < self.promised).then(|| {
            self.said = Some((model.history, model.revision));
            Update::Progress {
                revision: model.revision,
            }
        })
    }

    fn state(
        said: &mut Option<(u64, Revision)>,
        promised: &mut Revision,
        model: &Model,
        range: &KeyRange,
    ) -> Update {
        let history = match said {
            Some((history, _)) if *history != model.history => History::Replaced,
            _ => History::Continues,
        };
        *said = Some((model.history, model.revision));
        *promised = Revision::NONE;
        Update::State(State {
            epoch: model.epoch.clone(),
            revision: model.revision,
            entries: in_range(&model.entries, range),
            history,
        })
    }

    /// Answers with the revision now; not at all while etcd is lost.
    fn answer(&mut self, question: tokio::sync::oneshot::Sender<Revision>) {
        let model = self.etcd.model();
        let here = self
            .said
            .is_some_and(|(history, _)| history == model.history);
        if model.connected && here {
            self.promised = model.revision;
            let _ = question.send(model.revision);
        }
    }
}

impl Source for ScriptedEtcdSource {
    async fn next(&mut self) -> Update {
        loop {
            self.happened.mark_unchanged();
            if let Some(update) = self.ready() {
                self.pulse = tokio::time::Instant::now() + PROGRESS_INTERVAL;
                return update;
            }
            tokio::select! {
                biased;
                // Never an error: the sender is in `etcd`.
                _ = self.happened.changed() => {}
                question = question(&mut self.questions) => {
                    if let Some(question) = question {
                        self.answer(question);
                    }
                }
                () = tokio::time::sleep_until(self.pulse), if !self.lost => {
                    self.promised = self.etcd.revision();
                    if self.said.is_some_and(|(_, said)| said == self.promised) {
                        self.pulse = tokio::time::Instant::now() + PROGRESS_INTERVAL;
                        return Update::Progress { revision: self.promised };
                    }
                }
            }
        }
    }
}
