//! Changes that are held back until their deltas are computed.

use std::sync::{Arc, Weak};

use driftless_proto::MAX_VALUE_BYTES;
use driftless_proto::apply::Edit;

use super::scope::Scope;
use crate::store::{Base, Batch};

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
    pub(super) batch: Arc<Batch>,
    pub(super) scopes: Vec<Weak<Scope>>,
    bases: Vec<Base>,
    /// What they and the values that came after them take, in bytes.
    bytes: usize,
}

impl Unsettled {
    /// What there is to do. The old values go with it: they are kept for no longer than the work.
    pub fn take_work(&mut self) -> (Arc<Batch>, Vec<Base>) {
        (Arc::clone(&self.batch), std::mem::take(&mut self.bases))
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
    pub(super) fn fit(&self, batch: &Batch, bases: &mut Vec<Base>) -> bool {
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
    pub(super) fn add(&mut self, batch: Arc<Batch>, bases: Vec<Base>, scopes: Vec<Weak<Scope>>) {
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
fn bytes(batch: &Batch, base: &Base) -> usize {
    let new = batch.changes.get(base.change).map(|change| &change.edit);
    let new = match new {
        Some(Edit::Put(entry)) => entry.value.len(),
        _ => 0,
    };
    base.old.entry.value.len() + new
}
