//! Keeps a runtime's workers busy: nothing else runs in it meanwhile, as on an overloaded machine.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Barrier};

use driftless_test_support::in_time;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

/// The workers that are busy. Each is until it is let go, or this is dropped.
pub(crate) struct Busy {
    held: Vec<Sender<()>>,
    _tasks: JoinSet<()>,
}

impl Busy {
    /// All of them, of this multi-threaded runtime. It is called by who is none of them.
    pub(crate) fn workers() -> Self {
        let workers = Handle::current().metrics().num_workers();
        let begin = Arc::new(Barrier::new(workers + 1));
        let mut tasks = JoinSet::new();
        let hold = |_| {
            let (held, end) = channel();
            let begin = Arc::clone(&begin);
            // Ends with the sender.
            tasks.spawn(async move {
                begin.wait();
                let _ = end.recv();
            });
            held
        };
        let held = (0..workers).map(hold).collect();
        begin.wait();
        Self {
            held,
            _tasks: tasks,
        }
    }

    /// Does something all the same, in a thread and a runtime of its own, and panics where that takes
    /// too long: nobody here could.
    pub(crate) fn meanwhile<T: Send + 'static>(
        &self,
        what: &'static str,
        doing: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let doing = std::thread::spawn(move || {
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(in_time(what, doing))
        });
        doing.join().unwrap()
    }

    /// One goes on: what is there for it is done one after the other.
    pub(crate) fn let_one_go(&mut self) {
        self.held.pop();
    }
}
