//! The change log of one prefix: a window of the latest batches within a budget of bytes.
//!
//! Each change holds what it did to the digest, so the digest of any range at any revision that the
//! log covers is today's minus the changes since. These are not added up one by one: who claims to
//! hold an old state costs the server no more than who claims nothing. Encodings belong to the batches
//! and are dropped with them when the budget is used up: scopes only refer to batches.

use std::ops::Range;
use std::sync::Arc;

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use imbl::Vector;

use super::run::{RUN, Run};
use crate::encode::{EncodedBatch, EncodedPatch};

/// How many changes a search looks at before its task yields: some 30 µs, or 100 µs if they have to be
/// indexed.
const SEARCH_SLICE: usize = RUN;

/// The latest batches of one prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ChangeLog {
    batches: Vector<Arc<EncodedBatch>>,
    bytes: usize,
    budget: usize,
    floor: Revision,
    /// Oldest first. Not every batch is in one.
    runs: Vector<Run>,
    /// How many of the latest batches are to become the next run, and how many changes these have.
    open: (usize, usize),
    /// How many changes a run has at most, unless it is a single batch.
    run: usize,
}

impl ChangeLog {
    /// An empty log, which covers `floor` and what comes after it, within `budget` bytes.
    pub fn new(floor: Revision, budget: usize) -> Self {
        Self {
            batches: Vector::new(),
            bytes: 0,
            budget,
            floor,
            runs: Vector::new(),
            open: (0, 0),
            run: RUN,
        }
    }

    /// The same with shorter runs.
    #[cfg(test)]
    pub(crate) const fn with_runs_of(mut self, run: usize) -> Self {
        self.run = run;
        self
    }

    /// A log of what came before another one: all batches after `floor`, oldest first.
    pub fn of(floor: Revision, batches: impl IntoIterator<Item = Arc<EncodedBatch>>) -> Self {
        let mut log = Self::new(floor, usize::MAX);
        for batch in batches {
            log.push(batch);
        }
        log
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
        let (_, changes) = self.open;
        if changes + batch.changes.len() > self.run {
            self.close_run();
        }
        self.open.0 += 1;
        self.open.1 += batch.changes.len();
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
        if self.open.0 > self.batches.len() {
            self.open.0 -= 1;
            self.open.1 -= oldest.changes.len();
        }
        // What is left of its run is searched one by one.
        if self.runs.front().is_some_and(|run| run.first == oldest.to) {
            self.runs.pop_front();
        }
        Some(oldest)
    }

    /// The latest batches become a run.
    fn close_run(&mut self) {
        let (batches, _) = std::mem::take(&mut self.open);
        let first = self.batches.get(self.batches.len() - batches);
        // A single batch is sorted by key already.
        if let Some(first) = first.filter(|_| batches > 1) {
            self.runs.push_back(Run::new(first.to, batches));
        }
    }

    /// True if the log holds no batch.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Puts an older log in front, which leads up to `up_to`, and drops the oldest batches until the
    /// budget is kept. Returns what was dropped; `None`, and changes nothing, if this log does not begin
    /// at `up_to`.
    pub fn prepend(&mut self, older: Self, up_to: Revision) -> Option<Vec<Arc<EncodedBatch>>> {
        if self.floor != up_to {
            return None;
        }
        let mut older = older;
        older.close_run();
        self.floor = older.floor;
        self.bytes += older.bytes;
        let newer = std::mem::replace(&mut self.batches, older.batches);
        self.batches.append(newer);
        let newer = std::mem::replace(&mut self.runs, older.runs);
        self.runs.append(newer);
        Some(self.keep_budget())
    }

