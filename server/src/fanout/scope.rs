//! One range that somebody watches, shared by all its streams.
//!
//! A scope holds a small head per change and refers to the log for everything that has to do with
//! bytes. Its digest is a base, computed once off the ingest path, plus what changed since the scope
//! was made, which ingest adds up meanwhile: so there is no moment at which it has to catch up.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision, v1};
use parking_lot::Mutex;
use slab::Slab;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::Ending;
use super::answers::Answers;
use super::change_log::Past;
use super::pace::Pace;
use crate::encode::{self, EncodedBatch, Frame, ScopeDiff, SyncKind, SyncResponse, Variant};
use crate::metrics::{Held, Metrics};
use crate::store::Snapshot;

/// How many changes a scope remembers for streams that are behind. They are some 80 bytes each; a
/// stream that is further behind gets one conflated diff, which is cheaper for both ends.
const HEADS: usize = 1024;

/// A stream that has more than this many changes to catch up with gets one conflated diff. So many of
/// a scope's latest changes keep their frames, which are no part of the log's budget.
const REPLAY_CHANGES: usize = 256;

/// A stream that is behind gets its pending changes joined until a piece has this many bytes: a
/// quarter of the segment that it may pin, and far above what HTTP/2 peers take for an attack.
const JOIN: usize = 16 * 1024;

/// How many entries are added up before others get a turn: some 100 µs in a large keyspace, whose
/// entries are all over the memory.
const DIGEST_SLICE: usize = 1024;

/// One change of the range, as its streams see it. The digests are less the scope's base.
#[derive(Debug)]
struct Head {
    /// The revision of the change before this one.
    from: Revision,
    to: Revision,
    /// Between this and `to` nobody knows the state: the batch is a difference of states. Equal to
    /// `to` where it is one transaction.
    opaque_from: Revision,
    before: Digest,
    after: Digest,
    batch: Weak<EncodedBatch>,
}

impl Head {
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

    /// The scope has no more use for the batch, nor for its frame.
    fn forget(&self, scope: u64) {
        if let Some(batch) = self.batch.upgrade() {
            batch.drop_diffs(scope);
        }
    }
}

/// One range and what its streams share.
#[derive(Debug)]
pub(super) struct Scope {
    id: u64,
    range: KeyRange,
    /// The digest when the scope was made.
    base: OnceCell<Digest>,
    /// The state then; let go of once the base is known.
    birth: Mutex<Option<Snapshot>>,
    inner: Mutex<Inner>,
    answers: Mutex<Answers>,
    metrics: Metrics,
    _counted: Held,
}

#[derive(Debug)]
struct Inner {
    heads: VecDeque<Head>,
    /// The revision from which on `heads` knows of every change.
    floor: Revision,
    /// Revision of the last change, or of the birth.
    last: Revision,
    /// What the changes since the birth did to the digest.
    since_base: Digest,
    /// Heads up to here are let out by the pace.
    released: Revision,
    /// Changes whose deltas are being computed, in their order: neither they nor those after them may
    /// be sent yet.
    unsettled: VecDeque<Pending>,
    /// The latest progress: which one it is, and its message once the base is known.
    progress: Option<Progress>,
    ending: Option<Ending>,
    pace: Pace,
    /// Whether a flush is arranged.
    held: bool,
    /// One slot a stream.
    streams: Slab<Slot>,
    /// How many of them take patches.
    patched: usize,
}

/// A stream of the scope.
#[derive(Debug)]
struct Slot {
    variant: Variant,
    /// Kept while it has nothing to send.
    waker: Option<Waker>,
}

/// A change whose deltas are being computed.
#[derive(Debug)]
struct Pending {
    to: Revision,
    /// The revision of the state before it, and what had happened to the digest by then.
    before: Revision,
    since_base: Digest,
}

impl Inner {
    /// Heads up to here may be sent.
    fn visible(&self) -> Revision {
        let unsettled = self.unsettled.front();
        unsettled.map_or(self.released, |first| first.before.min(self.released))
    }

    /// Which heads a stream at `cursor` has not got yet, and may.
    fn unsent(&self, cursor: Revision) -> Range<usize> {
        let visible = self.visible();
        if cursor >= visible {
            return 0..0;
        }
        let up_to = |revision| self.heads.partition_point(|head| head.to <= revision);
        up_to(cursor)..up_to(visible)
    }
}

