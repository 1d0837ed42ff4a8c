//! One watched range, shared by all its streams.
//!
//! A scope holds a small reference per change and leaves everything that has to do with bytes to the
//! change log. Its digest is a base, looked up once off the ingest path, plus what changed since the
//! scope was made, which ingest adds up meanwhile: so there is no moment at which it has to catch up.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Waker};

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::change_refs::ChangeRefs;
use super::next::{Next, coalesce};
use super::pace::Pace;
use super::progress::Progress;
use super::responses::Responses;
use super::shared::Ending;
use super::slots::Slots;
use crate::encode::{EncodedBatch, Frame, ScopeDiff, SyncKind, SyncResponse, Variant};
use crate::metrics::{GaugeGuard, Metrics};
use crate::store::Snapshot;

/// One range and what its streams share.
#[derive(Debug)]
pub(super) struct Scope {
    id: u64,
    range: KeyRange,
    /// The digest of the scope's first state.
    base: OnceLock<Digest>,
    /// The first state; dropped once the base is known.
    first: Mutex<Option<Snapshot>>,
    inner: Mutex<Inner>,
    responses: Mutex<Responses>,
    metrics: Metrics,
    _counted: GaugeGuard,
}

#[derive(Debug)]
struct Inner {
    changes: ChangeRefs,
    /// Changes up to here are released by the pace.
    released: Revision,
    /// Changes whose deltas are being computed, in their order: neither they nor those after them may
    /// be sent yet.
    pending: VecDeque<PendingChange>,
    /// The latest progress, if there was one.
    progress: Option<Progress>,
    ending: Option<Ending>,
    pace: Pace,
    /// Whether changes are held back until a flush.
    held_back: bool,
    slots: Slots,
}

/// A change whose deltas are being computed.
#[derive(Debug)]
struct PendingChange {
    to: Revision,
    /// The revision of the state before it, and what had happened to the digest by then.
    before: Revision,
    since_base: Digest,
}

impl Inner {
    /// Changes up to here may be sent.
    fn visible(&self) -> Revision {
        let pending = self.pending.front();
        pending.map_or(self.released, |first| first.before.min(self.released))
    }

    /// The indices of the changes that a stream at `cursor` was not sent yet, and may be sent.
    fn unsent(&self, cursor: Revision) -> Range<usize> {
        self.changes.between(cursor, self.visible())
    }

    fn progress_number(&self) -> u64 {
        self.progress.as_ref().map_or(0, |progress| progress.number)
    }

    /// The progress after the one with number `seen`, if there is one.
    fn newer_progress(&mut self, base: Digest, cursor: Revision, seen: u64) -> Option<Next> {
        let progress = self
            .progress
            .as_mut()
            .filter(|progress| progress.number > seen)?;
        // A stream that is ahead of the progress was sent newer changes since, and is proven by the
        // next one.
        let message = progress.message(base);
        let bytes = if progress.at < cursor {
            Bytes::new()
        } else {
            message
        };
        Some(Next::Progress {
            bytes,
            number: progress.number,
            to: progress.at.max(cursor),
        })
    }
}

/// A change that a stream has to send, with what its diff's header says.
struct Unsent {
    batch: Arc<EncodedBatch>,
    from: Revision,
    /// The range's digest after the batch.
    digest: Digest,
}

/// What the caller of [`Scope::push`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// Wake the streams now.
    Wake,
    /// Schedule a flush: the change is held back.
    HoldBack,
    /// Nothing: the change waits for a flush that is scheduled, or for its deltas.
    Wait,
}

