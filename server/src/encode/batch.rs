//! A batch and its encodings, each made once.
//!
//! The encodings belong to the batch and are dropped with it, so the change log's budget bounds them.
//! The diffs of scopes are the exception: scopes bound these, and call [`EncodedBatch::drop_diffs`].

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, MAX_CHUNK_BYTES, Revision, v1};
use parking_lot::Mutex;

use super::fields::{Fields, change_field, patch_field};
use super::frame::{Frame, Segments};
use super::message::message;
use crate::metrics::Metrics;
use crate::store::Batch;

/// How changes are encoded: for clients that apply patches, or for all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Every value whole.
    Whole,
    /// A value as a patch of the old one where that pays.
    Patched,
}

impl Variant {
    /// Both variants.
    pub const ALL: [Self; 2] = [Self::Whole, Self::Patched];
}

/// A change encoded as a patch.
#[derive(Debug)]
pub struct EncodedPatch {
    /// Index of the change in its batch.
    change: usize,
    /// The patch as a field of a diff.
    encoded: Fields,
}

impl EncodedPatch {
    /// Bytes of the encoding.
    pub fn len(&self) -> usize {
        self.encoded.len()
    }

    /// True if there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }
}

/// What distinguishes the diff of one scope from those of others: whose it is, and its header.
#[derive(Clone, Copy, Debug)]
pub struct ScopeDiff<'a> {
    /// Number of the scope, unique in the process.
    pub scope: u64,
    /// The scope's range.
    pub range: &'a KeyRange,
    /// Revision of the scope's change before the batch.
    pub from: Revision,
    /// The range's digest after the batch.
    pub digest: Digest,
}

/// The encodings of one change.
#[derive(Debug, Default)]
struct Encodings {
    /// With the whole value, made when first needed.
    whole: OnceLock<Fields>,
    /// As a patch of the old value, where one was computed and pays.
    patch: OnceLock<Fields>,
}

/// A batch and its encodings.
#[derive(Debug)]
pub struct EncodedBatch {
    batch: Batch,
    /// When the state after the batch was last known to be etcd's when it was published, in
    /// milliseconds on the server's clock; 0 if that was not known.
    contact_ms: u64,
    /// One for each change.
    encodings: Box<[Encodings]>,
    /// Bytes of all patches.
    patch_bytes: AtomicUsize,
    diffs: Mutex<Diffs>,
}

/// Diffs by scope and variant, each with [`ScopeDiff::from`].
type Diffs = HashMap<(u64, Variant), (Revision, Arc<Frame>)>;

impl Deref for EncodedBatch {
    type Target = Batch;

    fn deref(&self) -> &Batch {
        &self.batch
    }
}

impl EncodedBatch {
    /// Nothing is encoded yet. `contact_ms` is when the state after the batch was last known to be
    /// etcd's, in milliseconds on the server's clock; 0 if that is not known.
    pub fn new(batch: Batch, contact_ms: u64) -> Self {
        let encodings = batch.changes.iter().map(|_| Encodings::default());
        Self {
            encodings: encodings.collect(),
            batch,
            contact_ms,
            patch_bytes: AtomicUsize::new(0),
            diffs: Mutex::default(),
        }
    }

    /// Estimated bytes of the batch with its encodings, the diffs excepted.
    pub fn bytes(&self) -> usize {
        // Twice: the entries and patches, and their encodings, which hold copies of small ones.
        2 * (self.batch.bytes() + self.patch_bytes.load(Ordering::Acquire))
    }

    /// True if a change in `range` has a patch. If not, the two variants are the same.
    pub fn has_patch_within(&self, range: &KeyRange) -> bool {
        self.patch_bytes.load(Ordering::Acquire) > 0
            && self.encodings[self.batch.indices(range)]
                .iter()
                .any(|encodings| encodings.patch.get().is_some())
    }

