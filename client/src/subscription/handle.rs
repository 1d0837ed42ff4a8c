//! What the handles of one subscription share, and what ends it: dropping the last of them.

use std::fmt;
use std::sync::{Arc, Weak};

use driftless_proto::KeyRange;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::decoders::{DecoderGuard, Decoders};
use super::publisher::Publisher;
use super::ranges::Ranges;
use super::task::Task;
use crate::decode::Decoder;
use crate::error::{Closed, WatchError};
use crate::resources::{Resource, ResourceTracker};
use crate::transport::Transport;
use crate::value::{Entries, Proven, Status, WatchState};

/// A subscription, shared by its handles. Dropping the last one ends the task at once, in whatever state
/// it is.
pub(crate) struct Subscription {
    range: KeyRange,
    decoders: Arc<Decoders>,
    entries: watch::Receiver<Option<Entries>>,
    status: watch::Receiver<Status>,
    proven: Arc<Proven>,
    tracker: ResourceTracker,
    runtime: Handle,
    ranges: Weak<Ranges<Self>>,
    task: AbortOnDropHandle<()>,
}

impl Subscription {
    /// Begins a subscription. Its task ends when the result is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(super) fn begin(
        range: KeyRange,
        limit: usize,
        transport: Arc<Transport>,
        ranges: Weak<Ranges<Self>>,
    ) -> Self {
        let decoders = Arc::new(Decoders::new(range.clone()));
        let (publish_entries, entries) = watch::channel(None);
        let (publish_status, status) = watch::channel(Status::new(Instant::now().into_std()));
        let proven = Proven::begin();
        let tracker = transport.tracker().clone();
        let task = Task::new(
            range.clone(),
            limit,
            transport,
            Arc::clone(&decoders),
            Publisher {
                entries: publish_entries,
                status: publish_status,
                proven: Arc::clone(&proven),
            },
            tracker.track(Resource::Subscription(range.to_string())),
        );
        let span = tracing::debug_span!("subscription", %range);
        let runtime = Handle::current();
        Self {
            range,
            decoders,
            entries,
            status,
            proven,
            tracker,
            ranges,
            task: AbortOnDropHandle::new(runtime.spawn(task.run().instrument(span))),
            runtime,
        }
    }

    /// When the state was last proven.
    pub(crate) fn proven(&self) -> Arc<Proven> {
        Arc::clone(&self.proven)
    }

    /// Where work for its watchers is tracked.
    pub(crate) const fn tracker(&self) -> &ResourceTracker {
        &self.tracker
    }

    /// The runtime that it was begun on.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Ends it for all its handles.
    pub(crate) fn end(&self, reason: Closed) {
        // First, because the aborted task closes with a less exact reason.
        self.decoders.close(reason);
        self.task.abort();
    }

    pub(crate) const fn range(&self) -> &KeyRange {
        &self.range
    }

    /// Publishes states to `decoder` until the guard is dropped.
    pub(crate) fn attach(&self, decoder: Arc<dyn Decoder>) -> DecoderGuard {
        self.decoders.attach(decoder)
    }

    /// The newest state; `None` before the first.
    pub(crate) fn entries(&self) -> watch::Receiver<Option<Entries>> {
        self.entries.clone()
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status, to wait for its changes.
    pub(crate) fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Whether it has ended for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.decoders.closed().is_some()
    }

    /// Why it has ended.
    pub(crate) fn closed(&self) -> Closed {
        self.decoders.closed().unwrap_or(Closed::Ended)
    }

    /// Waits until no first state is to be expected: the server refuses the range, or the subscription
    /// has ended. Once there is a state, a refusal is only status.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn terminal_error(&self) -> WatchError {
        let mut status = self.status.clone();
        let found = status
            .wait_for(|status| {
                let refused = status.refused.is_some() && self.entries.borrow().is_none();
                refused || status.state == WatchState::Closed
            })
            .await;
        match found.ok().and_then(|status| status.refused.clone()) {
            Some(refused) if !self.is_closed() => WatchError::Refused(refused),
            _ => WatchError::Closed(self.closed()),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(ranges) = self.ranges.upgrade() {
            ranges.remove(&self.range, self);
        }
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
