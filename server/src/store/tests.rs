//! The writer, the snapshot and the log against a model of etcd.

use std::sync::Arc;

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::backfill::{self, Action, Backfill, LogStart};
use crate::encode::EncodedBatch;
use crate::fanout::ChangeLog;
use crate::source::scripted::{Op, ScriptedEtcd};
use crate::testing::{by_key, edits, entry};

const PREFIX: &str = "/c/";

const KEYS: [&str; 8] = [
    "/c/",
    "/c/a",
    "/c/a/",
    "/c/a/b",
    "/c/ab",
    "/c/b",
    "/c/\u{10ffff}",
    "/elsewhere",
];

/// Few enough for the tests to reach the limit.
const TOMBSTONES: usize = 6;

/// Holds a handful of batches.
const BUDGET: usize = 8 * 1024;

/// Changes in a run of the log: so few that it has several.
const RUN: usize = 3;

fn prefix() -> KeyRange {
    KeyRange::prefix(PREFIX).unwrap()
}

fn ranges() -> Vec<KeyRange> {
    vec![
        prefix(),
        KeyRange::prefix("/c/a").unwrap(),
        KeyRange::prefix("/c/a/").unwrap(),
        KeyRange::key("/c/a").unwrap(),
        KeyRange::key("/c/none").unwrap(),
    ]
}

/// Keys, each with the length of its new value or, for a delete, none.
type Txn = Vec<(usize, Option<usize>)>;

#[derive(Clone, Debug)]
enum Event {
    /// A transaction, reported as it happens.
    Txn(Txn),
    /// Transactions that are not reported one by one: the state after them is.
    Missed(Vec<Txn>),
    /// The same state again.
    Again,
    /// Nothing changed up to now.
    Progress,
    /// A transaction that was reported before.
    Old,
    /// etcd goes back by so many revisions.
    Restored(i64),
    /// Another cluster.
    Replaced,
    /// The server restarts with nothing but the state.
    Restarted,
    /// A client comes that is so many revisions older than the log, and the past is looked at, while
    /// this happens.
    LookBack(i64, Txn),
    /// etcd forgets what led to the state so many revisions ago.
    Compacted(i64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let size = prop_oneof![Just(0usize), 1usize..20, Just(1000), Just(5000)];
    let edit = (0..KEYS.len(), proptest::option::weighted(0.6, size));
    let txn = proptest::collection::vec(edit, 1..4);
    let event = prop_oneof![
        20 => txn.clone().prop_map(Event::Txn),
        2 => proptest::collection::vec(txn.clone(), 0..4).prop_map(Event::Missed),
        1 => Just(Event::Again),
        2 => Just(Event::Progress),
        1 => Just(Event::Old),
        1 => (1i64..8).prop_map(Event::Restored),
        1 => Just(Event::Replaced),
        2 => Just(Event::Restarted),
        4 => (1i64..40, txn).prop_map(|(by, txn)| Event::LookBack(by, txn)),
        1 => (0i64..8).prop_map(Event::Compacted),
    ];
    proptest::collection::vec(event, 1..60)
}

struct World {
    etcd: ScriptedEtcd,
    writer: Writer,
    log: ChangeLog,
    backfill: Backfill,
    digest: Digest,
    /// Differences of states: the revisions inside are unknown.
    opaque: Vec<(Revision, Revision)>,
    /// Spans in which changes cancelled each other and were not reported. A reader from inside has a
    /// digest that the log does not know.
    unheard: Vec<(Revision, Revision)>,
    /// The revisions that were published since the history began.
    published: Vec<Revision>,
}

impl World {
    fn new() -> Self {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/a", "first");
        let writer = Writer::bounded(Self::state_of(&etcd, History::Continues), TOMBSTONES);
        let mut world = Self {
            log: ChangeLog::new(writer.snapshot().revision(), BUDGET).with_runs_of(RUN),
            backfill: Backfill::new(),
            digest: Digest::EMPTY,
            opaque: Vec::new(),
            unheard: Vec::new(),
            published: Vec::new(),
            etcd,
            writer,
        };
        world.anew();
        world
    }

