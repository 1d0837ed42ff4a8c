//! The change log of one prefix: what changed lately, transaction by transaction, within a budget of
//! bytes.
//!
//! Each change holds its old and new entry hash, so the digest of any range at any revision that the
//! log covers is today's minus what changed since. Each is encoded once, when first needed. What has
//! to do with bytes lives here and goes with the batch when the budget is used up: scopes only refer
//! to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use imbl::Vector;

use super::past::Span;
use super::snapshot::{Snapshot, Stored};
use crate::encode::{Fields, Frame, Variant};

/// What a change costs the log besides its key and value, in bytes. An estimate of the structures
/// around them, so that a million deletes do not count as nothing.
const CHANGE_OVERHEAD: usize = 256;

/// What a batch costs the log besides its changes, in bytes: measured with one small change in each,
/// which are some 770 bytes together on a 64-bit machine (`heap.rs` among the server's tests asks
/// whether that still holds).
const BATCH_OVERHEAD: usize = 256;

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
    /// The same as a patch of what the key had before, where one was computed and pays.
    patch: OnceLock<Fields>,
}

impl Change {
    /// Not encoded yet.
    pub const fn new(edit: Edit, delta: Digest) -> Self {
        Self {
            edit,
            delta,
            encoded: OnceLock::new(),
            patch: OnceLock::new(),
        }
    }

    /// The change as a patch, if there is one.
    pub fn patch(&self) -> Option<&Fields> {
        self.patch.get()
    }

    fn bytes(&self) -> usize {
        let value = match &self.edit {
            Edit::Put(entry) => entry.value.len(),
            Edit::Delete { .. } => 0,
        };
        CHANGE_OVERHEAD + self.edit.key().as_ref().len() + value
    }
}

/// What a key had before it changed: what a patch of it would refer to.
#[derive(Clone, Debug)]
pub struct Base {
    /// Which of the batch's changes.
    pub change: usize,
    /// What the key had.
    pub old: Arc<Stored>,
}

/// A change's encoding as a patch.
#[derive(Debug)]
pub struct Patch {
    /// Which of the batch's changes.
    pub change: usize,
    /// As a field of a diff.
    pub encoded: Fields,
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
    /// What the changes of which a patch could pay refer to, in their order. Taken out before the
    /// batch is shared: an old value is kept for no longer than it takes to compute the delta.
    pub bases: Vec<Base>,
    /// Bytes of the patches, once there are any.
    patches: AtomicUsize,
    frames: Mutex<Frames>,
}

/// By scope and variant, each with the revision of the scope's change before the batch.
type Frames = HashMap<(u64, Variant), (Revision, Arc<Frame>)>;

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
            bases: Vec::new(),
            patches: AtomicUsize::new(0),
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

    /// Whether a change in `range` has a patch: if not, there is one variant of its frame.
    pub fn has_patch_within(&self, range: &KeyRange) -> bool {
        self.patches.load(Ordering::Acquire) > 0
            && self.within(range).any(|change| change.patch().is_some())
    }

    /// Takes over what was computed. Only [`Log::settle`] counts it.
    fn settle(&self, patches: Vec<Patch>) {
        let mut bytes = 0;
        for Patch { change, encoded } in patches {
            let len = encoded.len();
            if let Some(change) = self.changes.get(change)
                && change.patch.set(encoded).is_ok()
            {
                bytes += len;
            }
        }
        self.patches.fetch_add(bytes, Ordering::Release);
    }

    /// The frame for a scope (its id, and the revision of its change before this batch), made once
    /// for all its streams that take this variant.
    pub fn frame(
        &self,
        scope: (u64, Revision),
        variant: Variant,
        make: impl FnOnce() -> Frame,
    ) -> Arc<Frame> {
        let (scope, from) = scope;
        let mut frames = self.frames();
        match frames.get(&(scope, variant)) {
            Some((made_for, frame)) if *made_for == from => Arc::clone(frame),
            _ => {
                let frame = Arc::new(make());
                frames.insert((scope, variant), (from, Arc::clone(&frame)));
                frame
            }
        }
    }

    /// Lets go of the frames of a scope that has no more use for them: a batch outlives many scopes.
    pub fn forget(&self, scope: u64) {
        let gone = {
            let mut frames = self.frames();
            let gone = Variant::ALL.map(|variant| frames.remove(&(scope, variant)));
            // Most batches outlive their last frame by far, and a table keeps its room.
            let table = frames.is_empty().then(|| std::mem::take(&mut *frames));
            (gone, table)
        };
        drop(gone);
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many frames are kept.
    #[cfg(test)]
    pub(crate) fn frame_count(&self) -> usize {
        self.frames().len()
    }

    fn bytes(&self) -> usize {
        // Twice: the entries and patches, and their encodings, which hold copies of small ones. The
        // frames are the scopes', which bound them.
        let changes = self.changes.iter().map(Change::bytes).sum::<usize>();
        BATCH_OVERHEAD + 2 * (changes + self.patches.load(Ordering::Acquire))
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
    /// The floor at the start.
    origin: Revision,
    /// How many more times it is worth asking for what lies before the floor.
    asks: u8,
}

impl Log {
    /// Empty: covers `floor` and what comes after it, within `budget` bytes.
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

    /// Bytes that it may still come to hold before it drops what is oldest.
    pub const fn room(&self) -> usize {
        self.budget.saturating_sub(self.bytes)
    }

    /// Adds a batch and drops the oldest until the budget is kept, the new one included when it is
    /// larger than the budget by itself. Returns what was dropped, so that the caller can let go of
    /// it outside its locks.
    pub fn push(&mut self, batch: Arc<Batch>) -> Vec<Arc<Batch>> {
        self.bytes += batch.bytes();
        self.batches.push_back(batch);
        self.keep_budget()
    }

    /// Gives a batch the patches that were computed for it, and drops the oldest batches until the
    /// budget is kept. Returns what was dropped. One log of a prefix does that, the published one.
    pub fn settle(&mut self, batch: &Arc<Batch>, patches: Vec<Patch>) -> Vec<Arc<Batch>> {
        let at = self.batches.binary_search_by(|held| held.to.cmp(&batch.to));
        let is_held = at.is_ok_and(|at| Arc::ptr_eq(&self.batches[at], batch));
        let before = batch.bytes();
        batch.settle(patches);
        if is_held {
            self.bytes += batch.bytes() - before;
        }
        self.keep_budget()
    }

    fn keep_budget(&mut self) -> Vec<Arc<Batch>> {
        let mut dropped = Vec::new();
        while self.bytes > self.budget {
            let Some(oldest) = self.drop_oldest() else {
                break;
            };
            dropped.push(oldest);
        }
        dropped
    }

    fn drop_oldest(&mut self) -> Option<Arc<Batch>> {
        let oldest = self.batches.pop_front()?;
        self.bytes -= oldest.bytes();
        self.floor = oldest.to;
        // It is full, or older deletes are unknown: what lies before has no place any more.
        self.asks = 0;
        Some(oldest)
    }

    /// Drops what led to the state at `revision`.
    pub fn forget_before(&mut self, revision: Revision) {
        while self
            .batches
            .front()
            .is_some_and(|oldest| oldest.to <= revision)
        {
            self.drop_oldest();
        }
        self.floor = self.floor.max(revision);
        self.asks = 0;
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

    /// Puts in front what changed before, up to `up_to`, and drops the oldest until the budget is
    /// kept. Returns what was dropped; `None`, and no change, when the two do not meet.
    pub fn reach_back(&mut self, mut earlier: Self, up_to: Revision) -> Option<Vec<Arc<Batch>>> {
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
