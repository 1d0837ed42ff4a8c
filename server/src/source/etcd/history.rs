//! Verifies that etcd still has the history that it had before. Pure.
//!
//! An etcd that was restored from a backup can keep its cluster id, go back in revision and grow past
//! where it was. So a source keeps a few facts of the history and compares them on every reconnect. It
//! cannot see another history with the same last keys: the operator's generation in
//! [`Epoch`](driftless_proto::Epoch) is for that.

use std::collections::VecDeque;

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Key, Revision};
use tokio::time::Instant;

/// How many keys are compared: those of a few transactions, in one small request.
const RECENT: usize = 8;

/// Values up to this many bytes are compared byte for byte. Of larger ones only the revisions and the
/// version are, which keeps the request small.
const COMPARED_VALUE_BYTES: usize = 64 * 1024;

/// What is known of a history.
#[derive(Debug)]
pub(super) struct KnownHistory {
    cluster: u64,
    /// The highest revision that etcd reported.
    reached: Revision,
    /// The highest index of the raft log that a member reported as applied.
    applied: u64,
    /// The last changes, the latest last, each key once.
    recent: VecDeque<Edit>,
}

/// What etcd reports on connecting. All of it comes from one linearizable read, except `applied`,
/// which the same member reported after it.
#[derive(Debug)]
pub(super) struct Observation {
    /// When the read was sent.
    pub(super) asked_at: Instant,
    pub(super) cluster: u64,
    pub(super) revision: Revision,
    pub(super) applied: u64,
    /// The entries of the probed keys, in the order of the probes. The value is empty where only the
    /// key was read.
    pub(super) entries: Vec<Option<Entry>>,
}

/// A key to read again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) key: Key,
    /// Without the value.
    pub(super) key_only: bool,
}

/// Why etcd has another history than before.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum HistoryMismatch {
    #[error("another cluster answers (its id was {was:x} and is {is:x})")]
    OtherCluster { was: u64, is: u64 },
    #[error("its revision went back from {was} to {is}")]
    RevisionBack { was: Revision, is: Revision },
    #[error("its raft log went back from index {was} to {is}")]
    AppliedBack { was: u64, is: u64 },
    #[error("key {key} is not what it was")]
    KeyDiffers { key: Key },
}

impl KnownHistory {
    /// A history that was observed for the first time.
    pub(super) fn new(first: &Observation) -> Self {
        Self {
            cluster: first.cluster,
            reached: first.revision,
            applied: first.applied,
            recent: VecDeque::with_capacity(RECENT),
        }
    }

    /// The highest revision that etcd reported.
    pub(super) const fn reached(&self) -> Revision {
        self.reached
    }

    /// etcd reported this revision.
    pub(super) fn record_revision(&mut self, revision: Revision) {
        self.reached = self.reached.max(revision);
    }

    /// etcd reported this transaction.
    pub(super) fn record_changes(&mut self, revision: Revision, changes: &[Edit]) {
        self.record_revision(revision);
        for change in &changes[changes.len().saturating_sub(RECENT)..] {
            self.recent.retain(|known| known.key() != change.key());
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(change.clone());
        }
    }

    /// etcd reported this state: its latest keys replace those of before.
    pub(super) fn record_state(&mut self, revision: Revision, entries: &[Entry]) {
        self.record_revision(revision);
        self.recent.clear();
        let mut latest: Vec<&Entry> = Vec::with_capacity(RECENT + 1);
        for entry in entries {
            let at = latest.partition_point(|known| known.mod_revision <= entry.mod_revision);
            if at == 0 && latest.len() == RECENT {
                continue;
            }
            latest.insert(at, entry);
            if latest.len() > RECENT {
                latest.remove(0);
            }
        }
        self.recent
            .extend(latest.into_iter().cloned().map(Edit::Put));
    }

    /// The keys to read again.
    pub(super) fn probes(&self) -> Vec<Probe> {
        self.recent
            .iter()
            .map(|known| Probe {
                key: known.key().clone(),
                key_only: matches!(known, Edit::Put(entry) if entry.value.len() > COMPARED_VALUE_BYTES),
            })
            .collect()
    }

