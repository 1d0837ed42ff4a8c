//! The publishing end of a prefix.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use driftless_proto::{KeyRange, Revision};
use tokio::time::Instant;

use super::change_log::ChangeLog;
use super::pending::{PendingDelta, WantedDeltas, pays};
use super::proofs::Proofs;
use super::schedule::Schedule;
use super::scope::{Pushed, Scope};
use super::scopes::ScopeCursor;
use super::shared::{Ending, Limits, Published, PublishedState, Shared};
use crate::encode::{EncodedBatch, EncodedPatch};
use crate::metrics::Metrics;
use crate::store::{Batch, Proof, Snapshot};

/// How many scopes of a round are visited at a time, so that changes, and those who wait for the
/// prefix's lock, need not wait for the whole round: some 20 µs.
pub(super) const SLICE: usize = 256;

/// How long the state may be behind a revision that etcd has before that is reported. Longer than the
/// 30 s that may pass, with etcd versions that do not order progress, until a source has proven that
/// nothing changed in a large prefix.
const BEHIND_AFTER: Duration = Duration::from_secs(45);

/// The publishing end of a prefix. There is one, and the ingest task owns it.
#[derive(Debug)]
pub struct Publisher {
    shared: Arc<Shared>,
    log_bytes: usize,
    schedule: Schedule,
    proofs: Proofs,
    /// Since when the state is behind what etcd's answers say; `None` if it is not.
    behind_since: Option<Instant>,
    standing: Standing,
}

/// How what is published stands to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nothing is known that is missing, or not for long.
    InSync,
    /// The source lost etcd, and the state was not proven since.
    Lost,
    /// The state does not reach a revision that etcd has: for so long that it was reported.
    Behind,
}

impl Publisher {
    pub(super) fn new(shared: Arc<Shared>, limits: &Limits) -> Self {
        Self {
            shared,
            log_bytes: limits.log_bytes,
            schedule: Schedule::new(Instant::now(), limits.progress_interval),
            proofs: Proofs::new(),
            behind_since: None,
            standing: Standing::InSync,
        }
    }

    /// The served prefix.
    pub fn prefix(&self) -> &KeyRange {
        &self.shared.prefix
    }

    /// The server's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// etcd answered. What is published gets younger if it has reached the answer's revision, or once
    /// it does.
    pub fn prove(&mut self, proof: Proof) {
        let counts = self.proofs.add(proof);
        let contact_ms = self.contact_ms();
        let mut published = self.shared.published.lock();
        if let Some(state) = &mut published.state {
            state.contact_ms = contact_ms;
        }
        // The connection works again, so that is not the reason any more.
        if self.standing == Standing::Lost
            && let Some(behind) = self.proofs.behind()
        {
            published.trouble = Some(behind_etcd(behind.revision));
        }
        drop(published);
        self.stand(counts);
    }

    /// etcd cannot be reached, for this reason, the latest. What was published stays valid; its age is
    /// reported with it.
    pub fn lost(&mut self, reason: String) {
        self.proofs.disconnect();
        self.behind_since = None;
        self.standing = Standing::Lost;
        self.shared.published.lock().trouble = Some(reason);
    }

    /// Notes whether the state is behind, and reports that it is not any more. `proven` if an answer of
    /// etcd has just begun to count.
    fn stand(&mut self, proven: bool) {
        if self.proofs.behind().is_some() {
            self.behind_since.get_or_insert_with(Instant::now);
            return;
        }
        self.behind_since = None;
        if !proven {
            return;
        }
        let before = std::mem::replace(&mut self.standing, Standing::InSync);
        if before != Standing::InSync {
            self.shared.published.lock().trouble = None;
        }
        if before == Standing::Behind {
            tracing::info!(prefix = %self.prefix(), "the state has caught up with etcd");
        }
    }

    /// When it is to be reported that the state is behind etcd.
    fn behind_due(&self) -> Option<Instant> {
        let since = self.behind_since?;
        (self.standing != Standing::Behind).then_some(since + BEHIND_AFTER)
    }

    /// Reports, once, that the state is behind etcd.
    fn report_behind(&mut self) {
        let Some(behind) = self.proofs.behind() else {
            return;
        };
        self.standing = Standing::Behind;
        self.shared.published.lock().trouble = Some(behind_etcd(behind.revision));
        let (prefix, etcd) = (self.prefix(), behind.revision);
        let revision = *self.shared.revision.borrow();
        tracing::warn!(%prefix, %revision, %etcd, "the state is behind etcd: the watch does not deliver what etcd has");
    }

    /// When the published state was last known to be etcd's, on the server's clock; 0 for never.
    fn contact_ms(&self) -> u64 {
        let proven = self.proofs.proven();
        proven.map_or(0, |time| self.shared.clock_at(time))
    }

    /// When the publisher's own work is due: releasing changes that were held back, progress, the
    /// eviction of sync responses, or the report that the state is behind. Now or in the past while
    /// there is work left.
    pub fn due(&self) -> Instant {
        let due = self.schedule.due(Instant::now());
        self.behind_due().map_or(due, |behind| behind.min(due))
    }