#[derive(Clone, Debug)]
struct Progress {
    number: u64,
    at: Revision,
    since_base: Digest,
    contact_ms: u64,
    message: Option<Bytes>,
}

/// A change that a stream has to send, with what its frame says.
struct Due {
    batch: Arc<EncodedBatch>,
    from: Revision,
    /// At the batch's revision.
    digest: Digest,
}

/// What became of a change that was pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    /// The streams are to be woken now.
    Wake,
    /// It is held back; a flush is to be arranged.
    Hold,
    /// It is held back with others, for which a flush is arranged, or until deltas are settled.
    Held,
}

/// What a stream has to send next.
#[derive(Debug)]
pub enum Next {
    /// This, which takes the stream to `to`.
    Frame {
        /// Shared with the scope's other streams.
        frame: Arc<Frame>,
        /// The stream's revision after it.
        to: Revision,
    },
    /// Several changes in one piece, of this stream only.
    Joined {
        /// Whole messages.
        bytes: Bytes,
        /// The stream's revision after it.
        to: Revision,
    },
    /// A sign of life.
    Progress {
        /// The message.
        bytes: Bytes,
        /// Which one it is.
        number: u64,
        /// The stream's revision after it.
        to: Revision,
    },
    /// The stream is too far behind for single changes: it has to catch up from the keyspace.
    Behind,
    /// The stream has to end.
    Ending(Ending),
    /// Nothing; the waker will be called.
    Nothing,
}

