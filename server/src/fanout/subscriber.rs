//! One stream's subscription: a slot in the scope of its range.

use std::sync::Arc;
use std::task::Context;

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};

use super::change_refs::REPLAY;
use super::handle::RangeView;
use super::next::Next;
use super::scope::Scope;
use super::shared::Shared;
use crate::encode::{SyncKind, SyncResponse};
use crate::metrics::Metrics;

/// One stream's subscription. Dropping it unregisters the stream, and its scope with the last one.
#[derive(Debug)]
pub struct Subscriber {
    shared: Arc<Shared>,
    scope: Arc<Scope>,
    slot: usize,
}

impl Subscriber {
    pub(super) fn new(shared: Arc<Shared>, scope: Arc<Scope>) -> Self {
        let slot = scope.enter();
        Self {
            shared,
            scope,
            slot,
        }
    }

    /// The stream's client applies patches: a large value of which little changed is sent as a patch,
    /// and held back until that is computed.
    pub fn take_patches(&self) {
        self.scope.take_patches(self.slot);
    }

    /// The range.
    pub fn range(&self) -> &KeyRange {
        self.scope.range()
    }

    /// The server's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// The server's clock, in milliseconds.
    pub fn clock_ms(&self) -> u64 {
        self.shared.clock_ms()
    }

    /// The range as it is now: a snapshot, the log and the digest, all of one moment. `None` if the
    /// history that the subscription belongs to has ended; [`Subscriber::next`] reports it too.
    pub fn view(&self) -> Option<RangeView> {
        let base = self.scope.base();
        let published = self.shared.published.lock();
        let state = published
            .state
            .as_ref()
            .filter(|_| published.scopes.holds(&self.scope))?;
        let digest = base + self.scope.since_base();
        Some(RangeView {
            root: state.snapshot.clone(),
            log: state.log.clone(),
            digest,
            contact_ms: state.contact_ms,
        })
    }

    /// The range's digest at an earlier revision. `None` if it is not known (any more).
    ///
    /// Costs nothing if the scope remembers. If only the log does, it costs no more than a few hundred
    /// look-ups, and is done in slices.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn digest_at(&self, revision: Revision, view: &RangeView) -> Option<Digest> {
        if let Some(digest) = self.scope.digest_at(revision) {
            return Some(digest);
        }
        let delta = view.log.delta_since(self.range(), revision).await?;
        Some(view.digest - delta)
    }

    /// The sync response that leads a client at revision `held` to the view, or to a revision shortly
    /// before it after which changes can be sent one by one. Shared with others who ask for the same.
    pub fn sync_response(
        &self,
        kind: SyncKind,
        held: Revision,
        view: RangeView,
    ) -> Arc<SyncResponse> {
        self.scope
            .sync_response(kind, held, || self.own_sync_response(kind, view))
    }

    /// A sync response that leads a client to just this view, and is not shared.
    pub fn own_sync_response(&self, kind: SyncKind, view: RangeView) -> Arc<SyncResponse> {
        let cache = Arc::clone(&self.shared.chunk_cache);
        let range = self.range().clone();
        let pinned = &self.shared.pinned;
        SyncResponse::new(
            view.root,
            range,
            kind,
            view.digest,
            view.contact_ms,
            cache,
            pinned,
        )
    }

    /// Whether the changes after `revision` can be sent one by one, and are few enough for that. If only
    /// the log remembers them, the scope does afterwards.
    pub fn replays(&self, revision: Revision, view: &RangeView) -> bool {
        if self.scope.digest_at(revision).is_none()
            && let Some(batches) = view.log.batches_since(self.range(), revision, REPLAY)
        {
            let known = view.root.revision();
            self.scope.extend_back(revision, &batches, known);
        }
        self.scope.replays(revision)
    }

    /// Number of the range's latest progress.
    pub fn progress_number(&self) -> u64 {
        self.scope.progress_number()
    }

    /// What to send next to a stream that is at `cursor` and was sent the progress with number
    /// `progress`. With nothing to send, its waker is kept and will be called.
    pub fn next(&self, cursor: Revision, progress: u64, cx: &Context<'_>) -> Next {
        self.scope.next(self.slot, cursor, progress, cx)
    }
}

#[cfg(test)]
impl Subscriber {
    /// How many streams the scope has.
    pub(super) fn scope_streams(&self) -> usize {
        self.scope.streams()
    }

    /// How many changes the scope remembers.
    pub(super) fn scope_changes(&self) -> usize {
        self.scope.changes()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.scope.exit(self.slot);
        let last = self.shared.published.lock().scopes.leave(&self.scope);
        drop(last);
    }
}
