//! Sources that need no etcd, for tests: deterministic, on tokio's paused clock too.
//!
//! [`ScriptedSource`] says what a test tells it to. [`ScriptedEtcd`] is a small model of etcd that
//! counts revisions and versions as etcd does, and can be lost, compacted and restored; its sources
//! say what an [`EtcdSource`](super::etcd::EtcdSource) would say.
//!
//! Who owns it: tests, by the feature `test-util`. Nothing here must be reachable without it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use tokio::sync::{mpsc, watch};

use super::{Source, SourceRequest, SourceRequests, Update};
use crate::store::{BackfillEvent, History, PastChange, PastTransaction, Span, State};

/// Updates of a script that may wait: a test that says more waits until they are taken.
const WAITING_UPDATES: usize = 16;

/// How often the model's idle sources say how far they are, as with etcd.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A source that says what its [`Script`] says.
#[derive(Debug)]
pub struct ScriptedSource {
    updates: mpsc::Receiver<Update>,
    answer: watch::Receiver<Option<Revision>>,
    questions: Option<SourceRequests>,
}

/// Tells a [`ScriptedSource`] what to say. Once it is dropped, the source says nothing more.
#[derive(Debug)]
pub struct Script {
    updates: mpsc::Sender<Update>,
    answer: watch::Sender<Option<Revision>>,
}

impl ScriptedSource {
    /// A source, and the script for it.
    pub fn new(questions: SourceRequests) -> (Script, Self) {
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
                question = question(&mut self.questions) => match question {
                    Some(SourceRequest::Revision(answer)) => {
                        if let Some(revision) = *self.answer.borrow() {
                            let _ = answer.send(revision);
                        }
                    }
                    Some(SourceRequest::Audit(revision)) => {
                        return Update::Audited { revision, digest: None };
                    }
                    Some(SourceRequest::Relist) | None => {}
                    Some(SourceRequest::Backfill(_)) => {
                        let reason = "the script does not say".to_owned();
                        return Update::Backfill(BackfillEvent::Failed { reason });
                    }
                }
            }
        }
    }
}

