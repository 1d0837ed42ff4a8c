//! Changes that are held back until their deltas are computed.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::v1::DeltaOp;
use driftless_proto::{MAX_VALUE_BYTES, Revision};

use super::scope::Scope;
use crate::delta::{self, ValuePair};
use crate::encode::{EncodedBatch, EncodedPatch};
use crate::metrics::Metrics;
use crate::store::{Batch, OldValue};

/// How many batches of a prefix may wait for their deltas. More than that, as in a flood of changes,
/// are sent without deltas.
const MOST: usize = 256;

/// How many bytes of old and new values may wait in a prefix: two values of the longest there are.
/// Without the job, the old ones could be freed.
const MOST_BYTES: usize = 2 * MAX_VALUE_BYTES;

/// A batch whose deltas are being computed, and the scopes that wait for them.
#[derive(Debug)]
#[must_use = "streams wait until it is resolved"]
pub struct PendingDelta {
    pub(super) batch: Arc<EncodedBatch>,
    pub(super) scopes: Vec<Weak<Scope>>,
    replaced: Vec<OldValue>,
    /// Bytes of the replaced values and of the values that came after them.
    bytes: usize,
}

impl PendingDelta {
    /// The work: the values to compare, and what encodes the deltas found for them. The old values
    /// go with it: they are kept no longer than the work takes.
    pub fn take_work(&mut self) -> (Vec<ValuePair>, PatchEncoder) {
        let replaced = std::mem::take(&mut self.replaced);
        let pairs = replaced.iter().map(|replaced| ValuePair {
            old: replaced.old.entry.value.clone(),
            new: new_value(&self.batch, replaced)
                .cloned()
                .unwrap_or_default(),
        });
        let bases = replaced
            .iter()
            .map(|replaced| (replaced.change, replaced.old.entry.mod_revision));
        let encoder = PatchEncoder {
            batch: Arc::clone(&self.batch),
            bases: bases.collect(),
        };
        (pairs.collect(), encoder)
    }

    /// The keys whose old values are still held.
    #[cfg(test)]
    pub(super) fn keys(&self) -> impl Iterator<Item = String> {
        let changes = self
            .replaced
            .iter()
            .map(|old| &self.batch.changes[old.change]);
        changes.map(|change| change.edit.key().to_string())
    }
}

/// Encodes the deltas of one batch as patches.
#[derive(Debug)]
pub struct PatchEncoder {
    batch: Arc<EncodedBatch>,
    /// For each pair of values: which change it belongs to, and the revision of the old value.
    bases: Vec<(usize, Revision)>,
}

impl PatchEncoder {
    /// Encodes the delta of the pair with this index. `None` if there is no such pair.
    pub fn encode(
        &self,
        pair: usize,
        ops: Vec<DeltaOp>,
        metrics: &Metrics,
    ) -> Option<EncodedPatch> {
        let (change, base) = *self.bases.get(pair)?;
        self.batch.encode_patch(change, base, ops, metrics)
    }
}

/// The batches of a prefix whose deltas are not known yet.
#[derive(Debug, Default)]
pub(super) struct PendingDeltas {
    /// Those whose work was not taken yet.
    new: Vec<PendingDelta>,
    count: usize,
    bytes: usize,
}

impl PendingDeltas {
    /// Drops the old values for which there is no room. Returns whether there were any.
    pub(super) fn drop_excess(&self, batch: &Batch, replaced: &mut Vec<OldValue>) -> bool {
        let before = replaced.len();
        let mut room = match self.count {
            0..MOST => MOST_BYTES - self.bytes,
            _ => 0,
        };
        replaced.retain(|replaced| {
            let left = room.checked_sub(bytes(batch, replaced));
            room = left.unwrap_or(room);
            left.is_some()
        });
        replaced.len() < before
    }

    /// Adds a batch. There is room for its old values.
    pub(super) fn add(
        &mut self,
        batch: Arc<EncodedBatch>,
        replaced: Vec<OldValue>,
        scopes: Vec<Weak<Scope>>,
    ) {
        let bytes = replaced.iter().map(|old| bytes(&batch, old)).sum();
        self.count += 1;
        self.bytes += bytes;
        self.new.push(PendingDelta {
            batch,
            scopes,
            replaced,
            bytes,
        });
    }

    /// Those that were added since the last call.
    pub(super) fn take_new(&mut self) -> Vec<PendingDelta> {
        std::mem::take(&mut self.new)
    }

    /// This one is resolved.
    pub(super) const fn remove(&mut self, resolved: &PendingDelta) {
        self.count -= 1;
        self.bytes -= resolved.bytes;
    }
}

/// Which deltas of a batch are wanted, and by which scopes.
pub(super) struct WantedDeltas<'a> {
    batch: &'a Batch,
    replaced: &'a [OldValue],
    which: Vec<bool>,
    scopes: Vec<Weak<Scope>>,
}

impl<'a> WantedDeltas<'a> {
    pub(super) fn new(batch: &'a Batch, replaced: &'a [OldValue]) -> Self {
        Self {
            batch,
            replaced,
            which: vec![false; replaced.len()],
            scopes: Vec::new(),
        }
    }

    /// Notes what the scope wants, and returns whether it wants any.
    pub(super) fn by(&mut self, scope: &Arc<Scope>) -> bool {
        if self.replaced.is_empty() || !scope.takes_patches() {
            return false;
        }
        let mut any = false;
        for (replaced, wanted) in self.replaced.iter().zip(&mut self.which) {
            let change = self.batch.changes.get(replaced.change);
            if change.is_some_and(|change| scope.range().contains(change.edit.key().as_ref())) {
                (*wanted, any) = (true, true);
            }
        }
        if any {
            self.scopes.push(Arc::downgrade(scope));
        }
        any
    }

    /// Which of the replaced values are wanted, and by whom. `None` if none is.
    pub(super) fn finish(self) -> Option<(Vec<bool>, Vec<Weak<Scope>>)> {
        (!self.scopes.is_empty()).then_some((self.which, self.scopes))
    }
}

/// True if a patch of the old value could pay.
pub(super) fn pays(batch: &Batch, replaced: &OldValue) -> bool {
    let new = new_value(batch, replaced);
    new.is_some_and(|new| delta::is_worth_it(replaced.old.entry.value.len(), new.len()))
}

/// Bytes of the value before and the value after.
fn bytes(batch: &Batch, replaced: &OldValue) -> usize {
    let new = new_value(batch, replaced);
    replaced.old.entry.value.len() + new.map_or(0, Bytes::len)
}

/// The value that replaced it.
fn new_value<'a>(batch: &'a Batch, replaced: &OldValue) -> Option<&'a Bytes> {
    match &batch.changes.get(replaced.change)?.edit {
        Edit::Put(entry) => Some(&entry.value),
        Edit::Delete { .. } => None,
    }
}
