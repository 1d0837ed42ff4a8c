//! What pinned states are said to cost, compared with what they keep.

use std::collections::BTreeMap;

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Epoch, Key, Revision};
use proptest::prelude::*;

use super::*;
use crate::encode::{Chunk, ChunkCache, SyncKind, SyncReader};
use crate::store::{History, State, Stored, Writer};
use crate::testing::{entry, prefix};

const KIB: usize = 1024;

/// More than is estimated of a change besides its value.
const OVERHEAD: i64 = 4 * KIB as i64;

/// A prefix whose state changes, and who reads it.
struct World {
    writer: Writer,
    pinned: PinnedOfPrefix,
    metrics: Metrics,
    readers: Vec<Option<(Snapshot, Arc<SyncResponse>)>>,
}

impl World {
    /// A state of so many keys of 100 KiB.
    fn new(keys: usize, budget: usize) -> Self {
        let metrics = Metrics::new();
        let pinned = PinnedStates::new(budget, metrics.clone()).add_prefix();
        Self::of(keys, pinned, metrics)
    }

    fn of(keys: usize, pinned: PinnedOfPrefix, metrics: Metrics) -> Self {
        let writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: (0..keys)
                .map(|key| entry(&name(key), value(0), 1))
                .collect(),
            history: History::Continues,
            asked_at: None,
        });
        pinned.published(writer.snapshot().overwritten());
        Self {
            writer,
            pinned,
            metrics,
            readers: Vec::new(),
        }
    }

    fn begin(&mut self) -> usize {
        let root = self.writer.snapshot().clone();
        let response = SyncResponse::new(
            root.clone(),
            prefix("/c/"),
            SyncKind::Snapshot { reset: false },
            Digest::EMPTY,
            0,
            Arc::new(ChunkCache::new(0)),
            &self.pinned,
        );
        self.readers.push(Some((root, response)));
        self.readers.len() - 1
    }

    fn edit(&mut self, edits: impl FnOnce(Revision) -> Vec<Edit>) {
        let revision = self.writer.snapshot().revision().next();
        self.writer.apply(revision, edits(revision));
        let overwritten = self.writer.snapshot().overwritten();
        self.pinned.published(overwritten);
    }

    /// Writes the first keys anew.
    fn rewrite(&mut self, keys: usize) {
        self.edit(|revision| {
            let put = |key| Edit::Put(entry(&name(key), value(revision.get()), revision.get()));
            (0..keys).map(put).collect()
        });
    }

    fn delete(&mut self, key: usize) {
        self.edit(|mod_revision| {
            let key = Key::new(name(key)).unwrap();
            vec![Edit::Delete { key, mod_revision }]
        });
    }

    fn cost(&self) -> i64 {
        self.metrics.pinned_bytes.get()
    }

    /// In units of a key of 100 KiB.
    fn keys(&self) -> i64 {
        let (cost, key) = (self.cost(), 100 * KIB as i64);
        let keys = cost / key;
        assert!(cost % key <= keys * OVERHEAD, "{cost}");
        keys
    }

    /// What is kept only for the readers, by a walk over all states.
    fn kept(&self) -> i64 {
        let all = prefix("/c/");
        let of = |root: &Snapshot| {
            let entries = root.entries(&all, None);
            let entry = |stored: &Arc<Stored>| {
                let bytes = stored.entry.key.as_ref().len() + stored.entry.value.len();
                (Arc::as_ptr(stored), bytes as i64)
            };
            entries.map(entry).collect::<BTreeMap<_, _>>()
        };
        let readers = self.readers.iter().flatten();
        let readers = readers.filter(|(_, response)| !response.is_revoked());
        let mut kept: BTreeMap<_, _> = readers.flat_map(|(root, _)| of(root)).collect();
        for current in of(self.writer.snapshot()).keys() {
            kept.remove(current);
        }
        kept.values().sum()
    }
}

fn name(key: usize) -> String {
    format!("/c/{key:03}")
}

fn value(seed: i64) -> Vec<u8> {
    vec![seed as u8; 100 * KIB]
}

#[test]
fn pinned_state_costs_what_is_overwritten() {
    let mut world = World::new(10, usize::MAX);
    world.rewrite(10);
    assert_eq!(world.cost(), 0, "nobody reads");
    world.begin();
    assert_eq!(world.cost(), 0, "nothing is overwritten");
    world.rewrite(3);
    assert_eq!(world.keys(), 3);
    world.delete(7);
    assert_eq!(world.keys(), 4);
    for _ in 0..5 {
        world.rewrite(10);
    }
    assert_eq!(world.keys(), 10, "no more than all it has");
    world.readers.clear();
    assert_eq!(world.cost(), 0);
}