impl Scope {
    pub(super) fn new(range: KeyRange, first: Snapshot, metrics: &Metrics) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let revision = first.revision();
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            range,
            base: OnceLock::new(),
            first: Mutex::new(Some(first)),
            inner: Mutex::new(Inner {
                changes: ChangeRefs::new(revision),
                released: revision,
                pending: VecDeque::new(),
                progress: None,
                ending: None,
                pace: Pace::new(Instant::now()),
                held_back: false,
                slots: Slots::default(),
            }),
            responses: Mutex::default(),
            metrics: metrics.clone(),
            _counted: GaugeGuard::new(&metrics.scopes),
        }
    }

    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    pub(super) const fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The digest of the scope's first state. The first caller looks it up.
    pub(super) fn base(&self) -> Digest {
        *self.base.get_or_init(|| {
            let first = self.first.lock().take();
            first.map_or(Digest::EMPTY, |first| first.digest(&self.range))
        })
    }

    /// What the changes since the first state did to the digest. Of the same moment as a snapshot
    /// only while the prefix's lock is held.
    pub(super) fn since_base(&self) -> Digest {
        self.inner.lock().changes.since_base()
    }

    /// Whether any stream takes patches.
    pub(super) fn takes_patches(&self) -> bool {
        self.inner.lock().slots.take_any_patches()
    }

    /// Adds a batch that touches the range. `pending` if its deltas are being computed, in which case
    /// [`Scope::resolve`] is to follow.
    pub(super) fn push(&self, batch: &Arc<EncodedBatch>, pending: bool, now: Instant) -> Pushed {
        let delta = batch.delta_within(&self.range);
        let mut inner = self.inner.lock();
        if pending {
            let since_base = inner.changes.since_base();
            inner.pending.push_back(PendingChange {
                to: batch.to,
                before: batch.from,
                since_base,
            });
        }
        inner.changes.push(self.id, delta, batch);
        // While some are held back, the next ones join them.
        if inner.held_back {
            return Pushed::Wait;
        }
        if inner.pace.allows(now) {
            inner.released = batch.to;
            return match inner.pending.is_empty() {
                true => Pushed::Wake,
                false => Pushed::Wait,
            };
        }
        inner.held_back = true;
        Pushed::HoldBack
    }

    /// The deltas of the batch up to `to` are resolved. Returns whether the streams have to be woken.
    pub(super) fn resolve(&self, to: Revision) -> bool {
        let mut inner = self.inner.lock();
        let before = inner.visible();
        inner.pending.retain(|pending| pending.to != to);
        inner.visible() > before
    }

    /// Releases the changes that were held back.
    pub(super) fn flush(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.held_back = false;
        inner.released = inner.changes.last();
        // It wakes the streams as any change does, so it takes a token that was earned meanwhile.
        inner.pace.allows(now);
        drop(inner);
        self.wake();
    }

    /// A new progress is due: the prefix is at revision `at`, and was etcd's state at `contact_ms`.
    pub(super) fn progress(&self, at: Revision, contact_ms: u64) {
        let mut inner = self.inner.lock();
        let number = inner.progress_number() + 1;
        // What was held back must not be overtaken by a revision that includes it.
        inner.released = inner.changes.last();
        let (at, since_base, contact_ms) = match inner.pending.front() {
            None => (at, inner.changes.since_base(), contact_ms),
            // Nothing is proven of the state before a change.
            Some(first) => (first.before, first.since_base, 0),
        };
        inner.progress = Some(Progress {
            number,
            at,
            since_base,
            contact_ms,
            message: None,
        });
    }

    /// Every stream has to end; the caller wakes them.
    pub(super) fn end(&self, ending: Ending) {
        self.inner.lock().ending = Some(ending);
    }

    /// Wakes every stream that waits.
    pub(super) fn wake(&self) {
        let waiting = self.inner.lock().slots.take_waiting();
        waiting.into_iter().for_each(Waker::wake);
    }

    /// A slot for a stream.
    pub(super) fn enter(&self) -> usize {
        self.inner.lock().slots.insert()
    }

    /// The stream in this slot takes patches.
    pub(super) fn take_patches(&self, slot: usize) {
        self.inner.lock().slots.take_patches(slot);
    }

    /// Gives the slot back.
    pub(super) fn exit(&self, slot: usize) {
        let waker = self.inner.lock().slots.remove(slot);
        drop(waker);
    }

    /// Number of the latest progress.
    pub(super) fn progress_number(&self) -> u64 {
        self.inner.lock().progress_number()
    }

    /// What a stream at `cursor`, which was sent the progress with number `progress`, sends next. With
    /// nothing to send, its waker is kept.
    pub(super) fn next(
        &self,
        slot: usize,
        cursor: Revision,
        progress: u64,
        cx: &Context<'_>,
    ) -> Next {
        let mut inner = self.inner.lock();
        if let Some(ending) = inner.ending {
            return Next::Ending(ending);
        }
        let is_behind = cursor < inner.changes.floor().min(inner.visible());
        if is_behind || !inner.unsent(cursor).is_empty() {
            let unsent = self.replay(&inner, cursor);
            let variant = inner.slots.variant(slot);
            // Ingest must not wait while something is encoded.
            drop(inner);
            return match unsent {
                Some((first, rest)) => {
                    let frame = |unsent: &Unsent| (self.diff(variant, unsent), unsent.batch.to);
                    coalesce(frame(&first), rest.iter().map(frame))
                }
                None => Next::Behind,
            };
        }
        if let Some(next) = inner.newer_progress(self.base(), cursor, progress) {
            return next;
        }
        inner.slots.wait(slot, cx);
        Next::Nothing
    }

    /// The changes after `cursor`: the first, and those that may go with it. `None` if they cannot,
    /// or should not, be sent one by one.
    fn replay(&self, inner: &Inner, cursor: Revision) -> Option<(Unsent, Vec<Unsent>)> {
        let base = self.base();
        let changes = inner.changes.replay(cursor, inner.unsent(cursor))?;
        let mut unsent = changes.map_while(|change| {
            // Gone if the log has dropped it.
            let batch = change.batch.upgrade()?;
            Some(Unsent {
                batch,
                from: change.from,
                digest: base + change.after,
            })
        });
        Some((unsent.next()?, unsent.collect()))
    }

    /// A change's diff, encoded by whichever stream comes first.
    fn diff(&self, variant: Variant, unsent: &Unsent) -> Arc<Frame> {
        let of = ScopeDiff {
            scope: self.id,
            range: &self.range,
            from: unsent.from,
            digest: unsent.digest,
        };
        unsent.batch.diff(of, variant, &self.metrics)
    }

    /// The digest at `revision`, if the scope's changes reach back that far and know it.
    pub(super) fn digest_at(&self, revision: Revision) -> Option<Digest> {
        let base = self.base();
        Some(base + self.inner.lock().changes.digest_at(revision)?)
    }

    /// Whether the changes after `revision` can be sent one by one, and are few enough for that.
    pub(super) fn replays(&self, revision: Revision) -> bool {
        self.inner.lock().changes.replays(revision)
    }

    /// See [`ChangeRefs::extend_back`].
    pub(super) fn extend_back(
        &self,
        revision: Revision,
        batches: &[Arc<EncodedBatch>],
        known: Revision,
    ) {
        let changes = &mut self.inner.lock().changes;
        changes.extend_back(&self.range, revision, batches, known);
    }

    /// The sync response of this kind that a crowd shares, for a client at revision `held` (or none):
    /// one that was begun lately and leads to a newer revision, after which changes can be sent one by
    /// one, or else the one that `make` begins.
    pub(super) fn sync_response(
        &self,
        kind: SyncKind,
        held: Revision,
        make: impl FnOnce() -> Arc<SyncResponse>,
    ) -> Arc<SyncResponse> {
        let now = Instant::now();
        let mut responses = self.responses.lock();
        // Newer, or a stream that is behind would read the same again and again.
        let usable = |revision| revision > held && self.replays(revision);
        if let Some(response) = responses.find(kind, now, usable) {
            return response;
        }
        let response = make();
        let dropped = responses.add(&response, now);
        drop(responses);
        drop(dropped);
        response
    }

    /// Drops the sync responses that are handed to no new readers.
    pub(super) fn evict_expired(&self) {
        let expired = self.responses.lock().take_expired(Instant::now());
        drop(expired);
    }

    /// Drops all sync responses. Their readers still hold them.
    pub(super) fn evict_all(&self) {
        let all = std::mem::take(&mut *self.responses.lock());
        drop(all);
    }
}