impl Scope {
    pub(super) fn new(range: KeyRange, birth: Snapshot, metrics: &Metrics) -> Self {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let revision = birth.revision();
        Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            range,
            base: OnceCell::new(),
            birth: Mutex::new(Some(birth)),
            inner: Mutex::new(Inner {
                heads: VecDeque::new(),
                floor: revision,
                last: revision,
                since_base: Digest::EMPTY,
                released: revision,
                unsettled: VecDeque::new(),
                progress: None,
                ending: None,
                pace: Pace::new(Instant::now()),
                held: false,
                streams: Slab::new(),
                patched: 0,
            }),
            answers: Mutex::default(),
            metrics: metrics.clone(),
            _counted: Held::new(&metrics.scopes),
        }
    }

    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    pub(super) const fn range(&self) -> &KeyRange {
        &self.range
    }

    /// The digest at the scope's birth, added up by whoever needs it first.
    ///
    /// # Cancel safety
    /// Cancel-safe: the next caller starts anew.
    pub(super) async fn base(&self) -> Digest {
        *self
            .base
            .get_or_init(|| async {
                let birth = self.birth.lock().clone();
                let mut sum = Digest::EMPTY;
                if let Some(birth) = birth {
                    let mut after = None;
                    loop {
                        let slice = birth
                            .entries(&self.range, after.as_ref())
                            .take(DIGEST_SLICE);
                        let (mut count, mut last) = (0, None);
                        for stored in slice {
                            sum += stored.hash;
                            count += 1;
                            last = Some(&stored.entry.key);
                        }
                        after = last.cloned();
                        if count < DIGEST_SLICE {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                }
                self.birth.lock().take();
                sum
            })
            .await
    }

    /// The digest at the scope's birth, if somebody has added it up.
    pub(super) fn known_base(&self) -> Option<Digest> {
        self.base.get().copied()
    }

    /// What the changes since the birth did to the digest. Of the same moment as a snapshot only when
    /// the prefix's lock is held.
    pub(super) fn since_base(&self) -> Digest {
        self.inner.lock().since_base
    }

    /// Whether a stream would make use of a patch.
    pub(super) fn takes_patches(&self) -> bool {
        self.inner.lock().patched > 0
    }

    /// A batch touches the range; `unsettled` if its deltas are being computed, in which case
    /// [`Scope::settle`] is to follow.
    pub(super) fn push(&self, batch: &Arc<EncodedBatch>, unsettled: bool, now: Instant) -> Pushed {
        let delta: Digest = batch.within(&self.range).map(|change| change.delta).sum();
        let mut inner = self.inner.lock();
        let before = inner.since_base;
        if unsettled {
            inner.unsettled.push_back(Pending {
                to: batch.to,
                before: batch.from,
                since_base: before,
            });
        }
        inner.since_base += delta;
        let head = Head::new(inner.last, before, inner.since_base, batch);
        inner.last = batch.to;
        inner.heads.push_back(head);
        // Nobody gets an earlier one by itself any more.
        if let Some(at) = inner.heads.len().checked_sub(REPLAY_CHANGES + 1) {
            inner.heads[at].forget(self.id);
        }
        if inner.heads.len() > HEADS
            && let Some(oldest) = inner.heads.pop_front()
        {
            inner.floor = oldest.to;
            // A stream that was about to take it may have had it made anew.
            oldest.forget(self.id);
        }
        // While some are held back, the next ones join them.
        if inner.held {
            return Pushed::Held;
        }
        if inner.pace.allows(now) {
            inner.released = batch.to;
            return match inner.unsettled.is_empty() {
                true => Pushed::Wake,
                false => Pushed::Held,
            };
        }
        inner.held = true;
        Pushed::Hold
    }

    /// The deltas of the batch up to `to` need not be waited for any longer. Returns whether the
    /// streams are to be woken.
    pub(super) fn settle(&self, to: Revision) -> bool {
        let mut inner = self.inner.lock();
        let before = inner.visible();
        inner.unsettled.retain(|pending| pending.to != to);
        inner.visible() > before
    }

    /// Lets out what was held back.
    pub(super) fn flush(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.held = false;
        inner.released = inner.last;
        // It wakes the streams as any change does, so it takes what was earned meanwhile.
        inner.pace.allows(now);
        drop(inner);
        self.wake();
    }

    /// A new progress is due: the range is at revision `at`.
    pub(super) fn progress(&self, at: Revision, contact_ms: u64) {
        let mut inner = self.inner.lock();
        let number = inner
            .progress
            .as_ref()
            .map_or(0, |progress| progress.number)
            + 1;
        // What was held back must not be overtaken by a revision that includes it.
        inner.released = inner.last;
        let (at, since_base) = match inner.unsettled.front() {
            None => (at, inner.since_base),
            Some(first) => (first.before, first.since_base),
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
        let woken: Vec<Waker> = self
            .inner
            .lock()
            .streams
            .iter_mut()
            .filter_map(|(_, slot)| slot.waker.take())
            .collect();
        woken.into_iter().for_each(Waker::wake);
    }

    /// A slot for a stream to wait in.
    pub(super) fn enter(&self) -> usize {
        self.inner.lock().streams.insert(Slot {
            variant: Variant::Whole,
            waker: None,
        })
    }

    /// The stream in this slot knows patches.
    pub(super) fn take_patches(&self, slot: usize) {
        let mut inner = self.inner.lock();
        let Inner {
            streams, patched, ..
        } = &mut *inner;
        if let Some(slot) = streams.get_mut(slot)
            && slot.variant == Variant::Whole
        {
            slot.variant = Variant::Patched;
            *patched += 1;
        }
    }

    /// Gives the slot back.
    pub(super) fn exit(&self, slot: usize) {
        let mut inner = self.inner.lock();
        let slot = inner.streams.try_remove(slot);
        if let Some(Slot {
            variant: Variant::Patched,
            ..
        }) = slot
        {
            inner.patched -= 1;
        }
        drop(inner);
        drop(slot);
    }

    /// Number of the latest progress.
    pub(super) fn progress_number(&self) -> u64 {
        self.inner
            .lock()
            .progress
            .as_ref()
            .map_or(0, |progress| progress.number)
    }

    /// What a stream at `cursor`, which has seen the progress with number `progress`, sends next.
    /// With nothing to send, its waker is kept.
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
        if cursor < inner.floor.min(inner.visible()) || !inner.unsent(cursor).is_empty() {
            let due = self.due(&inner, cursor);
            let variant = inner
                .streams
                .get(slot)
                .map_or(Variant::Whole, |slot| slot.variant);
            // Ingest must not wait while something is encoded.
            drop(inner);
            return match due {
                Some((first, rest)) => self.put_together(variant, &first, &rest),
                None => Next::Behind,
            };
        }
        if let Some(next) = self.newer_progress(&mut inner, cursor, progress) {
            return next;
        }
        if let Some(slot) = inner.streams.get_mut(slot) {
            match &mut slot.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                None => slot.waker = Some(cx.waker().clone()),
            }
        }
        Next::Nothing
    }

    /// The changes after `cursor`: the first, and those that may go with it. `None` when they cannot,
    /// or should not, be had one by one.
    fn due(&self, inner: &Inner, cursor: Revision) -> Option<(Due, Vec<Due>)> {
        if cursor < inner.floor {
            return None;
        }
        let base = *self.base.get()?;
        let unsent = inner.unsent(cursor);
        if unsent.len() > REPLAY_CHANGES {
            return None;
        }
        let mut pending = inner.heads.range(unsent).map_while(|head| {
            // Gone when the log has let go of it.
            let batch = head.batch.upgrade()?;
            let (from, digest) = (head.from, base + head.after);
            Some(Due {
                batch,
                from,
                digest,
            })
        });
        Some((pending.next()?, pending.collect()))
    }

    /// As many of the changes as make one piece.
    fn put_together(&self, variant: Variant, first: &Due, rest: &[Due]) -> Next {
        let frame = self.frame(variant, first);
        let mut to = first.batch.to;
        if rest.is_empty() || frame.len() >= JOIN {
            return Next::Frame { frame, to };
        }
        let (mut before, mut last) = (Vec::new(), frame);
        let mut len = last.len();
        for due in rest {
            let frame = self.frame(variant, due);
            if len + frame.len() > JOIN {
                break;
            }
            len += frame.len();
            to = due.batch.to;
            before.push(std::mem::replace(&mut last, frame));
        }
        match before.is_empty() {
            // It fits with no other: shared as it is, and not copied for each stream.
            true => Next::Frame { frame: last, to },
            false => Next::Joined {
                bytes: join(&before, &last, len),
                to,
            },
        }
    }

    /// A change's frame, encoded by whichever stream comes first.
    fn frame(&self, variant: Variant, due: &Due) -> Arc<Frame> {
        let of = ScopeDiff {
            scope: self.id,
            range: &self.range,
            from: due.from,
            digest: due.digest,
        };
        due.batch.diff(of, variant, &self.metrics)
    }

    fn newer_progress(&self, inner: &mut Inner, cursor: Revision, seen: u64) -> Option<Next> {
        let base = *self.base.get()?;
        let progress = inner
            .progress
            .as_mut()
            .filter(|progress| progress.number > seen)?;
        // A stream that is ahead of the progress has had newer things to say since, and will be
        // proven by the next one.
        let number = progress.number;
        let message = progress.message.get_or_insert_with(|| {
            encode::padded(&encode::unary(&v1::WatchResponse {
                frame: Some(v1::watch_response::Frame::Progress(v1::Progress {
                    revision: progress.at.get(),
                    digest: (base + progress.since_base).to_bytes(),
                    contact_ms: progress.contact_ms,
                })),
            }))
        });
        let bytes = if progress.at < cursor {
            Bytes::new()
        } else {
            message.clone()
        };
        Some(Next::Progress {
            bytes,
            number,
            to: progress.at.max(cursor),
        })
    }

    /// The digest at `revision`, when the heads reach back that far and know it.
    pub(super) fn digest_at(&self, revision: Revision) -> Option<Digest> {
        let base = *self.base.get()?;
        let inner = self.inner.lock();
        if revision < inner.floor {
            return None;
        }
        match inner
            .heads
            .get(inner.heads.partition_point(|head| head.to <= revision))
        {
            Some(next) if next.opaque_from < revision => None,
            Some(next) => Some(base + next.before),
            None => Some(base + inner.since_base),
        }
    }

    /// Whether the changes after `revision` can be sent one by one, and are few enough for that.
    pub(super) fn replays(&self, revision: Revision) -> bool {
        let inner = self.inner.lock();
        let pending = inner.heads.partition_point(|head| head.to <= revision);
        revision >= inner.floor && inner.heads.len() - pending <= REPLAY_CHANGES
    }

    /// The answer of this kind that a crowd shares, for a client that holds `held` (or nothing): one
    /// that was begun lately and leads to a newer revision, from which on single changes do, or else
    /// the one that `make` begins.
    pub(super) fn answer(
        &self,
        kind: SyncKind,
        held: Revision,
        make: impl FnOnce() -> SyncResponse,
    ) -> Arc<SyncResponse> {
        let now = Instant::now();
        let mut answers = self.answers.lock();
        // Newer, or a stream that is behind would read the same again and again.
        let usable = |revision| revision > held && self.replays(revision);
        if let Some(answer) = answers.find(kind, now, usable) {
            return answer;
        }
        let answer = Arc::new(make());
        let gone = answers.add(&answer, now);
        drop(answers);
        drop(gone);
        answer
    }

    /// Lets go of what nobody will ask for any more.
    pub(super) fn tidy(&self) {
        let gone = self.answers.lock().expire(Instant::now());
        drop(gone);
    }

    /// Makes the heads reach back to `revision`, from what the log knows about the time since, so
    /// that changes from before the scope was made can be replayed. `known` is the revision up to
    /// which the log does know. Does nothing when they are more than one would replay.
    pub(super) fn extend_back(&self, revision: Revision, past: &Past, known: Revision) {
        let mut inner = self.inner.lock();
        // Heads that went since the log was looked at would leave a hole.
        if inner.floor <= revision || inner.floor > known {
            return;
        }
        let older: Vec<&Arc<EncodedBatch>> = past
            .batches
            .iter()
            .filter(|batch| batch.to <= inner.floor)
            .collect();
        if older.len() > REPLAY_CHANGES || older.len() + inner.heads.len() > HEADS {
            return;
        }
        // What came first so far now has something before it.
        let before = older.last().map_or(revision, |batch| batch.to);
        let mut after = inner.since_base;
        match inner.heads.front_mut() {
            Some(front) => {
                front.from = before;
                after = front.before;
            }
            None => inner.last = before,
        }
        for (index, batch) in older.iter().enumerate().rev() {
            let from = index
                .checked_sub(1)
                .map_or(revision, |index| older[index].to);
            let delta: Digest = batch.within(&self.range).map(|change| change.delta).sum();
            inner
                .heads
                .push_front(Head::new(from, after - delta, after, batch));
            after -= delta;
        }
        inner.floor = revision;
    }
}