/// The next question; `None` once, when there will be no more.
async fn question(questions: &mut Option<SourceRequests>) -> Option<SourceRequest> {
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
    /// Those that no source says.
    unheard: BTreeSet<Revision>,
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
                unheard: BTreeSet::new(),
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

    /// As [`ScriptedEtcd::txn`], but what follows a source's state never says that it happened: as
    /// if etcd, the source or the store had a bug.
    pub fn txn_unheard(&self, ops: impl IntoIterator<Item = Op>) -> Revision {
        self.change(|model| {
            let before = model.revision;
            let revision = model.txn(ops);
            if revision > before {
                model.unheard.insert(revision);
            }
            revision
        })
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
            model.compacted = model.compacted.min(revision);
            model.log.retain(|at, _| *at <= revision);
            model.unheard.retain(|at| *at <= revision);
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
            model.unheard.clear();
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

    /// What a source of the range would answer to [`SourceRequest::Backfill`].
    #[cfg(test)]
    pub(crate) fn earlier(&self, span: Span, range: &KeyRange) -> VecDeque<BackfillEvent> {
        self.model().earlier(span, range)
    }

    /// A source for the keys in the range.
    pub fn source(&self, range: KeyRange, questions: SourceRequests) -> ScriptedEtcdSource {
        self.link().source(range, questions)
    }

    /// One server's way to it, which can be cut without anybody else's.
    pub fn link(&self) -> Link {
        Link {
            etcd: self.clone(),
            cut: Arc::default(),
        }
    }
}

/// One server's way to a [`ScriptedEtcd`]. Clones are the same way.
#[derive(Clone, Debug)]
pub struct Link {
    etcd: ScriptedEtcd,
    cut: Arc<AtomicBool>,
}

impl Link {
    /// Its sources lose their connection, and do not get one before [`Link::mend`]. What happens
    /// meanwhile they hear of after it, as from an etcd that was away.
    pub fn cut(&self) {
        self.etcd
            .change(|_| self.cut.store(true, Ordering::Relaxed));
    }

    /// Its sources can connect again, when etcd is there.
    pub fn mend(&self) {
        self.etcd
            .change(|_| self.cut.store(false, Ordering::Relaxed));
    }

    /// A source for the keys in the range.
    pub fn source(&self, range: KeyRange, questions: SourceRequests) -> ScriptedEtcdSource {
        ScriptedEtcdSource {
            happened: self.etcd.0.happened.subscribe(),
            link: self.clone(),
            range,
            questions: Some(questions),
            said: None,
            lost: false,
            promised: Revision::NONE,
            asides: VecDeque::new(),
            relist: false,
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

    /// What changed in the span, as far as it is not compacted, a few transactions at a time.
    fn earlier(&self, span: Span, range: &KeyRange) -> VecDeque<BackfillEvent> {
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
    fn changes_after(&self, after: Revision, range: &KeyRange) -> Option<(Revision, Vec<Edit>)> {
        self.log
            .range(after.next()..)
            .filter(|(revision, _)| !self.unheard.contains(revision))
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
    link: Link,
    range: KeyRange,
    happened: watch::Receiver<u64>,
    questions: Option<SourceRequests>,
    /// The history and how far it was said; `None` before the first state.
    said: Option<(u64, Revision)>,
    lost: bool,
    /// The highest revision that a question was answered with.
    promised: Revision,
    /// What remains to be said in answer to questions.
    asides: VecDeque<Update>,
    /// The state was asked for.
    relist: bool,
    pulse: tokio::time::Instant,
}

impl ScriptedEtcdSource {
    /// Whether etcd can be reached.
    fn is_connected(&self, model: &Model) -> bool {
        model.connected && !self.link.cut.load(Ordering::Relaxed)
    }

    /// What there is to say at once.
    fn ready(&mut self) -> Option<Update> {
        let model = self.link.etcd.model();
        let connected = self.is_connected(&model);
        // A restore takes the connection away, however short it was.
        let restored = self
            .said
            .is_some_and(|(history, _)| history != model.history);
        if !connected || restored {
            if !self.lost {
                self.lost = true;
                return Some(Update::Lost {
                    reason: "as the script says".to_owned(),
                });
            }
            if !connected {
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
        if self.relist || back && said < model.compacted {
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

    /// Answers with the revision now, or with the past; not at all while etcd is lost.
    fn answer(&mut self, question: SourceRequest) {
        let model = self.link.etcd.model();
        let here = self
            .said
            .is_some_and(|(history, _)| history == model.history);
        if !self.is_connected(&model) || !here {
            return;
        }
        match question {
            SourceRequest::Revision(answer) => {
                self.promised = model.revision;
                let _ = answer.send(model.revision);
            }
            SourceRequest::Backfill(span) => {
                let said = model.earlier(span, &self.range).into_iter();
                self.asides.extend(said.map(Update::Backfill));
            }
            SourceRequest::Audit(revision) => {
                let state = model.state_at(revision);
                let known = state.filter(|_| revision >= model.compacted);
                let digest = known.map(|state| in_range(&state, &self.range).iter().collect());
                self.asides.push_back(Update::Audited { revision, digest });
            }
            SourceRequest::Relist => self.relist = true,
        }
    }
}

impl Source for ScriptedEtcdSource {
    async fn next(&mut self) -> Update {
        loop {
            self.happened.mark_unchanged();
            if let Some(update) = self.ready() {
                self.pulse = tokio::time::Instant::now() + PROGRESS_INTERVAL;
                if matches!(update, Update::Lost { .. } | Update::State(_)) {
                    self.asides.clear();
                    self.relist = false;
                }
                return update;
            }
            if let Some(aside) = self.asides.pop_front() {
                return aside;
            }
            tokio::select! {
                biased;
                // Never an error: the sender is in the link.
                _ = self.happened.changed() => {}
                question = question(&mut self.questions) => {
                    if let Some(question) = question {
                        self.answer(question);
                    }
                }
                () = tokio::time::sleep_until(self.pulse), if !self.lost => {
                    self.promised = self.link.etcd.revision();
                    if self.said.is_some_and(|(_, said)| said == self.promised) {
                        self.pulse = tokio::time::Instant::now() + PROGRESS_INTERVAL;
                        return Update::Progress { revision: self.promised };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::SourceHandle;

    fn range() -> KeyRange {
        KeyRange::prefix("/c/").unwrap()
    }

    fn source(etcd: &ScriptedEtcd) -> (SourceHandle, ScriptedEtcdSource) {
        let (catch_up, questions) = SourceHandle::channel();
        (catch_up, etcd.source(range(), questions))
    }

    async fn state(source: &mut ScriptedEtcdSource) -> State {
        match source.next().await {
            Update::State(state) => state,
            other => panic!("no state but {other:?}"),
        }
    }

    async fn changes(source: &mut ScriptedEtcdSource) -> (Revision, usize) {
        match source.next().await {
            Update::Changes { revision, changes } => (revision, changes.len()),
            other => panic!("no changes but {other:?}"),
        }
    }

    #[test]
    fn the_model_counts_as_etcd_does() {
        let etcd = ScriptedEtcd::default();
        assert_eq!(etcd.revision(), Revision::new(1));
        assert_eq!(etcd.put("/c/a", "1"), Revision::new(2));
        assert_eq!(etcd.put("/c/a", "2"), Revision::new(3));
        assert_eq!(etcd.delete("/c/none"), Revision::new(3), "nothing happened");
        assert_eq!(etcd.txn([]), Revision::new(3));
        let a = &etcd.state(&range())[0];
        assert_eq!(
            (a.create_revision.get(), a.mod_revision.get(), a.version),
            (2, 3, 2)
        );
        assert_eq!(etcd.delete("/c/a"), Revision::new(4));
        assert_eq!(
            etcd.txn([Op::put("/c/a", "3"), Op::put("/b", "")]),
            Revision::new(5)
        );
        let a = &etcd.state(&range())[0];
        assert_eq!(
            (a.create_revision.get(), a.mod_revision.get(), a.version),
            (5, 5, 1)
        );
        assert_eq!(etcd.state(&range()).len(), 1);
        let at = |revision| etcd.state_at(&range(), Revision::new(revision));
        assert_eq!(at(2).unwrap()[0].value, "1");
        assert_eq!(at(4), Some(Vec::new()));
        assert_eq!(at(6), None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_model_is_heard_and_asked() {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/a", "1");
        let (catch_up, mut source) = source(&etcd);
        assert_eq!(state(&mut source).await.entries.len(), 1);
        etcd.put("/c/a", "2");
        etcd.put("/outside", "2");
        let last = etcd.txn([Op::delete("/c/a"), Op::put("/c/b", "")]);
        assert_eq!(changes(&mut source).await, (Revision::new(3), 1));
        assert_eq!(changes(&mut source).await, (last, 2));
        let outside = etcd.put("/outside", "3");
        let (answer, update) = tokio::join!(catch_up.revision(), source.next());
        assert_eq!(answer, Some(outside));
        assert!(matches!(update, Update::Progress { revision } if revision == outside));
        // By the clock, with nobody asking.
        assert!(
            matches!(source.next().await, Update::Progress { revision } if revision == outside)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_model_can_be_lost_compacted_and_restored() {
        let etcd = ScriptedEtcd::default();
        let known = etcd.put("/c/a", "1");
        let (catch_up, mut source) = source(&etcd);
        state(&mut source).await;

        etcd.disconnect();
        assert!(matches!(source.next().await, Update::Lost { .. }));
        etcd.put("/c/a", "2");
        let nothing = async {
            tokio::select! {
                answer = catch_up.revision() => answer,
                update = source.next() => panic!("{update:?}"),
            }
        };
        assert_eq!(nothing.await, None);
        etcd.connect();
        assert!(matches!(source.next().await, Update::Contact));
        changes(&mut source).await;

        etcd.disconnect();
        assert!(matches!(source.next().await, Update::Lost { .. }));
        etcd.delete("/c/a");
        etcd.compact(etcd.revision());
        etcd.connect();
        let compacted = state(&mut source).await;
        assert_eq!(
            (compacted.history, compacted.entries.len()),
            (History::Continues, 0)
        );

        etcd.restore(known);
        assert!(matches!(source.next().await, Update::Lost { .. }));
        let restored = state(&mut source).await;
        assert_eq!(restored.history, History::Replaced);
        assert_eq!((restored.revision, restored.entries.len()), (known, 1));

        etcd.replace(Epoch::of_cluster(2, ""));
        assert!(matches!(source.next().await, Update::Lost { .. }));
        let other = state(&mut source).await;
        assert_eq!(
            (other.history, other.epoch),
            (History::Replaced, etcd.epoch())
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_link_can_be_cut_and_the_others_hear_on() {
        let etcd = ScriptedEtcd::default();
        let link = etcd.link();
        let (catch_up, questions) = SourceHandle::channel();
        let mut cut = link.source(range(), questions);
        let (_keep, mut other) = source(&etcd);
        state(&mut cut).await;
        state(&mut other).await;

        link.cut();
        assert!(matches!(cut.next().await, Update::Lost { .. }));
        let put = etcd.put("/c/a", "1");
        assert_eq!(changes(&mut other).await, (put, 1));
        let nothing = async {
            tokio::select! {
                answer = catch_up.revision() => answer,
                update = cut.next() => panic!("{update:?}"),
            }
        };
        assert_eq!(nothing.await, None);
        link.mend();
        assert!(matches!(cut.next().await, Update::Contact));
        assert_eq!(changes(&mut cut).await, (put, 1));

        etcd.disconnect();
        assert!(matches!(cut.next().await, Update::Lost { .. }));
        assert!(matches!(other.next().await, Update::Lost { .. }));
        link.cut();
        etcd.connect();
        assert!(matches!(other.next().await, Update::Contact));
        link.mend();
        assert!(matches!(cut.next().await, Update::Contact));
    }

    #[tokio::test]
    async fn a_script_is_said_and_answers() {
        let (catch_up, questions) = SourceHandle::channel();
        let (script, mut source) = ScriptedSource::new(questions);
        script.answer(Some(Revision::new(7)));
        assert!(script.say(Update::Contact).await);
        assert!(matches!(source.next().await, Update::Contact));
        let answer = tokio::select! {
            answer = catch_up.revision() => answer,
            update = source.next() => panic!("{update:?}"),
        };
        assert_eq!(answer, Some(Revision::new(7)));
        drop(source);
        assert!(!script.say(Update::Contact).await);
    }
}