    /// The index of the first batch after `revision`. `None` if the log does not reach back that far,
    /// or the revision lies inside a difference of states, whose inside is unknown.
    fn first_after(&self, revision: Revision) -> Option<usize> {
        if revision < self.floor {
            return None;
        }
        let first = match self
            .batches
            .binary_search_by(|batch| batch.to.cmp(&revision))
        {
            Ok(at) => at + 1,
            Err(at) => at,
        };
        let is_inside = |batch: &Arc<EncodedBatch>| batch.conflated && batch.from < revision;
        (!self.batches.get(first).is_some_and(is_inside)).then_some(first)
    }

    /// What the changes after `revision` did to the digest of `range`. `None` if that is not known.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn delta_since(&self, range: &KeyRange, revision: Revision) -> Option<Digest> {
        let mut search = self.search(range, revision)?;
        while !search.step() {
            tokio::task::yield_now().await;
        }
        Some(search.delta)
    }

    /// As [`ChangeLog::delta_since`], slice by slice.
    pub(crate) fn search<'a>(
        &'a self,
        range: &'a KeyRange,
        revision: Revision,
    ) -> Option<Search<'a>> {
        Some(Search {
            pieces: self.pieces_after(revision)?,
            range,
            delta: Digest::EMPTY,
            looked_at: 0,
        })
    }

    /// The batches that touch `range` after `revision`, oldest first. `None` if that is not known, or
    /// there are more than `most`.
    pub fn batches_since(
        &self,
        range: &KeyRange,
        revision: Revision,
        most: usize,
    ) -> Option<Vec<Arc<EncodedBatch>>> {
        let mut found = Vec::new();
        for piece in self.pieces_after(revision)? {
            match piece {
                Piece::Batch(batch) if batch.indices(range).is_empty() => {}
                Piece::Batch(batch) => found.push(Arc::clone(batch)),
                Piece::Run(run, batches) => {
                    let (index, _) = run.index(self.batches_at(batches.clone()));
                    let touched = index.batches_within(range).into_iter();
                    let touched = touched.filter_map(|at| self.batches.get(batches.start + at));
                    found.extend(touched.cloned());
                }
            }
            if found.len() > most {
                return None;
            }
        }
        Some(found)
    }

    /// All after `revision`, in runs where possible. `None` as for [`ChangeLog::first_after`].
    fn pieces_after(&self, revision: Revision) -> Option<Pieces<'_>> {
        let batch = self.first_after(revision)?;
        let run = self.batches.get(batch).map_or(0, |batch| {
            let found = self.runs.binary_search_by(|run| run.first.cmp(&batch.to));
            found.unwrap_or_else(|next| next)
        });
        Some(Pieces {
            log: self,
            batch,
            run,
        })
    }

    fn batches_at(&self, indices: Range<usize>) -> impl Iterator<Item = &Arc<EncodedBatch>> {
        indices.filter_map(|at| self.batches.get(at))
    }
}

/// A part of the log.
enum Piece<'a> {
    /// A batch that is looked at by itself.
    Batch(&'a Arc<EncodedBatch>),
    /// A run, and the indices of its batches.
    Run(&'a Run, Range<usize>),
}

/// The rest of a log, piece by piece.
#[derive(Debug)]
struct Pieces<'a> {
    log: &'a ChangeLog,
    /// The index of the next batch.
    batch: usize,
    /// The index of the next run that does not begin before it.
    run: usize,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let log = self.log;
        let at = self.batch;
        let batch = log.batches.get(at)?;
        Some(match log.runs.get(self.run) {
            Some(run) if run.first == batch.to => {
                self.run += 1;
                self.batch += run.batches;
                Piece::Run(run, at..self.batch)
            }
            _ => {
                self.batch += 1;
                Piece::Batch(batch)
            }
        })
    }
}

/// A search for what the changes since a revision did to the digest of a range.
#[derive(Debug)]
pub(crate) struct Search<'a> {
    pieces: Pieces<'a>,
    range: &'a KeyRange,
    delta: Digest,
    looked_at: usize,
}

