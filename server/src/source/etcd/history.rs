//! Whether etcd still tells the history that it told before. Pure.
//!
//! An etcd that was restored from a backup can keep its cluster's id, go back in revision and grow
//! past where it was. So a source remembers a little of what it knew and compares on every
//! reconnect. What it cannot see (another history with the same last keys) is what the operator's
//! generation in [`Epoch`](driftless_proto::Epoch) is for.

use std::collections::VecDeque;

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Key, Revision};

/// How many keys are remembered: those of some transactions, in one small request.
const RECENT: usize = 8;

/// Values up to this many bytes are compared byte for byte; of larger ones the revisions and the
/// version are, which keeps the request small.
const COMPARED_VALUE_BYTES: usize = 64 * 1024;

/// What is remembered of a history.
#[derive(Debug)]
pub(super) struct Memory {
    cluster: u64,
    /// The highest revision that it is known to have.
    reached: Revision,
    /// The highest index of the raft log that it is known to have applied.
    applied: u64,
    /// The last keys that changed and what was left of them, the latest last, each key once.
    recent: VecDeque<Edit>,
}

/// What etcd says of itself, all by one linearizable read, except for `applied`, which was asked of
/// the same member after it.
#[derive(Debug)]
pub(super) struct Sighting {
    pub(super) cluster: u64,
    pub(super) revision: Revision,
    pub(super) applied: u64,
    /// What is under the keys that were asked for, in their order. The value is empty where only
    /// the key was asked for.
    pub(super) entries: Vec<Option<Entry>>,
}

/// A key to read again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) key: Key,
    /// Without the value.
    pub(super) key_only: bool,
}

/// Why this is another history.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Doubt {
    #[error("another cluster answers (its id was {was:x} and is {is:x})")]
    OtherCluster { was: u64, is: u64 },
    #[error("its revision went back from {was} to {is}")]
    RevisionBack { was: Revision, is: Revision },
    #[error("its raft log went back from index {was} to {is}")]
    AppliedBack { was: u64, is: u64 },
    #[error("key {key} is not what it was")]
    KeyDiffers { key: Key },
}

impl Memory {
    /// Of a history that was just met.
    pub(super) fn new(sighting: &Sighting) -> Self {
        Self {
            cluster: sighting.cluster,
            reached: sighting.revision,
            applied: sighting.applied,
            recent: VecDeque::with_capacity(RECENT),
        }
    }

    pub(super) const fn reached(&self) -> Revision {
        self.reached
    }

    /// etcd was seen at this revision.
    pub(super) fn reach(&mut self, revision: Revision) {
        self.reached = self.reached.max(revision);
    }

    /// A transaction was heard.
    pub(super) fn heard(&mut self, revision: Revision, changes: &[Edit]) {
        self.reach(revision);
        for change in &changes[changes.len().saturating_sub(RECENT)..] {
            self.recent.retain(|seen| seen.key() != change.key());
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(change.clone());
        }
    }