    fn state_of(etcd: &ScriptedEtcd, history: History) -> State {
        State {
            epoch: etcd.epoch(),
            revision: etcd.revision(),
            entries: etcd.state(&prefix()),
            history,
            asked_at: None,
        }
    }

    fn anew(&mut self) {
        let floor = self.etcd.revision();
        self.log = ChangeLog::new(floor, BUDGET).with_runs_of(RUN);
        assert!(self.step(backfill::Event::Connected).is_none());
        assert!(self.step(backfill::Event::LogStarted { floor }).is_none());
        self.digest = self.etcd.state(&prefix()).iter().collect();
        self.opaque.clear();
        self.unheard.clear();
        self.published = vec![self.etcd.revision()];
    }

    fn txn(&self, txn: Txn) {
        self.etcd
            .txn(txn.into_iter().map(|(key, value)| match value {
                Some(len) => Op::put(KEYS[key], vec![b'v'; len]),
                None => Op::delete(KEYS[key]),
            }));
    }

    fn push(&mut self, batch: Batch) {
        assert!(!batch.changes.is_empty());
        assert!(
            batch
                .changes
                .is_sorted_by(|a, b| a.edit.key() < b.edit.key())
        );
        assert_eq!(batch.from, *self.published.last().unwrap());
        assert_eq!(batch.to, self.etcd.revision());
        self.digest += batch.sum_before(batch.changes.len());
        if batch.conflated {
            self.opaque.push((batch.from, batch.to));
        }
        self.log.push(Arc::new(EncodedBatch::new(batch, 0)));
    }

    fn replace(&mut self, history: History) {
        let anew = history == History::Replaced;
        match self.writer.replace(Self::state_of(&self.etcd, history)) {
            Replaced::Anew => {
                assert!(anew, "the history went on");
                self.anew();
            }
            Replaced::Continued(batch) => {
                assert!(batch.conflated && !anew);
                self.push(batch);
            }
            Replaced::Unchanged => {
                assert!(!anew);
                let from = *self.published.last().unwrap();
                self.unheard.push((from, self.etcd.revision()));
            }
        }
    }

    fn hear(&mut self, txn: Txn) {
        let before = self.etcd.state(&prefix());
        self.txn(txn);
        let at = self.etcd.revision();
        let edits = edits(before, self.etcd.state(&prefix()), at);
        if edits.is_empty() || at == *self.published.last().unwrap() {
            self.writer.advance(at);
        } else {
            let batch = self.writer.apply(at, edits).expect("it is newer");
            assert!(!batch.conflated);
            self.push(batch);
        }
    }

    fn step(&mut self, event: backfill::Event<'_>) -> Option<Action> {
        self.backfill.step(event, Instant::now())
    }

    fn backfill_due(&mut self) -> Option<Action> {
        let log = LogStart {
            floor: self.log.floor(),
            room: self.log.room(),
            is_empty: self.log.is_empty(),
        };
        let writer = &mut self.writer;
        let due = backfill::Event::Due { log, writer };
        self.backfill.step(due, Instant::now())
    }

