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
use crate::store::{PastBatches, Snapshot, Span};

/// How many revisions before the state at the start are asked for at most, whatever client presents:
/// etcd reads all of them into memory, those of other prefixes too, and takes some 10 s for as many
/// that are of this one.
const MOST_BACK: i64 = 100_000;

/// How many are asked for at least, so that a client that is a little older than the first ones to
/// come back need not ask again: etcd sends as many at a time.
const LEAST_BACK: i64 = 1_000;

/// How often a log asks for what lies before it: once for the crowd that comes back, once for those
/// that were away for longer, and once more if something broke.
const ASKS: u8 = 3;

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
    /// The floor at the start.
    origin: Revision,
    /// How many more times it is worth asking for what lies before the floor.
    asks: u8,
}

impl ChangeLog {
    /// An empty log, which covers `floor` and what comes after it, within `budget` bytes.
    pub fn new(floor: Revision, budget: usize) -> Self {
        Self {
            batches: Vector::new(),
            bytes: 0,
            budget,
            floor,
            origin: floor,
            asks: ASKS,
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
        // The log is full: there is no room for what lies before it.
        self.asks = 0;
        Some(oldest)
    }

    /// Whether a source could still say what changed after `revision`, which lies before the floor.
    pub fn may_reach(&self, revision: Revision) -> bool {
        self.asks > 0 && self.farthest() <= revision && revision < self.floor
    }

    /// The earliest revision that is worth asking for.
    fn farthest(&self) -> Revision {
        Revision::new((self.origin.get() - MOST_BACK).max(1))
    }

    /// What to ask a source for, so that the log comes to reach back to `revision`. Counts: there
    /// are not many tries. `snapshot` is the state now.
    pub fn ask_back(&mut self, revision: Revision, snapshot: &Snapshot) -> Option<Span> {
        if !self.may_reach(revision) {
            return None;
        }
        self.asks -= 1;
        let farthest = self.farthest();
        let after = if self.floor == self.origin {
            let near = Revision::new(self.floor.get() - LEAST_BACK);
            revision.min(near).max(farthest)
        } else {
            // Clients of all ages keep coming: the next time is the last.
            self.asks = 0;
            farthest
        };
        Some(Span {
            after,
            up_to: self.floor,
            last_put: self.batches.is_empty().then(|| snapshot.last_put()),
        })
    }

    /// A log of what changed before another one begins, as etcd reported it at `contact_ms`.
    pub fn of_past(past: PastBatches, contact_ms: u64) -> Self {
        let mut log = Self::new(past.floor(), usize::MAX);
        if !past.is_complete() {
            log.asks = 0;
        }
        for batch in past.into_batches() {
            log.push(Arc::new(EncodedBatch::new(batch, contact_ms)));
        }
        log
    }

    /// Puts in front what changed before, up to `up_to`, and drops the oldest until the budget is
    /// kept. Returns what was dropped; `None`, and no change, when the two do not meet.
    pub fn reach_back(
        &mut self,
        mut earlier: Self,
        up_to: Revision,
    ) -> Option<Vec<Arc<EncodedBatch>>> {
        if self.floor != up_to {
            return None;
        }
        self.floor = earlier.floor;
        self.bytes += earlier.bytes;
        self.asks = self.asks.min(earlier.asks);
        earlier.batches.append(std::mem::take(&mut self.batches));
        self.batches = earlier.batches;
        Some(self.keep_budget())
    }

    /// Nothing that lies before the floor is worth asking for any more.
    pub const fn give_up_back(&mut self) {
        self.asks = 0;
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
