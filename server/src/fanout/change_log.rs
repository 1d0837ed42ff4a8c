//! The change log of one prefix: a window of the latest batches within a budget of bytes.
//!
//! Each change holds what it did to the digest, so the digest of any range at any revision that the
//! log covers is today's minus the changes since. Encodings belong to the batches and are dropped
//! with them when the budget is used up: scopes only refer to batches.

use std::sync::Arc;

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use imbl::Vector;

use crate::encode::{EncodedBatch, EncodedPatch};

/// What the log knows about a range at an earlier revision.
#[derive(Debug)]
pub struct Past {
    /// The batches since that touch the range, oldest first.
    pub batches: Vec<Arc<EncodedBatch>>,
    /// The sum of what they did to the range's digest.
    pub delta: Digest,
}

/// The latest batches of one prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    batches: Vector<Arc<EncodedBatch>>,
    bytes: usize,
    budget: usize,
    floor: Revision,
}

impl ChangeLog {
    /// An empty log, which covers `floor` and what comes after it, within `budget` bytes.
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

    /// Bytes of batches that are not encoded yet ([`Batch::bytes`](crate::store::Batch::bytes)) that
    /// still fit before the log drops its oldest.
    pub const fn room(&self) -> usize {
        self.budget.saturating_sub(self.bytes) / 2
    }

    /// Adds a batch and drops the oldest until the budget is kept, the new one included if it is
    /// larger than the budget by itself. Returns what was dropped, so that the caller can free it
    /// outside its locks.
    pub fn push(&mut self, batch: Arc<EncodedBatch>) -> Vec<Arc<EncodedBatch>> {
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
        self.keep_budget()
    }

    /// Adds the patches that were computed for a batch, and drops the oldest batches until the budget
    /// is kept. Returns what was dropped. Only the published log of a prefix may do so.
    pub fn add_patches(
        &mut self,
        batch: &Arc<EncodedBatch>,
        patches: Vec<EncodedPatch>,
    ) -> Vec<Arc<EncodedBatch>> {
        let at = self.batches.binary_search_by(|held| held.to.cmp(&batch.to));
        let is_held = at.is_ok_and(|at| Arc::ptr_eq(&self.batches[at], batch));
        let before = batch.bytes();
        batch.add_patches(patches);
        if is_held {
            self.bytes += batch.bytes() - before;
        }
        self.keep_budget()
    }

    fn keep_budget(&mut self) -> Vec<Arc<EncodedBatch>> {
        let mut dropped = Vec::new();
        while self.bytes > self.budget {
            let Some(oldest) = self.drop_oldest() else {
                break;
            };
            dropped.push(oldest);
        }
        dropped
    }

    fn drop_oldest(&mut self) -> Option<Arc<EncodedBatch>> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= oldest.bytes();
        self.floor = oldest.to;
        Some(oldest)
    }

    /// True if the log holds no batch.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Puts older batches in front, oldest first, and drops the oldest until the budget is kept. The
    /// batches hold every change after `floor`, up to `up_to`. Returns what was dropped; `None`, and
    /// changes nothing, if the log does not begin at `up_to`.
    pub fn prepend(
        &mut self,
        floor: Revision,
        batches: Vector<Arc<EncodedBatch>>,
        bytes: usize,
        up_to: Revision,
    ) -> Option<Vec<Arc<EncodedBatch>>> {
        if self.floor != up_to {
            return None;
        }
        self.floor = floor;
        self.bytes += bytes;
        let newer = std::mem::replace(&mut self.batches, batches);
        self.batches.append(newer);
        Some(self.keep_budget())
    }

    /// The batches that touch `range` after `revision`. `None` if the log does not reach back that
    /// far, or the revision lies inside a difference of states, whose inside is unknown.
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

#[cfg(test)]
mod tests {
    use driftless_proto::Epoch;
    use driftless_proto::apply::Edit;

    use super::*;
    use crate::store::{History, State, Writer};
    use crate::testing::{entry, prefix};

    #[test]
    fn batch_larger_than_the_budget_empties_the_log() {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(10),
            entries: Vec::new(),
            history: History::Continues,
        });
        let mut log = ChangeLog::new(Revision::new(10), 10_000);
        let mut put = |revision, len: usize| {
            let entry = entry("/c/a", "v".repeat(len), revision);
            let batch = writer.apply(Revision::new(revision), vec![Edit::Put(entry)]);
            Arc::new(EncodedBatch::new(batch.unwrap(), 0))
        };
        assert!(log.push(put(11, 10)).is_empty());
        let dropped = log.push(put(12, 10_000));
        assert_eq!((dropped.len(), log.bytes()), (2, 0));
        assert_eq!(log.floor(), Revision::new(12));
        assert!(log.since(&prefix("/c/"), Revision::new(11)).is_none());
        assert!(log.since(&prefix("/c/"), Revision::new(12)).is_some());
    }
}