    fn look_back(&mut self, by: i64, txn: Txn) {
        let floor = self.log.floor();
        let revision = Revision::new(floor.get() - by);
        let reachable = self.backfill.reachable();
        let Some(reach) = reachable.reach(revision) else {
            return;
        };
        let reaches = [reach].into_iter().collect();
        let requested = backfill::Event::Requested { reaches, floor };
        assert!(self.step(requested).is_none());
        if matches!(self.backfill.state(), backfill::State::Idle) {
            assert!(!self.backfill.reachable().contains(revision));
            return;
        }
        let Some(Action::Request(span)) = self.backfill_due() else {
            panic!("no request: {:?}", self.backfill);
        };
        assert!(span.after <= revision && span.up_to == floor);
        for event in self.etcd.backfill(span, &prefix()) {
            let failed = matches!(event, BackfillEvent::Failed { .. });
            let action = self.step(backfill::Event::Received(event));
            assert_eq!(action.is_some(), failed, "{action:?}");
            if failed {
                return;
            }
        }
        let deletes_floor = self.writer.snapshot().floor();
        let mut action = self.backfill_due();
        // The state changes while it is compared.
        self.hear(txn);
        if self.published.last() != Some(&self.etcd.revision()) {
            self.published.push(self.etcd.revision());
        }
        let (from, batches) = loop {
            match action {
                None => action = self.backfill_due(),
                Some(Action::Adopt { floor, batches, .. }) => break (floor, batches),
                other => panic!("not adopted: {other:?}"),
            }
        };
        let encode = |batch| Arc::new(EncodedBatch::new(batch, 0));
        let older = ChangeLog::of(from, batches.into_iter().map(encode));
        let dropped = self.log.prepend(older, span.up_to);
        let floor = dropped.as_ref().map(|_| self.log.floor());
        assert!(self.step(backfill::Event::Adopted { floor }).is_none());
        if dropped.is_none() {
            assert!(self.log.floor() > span.up_to, "it dropped its oldest batch");
            return;
        }
        assert!(self.writer.snapshot().floor() <= deletes_floor);
        let first = self.log.floor().min(span.up_to).get();
        let known = (first..self.published[0].get()).map(Revision::new);
        self.published = known.chain(self.published.iter().copied()).collect();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Txn(txn) => self.hear(txn),
            Event::Missed(txns) => {
                txns.into_iter().for_each(|txn| self.txn(txn));
                self.replace(History::Continues);
            }
            Event::Again => self.replace(History::Continues),
            Event::Progress => self.writer.advance(self.etcd.revision()),
            Event::Old => {
                let edits = vec![Edit::Delete {
                    key: Key::new(KEYS[1]).unwrap(),
                    mod_revision: self.etcd.revision(),
                }];
                let old = self.writer.apply(self.etcd.revision(), edits);
                assert!(old.is_none(), "it is not newer than the state");
            }
            Event::Restored(by) => {
                let to = (self.etcd.revision().get() - by).max(1);
                self.etcd.restore(Revision::new(to));
                self.replace(History::Replaced);
            }
            Event::Replaced => {
                let epoch = self.etcd.epoch();
                self.etcd.replace(Epoch::of_cluster(
                    if epoch == Epoch::of_cluster(1, "") {
                        2
                    } else {
                        1
                    },
                    "",
                ));
                // Another epoch is another history, whatever the source reports.
                match self
                    .writer
                    .replace(Self::state_of(&self.etcd, History::Continues))
                {
                    Replaced::Anew => self.anew(),
                    other => panic!("{other:?}"),
                }
            }
            Event::Restarted => {
                let state = Self::state_of(&self.etcd, History::Continues);
                self.writer = Writer::bounded(state, TOMBSTONES);
                self.anew();
            }
            Event::LookBack(by, txn) => self.look_back(by, txn),
            Event::Compacted(by) => {
                let to = self.etcd.revision().get() - by;
                self.etcd.compact(Revision::new(to));
            }
        }
        if self.published.last() != Some(&self.etcd.revision()) {
            self.published.push(self.etcd.revision());
        }
        self.check();
    }

    fn check(&self) {
        let now = self.writer.snapshot();
        assert_eq!(now.revision(), self.etcd.revision());
        assert_eq!(*now.epoch(), self.etcd.epoch());
        for range in ranges() {
            let expected = self.etcd.state(&range);
            let found = now.entries(&range, None);
            assert!(found.map(|stored| &stored.entry).eq(&expected), "{range}");
            let half = expected.get(expected.len() / 2).map(|entry| &entry.key);
            let after = now.entries(&range, half).count();
            assert_eq!(
                after,
                expected.len().saturating_sub(expected.len() / 2 + 1),
                "{range}"
            );
        }
        let from_scratch: Digest = self.etcd.state(&prefix()).iter().collect();
        assert_eq!(self.digest, from_scratch, "the deltas add up");
        self.check_changed();
        self.check_log();
        assert!(self.writer.tombstones_kept() <= TOMBSTONES);
    }