impl Search<'_> {
    /// Looks at the next slice. Returns true at the end.
    pub(crate) fn step(&mut self) -> bool {
        let slice = self.looked_at + SEARCH_SLICE;
        let log = self.pieces.log;
        while self.looked_at < slice {
            let Some(piece) = self.pieces.next() else {
                return true;
            };
            self.looked_at += 1;
            self.delta += match piece {
                Piece::Batch(batch) => batch.delta_within(self.range),
                Piece::Run(run, batches) => {
                    let (index, made) = run.index(log.batches_at(batches));
                    self.looked_at += made;
                    index.delta_within(self.range)
                }
            };
        }
        false
    }

    /// What the changes looked at did to the digest.
    #[cfg(test)]
    pub(crate) const fn delta(&self) -> Digest {
        self.delta
    }

    /// How many batches and runs were looked at, and how many changes were indexed for that.
    #[cfg(test)]
    pub(crate) const fn looked_at(&self) -> usize {
        self.looked_at
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::Epoch;
    use driftless_proto::apply::Edit;

    use super::*;
    use crate::store::{History, State, Writer};
    use crate::testing::{entry, prefix};

    /// A log of as many changes of one key each as fit in 46 MiB, spread over a hundred folders.
    fn long_log(changes: i64) -> ChangeLog {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        });
        let mut log = ChangeLog::new(Revision::new(1), usize::MAX);
        for revision in (2..).take(changes as usize) {
            let key = format!("/c/{}/{}", revision % 100, revision % 7919);
            let edits = vec![Edit::Put(entry(&key, "value", revision))];
            let batch = writer.apply(Revision::new(revision), edits).unwrap();
            log.push(Arc::new(EncodedBatch::new(batch, 0)));
        }
        log
    }

    /// Regression: each request with an old revision and any digest cost a look at every change since.
    #[test]
    fn search_looks_at_few_changes_of_a_long_log() {
        const CHANGES: usize = 60_000;
        let log = long_log(CHANGES as i64);
        let looked_at = |range: &KeyRange, revision| {
            let mut search = log.search(range, revision).unwrap();
            while !search.step() {}
            search.looked_at()
        };
        let first = looked_at(&prefix("/c/"), log.floor());
        assert!(first <= CHANGES + CHANGES / RUN + 2 * RUN, "{first}");
        // Whatever is asked next: the runs, and what is in no run before and after them.
        let most = CHANGES / RUN + 2 * RUN;
        for n in 0..100 {
            let range = prefix(&format!("/c/{n}/"));
            let revision = Revision::new(1 + 500 * n);
            let again = looked_at(&range, revision);
            assert!(again <= most, "{again} for {range} at {revision}");
        }
    }

    #[test]
    fn search_yields_after_a_slice() {
        let log = long_log(20_000);
        let range = prefix("/c/");
        let mut search = log.search(&range, log.floor()).unwrap();
        let mut before = 0;
        while !search.step() {
            let slice = search.looked_at() - before;
            assert!(slice <= SEARCH_SLICE + RUN, "{slice}");
            before = search.looked_at();
        }
    }

    #[test]
    fn large_batch_is_no_part_of_a_run() {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        });
        let mut log = ChangeLog::new(Revision::new(1), usize::MAX);
        for revision in 2..12 {
            let keys = if revision % 2 == 0 { 1 } else { 10_000 };
            let put = |n| Edit::Put(entry(&format!("/c/{n}"), "v", revision));
            let batch = writer.apply(Revision::new(revision), (0..keys).map(put).collect());
            log.push(Arc::new(EncodedBatch::new(batch.unwrap(), 0)));
        }
        let range = prefix("/c/1");
        let mut search = log.search(&range, log.floor()).unwrap();
        while !search.step() {}
        assert_eq!(search.looked_at(), 10, "each by itself");
    }

    #[test]
    fn batch_larger_than_the_budget_empties_the_log() {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(10),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
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
        assert!(log.search(&prefix("/c/"), Revision::new(11)).is_none());
        assert!(log.search(&prefix("/c/"), Revision::new(12)).is_some());
    }
}