    /// Encodes the change with this index, which must be a put, as a patch: `ops` make its value from
    /// the one that the key had at `base`. `None` for any other change.
    pub fn encode_patch(
        &self,
        change: usize,
        base: Revision,
        ops: Vec<v1::DeltaOp>,
        metrics: &Metrics,
    ) -> Option<EncodedPatch> {
        let Edit::Put(entry) = &self.batch.changes.get(change)?.edit else {
            return None;
        };
        metrics.changes_encoded.inc();
        Some(EncodedPatch {
            change,
            encoded: patch_field(entry, base, ops),
        })
    }

    /// Takes over patches. Only the change log calls this, and counts their bytes.
    pub fn add_patches(&self, patches: Vec<EncodedPatch>) {
        let mut bytes = 0;
        for EncodedPatch { change, encoded } in patches {
            let len = encoded.len();
            if let Some(encodings) = self.encodings.get(change)
                && encodings.patch.set(encoded).is_ok()
            {
                bytes += len;
            }
        }
        self.patch_bytes.fetch_add(bytes, Ordering::Release);
    }

    /// The diff of one scope, made once for all its streams that take this variant.
    pub fn diff(&self, of: ScopeDiff<'_>, variant: Variant, metrics: &Metrics) -> Arc<Frame> {
        let variant = match self.has_patch_within(of.range) {
            true => variant,
            false => Variant::Whole,
        };
        let mut diffs = self.diffs.lock();
        match diffs.get(&(of.scope, variant)) {
            Some((made_for, frame)) if *made_for == of.from => Arc::clone(frame),
            _ => {
                let frame = Arc::new(self.encode_diff(of, variant, metrics));
                diffs.insert((of.scope, variant), (of.from, Arc::clone(&frame)));
                frame
            }
        }
    }

    /// Drops the diffs of a scope that no longer needs them: a batch outlives many scopes.
    pub fn drop_diffs(&self, scope: u64) {
        let dropped = {
            let mut diffs = self.diffs.lock();
            let removed = Variant::ALL.map(|variant| diffs.remove(&(scope, variant)));
            // Most batches outlive their last diff by far, and a table keeps its capacity.
            let table = diffs.is_empty().then(|| std::mem::take(&mut *diffs));
            (removed, table)
        };
        drop(dropped);
    }

    /// Encodes the diff: one or more messages, with at most [`MAX_CHUNK_BYTES`] of values each.
    fn encode_diff(&self, of: ScopeDiff<'_>, variant: Variant, metrics: &Metrics) -> Frame {
        let within = self.batch.indices(of.range);
        let changes = self.batch.changes[within.clone()].iter();
        let fields = changes
            .zip(&self.encodings[within])
            .flat_map(|(change, encodings)| {
                let patch = match variant {
                    Variant::Patched => encodings.patch.get(),
                    Variant::Whole => None,
                };
                let fields = patch.unwrap_or_else(|| {
                    encodings.whole.get_or_init(|| {
                        metrics.changes_encoded.inc();
                        change_field(&change.edit)
                    })
                });
                &fields.0
            });
        let mut messages: Vec<Vec<&Frame>> = vec![Vec::new()];
        let mut len = 0;
        for field in fields {
            if len + field.len() > MAX_CHUNK_BYTES && len > 0 {
                messages.push(Vec::new());
                len = 0;
            }
            len += field.len();
            if let Some(last) = messages.last_mut() {
                last.push(field);
            }
        }
        let count = messages.len();
        let mut out = Segments::default();
        for (index, fields) in messages.into_iter().enumerate() {
            let last = index + 1 == count;
            let header = v1::Diff {
                from: of.from.get(),
                to: self.batch.to.get(),
                changes: Vec::new(),
                more: !last,
                digest: if last {
                    of.digest.to_bytes()
                } else {
                    Bytes::new()
                },
                conflated: self.batch.conflated,
                contact_ms: if last { self.contact_ms } else { 0 },
            };
            message(&mut out, 3, &header, &fields);
        }
        metrics.frames_encoded.inc();
        out.finish_messages()
    }

    /// How many diffs are kept.
    #[cfg(test)]
    pub(crate) fn diff_count(&self) -> usize {
        self.diffs.lock().len()
    }
}