#[cfg(test)]
impl Scope {
    pub(super) fn streams(&self) -> usize {
        self.inner.lock().slots.len()
    }

    pub(super) fn changes(&self) -> usize {
        self.inner.lock().changes.len()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        self.inner.get_mut().changes.drop_diffs(self.id);
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::Epoch;
    use driftless_proto::apply::Edit;

    use super::super::change_refs::MOST;
    use super::*;
    use crate::store::{History, State, Writer};
    use crate::testing::{entry, prefix};

    #[tokio::test]
    async fn diff_made_again_at_the_last_moment_is_dropped() {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        });
        let range = prefix("/c/");
        let scope = Scope::new(range, writer.snapshot().clone(), &Metrics::new());
        let mut push = |revision: i64| {
            let edits = vec![Edit::Put(entry("/c/a", "v", revision))];
            let batch = writer.apply(Revision::new(revision), edits).unwrap();
            let batch = Arc::new(EncodedBatch::new(batch, 0));
            scope.push(&batch, false, Instant::now());
            batch
        };
        let first = push(2);
        // A stream has looked up what it sends next, and sends it after a while.
        let replay = scope.replay(&scope.inner.lock(), Revision::new(1));
        let (unsent, _) = replay.unwrap();
        let last = i64::try_from(MOST).unwrap() + 1;
        for revision in 3..=last {
            push(revision);
        }
        scope.diff(Variant::Whole, &unsent);
        assert_eq!(first.diff_count(), 1);
        push(last + 1);
        assert_eq!(first.diff_count(), 0);
    }
}