    /// Does a slice of the work that is due, if any is. To be called once [`Publisher::due`] has passed,
    /// and after each update. Between two calls changes may be published, and the caller should yield.
    pub fn tick(&mut self) {
        let now = Instant::now();
        if self.schedule.flush_due(now) {
            self.flush();
        }
        let begin = || self.shared.published.lock().scopes.cursor();
        if let Some(mut cursor) = self.schedule.progress.take(now, begin)
            && self.progress(&mut cursor)
        {
            self.schedule.progress.resume(cursor);
        }
        let begin = || self.shared.published.lock().scopes.cursor();
        if let Some(mut cursor) = self.schedule.eviction.take(now, begin)
            && self.evict_expired(&mut cursor)
        {
            self.schedule.eviction.resume(cursor);
        }
        if self.behind_due().is_some_and(|due| due <= now) {
            self.report_behind();
        }
    }

    /// Publishes the first state, or one of another history, which was etcd's at `asked_at` or later.
    /// What was published before is void then, and the streams that build on it are ended.
    pub fn publish_anew(&mut self, snapshot: Snapshot, asked_at: Option<Instant>) {
        let revision = snapshot.revision();
        self.proofs.restart(revision, asked_at);
        let contact_ms = self.contact_ms();
        let mut published = self.shared.published.lock();
        let log = ChangeLog::new(revision, self.log_bytes);
        let overwritten = snapshot.overwritten();
        let old = published.state.replace(PublishedState {
            snapshot,
            log,
            contact_ms,
        });
        let ended = published.end(Ending::History);
        drop(published);
        self.shared.pinned.published(overwritten);
        ended.iter().for_each(|scope| scope.wake());
        if let Some(old) = old {
            self.shared
                .metrics
                .log_bytes
                .dec_by(i64::try_from(old.log.bytes()).unwrap_or(i64::MAX));
        }
        self.shared.revision.send_replace(revision);
        self.stand(asked_at.is_some());
    }

    /// The change log; `None` before the first state.
    pub fn change_log(&self) -> Option<ChangeLog> {
        let published = self.shared.published.lock();
        published.state.as_ref().map(|state| state.log.clone())
    }

    /// Puts batches in front of the change log. They hold every change after `floor`, up to `up_to`;
    /// `snapshot` holds their deletes. Returns where the log begins then; `None`, and changes nothing,
    /// if it no longer begins at `up_to`.
    pub fn prepend(
        &self,
        snapshot: Snapshot,
        floor: Revision,
        batches: VecDeque<Batch>,
        up_to: Revision,
    ) -> Option<Revision> {
        // What etcd's answers prove is true of the state, not of what it was before them.
        let encode = |batch| Arc::new(EncodedBatch::new(batch, 0));
        // There may be many, so their log is made before the lock is taken.
        let older = ChangeLog::of(floor, batches.into_iter().map(encode));
        let mut published = self.shared.published.lock();
        let state = published.state.as_mut()?;
        let before = state.log.bytes();
        let dropped = state.log.prepend(older, up_to)?;
        let grown = state.log.bytes() as i64 - before as i64;
        let floor = state.log.floor();
        let old = std::mem::replace(&mut state.snapshot, snapshot);
        drop(published);
        self.shared.metrics.log_bytes.inc_by(grown);
        drop((old, dropped));
        Some(floor)
    }

    /// Publishes a batch and the state that it led to. Wakes the streams whose range it touches, and
    /// no others. Where a stream takes patches, [`Publisher::take_pending`] returns work.
    pub fn publish(&mut self, snapshot: Snapshot, mut batch: Batch) {
        let revision = snapshot.revision();
        let proven = self.proofs.reach(revision);
        let contact_ms = self.contact_ms();
        let metrics = &self.shared.metrics;
        metrics.changes.inc_by(batch.changes.len() as u64);
        // Old values are dropped unless a delta is wanted: they are kept no longer than its
        // computation takes.
        let mut replaced = std::mem::take(&mut batch.replaced);
        replaced.retain(|replaced| pays(&batch, replaced));
        let batch = Arc::new(EncodedBatch::new(batch, contact_ms));
        let now = Instant::now();
        let mut wake = Vec::new();
        let mut published = self.shared.published.lock();
        let Published {
            state: Some(state),
            scopes,
            paced,
            pending,
            ..
        } = &mut *published
        else {
            return;
        };
        let too_much = pending.drop_excess(&batch, &mut replaced);
        let mut wanted = WantedDeltas::new(&batch, &replaced);
        let before = state.log.bytes();
        let overwritten = snapshot.overwritten();
        let old = std::mem::replace(&mut state.snapshot, snapshot);
        state.contact_ms = contact_ms;
        let dropped = state.log.push(Arc::clone(&batch));
        let grown = state.log.bytes() as i64 - before as i64;
        let mut late = false;
        for scope in scopes.touched_by(&batch) {
            late |= too_much && scope.takes_patches();
            match scope.push(&batch, wanted.by(scope), now) {
                Pushed::Wake => wake.push(Arc::clone(scope)),
                Pushed::HoldBack => paced.push(Arc::clone(scope)),
                Pushed::Wait => {}
            }
        }
        if !paced.is_empty() {
            self.schedule.hold_back(now);
        }
        if let Some((which, scopes)) = wanted.finish() {
            let mut which = which.into_iter();
            replaced.retain(|_| which.next() == Some(true));
            pending.add(Arc::clone(&batch), std::mem::take(&mut replaced), scopes);
        }
        drop(published);
        metrics.deltas_late.inc_by(late.into());
        metrics.log_bytes.inc_by(grown);
        self.shared.revision.send_replace(revision);
        wake.iter().for_each(|scope| scope.wake());
        // May be large, so it is freed outside the lock.
        drop((old, dropped, replaced));
        self.shared.pinned.published(overwritten);
        self.stand(proven);
    }

