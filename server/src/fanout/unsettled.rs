//! Changes that are held back until their deltas are computed.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::v1::DeltaOp;
use driftless_proto::{MAX_VALUE_BYTES, Revision};

use super::scope::Scope;
use crate::delta::ValuePair;
use crate::encode::{EncodedBatch, EncodedPatch};
use crate::metrics::Metrics;
use crate::store::{Batch, OldValue};

/// How many batches of a prefix may wait for their deltas. A flood beyond that is not held up by
/// being computed.
const MOST: usize = 256;

/// How many bytes of old and new values may wait in a prefix: two values of the longest there are.
/// But for the job, the old ones could be free.
const MOST_BYTES: usize = 2 * MAX_VALUE_BYTES;

/// A batch some of whose changes may pay as patches, and the scopes that wait until that is known.
#[derive(Debug)]
#[must_use = "streams wait until it is settled"]
pub struct Unsettled {
    pub(super) batch: Arc<EncodedBatch>,
    pub(super) scopes: Vec<Weak<Scope>>,
    bases: Vec<OldValue>,
    /// What they and the values that came after them take, in bytes.
    bytes: usize,
}

impl Unsettled {
    /// The work: the values to compare, and what encodes the deltas found for them. The old values
    /// go with it: they are kept no longer than the work takes.
    pub fn take_work(&mut self) -> (Vec<ValuePair>, PatchEncoder) {
        let bases = std::mem::take(&mut self.bases);
        let pairs = bases.iter().map(|base| ValuePair {
            old: base.old.entry.value.clone(),
            new: new_value(&self.batch, base.change)
                .cloned()
                .unwrap_or_default(),
        });
        let encoder = PatchEncoder {
            batch: Arc::clone(&self.batch),
            bases: bases
                .iter()
                .map(|base| (base.change, base.old.entry.mod_revision))
                .collect(),
        };
        (pairs.collect(), encoder)
    }
}

#[cfg(test)]
impl Unsettled {
    /// The keys whose old values are still held.
    pub(super) fn wanted_keys(&self) -> impl Iterator<Item = String> {
        let changes = self
            .bases
            .iter()
            .map(|base| &self.batch.changes[base.change]);
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
    /// Encodes the delta of the pair with this index.
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

/// The batches of a prefix that are unsettled.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Those whose work was not begun.
    new: Vec<Unsettled>,
    count: usize,
    bytes: usize,
}

impl Queue {
    /// Takes out the bases for which there is no room. Returns whether there were any.
    pub(super) fn fit(&self, batch: &Batch, bases: &mut Vec<OldValue>) -> bool {
        let before = bases.len();
        let mut room = match self.count {
            0..MOST => MOST_BYTES - self.bytes,
            _ => 0,
        };
        bases.retain(|base| {
            let left = room.checked_sub(bytes(batch, base));
            room = left.unwrap_or(room);
            left.is_some()
        });
        bases.len() < before
    }

    /// Adds a batch. Its bases fit.
    pub(super) fn add(
        &mut self,
        batch: Arc<EncodedBatch>,
        bases: Vec<OldValue>,
        scopes: Vec<Weak<Scope>>,
    ) {
        let bytes = bases.iter().map(|base| bytes(&batch, base)).sum();
        self.count += 1;
        self.bytes += bytes;
        self.new.push(Unsettled {
            batch,
            scopes,
            bases,
            bytes,
        });
    }

    /// Those that were added since the last call.
    pub(super) fn take_new(&mut self) -> Vec<Unsettled> {
        std::mem::take(&mut self.new)
    }

    /// This one is settled.
    pub(super) const fn remove(&mut self, settled: &Unsettled) {
        self.count -= 1;
        self.bytes -= settled.bytes;
    }
}

/// Bytes of the value before and the value after.
fn bytes(batch: &Batch, base: &OldValue) -> usize {
    base.old.entry.value.len() + new_value(batch, base.change).map_or(0, Bytes::len)
}

/// The value that a change put.
pub(super) fn new_value(batch: &Batch, change: usize) -> Option<&Bytes> {
    match &batch.changes.get(change)?.edit {
        Edit::Put(entry) => Some(&entry.value),
        Edit::Delete { .. } => None,
    }
}
