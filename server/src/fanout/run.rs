//! Runs: consecutive batches of the change log, indexed by key. So what a run did to the digest of a
//! range is found with a binary search, without looking at each of its changes.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};

use crate::encode::EncodedBatch;

/// How many changes a run has at most, unless it is a single batch: indexing them takes some 100 µs,
/// and a search looks at so many changes one by one at each end of the log.
pub(super) const RUN: usize = 512;

/// Consecutive batches. It does not hold them: the log does, and drops a run with its first batch.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The revision that its first batch leads to.
    pub(super) first: Revision,
    /// How many batches it has.
    pub(super) batches: usize,
    /// Made by the first search that needs it. A single batch needs none: its changes are sorted.
    index: Arc<OnceLock<Index>>,
}

impl Run {
    pub(super) fn new(first: Revision, batches: usize) -> Self {
        Self {
            first,
            batches,
            index: Arc::default(),
        }
    }

    /// The index of a run of several batches, which `batches` yields. Returns also how many changes
    /// were looked at to make it: 0 if it was there.
    pub(super) fn index<'a>(
        &self,
        batches: impl Iterator<Item = &'a Arc<EncodedBatch>>,
    ) -> (&Index, usize) {
        let mut made = 0;
        let index = self.index.get_or_init(|| {
            let index = Index::of(batches);
            made = index.places.len();
            index
        });
        (index, made)
    }
}

/// The changes of a run in the order of their keys.
#[derive(Debug)]
pub(super) struct Index {
    /// All keys, one after the other: a search reads only these, and not the batches, which are spread
    /// over the memory.
    keys: Box<[u8]>,
    places: Box<[Place]>,
    /// For each place, the sum of the deltas up to it.
    sums: Box<[Digest]>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where its key begins and ends.
    begin: u32,
    end: u32,
    /// Which batch of the run it belongs to.
    batch: u32,
}

impl Index {
    fn of<'a>(batches: impl Iterator<Item = &'a Arc<EncodedBatch>>) -> Self {
        let mut changes = Vec::new();
        for (at, batch) in batches.enumerate() {
            for (index, change) in batch.changes.iter().enumerate() {
                let delta = change.sum - batch.sum_before(index);
                changes.push((change.edit.key().as_ref(), at, delta));
            }
        }
        changes.sort_by_key(|(key, ..)| *key);
        let bytes = changes.iter().map(|(key, ..)| key.len()).sum();
        let mut keys = Vec::with_capacity(bytes);
        let mut places = Vec::with_capacity(changes.len());
        let mut sums = Vec::with_capacity(changes.len());
        let mut sum = Digest::EMPTY;
        // A run has at most `RUN` keys of at most `KeyRange::MAX_LEN` bytes.
        let narrow = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        for (key, batch, delta) in changes {
            let begin = narrow(keys.len());
            keys.extend_from_slice(key);
            sum += delta;
            places.push(Place {
                begin,
                end: narrow(keys.len()),
                batch: narrow(batch),
            });
            sums.push(sum);
        }
        Self {
            keys: keys.into(),
            places: places.into(),
            sums: sums.into(),
        }
    }

    fn key(&self, place: &Place) -> &[u8] {
        &self.keys[place.begin as usize..place.end as usize]
    }

    /// The places whose keys are in `range`.
    fn within(&self, range: &KeyRange) -> Range<usize> {
        let first = range.start().as_ref();
        let start = self.places.partition_point(|place| self.key(place) < first);
        let in_range = |place: &Place| range.contains(self.key(place));
        start..start + self.places[start..].partition_point(in_range)
    }

    /// What the run did to the digest of the range.
    pub(super) fn delta_within(&self, range: &KeyRange) -> Digest {
        let Range { start, end } = self.within(range);
        let before = |at: usize| at.checked_sub(1).map_or(Digest::EMPTY, |at| self.sums[at]);
        before(end) - before(start)
    }

    /// Which batches of the run touch the range, in order.
    pub(super) fn batches_within(&self, range: &KeyRange) -> Vec<usize> {
        let places = &self.places[self.within(range)];
        let mut batches: Vec<_> = places.iter().map(|place| place.batch as usize).collect();
        batches.sort_unstable();
        batches.dedup();
        batches
    }
}
