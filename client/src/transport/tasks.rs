//! The tasks that a connection causes, and what ends them.

use std::future::Future;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::resources::{Resource, ResourceTracker};

/// The tasks of a connection: hyper's, and the reporter. They end when their owner is dropped, or when the
/// transport is closed.
pub(super) struct Tasks(Arc<Owned>);

struct Owned {
    endpoint: String,
    tracker: ResourceTracker,
    closing: CancellationToken,
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    pub(super) fn new(
        endpoint: String,
        tracker: ResourceTracker,
        closing: CancellationToken,
    ) -> Self {
        Self(Arc::new(Owned {
            endpoint,
            tracker,
            closing,
            set: Mutex::default(),
        }))
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    pub(super) fn executor(&self) -> Executor {
        Executor(Arc::downgrade(&self.0))
    }
}

impl Owned {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let endpoint = self.endpoint.clone();
        let resource = Resource::ConnectionTask(endpoint);
        let closing = self.closing.clone();
        let mut set = self.set.lock();
        // Drops those that have ended: each call spawns one, so they never pile up.
        while set.try_join_next().is_some() {}
        let task = async move {
            closing.run_until_cancelled(task).await;
        };
        set.spawn(self.tracker.track_future(resource, task));
    }
}

/// Where hyper spawns its tasks. Weak, because the tasks hold it.
#[derive(Clone)]
pub(super) struct Executor(Weak<Owned>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // Without an owner the connection is gone, and needs no task.
        if let Some(tasks) = self.0.upgrade() {
            tasks.spawn(task);
        }
    }
}
