//! The change log of one prefix: what changed lately, transaction by transaction, within a budget of
//! bytes.
//!
//! Each change holds its old and new entry hash, so the digest of any range at any revision that the
//! log covers is today's minus what changed since. Each is encoded once, when first needed. What has
//! to do with bytes lives here and goes with the batch when the budget is used up: scopes only refer
//! to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use imbl::Vector;

use crate::encode::{Fields, Frame};

/// What a change costs the log besides its key and value, in bytes. An estimate of the structures
/// around them, so that a million deletes do not count as nothing.
const CHANGE_OVERHEAD: usize = 256;

/// One key's change in one batch.
#[derive(Debug)]
pub struct Change {
    /// What it is.
    pub edit: Edit,
    /// What it did to the digest of every range that the key is in: the new entry's hash minus the
    /// old one's.
    pub delta: Digest,
    /// Its encoding as a field of a diff, made when first needed and shared from then on.
    pub encoded: OnceLock<Fields>,
}

impl Change {
    fn bytes(&self) -> usize {
        let value = match &self.edit {
            Edit::Put(entry) => entry.value.len(),
            Edit::Delete { .. } => 0,
        };
        CHANGE_OVERHEAD + self.edit.key().as_ref().len() + value
    }
}

/// All that changed in the prefix between two revisions: one transaction, or the difference of two
/// states.
#[derive(Debug)]
pub struct Batch {
    /// The revision of the state before.
    pub from: Revision,
    /// The revision of the state after.
    pub to: Revision,
    /// The difference of two states, whose intermediate revisions are unknown.
    pub conflated: bool,
    /// When etcd said so, in milliseconds on the server's clock.
    pub contact_ms: u64,
    /// In ascending order of keys, each key once.
    pub changes: Vec<Change>,
    /// By scope, each with the revision of the scope's change before this batch.
    frames: Mutex<HashMap<u64, (Revision, Arc<Frame>)>>,
}

impl Batch {
    /// A batch of at least one change.
    pub fn new(
        from: Revision,
        to: Revision,
        conflated: bool,
        contact_ms: u64,
        changes: Vec<Change>,
    ) -> Self {
        Self {
            from,
            to,
            conflated,
            contact_ms,
            changes,
            frames: Mutex::default(),
        }
    }

    /// The changes whose keys are in `range`.
    pub fn within(&self, range: &KeyRange) -> impl Iterator<Item = &Change> {
        // The keys are sorted, so a range is one run of them.
        let start = self
            .changes
            .partition_point(|change| change.edit.key() < range.start());
        self.changes[start..]
            .iter()
            .take_while(|change| range.contains(change.edit.key().as_ref()))
    }

    /// The frame for a scope (its id, and the revision of its change before this batch), made once
    /// for all its streams.
    pub fn frame(&self, scope: (u64, Revision), make: impl FnOnce() -> Frame) -> Arc<Frame> {
        let (scope, from) = scope;
        let mut frames = self.frames();
        match frames.get(&scope) {
            Some((made_for, frame)) if *made_for == from => Arc::clone(frame),
            _ => {
                let frame = Arc::new(make());
                frames.insert(scope, (from, Arc::clone(&frame)));
                frame
            }
        }
    }

    /// Lets go of the frame of a scope that has no more use for it: a batch outlives many scopes.
    pub fn forget(&self, scope: u64) {
        let frame = self.frames().remove(&scope);
        drop(frame);
    }

    fn frames(&self) -> MutexGuard<'_, HashMap<u64, (Revision, Arc<Frame>)>> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many frames are kept.
    #[cfg(test)]
    pub(crate) fn frame_count(&self) -> usize {
        self.frames().len()
    }

    fn bytes(&self) -> usize {
        // Twice: the entries, and the encoded frames that may come to hold copies of small ones.
        2 * self.changes.iter().map(Change::bytes).sum::<usize>()
    }
}

/// What the log knows about a range at an earlier revision.
#[derive(Debug)]
pub struct Past {
    /// What changed in the range since, oldest first: batches that touch it.
    pub batches: Vec<Arc<Batch>>,
    /// The sum of what they did to the range's digest.
    pub delta: Digest,
}

/// The latest batches of one prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    batches: Vector<Arc<Batch>>,
    bytes: usize,
    budget: usize,
    floor: Revision,
}

impl Log {
    /// Empty: covers `floor` and what comes after it, within `budget` bytes.
    pub fn new(floor: Revision, budget: usize) -> Self {
        Self {
            batches: Vector::new(),
            bytes: 0,
            budget,
            floor,
        }
    }

    /// The oldest revision whose state can be derived.
    pub const fn floor(&self) -> Revision {
        self.floor
    }

    /// Bytes held, by the log's own estimate.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a batch and drops the oldest until the budget is kept, the new one included when it is
    /// larger than the budget by itself. Returns what was dropped, so that the caller can let go of
    /// it outside its locks.
    pub fn push(&mut self, batch: Arc<Batch>) -> Vec<Arc<Batch>> {
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
        let mut dropped = Vec::new();
        while self.bytes > self.budget {
            let Some(oldest) = self.batches.pop_front() else {
                break;
            };
            self.bytes -= oldest.bytes();
            self.floor = oldest.to;
            dropped.push(oldest);
        }
        dropped
    }

    /// The batches that touch `range` after `revision`. `None` when the log does not reach back that
    /// far, or the revision lies inside a difference of states, whose inside nobody knows.
    ///
    /// Costs what changed in the prefix since.
    pub fn since(&self, range: &KeyRange, revision: Revision) -> Option<Past> {
        if revision < self.floor {
            return None;
        }
        let start = match self
            .batches
            .binary_search_by(|batch| batch.to.cmp(&revision))
        {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        let mut past = Past {
            batches: Vec::new(),
            delta: Digest::EMPTY,
        };
        for batch in self.batches.iter().skip(start) {
            if batch.conflated && batch.from < revision {
                return None;
            }
            let mut touched = false;
            for change in batch.within(range) {
                past.delta += change.delta;
                touched = true;
            }
            if touched {
                past.batches.push(Arc::clone(batch));
            }
        }
        Some(past)
    }
}
