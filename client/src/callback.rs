//! Calls for code that is not async: a task that follows a watch and calls.

use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;

use driftless_proto::KeyRange;
use futures_core::Stream;
use tokio_util::task::AbortOnDropHandle;

use crate::inventory::Held;
use crate::updates::Update;
use crate::watcher::Watcher;

/// Calls of [`Watcher::on_change`](crate::Watcher::on_change). Dropping it ends them.
#[must_use = "dropping it ends the calls"]
pub struct OnChange {
    range: KeyRange,
    _task: AbortOnDropHandle<()>,
}

impl OnChange {
    /// Begins the task. It ends when what is returned is dropped, or when no value will follow.
    pub(crate) fn begin<T: Send + Sync + 'static>(
        watcher: Watcher<T>,
        mut call: impl FnMut(&Update<T>) + Send + 'static,
    ) -> Self {
        let shared = &watcher.handle.shared;
        let range = shared.range().clone();
        let (inventory, held) = (
            shared.inventory().clone(),
            Held::Callback(range.to_string()),
        );
        let runtime = shared.runtime().clone();
        let mut updates = watcher.into_stream();
        let named = range.clone();
        let task = async move {
            while let Some(Ok(update)) = poll_fn(|cx| Pin::new(&mut updates).poll_next(cx)).await {
                // What it leaves half-done is the service's own.
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
            _task: AbortOnDropHandle::new(runtime.spawn(inventory.note(held, task))),
        }
    }
}

impl fmt::Debug for OnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnChange")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}
