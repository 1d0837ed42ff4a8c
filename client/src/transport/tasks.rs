//! The tasks that a connection causes, and what ends them.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::inventory::{Held, Inventory};

/// The tasks of a connection: hyper's, and the reporter. They end with their owner, or when the
/// transport is closed.
pub(super) struct Tasks(Arc<Owned>);

struct Owned {
    endpoint: String,
    inventory: Inventory,
    closing: CancellationToken,
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    pub(super) fn new(endpoint: String, inventory: Inventory, closing: CancellationToken) -> Self {
        Self(Arc::new(Owned {
            endpoint,
            inventory,
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
        let held = Held::ConnectionTask(endpoint);
        let closing = self.closing.clone();
        let mut set: MutexGuard<'_, _> = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that ended are let go here: there is one spawn per call, so they never pile up.
        while set.try_join_next().is_some() {}
        let task = async move {
            closing.run_until_cancelled(task).await;
        };
        set.spawn(self.inventory.note(held, task));
    }
}

/// Where hyper spawns. Weak, because the tasks hold it themselves.
#[derive(Clone)]
pub(super) struct Executor(Weak<Owned>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        // Without an owner the connection is gone, and so is the need for the task.
        if let Some(tasks) = self.0.upgrade() {
            tasks.spawn(task);
        }
    }
}