    /// A state was read: its latest keys are remembered.
    pub(super) fn read(&mut self, revision: Revision, entries: &[Entry]) {
        self.reach(revision);
        self.recent.clear();
        let mut latest: Vec<&Entry> = Vec::with_capacity(RECENT + 1);
        for entry in entries {
            let at = latest.partition_point(|seen| seen.mod_revision <= entry.mod_revision);
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

    /// What to read again.
    pub(super) fn probes(&self) -> Vec<Probe> {
        self.recent
            .iter()
            .map(|seen| Probe {
                key: seen.key().clone(),
                key_only: matches!(seen, Edit::Put(entry) if entry.value.len() > COMPARED_VALUE_BYTES),
            })
            .collect()
    }

    /// Compares what etcd says now, for [`Memory::probes`] as they were, with what is remembered.
    /// `heard` is the revision up to which every change was heard.
    pub(super) fn judge(&self, heard: Revision, now: &Sighting) -> Result<(), Doubt> {
        if now.cluster != self.cluster {
            return Err(Doubt::OtherCluster {
                was: self.cluster,
                is: now.cluster,
            });
        }
        if now.revision < self.reached {
            return Err(Doubt::RevisionBack {
                was: self.reached,
                is: now.revision,
            });
        }
        if now.applied < self.applied {
            return Err(Doubt::AppliedBack {
                was: self.applied,
                is: now.applied,
            });
        }
        for (seen, found) in self.recent.iter().zip(&now.entries) {
            if !follows(seen, found.as_ref(), heard, now.revision) {
                let key = seen.key().clone();
                return Err(Doubt::KeyDiffers { key });
            }
        }
        Ok(())
    }

    /// The history is the same: remembers how far it has come.
    pub(super) fn confirm(&mut self, now: &Sighting) {
        self.reach(now.revision);
        self.applied = self.applied.max(now.applied);
    }
}

/// Whether `found`, read at `now`, can be what became of `seen`, which was the key's last change up
/// to `heard`: either it is the same still, or it changed after that.
fn follows(seen: &Edit, found: Option<&Entry>, heard: Revision, now: Revision) -> bool {
    match (seen, found) {
        (Edit::Put(seen), Some(found)) if found.mod_revision == seen.mod_revision => {
            found.create_revision == seen.create_revision
                && found.version == seen.version
                && (seen.value.len() > COMPARED_VALUE_BYTES || found.value == seen.value)
        }
        (Edit::Put(_), Some(found)) => found.mod_revision > heard,
        (Edit::Put(_), None) => now > heard,
        (Edit::Delete { .. }, Some(found)) => found.create_revision > heard,
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

    fn sighting(revision: i64, entries: Vec<Option<Entry>>) -> Sighting {
        Sighting {
            cluster: 7,
            revision: Revision::new(revision),
            applied: 100,
            entries,
        }
    }

    /// Heard up to 20: `a` was put at 10, `b` deleted at 12.
    fn memory() -> Memory {
        let mut memory = Memory::new(&sighting(5, Vec::new()));
        memory.heard(Revision::new(10), &[Edit::Put(entry("a", "x", 3, 10, 2))]);
        memory.heard(Revision::new(12), &[gone("b", 12)]);
        memory.reach(Revision::new(20));
        memory
    }

    fn judge(now: &Sighting) -> Result<(), Doubt> {
        memory().judge(Revision::new(20), now)
    }

    fn differs(key: &str) -> Result<(), Doubt> {
        let key = Key::new(key.to_owned()).unwrap();
        Err(Doubt::KeyDiffers { key })
    }

    #[test]
    fn the_same_history_goes_on() {
        let a = || Some(entry("a", "x", 3, 10, 2));
        assert_eq!(judge(&sighting(20, vec![a(), None])), Ok(()));
        assert_eq!(judge(&sighting(25, vec![a(), None])), Ok(()));
        let later = Some(entry("a", "y", 3, 21, 3));
        let again = Some(entry("b", "y", 24, 25, 2));
        assert_eq!(judge(&sighting(25, vec![later, again])), Ok(()));
        assert_eq!(
            judge(&sighting(21, vec![None, None])),
            Ok(()),
            "deleted since"
        );
    }

    #[test]
    fn another_history_is_noticed() {
        let a = || Some(entry("a", "x", 3, 10, 2));
        let mut now = sighting(20, vec![a(), None]);
        now.cluster = 8;
        assert_eq!(judge(&now), Err(Doubt::OtherCluster { was: 7, is: 8 }));
        let mut now = sighting(20, vec![a(), None]);
        now.applied = 99;
        assert_eq!(judge(&now), Err(Doubt::AppliedBack { was: 100, is: 99 }));
        assert_eq!(
            judge(&sighting(19, vec![a(), None])),
            Err(Doubt::RevisionBack {
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
                "made at another time",
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
                "a change that was never heard",
            ),
            (20, None, None, "a", "gone without a change"),
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
                "made again, never heard",
            ),
        ];
        for (revision, a, b, key, what) in cases {
            assert_eq!(
                judge(&sighting(revision, vec![a, b])),
                differs(key),
                "{what}"
            );
        }
    }

    #[test]
    fn the_latest_keys_are_remembered_each_once() {
        let mut memory = memory();
        let entries: Vec<Entry> = (0..20)
            .map(|n| entry(&format!("k{n:02}"), "v", 1, 100 + (n * 7) % 20, 1))
            .collect();
        memory.read(Revision::new(200), &entries);
        let mut revisions: Vec<i64> = memory
            .recent
            .iter()
            .map(|seen| match seen {
                Edit::Put(entry) => entry.mod_revision.get(),
                Edit::Delete { .. } => unreachable!(),
            })
            .collect();
        assert_eq!(revisions, (112..120).collect::<Vec<_>>());
        assert_eq!(memory.reached(), Revision::new(200));
        let last = memory.recent.back().unwrap().key().clone();
        memory.heard(
            Revision::new(201),
            &[Edit::Delete {
                key: last.clone(),
                mod_revision: Revision::new(201),
            }],
        );
        revisions.clear();
        assert_eq!(memory.recent.len(), 8);
        assert_eq!(
            memory
                .recent
                .iter()
                .filter(|seen| *seen.key() == last)
                .count(),
            1
        );
        let many: Vec<Edit> = (0..100).map(|n| gone(&format!("d{n:03}"), 202)).collect();
        memory.heard(Revision::new(202), &many);
        assert_eq!(memory.probes().len(), 8);
        assert_eq!(memory.probes()[7].key.as_str(), Some("d099"));
        // A new list takes the place of all that.
        memory.read(Revision::new(300), &entries[..3]);
        assert_eq!(memory.probes().len(), 3);
    }

    #[test]
    fn large_values_are_not_read_again() {
        let mut memory = memory();
        let large = entry("l", &"v".repeat(COMPARED_VALUE_BYTES + 1), 21, 21, 1);
        memory.heard(Revision::new(21), &[Edit::Put(large.clone())]);
        assert!(memory.probes()[2].key_only);
        let without = Entry {
            value: bytes::Bytes::new(),
            ..large
        };
        let now = sighting(
            21,
            vec![Some(entry("a", "x", 3, 10, 2)), None, Some(without)],
        );
        assert_eq!(memory.judge(Revision::new(21), &now), Ok(()));
    }
}