    /// The batches published since the last call whose deltas streams wait for. Each must be given to
    /// [`Publisher::resolve`] soon, whatever is found.
    pub fn take_pending(&self) -> Vec<PendingDelta> {
        self.shared.published.lock().pending.take_new()
    }

    /// Adds the patches that were found for the batch. Its streams no longer wait for the others.
    pub fn resolve(&self, resolved: PendingDelta, patches: Vec<EncodedPatch>) {
        let scopes = resolved.scopes.iter().filter_map(Weak::upgrade);
        let mut scopes: Vec<Arc<Scope>> = scopes.collect();
        let batch = &resolved.batch;
        let mut published = self.shared.published.lock();
        published.pending.remove(&resolved);
        let mut grown = 0;
        let mut dropped = Vec::new();
        if let Some(state) = &mut published.state {
            let before = state.log.bytes();
            dropped = state.log.add_patches(batch, patches);
            grown = state.log.bytes() as i64 - before as i64;
        }
        let wake: Vec<_> = scopes
            .extract_if(.., |scope| scope.resolve(batch.to))
            .collect();
        drop(published);
        self.shared.metrics.log_bytes.inc_by(grown);
        wake.iter().for_each(|scope| scope.wake());
        drop((dropped, scopes));
    }

    /// Publishes that nothing changed up to the snapshot's revision. Wakes nobody: streams learn of it
    /// with their next progress.
    pub fn advance(&mut self, snapshot: Snapshot) {
        let revision = snapshot.revision();
        let proven = self.proofs.reach(revision);
        let contact_ms = self.contact_ms();
        let mut published = self.shared.published.lock();
        let old = published.state.as_mut().map(|state| {
            state.contact_ms = contact_ms;
            std::mem::replace(&mut state.snapshot, snapshot)
        });
        drop(published);
        drop(old);
        self.shared.revision.send_replace(revision);
        self.stand(proven);
    }

    /// Whether changes are held back until a flush.
    pub const fn holds_back(&self) -> bool {
        self.schedule.holds_back()
    }

    /// Releases the changes that were held back. [`Publisher::tick`] does so when it is due.
    pub fn flush(&mut self) {
        self.schedule.flushed();
        let paced = std::mem::take(&mut self.shared.published.lock().paced);
        let now = Instant::now();
        paced.iter().for_each(|scope| scope.flush(now));
    }

    /// A cursor over the scopes that there are now.
    pub fn scopes(&self) -> ScopeCursor {
        self.shared.published.lock().scopes.cursor()
    }

    /// Tells the next few scopes of a progress, and returns whether there are more.
    /// [`Publisher::tick`] does so when it is due.
    pub fn progress(&self, cursor: &mut ScopeCursor) -> bool {
        let published = self.shared.published.lock();
        // Of this moment: a batch may have come between two slices.
        let Some(state) = &published.state else {
            return false;
        };
        let revision = state.snapshot.revision();
        let some = published.scopes.next_of(cursor, SLICE);
        some.iter()
            .for_each(|scope| scope.progress(revision, state.contact_ms));
        drop(published);
        some.iter().for_each(|scope| scope.wake());
        !cursor.is_over()
    }

    /// Drops the expired sync responses of the next few scopes, and returns whether there are more.
    fn evict_expired(&self, cursor: &mut ScopeCursor) -> bool {
        let some = self.shared.published.lock().scopes.next_of(cursor, SLICE);
        some.iter().for_each(|scope| scope.evict_expired());
        !cursor.is_over()
    }

    #[cfg(test)]
    pub(super) fn has_paced(&self) -> bool {
        !self.shared.published.lock().paced.is_empty()
    }
}

/// Why the state is not in sync although etcd answers: it has this revision.
fn behind_etcd(revision: Revision) -> String {
    format!(
        "etcd is at revision {revision}, and the watch has not delivered what changed up to there"
    )
}
