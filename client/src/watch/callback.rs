//! Callbacks, for code that is not async: a task follows a watch and calls.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use driftless_proto::KeyRange;
use futures_core::Stream;
use tokio_util::task::AbortOnDropHandle;

use super::updates::ValueUpdate;
use super::watcher::Watcher;
use crate::resources::Resource;

impl<T> Watcher<T> {
    /// Calls `call` with each change from now on, for code that is not async. The calls run one after
    /// the other in a task of their own, on the runtime that the watch was begun on. Only the latest value
    /// counts, so a slow call skips those that come meanwhile. A call should not block for long: it
    /// occupies a thread of that runtime. A panic ends that call only, and is logged without its text.
    ///
    /// Dropping the guard ends the calls, and the watch if nothing else keeps it alive; a call that is
    /// running at that moment runs to its end.
    ///
    /// ```
    /// # fn follow(limit: driftless_client::Watcher<u32>, pool: std::sync::Arc<std::sync::atomic::AtomicU32>) {
    /// let _calls = limit.on_change(move |update| {
    ///     pool.store(*update.current(), std::sync::atomic::Ordering::Relaxed);
    /// });
    /// # }
    /// ```
    pub fn on_change(&self, call: impl FnMut(&ValueUpdate<T>) + Send + 'static) -> CallbackGuard
    where
        T: Send + Sync + 'static,
    {
        CallbackGuard::begin(self.clone(), call)
    }
}

/// Keeps the calls of [`Watcher::on_change`](crate::Watcher::on_change) coming. Dropping it ends them.
#[must_use = "dropping it ends the calls"]
pub struct CallbackGuard {
    range: KeyRange,
    _task: AbortOnDropHandle<()>,
}

impl CallbackGuard {
    /// Begins the task. It ends when the guard is dropped, or when no value will follow.
    pub(super) fn begin<T: Send + Sync + 'static>(
        watcher: Watcher<T>,
        mut call: impl FnMut(&ValueUpdate<T>) + Send + 'static,
    ) -> Self {
        let subscription = &watcher.handle.subscription;
        let range = subscription.range().clone();
        let (tracker, resource) = (
            subscription.tracker().clone(),
            Resource::Callback(range.to_string()),
        );
        let runtime = subscription.runtime().clone();
        let mut updates = watcher.into_stream();
        let named = range.clone();
        let task = async move {
            while let Some(Ok(update)) = poll_fn(|cx| Pin::new(&mut updates).poll_next(cx)).await {
                // What a panic leaves half-done is the service's own state.
                if catch_unwind(AssertUnwindSafe(|| call(&update))).is_err() {
                    tracing::warn!(
                        range = %named,
                        revision = %update.revision(),
                        "a callback panicked; it is called again for the next change"
                    );
                }
            }
        };
        Self {
            range,
            _task: AbortOnDropHandle::new(runtime.spawn(tracker.track_future(resource, task))),
        }
    }
}

impl fmt::Debug for CallbackGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallbackGuard")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