    /// The changes since every published state that is not too old lead to this one.
    fn check_changed(&self) {
        let now = self.writer.snapshot();
        for &since in self.published.iter().filter(|at| **at >= now.floor()) {
            let mut state = by_key(self.etcd.state_at(&prefix(), since).unwrap());
            let mut last = None;
            for (position, revision, key, changed) in now.changed(&Position::after(since)) {
                assert!(last < Some(position.clone()), "in order");
                last = Some(position.clone());
                assert!(since < revision && revision <= now.revision());
                let key = Key::new(key.clone()).unwrap();
                match changed {
                    Changed::Live(stored) => {
                        assert_eq!(
                            (&stored.entry.key, stored.entry.mod_revision),
                            (&key, revision)
                        );
                        assert!(
                            state
                                .insert(key, stored.entry.clone())
                                .is_none_or(|old| { old.mod_revision < revision }),
                            "nothing that the reader has already"
                        );
                    }
                    Changed::Gone => drop(state.remove(&key)),
                }
            }
            let expected = by_key(self.etcd.state(&prefix()));
            assert_eq!(state, expected, "what changed since {since}");
        }
    }

    fn check_log(&self) {
        assert!(self.log.bytes() <= BUDGET);
        let first = self.published[0];
        assert!(self.log.floor() >= first);
        for range in ranges() {
            let digest = |entries: Vec<Entry>| entries.iter().collect::<Digest>();
            let now = digest(self.etcd.state(&range));
            for revision in (first.get() - 1).max(0)..=self.etcd.revision().get() + 1 {
                let revision = Revision::new(revision);
                let inside = |(from, to): &(Revision, Revision)| *from < revision && revision < *to;
                let unknown = revision < self.log.floor() || self.opaque.iter().any(inside);
                let Some(mut search) = self.log.search(&range, revision) else {
                    assert!(unknown, "{range} at {revision}");
                    continue;
                };
                while !search.step() {}
                assert!(!unknown, "{range} at {revision}");
                if self.unheard.iter().any(inside) {
                    continue;
                }
                let then = self
                    .etcd
                    .state_at(&range, revision.min(self.etcd.revision()));
                assert_eq!(search.delta(), now - digest(then.unwrap()));
                let batches = self.log.batches_since(&range, revision, usize::MAX);
                let batches = batches.unwrap();
                assert!(batches.is_sorted_by(|a, b| a.to <= b.from));
                assert!(
                    batches
                        .iter()
                        .all(|batch| batch.to > revision && batch.within(&range).count() > 0)
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn store_and_log_match_a_model_of_etcd(events in events()) {
        let mut world = World::new();
        world.check();
        events.into_iter().for_each(|event| world.happen(event));
    }
}

fn state(revision: i64, entries: Vec<Entry>) -> State {
    State {
        epoch: Epoch::of_cluster(1, ""),
        revision: Revision::new(revision),
        entries,
        history: History::Continues,
        asked_at: None,
    }
}

#[test]
fn contradictory_state_starts_another_history() {
    let start = || {
        Writer::new(state(
            10,
            vec![entry("/c/a", "1", 5), entry("/c/b", "1", 5)],
        ))
    };
    // A later revision, but a value that differs and was not written since.
    let mut writer = start();
    let changed = state(20, vec![entry("/c/a", "2", 5), entry("/c/b", "1", 5)]);
    assert!(matches!(writer.replace(changed), Replaced::Anew));
    let older = state(20, vec![entry("/c/a", "0", 4), entry("/c/b", "1", 5)]);
    assert!(matches!(start().replace(older), Replaced::Anew));
    let new_but_old = state(
        20,
        vec![
            entry("/c/a", "1", 5),
            entry("/c/b", "1", 5),
            entry("/c/c", "1", 9),
        ],
    );
    assert!(matches!(start().replace(new_but_old), Replaced::Anew));
    // One revision, two states.
    let gone = state(10, vec![entry("/c/a", "1", 5)]);
    assert!(matches!(start().replace(gone), Replaced::Anew));
    // Values that were written since are fine.
    let later = state(20, vec![entry("/c/a", "2", 15)]);
    assert!(matches!(start().replace(later), Replaced::Continued(_)));
    // Nothing was lost.
    let start = Position::after(Revision::NONE);
    assert_eq!(writer.snapshot().changed(&start).count(), 2);
}
