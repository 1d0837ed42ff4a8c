//! The untyped watcher: keys and values as they are. For tools, and for callers that decode themselves.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{KeyRange, RangeError};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::status::StatusWatcher;
use crate::error::{Closed, NoValue, WatchError};
use crate::subscription::{Registry, Subscription};
use crate::value::{Entries, EntriesChange, Status};

/// Options of an untyped watch; await it.
///
/// # Cancel safety
/// Dropping it, or its future, at any point ends everything that it caused.
#[must_use = "a watch begins when it is awaited"]
pub struct EntriesBuilder {
    registry: Arc<Registry>,
    range: Result<KeyRange, RangeError>,
    within: Option<Duration>,
}

impl EntriesBuilder {
    pub(crate) const fn new(registry: Arc<Registry>, range: Result<KeyRange, RangeError>) -> Self {
        Self {
            registry,
            range,
            within: None,
        }
    }

    /// How long to wait for the first state; then the watch fails with [`WatchError::NoFirstValue`].
    /// Default: it waits until a server answers, or refuses.
    pub const fn first_state_within(mut self, limit: Duration) -> Self {
        self.within = Some(limit);
        self
    }
}

impl IntoFuture for EntriesBuilder {
    type Output = Result<EntriesWatcher, WatchError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Resolves when the range is in sync; an empty range is fine.
    ///
    /// # Cancel safety
    /// Dropping the future ends everything that it caused.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let subscription = self.registry.subscribe(self.range?)?;
            let mut entries = subscription.entries();
            let first = async {
                let first = entries.wait_for(Option::is_some).await;
                first.ok().and_then(|first| first.clone())
            };
            let found = tokio::select! {
                biased;
                found = first => found,
                error = subscription.terminal_error() => return Err(error),
                within = expired(self.within) => {
                    let last_error = subscription.status().last_error;
                    return Err(WatchError::NoFirstValue {
                        range: subscription.range().clone(),
                        within,
                        why: NoValue::NotConnected { last_error },
                    });
                }
            };
            let Some(found) = found else {
                return Err(subscription.terminal_error().await);
            };
            let status = StatusWatcher::new(subscription.watch_status(), None);
            Ok(EntriesWatcher {
                subscription,
                entries,
                status,
                returned: Mutex::new(found),
            })
        })
    }
}

impl fmt::Debug for EntriesBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntriesBuilder")
            .field("range", &self.range)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

async fn expired(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

/// Watches the entries of a range. Dropping it ends everything that it caused, unless others watch the same
/// range.
pub struct EntriesWatcher {
    subscription: Arc<Subscription>,
    entries: watch::Receiver<Option<Entries>>,
    status: StatusWatcher,
    /// The state that the caller was last given: changes are computed against it.
    returned: Mutex<Entries>,
}

impl EntriesWatcher {
    /// The current state. [`changed`](Self::changed) does not report what changed up to it.
    pub fn load(&self) -> Entries {
        let mut returned = self.returned.lock();
        if let Some(now) = &*self.entries.borrow() {
            *returned = now.clone();
        }
        returned.clone()
    }

    /// Waits until the state differs from what this watcher last returned, from here or from
    /// [`load`](Self::load), and returns the difference. Only the latest state counts: what came and went
    /// in between is skipped.
    ///
    /// # Errors
    /// When no change will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns all that this one would have.
    pub async fn changed(&mut self) -> Result<EntriesChange, Closed> {
        loop {
            let now = self.entries.borrow_and_update().clone();
            if let Some(now) = now {
                let mut returned = self.returned.lock();
                let changes = now.changes_since(&returned);
                // Also when nothing changed, so that the older state is freed.
                *returned = now;
                if !changes.is_empty() {
                    let revision = returned.revision();
                    return Ok(EntriesChange { revision, changes });
                }
            }
            if self.entries.changed().await.is_err() {
                return Err(self.subscription.closed());
            }
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    /// Waits until the status differs, as [`StatusWatcher::changed`] does.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what this one would have.
    pub async fn status_changed(&mut self) -> Status {
        self.status.changed().await
    }

    /// Follows the status independently of this watcher, so that both can be awaited at the same time.
    pub fn watch_status(&self) -> StatusWatcher {
        self.status.clone()
    }
}

impl fmt::Debug for EntriesWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntriesWatcher")
            .field("range", self.subscription.range())
            .field("returned", &*self.returned.lock())
            .finish_non_exhaustive()
    }
}
