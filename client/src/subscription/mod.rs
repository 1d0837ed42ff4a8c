//! One subscription to one range: a state machine, the task that drives it, and what its handles
//! share.
//!
//! Who owns what: handles own a [`Shared`] together; it owns the task. The task owns the replica and
//! knows nothing of the handles, so that nothing keeps it running when the last of them is dropped.

mod state;
mod task;

use std::fmt;
use std::sync::{Arc, Weak};

use driftless_proto::KeyRange;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use crate::entries::Entries;
use crate::error::{Closed, WatchError};
use crate::freshness::Proven;
use crate::inventory::{Held, Inventory};
use crate::registry::Registry;
use crate::sink::{Attached, Sink, Sinks};
use crate::status::{State, Status};
use crate::transport::Transport;
use task::{Show, Task};

/// What the handles of one subscription share. The last one to go ends the task, at once and in
/// whatever state it is.
pub(crate) struct Shared {
    range: KeyRange,
    sinks: Arc<Sinks>,
    entries: watch::Receiver<Option<Entries>>,
    status: watch::Receiver<Status>,
    proven: Arc<Proven>,
    inventory: Inventory,
    runtime: Handle,
    registry: Weak<Registry>,
    task: AbortOnDropHandle<()>,
}

impl Shared {
    /// Begins a subscription. Its task ends when what is returned is dropped.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn begin(
        range: KeyRange,
        limit: usize,
        transport: Arc<Transport>,
        registry: Weak<Registry>,
    ) -> Self {
        let sinks = Arc::new(Sinks::new(range.clone()));
        let (show_entries, entries) = watch::channel(None);
        let (show_status, status) = watch::channel(Status::new(Instant::now().into_std()));
        let proven = Proven::begin();
        let inventory = transport.inventory().clone();
        let task = Task::new(
            range.clone(),
            limit,
            transport,
            Arc::clone(&sinks),
            Show {
                entries: show_entries,
                status: show_status,
                proven: Arc::clone(&proven),
            },
            inventory.hold(Held::Subscription(range.to_string())),
        );
        let span = tracing::debug_span!("subscription", %range);
        let runtime = Handle::current();
        Self {
            range,
            sinks,
            entries,
            status,
            proven,
            inventory,
            registry,
            task: AbortOnDropHandle::new(runtime.spawn(task.run().instrument(span))),
            runtime,
        }
    }

    /// When the state was last proven.
    pub(crate) fn proven(&self) -> Arc<Proven> {
        Arc::clone(&self.proven)
    }

    /// Where what is done for its watchers is noted.
    pub(crate) const fn inventory(&self) -> &Inventory {
        &self.inventory
    }

    /// The runtime that it was begun on.
    pub(crate) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Ends it for all its handles.
    pub(crate) fn end(&self, reason: Closed) {
        // Before the task says that it was merely dropped.
        self.sinks.close(reason);
        self.task.abort();
    }

    pub(crate) const fn range(&self) -> &KeyRange {
        &self.range
    }

    pub(crate) fn attach(&self, sink: Arc<dyn Sink>) -> Attached {
        self.sinks.attach(sink)
    }

    /// The newest state, and news of it. `None` before the first.
    pub(crate) fn entries(&self) -> watch::Receiver<Option<Entries>> {
        self.entries.clone()
    }

    pub(crate) fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The status, and news of it.
    pub(crate) fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Whether it has ended for good.
    pub(crate) fn is_closed(&self) -> bool {
        self.sinks.closed().is_some()
    }

    /// Why it has ended.
    pub(crate) fn closed(&self) -> Closed {
        self.sinks.closed().unwrap_or(Closed::Ended)
    }

    /// Waits until there is no use in waiting for a first state: the server refuses, or it is over.
    /// With a state, a refusal is only status.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn hopeless(&self) -> WatchError {
        let mut status = self.status.clone();
        let found = status
            .wait_for(|status| {
                let refused = status.refused.is_some() && self.entries.borrow().is_none();
                refused || status.state == State::Closed
            })
            .await;
        match found.ok().and_then(|status| status.refused.clone()) {
            Some(refused) if !self.is_closed() => WatchError::Refused(refused),
            _ => WatchError::Closed(self.closed()),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(registry) = self.registry.upgrade() {
            registry.forget(self);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