/// Frames in one piece of `len` bytes, and some more if that is tiny.
fn join(before: &[Arc<Frame>], last: &Frame, len: usize) -> Bytes {
    let mut joined = BytesMut::with_capacity(len);
    let before = before.iter().flat_map(|frame| frame.segments());
    before.for_each(|segment| joined.extend_from_slice(segment));
    let end = joined.len();
    let last_segments = last.segments().iter();
    last_segments.for_each(|segment| joined.extend_from_slice(segment));
    if encode::is_small(&joined) {
        // A few tiny ones: the last brings its padding.
        joined.truncate(end);
        let padded = last.alone().iter();
        padded.for_each(|segment| joined.extend_from_slice(segment));
    }
    joined.freeze()
}

#[cfg(test)]
impl Scope {
    pub(super) fn slots(&self) -> usize {
        self.inner.lock().streams.len()
    }

    pub(super) fn heads(&self) -> usize {
        self.inner.lock().heads.len()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        inner.heads.iter().for_each(|head| head.forget(self.id));
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::Epoch;
    use driftless_proto::apply::Edit;

    use super::*;
    use crate::store::Writer;
    use crate::store::{History, State};
    use crate::testing::{entry, prefix};

    #[tokio::test]
    async fn a_frame_that_is_made_anew_in_the_last_moment_goes_with_its_change() {
        let mut writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: Vec::new(),
            history: History::Continues,
        });
        let range = prefix("/c/");
        let scope = Scope::new(range, writer.snapshot().clone(), &Metrics::new());
        scope.base().await;
        let mut push = |revision: i64| {
            let edits = vec![Edit::Put(entry("/c/a", "v", revision))];
            let batch = writer.apply(Revision::new(revision), edits).unwrap();
            let batch = Arc::new(EncodedBatch::new(batch, 0));
            scope.push(&batch, false, Instant::now());
            batch
        };
        let first = push(2);
        // A stream has looked up what it sends next, and sends it after a while.
        let (due, _) = scope.due(&scope.inner.lock(), Revision::new(1)).unwrap();
        let last = i64::try_from(HEADS).unwrap() + 1;
        for revision in 3..=last {
            push(revision);
        }
        scope.frame(Variant::Whole, &due);
        assert_eq!(first.diff_count(), 1);
        push(last + 1);
        assert_eq!(first.diff_count(), 0);
    }
}
