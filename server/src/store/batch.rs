//! What changed between two states of a prefix.

use std::ops::Range;
use std::sync::Arc;

use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};

use super::snapshot::Stored;

/// Estimated bytes of a change besides its key and value, so that a million deletes do not count as
/// nothing. 32 of them are for the change log's index.
const CHANGE_OVERHEAD: usize = 288;

/// Estimated bytes of a batch besides its changes. Measured with one small change in each: with its
/// encodings, for which everything counts twice, such a batch takes some 770 bytes on a 64-bit
/// machine (`heap.rs` among the server's tests checks that this still holds).
const BATCH_OVERHEAD: usize = 128;

/// The change of one key in one batch.
#[derive(Debug)]
pub struct Change {
    /// The change.
    pub edit: Edit,
    /// What this change and those before it in the batch did to the prefix's digest: the new entries'
    /// hashes minus the old ones'. So that what the changes of a range did costs one subtraction.
    pub sum: Digest,
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

/// The entry that a put replaced.
#[derive(Clone, Debug)]
pub struct OldValue {
    /// Index of the change in its batch.
    pub change: usize,
    /// The entry before the change.
    pub old: Arc<Stored>,
}

/// Everything that changed in the prefix between two revisions: one transaction, or the difference of
/// two states.
#[derive(Debug)]
pub struct Batch {
    /// The revision of the state before.
    pub from: Revision,
    /// The revision of the state after.
    pub to: Revision,
    /// True for the difference of two states, whose intermediate revisions are unknown.
    pub conflated: bool,
    /// At least one, in ascending order of keys, each key once.
    pub changes: Vec<Change>,
    /// The entries that a transaction's puts replaced, in the order of the changes. Empty for a
    /// difference of states: nobody may rely on what was in between.
    pub replaced: Vec<OldValue>,
}

impl Batch {
    /// The indices of the changes whose keys are in `range`.
    pub fn indices(&self, range: &KeyRange) -> Range<usize> {
        // The keys are sorted, so those of a range are one run.
        let start = self
            .changes
            .partition_point(|change| change.edit.key() < range.start());
        let in_range = |change: &Change| range.contains(change.edit.key().as_ref());
        start..start + self.changes[start..].partition_point(in_range)
    }

    /// The changes whose keys are in `range`.
    pub fn within(&self, range: &KeyRange) -> impl Iterator<Item = &Change> {
        self.changes[self.indices(range)].iter()
    }

    /// What the changes in `range` did to its digest.
    pub fn delta_within(&self, range: &KeyRange) -> Digest {
        let Range { start, end } = self.indices(range);
        self.sum_before(end) - self.sum_before(start)
    }

    /// What the changes before this index did to the prefix's digest.
    pub fn sum_before(&self, index: usize) -> Digest {
        let last = index.checked_sub(1).map(|last| self.changes[last].sum);
        last.unwrap_or(Digest::EMPTY)
    }

    /// Estimated bytes of the batch, without replaced entries.
    pub fn bytes(&self) -> usize {
        BATCH_OVERHEAD + self.changes.iter().map(Change::bytes).sum::<usize>()
    }
}