#[test]
fn overwritten_value_is_counted_once_for_all_readers() {
    let mut world = World::new(10, usize::MAX);
    for _ in 0..50 {
        world.begin();
    }
    world.rewrite(10);
    assert_eq!(world.keys(), 10, "they read the same");
    for _ in 0..50 {
        world.begin();
    }
    world.rewrite(4);
    assert_eq!(world.keys(), 14);
    // Those in between were of both.
    world.begin();
    world.rewrite(10);
    assert_eq!(world.keys(), 24);
    world.readers.drain(50..100);
    assert_eq!(world.keys(), 20, "of the first, and of the last");
    world.readers.drain(..50);
    assert_eq!(world.keys(), 10);
}

/// Regression: each slow reader kept the state at which it had begun.
#[test]
fn oldest_is_revoked_beyond_the_budget() {
    const BUDGET: usize = 35 * 100 * KIB;
    let mut world = World::new(10, BUDGET);
    for round in 0..50 {
        let number = world.begin();
        assert_eq!(number, round);
        world.rewrite(10);
        assert!(world.cost() <= BUDGET as i64);
        assert!(world.kept() <= BUDGET as i64);
        let revoked = world.readers.iter().flatten();
        let revoked: Vec<_> = revoked.map(|(_, it)| it.is_revoked()).collect();
        let left = revoked.iter().filter(|it| !**it).count();
        assert_eq!(left, (round + 1).min(3));
        assert!(
            revoked[..round + 1 - left].iter().all(|it| *it),
            "the oldest"
        );
    }
    // Nothing that they had is counted twice.
    world.readers.clear();
    assert_eq!(world.cost(), 0);
}

/// A reader that is never asked for more lets go of nothing by itself.
#[test]
fn revoked_state_is_freed_from_outside() {
    let mut world = World::new(10, 5 * 100 * KIB);
    world.begin();
    let (root, response) = world.readers[0].take().unwrap();
    let first = Key::new(name(0)).unwrap();
    let value = Arc::downgrade(root.get(&first).unwrap());
    drop(root);
    let mut reader = SyncReader::new(response);
    assert!(matches!(reader.next(&world.metrics), Chunk::Ready(_)));
    world.rewrite(4);
    assert!(value.upgrade().is_some());
    world.rewrite(4);
    assert!(value.upgrade().is_none(), "although the reader is there");
    assert!(matches!(reader.next(&world.metrics), Chunk::Revoked));
}

#[test]
fn state_that_never_changes_is_not_revoked_for_another() {
    let metrics = Metrics::new();
    let states = PinnedStates::new(15 * 100 * KIB, metrics.clone());
    let mut quiet = World::of(10, states.add_prefix(), metrics.clone());
    let mut busy = World::of(10, states.add_prefix(), metrics);
    quiet.begin();
    let revoked = |world: &World, reader: usize| {
        let (_, response) = world.readers[reader].as_ref().unwrap();
        response.is_revoked()
    };
    for _ in 0..3 {
        busy.begin();
        busy.rewrite(10);
    }
    assert!(!revoked(&quiet, 0) && revoked(&busy, 0) && revoked(&busy, 1));
    assert!(!revoked(&busy, 2));
    // One budget for both: the one that is older gives way.
    quiet.rewrite(10);
    assert!(revoked(&quiet, 0) && !revoked(&busy, 2));
}

/// Its keys are of no use to the new history, whatever the keys are.
#[test]
fn state_of_a_replaced_history_costs_all_it_has() {
    let mut world = World::new(10, usize::MAX);
    world.begin();
    world.writer.replace(State {
        epoch: Epoch::of_cluster(2, ""),
        revision: Revision::new(1),
        entries: vec![entry("/c/other", "value", 1)],
        history: History::Replaced,
        asked_at: None,
    });
    let overwritten = world.writer.snapshot().overwritten();
    world.pinned.published(overwritten);
    assert_eq!(world.keys(), 10);
    assert!(world.cost() >= world.kept());
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    End(prop::sample::Index),
    Put(usize),
    Rewrite(usize),
    Delete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Begin),
        2 => any::<prop::sample::Index>().prop_map(Step::End),
        3 => (0..12_usize).prop_map(Step::Put),
        1 => (0..12_usize).prop_map(Step::Rewrite),
        1 => (0..12_usize).prop_map(Step::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn cost_is_never_less_than_what_is_kept(
        steps in prop::collection::vec(step(), 1..60),
        budget in prop_oneof![Just(usize::MAX), Just(1500 * KIB)],
    ) {
        let mut world = World::new(8, budget);
        for step in steps {
            match step {
                Step::Begin => {
                    world.begin();
                }
                Step::End(index) if !world.readers.is_empty() => {
                    let at = index.index(world.readers.len());
                    world.readers.remove(at);
                }
                Step::End(_) => {}
                Step::Put(key) => world.edit(|revision| {
                    vec![Edit::Put(entry(&name(key), value(revision.get()), revision.get()))]
                }),
                Step::Rewrite(keys) => world.rewrite(keys),
                Step::Delete(key) => world.delete(key),
            }
            prop_assert!(world.cost() >= world.kept());
            prop_assert!(world.cost() <= i64::try_from(budget).unwrap_or(i64::MAX));
        }
        world.readers.clear();
        prop_assert_eq!(world.cost(), 0);
    }
}
