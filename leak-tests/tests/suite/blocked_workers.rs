//! Blocks a runtime's workers, so that nothing else runs in it, as on an overloaded machine.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier};

use driftless_test_support::in_time;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

/// The blocked workers. Each stays blocked until it is released, or this is dropped.
pub(crate) struct BlockedWorkers {
    /// Dropping one releases its worker.
    releases: Vec<Sender<()>>,
    _tasks: JoinSet<()>,
}

impl BlockedWorkers {
    /// Blocks all workers of this multi-threaded runtime. The caller must not run on one of them.
    pub(crate) fn all() -> Self {
        let workers = Handle::current().metrics().num_workers();
        let all_blocked = Arc::new(Barrier::new(workers + 1));
        let mut tasks = JoinSet::new();
        let block = |_| {
            let (release, released) = channel();
            let all_blocked = Arc::clone(&all_blocked);
            // Ends when the sender is dropped.
            tasks.spawn(async move {
                all_blocked.wait();
                let _ = released.recv();
            });
            release
        };
        let releases = (0..workers).map(block).collect();
        all_blocked.wait();
        Self {
            releases,
            _tasks: tasks,
        }
    }

    /// Runs a future in a thread and a runtime of its own, since this runtime is blocked, and returns its
    /// output. Panics if it takes too long: no timeout can fire in this runtime.
    pub(crate) fn run_elsewhere<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let thread = std::thread::spawn(move || {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(in_time(what, work))
        });
        thread.join().unwrap()
    }

    /// Releases one worker, which then runs all ready tasks one after the other.
    pub(crate) fn release_one(&mut self) {
        self.releases.pop();
    }
}
