//! The latest changes of one range, as references into the change log.
//!
//! Pure: a scope guards it with its lock. All digests are relative to the scope's base.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Weak};

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};

use crate::encode::EncodedBatch;

/// How many changes a scope remembers for streams that are behind. They take some 80 bytes each; a
/// stream that is further behind gets one conflated diff, which is cheaper for both ends.
pub(super) const MOST: usize = 1024;

/// A stream that has more than this many changes to catch up with gets one conflated diff. So many of
/// a scope's latest changes keep their diffs, which are no part of the log's budget.
pub(super) const REPLAY: usize = 256;

/// One change of the range, as its streams see it.
#[derive(Debug)]
pub(super) struct ChangeRef {
    /// The revision of the change before this one.
    pub(super) from: Revision,
    pub(super) to: Revision,
    /// Between this and `to` the state is unknown: the batch is a difference of states. Equal to `to`
    /// for one transaction.
    opaque_from: Revision,
    before: Digest,
    pub(super) after: Digest,
    pub(super) batch: Weak<EncodedBatch>,
}

impl ChangeRef {
    fn new(from: Revision, before: Digest, after: Digest, batch: &Arc<EncodedBatch>) -> Self {
        let opaque_from = if batch.conflated {
            batch.from
        } else {
            batch.to
        };
        Self {
            from,
            to: batch.to,
            opaque_from,
            before,
            after,
            batch: Arc::downgrade(batch),
        }
    }

    /// Drops the scope's diffs of the batch.
    fn drop_diffs(&self, scope: u64) {
        if let Some(batch) = self.batch.upgrade() {
            batch.drop_diffs(scope);
        }
    }
}

/// The latest changes of one range.
#[derive(Debug)]
pub(super) struct ChangeRefs {
    refs: VecDeque<ChangeRef>,
    /// The revision from which on every change is in `refs`.
    floor: Revision,
    /// Revision of the last change, or of the scope's first state.
    last: Revision,
    /// What the changes since the scope's first state did to the digest.
    since_base: Digest,
}

impl ChangeRefs {
    /// None yet, at this revision.
    pub(super) const fn new(revision: Revision) -> Self {
        Self {
            refs: VecDeque::new(),
            floor: revision,
            last: revision,
            since_base: Digest::EMPTY,
        }
    }

    /// Revision of the last change, or of the scope's first state.
    pub(super) const fn last(&self) -> Revision {
        self.last
    }

    /// The revision from which on every change is known.
    pub(super) const fn floor(&self) -> Revision {
        self.floor
    }

    /// What the changes so far did to the digest.
    pub(super) const fn since_base(&self) -> Digest {
        self.since_base
    }

    /// Adds a batch, whose changes in the range did `delta` to the digest. Drops the diffs that
    /// `scope` no longer needs.
    pub(super) fn push(&mut self, scope: u64, delta: Digest, batch: &Arc<EncodedBatch>) {
        let before = self.since_base;
        self.since_base += delta;
        let change = ChangeRef::new(self.last, before, self.since_base, batch);
        self.last = batch.to;
        self.refs.push_back(change);
        // Earlier changes are no longer sent one by one.
        if let Some(at) = self.refs.len().checked_sub(REPLAY + 1) {
            self.refs[at].drop_diffs(scope);
        }
        if self.refs.len() > MOST
            && let Some(oldest) = self.refs.pop_front()
        {
            self.floor = oldest.to;
            // A stream that was about to send it may have had its diff made again.
            oldest.drop_diffs(scope);
        }
    }

    /// The indices of the changes after `cursor` up to `visible`.
    pub(super) fn between(&self, cursor: Revision, visible: Revision) -> Range<usize> {
        if cursor >= visible {
            return 0..0;
        }
        self.up_to(cursor)..self.up_to(visible)
    }

    /// The changes at these indices. `None` if they are too many to be sent one by one, or older ones
    /// are missing before them.
    pub(super) fn replay(
        &self,
        cursor: Revision,
        unsent: Range<usize>,
    ) -> Option<impl Iterator<Item = &ChangeRef>> {
        (cursor >= self.floor && unsent.len() <= REPLAY).then(|| self.refs.range(unsent))
    }

    /// Whether the changes after `revision` can be sent one by one, and are few enough for that.
    pub(super) fn replays(&self, revision: Revision) -> bool {
        let pending = self.refs.len() - self.up_to(revision);
        revision >= self.floor && pending <= REPLAY
    }

    /// How many changes lead to the state at `revision`.
    fn up_to(&self, revision: Revision) -> usize {
        self.refs.partition_point(|change| change.to <= revision)
    }

    /// The digest at `revision`, relative to the base. `None` if the changes do not reach back that
    /// far, or the state then is unknown.
    pub(super) fn digest_at(&self, revision: Revision) -> Option<Digest> {
        if revision < self.floor {
            return None;
        }
        match self.refs.get(self.up_to(revision)) {
            Some(next) if next.opaque_from < revision => None,
            Some(next) => Some(next.before),
            None => Some(self.since_base),
        }
    }

    /// Reaches back to `revision`, with the log's batches since then that touch the range, so that
    /// changes from before the scope was made can be replayed. `known` is the revision up to which these
    /// are all. Does nothing if they are more than would be replayed.
    pub(super) fn extend_back(
        &mut self,
        range: &KeyRange,
        revision: Revision,
        batches: &[Arc<EncodedBatch>],
        known: Revision,
    ) {
        // Changes that were dropped since the log was looked at would leave a hole.
        if self.floor <= revision || self.floor > known {
            return;
        }
        let older: Vec<&Arc<EncodedBatch>> = batches
            .iter()
            .filter(|batch| batch.to <= self.floor)
            .collect();
        if older.len() > REPLAY || older.len() + self.refs.len() > MOST {
            return;
        }
        // What came first so far now has something before it.
        let before = older.last().map_or(revision, |batch| batch.to);
        let mut after = self.since_base;
        match self.refs.front_mut() {
            Some(front) => {
                front.from = before;
                after = front.before;
            }
            None => self.last = before,
        }
        for (index, batch) in older.iter().enumerate().rev() {
            let from = index
                .checked_sub(1)
                .map_or(revision, |index| older[index].to);
            let delta = batch.delta_within(range);
            self.refs
                .push_front(ChangeRef::new(from, after - delta, after, batch));
            after -= delta;
        }
        self.floor = revision;
    }

    /// Drops all diffs of the scope.
    pub(super) fn drop_diffs(&self, scope: u64) {
        self.refs.iter().for_each(|change| change.drop_diffs(scope));
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.refs.len()
    }
}