    /// Compares an observation, made with [`KnownHistory::probes`], with what is known. `position` is
    /// the revision up to which every change was reported.
    pub(super) fn verify(
        &self,
        position: Revision,
        now: &Observation,
    ) -> Result<(), HistoryMismatch> {
        if now.cluster != self.cluster {
            return Err(HistoryMismatch::OtherCluster {
                was: self.cluster,
                is: now.cluster,
            });
        }
        if now.revision < self.reached {
            return Err(HistoryMismatch::RevisionBack {
                was: self.reached,
                is: now.revision,
            });
        }
        if now.applied < self.applied {
            return Err(HistoryMismatch::AppliedBack {
                was: self.applied,
                is: now.applied,
            });
        }
        for (known, found) in self.recent.iter().zip(&now.entries) {
            if !follows(known, found.as_ref(), position, now.revision) {
                let key = known.key().clone();
                return Err(HistoryMismatch::KeyDiffers { key });
            }
        }
        Ok(())
    }

    /// The observation has the same history: records how far it is.
    pub(super) fn confirm(&mut self, now: &Observation) {
        self.record_revision(now.revision);
        self.applied = self.applied.max(now.applied);
    }
}

/// True if `found`, read at `now`, can follow `known`, which was the key's last change up to
/// `position`: it is unchanged, or it changed after `position`.
fn follows(known: &Edit, found: Option<&Entry>, position: Revision, now: Revision) -> bool {
    match (known, found) {
        (Edit::Put(known), Some(found)) if found.mod_revision == known.mod_revision => {
            found.create_revision == known.create_revision
                && found.version == known.version
                && (known.value.len() > COMPARED_VALUE_BYTES || found.value == known.value)
        }
        (Edit::Put(_), Some(found)) => found.mod_revision > position,
        (Edit::Put(_), None) => now > position,
        (Edit::Delete { .. }, Some(found)) => found.create_revision > position,
        (Edit::Delete { .. }, None) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str, create: i64, at: i64, version: i64) -> Entry {
        Entry {
            key: Key::new(key.to_owned()).unwrap(),
            value: value.to_owned().into(),
            create_revision: Revision::new(create),
            mod_revision: Revision::new(at),
            version,
        }
    }

    fn gone(key: &str, at: i64) -> Edit {
        Edit::Delete {
            key: Key::new(key.to_owned()).unwrap(),
            mod_revision: Revision::new(at),
        }
    }

    fn observation(revision: i64, entries: Vec<Option<Entry>>) -> Observation {
        Observation {
            asked_at: Instant::now(),
            cluster: 7,
            revision: Revision::new(revision),
            applied: 100,
            entries,
        }
    }

    /// Position 20: `a` was put at 10, `b` deleted at 12.
    fn known_history() -> KnownHistory {
        let mut known = KnownHistory::new(&observation(5, Vec::new()));
        known.record_changes(Revision::new(10), &[Edit::Put(entry("a", "x", 3, 10, 2))]);
        known.record_changes(Revision::new(12), &[gone("b", 12)]);
        known.record_revision(Revision::new(20));
        known
    }

    fn verify(now: &Observation) -> Result<(), HistoryMismatch> {
        known_history().verify(Revision::new(20), now)
    }

    fn differs(key: &str) -> Result<(), HistoryMismatch> {
        let key = Key::new(key.to_owned()).unwrap();
        Err(HistoryMismatch::KeyDiffers { key })
    }

    #[test]
    fn continued_history_is_accepted() {
        let a = || Some(entry("a", "x", 3, 10, 2));
        assert_eq!(verify(&observation(20, vec![a(), None])), Ok(()));
        assert_eq!(verify(&observation(25, vec![a(), None])), Ok(()));
        let later = Some(entry("a", "y", 3, 21, 3));
        let again = Some(entry("b", "y", 24, 25, 2));
        assert_eq!(verify(&observation(25, vec![later, again])), Ok(()));
        assert_eq!(
            verify(&observation(21, vec![None, None])),
            Ok(()),
            "deleted since"
        );
    }

    #[test]
    fn other_history_is_rejected() {
        let a = || Some(entry("a", "x", 3, 10, 2));
        let mut now = observation(20, vec![a(), None]);
        now.cluster = 8;
        assert_eq!(
            verify(&now),
            Err(HistoryMismatch::OtherCluster { was: 7, is: 8 })
        );
        let mut now = observation(20, vec![a(), None]);
        now.applied = 99;
        assert_eq!(
            verify(&now),
            Err(HistoryMismatch::AppliedBack { was: 100, is: 99 })
        );
        assert_eq!(
            verify(&observation(19, vec![a(), None])),
            Err(HistoryMismatch::RevisionBack {
                was: Revision::new(20),
                is: Revision::new(19)
            })
        );
        let cases = [
            (
                20,
                Some(entry("a", "y", 3, 10, 2)),
                None,
                "a",
                "another value",
            ),
            (
                20,
                Some(entry("a", "x", 3, 10, 3)),
                None,
                "a",
                "another version",
            ),
            (
                20,
                Some(entry("a", "x", 4, 10, 2)),
                None,
                "a",
                "created at another revision",
            ),
            (
                30,
                Some(entry("a", "x", 3, 9, 2)),
                None,
                "a",
                "an older change",
            ),
            (
                30,
                Some(entry("a", "x", 3, 20, 3)),
                None,
                "a",
                "a change that was never reported",
            ),
            (20, None, None, "a", "deleted without a change"),
            (
                30,
                a(),
                Some(entry("b", "x", 2, 21, 9)),
                "b",
                "never deleted",
            ),
            (
                30,
                a(),
                Some(entry("b", "x", 15, 15, 1)),
                "b",
                "created again, never reported",
            ),
        ];
        for (revision, a, b, key, what) in cases {
            assert_eq!(
                verify(&observation(revision, vec![a, b])),
                differs(key),
                "{what}"
            );
        }
    }

    #[test]
    fn latest_keys_are_kept_each_once() {
        let mut known = known_history();
        let entries: Vec<Entry> = (0..20)
            .map(|n| entry(&format!("k{n:02}"), "v", 1, 100 + (n * 7) % 20, 1))
            .collect();
        known.record_state(Revision::new(200), &entries);
        let mut revisions: Vec<i64> = known
            .recent
            .iter()
            .map(|known| match known {
                Edit::Put(entry) => entry.mod_revision.get(),
                Edit::Delete { .. } => unreachable!(),
            })
            .collect();
        assert_eq!(revisions, (112..120).collect::<Vec<_>>());
        assert_eq!(known.reached(), Revision::new(200));
        let last = known.recent.back().unwrap().key().clone();
        known.record_changes(
            Revision::new(201),
            &[Edit::Delete {
                key: last.clone(),
                mod_revision: Revision::new(201),
            }],
        );
        revisions.clear();
        assert_eq!(known.recent.len(), 8);
        assert_eq!(
            known
                .recent
                .iter()
                .filter(|known| *known.key() == last)
                .count(),
            1
        );
        let many: Vec<Edit> = (0..100).map(|n| gone(&format!("d{n:03}"), 202)).collect();
        known.record_changes(Revision::new(202), &many);
        assert_eq!(known.probes().len(), 8);
        assert_eq!(known.probes()[7].key.as_str(), Some("d099"));
        // A list replaces them.
        known.record_state(Revision::new(300), &entries[..3]);
        assert_eq!(known.probes().len(), 3);
    }

    #[test]
    fn large_values_are_compared_by_revision() {
        let mut known = known_history();
        let large = entry("l", &"v".repeat(COMPARED_VALUE_BYTES + 1), 21, 21, 1);
        known.record_changes(Revision::new(21), &[Edit::Put(large.clone())]);
        assert!(known.probes()[2].key_only);
        let without = Entry {
            value: bytes::Bytes::new(),
            ..large
        };
        let now = observation(
            21,
            vec![Some(entry("a", "x", 3, 10, 2)), None, Some(without)],
        );
        assert_eq!(known.verify(Revision::new(21), &now), Ok(()));
    }
}
