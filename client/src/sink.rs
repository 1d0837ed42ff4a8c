//! Where states become typed values: one sink for each typed watcher of a subscription.
//!
//! A sink is shown each state by the subscription's task, in order, and keeps its last good value
//! in a [`Cell`]. User code runs here (`Deserialize`, the validator), on the task, and its panics
//! end here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use driftless_proto::{KeyRange, Revision};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, SetOnce};

use crate::cell::{Cell, Shown};
use crate::decode::{self, Rejection};
use crate::entries::Entries;
use crate::error::Closed;
use crate::status::RejectedState;

/// A state, numbered: the number grows when entries changed, and starts at 1.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'a> {
    pub(crate) number: u64,
    pub(crate) entries: &'a Entries,
}

/// What a watcher made of the states that it was shown.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The revision of the last state that it uses.
    pub(crate) accepted: Revision,
    /// Why it does not use the newest.
    pub(crate) rejected: Option<RejectedState>,
    /// There was nothing to make a value of in the last state.
    pub(crate) missing: bool,
}

/// Takes the states of one range.
pub(crate) trait Sink: Send + Sync {
    /// Shows a state. Does nothing when this one was shown before.
    fn show(&self, state: Numbered<'_>);
    /// What became of what was shown.
    fn outcome(&self) -> Outcome;
    /// No state will follow.
    fn close(&self, closed: Closed);
}

/// A validator, without the text of its errors: that is free to quote the value, so it is kept
/// nowhere.
pub(crate) type Validate<T> = Box<dyn Fn(&T) -> Result<(), ()> + Send + Sync>;

/// Decodes states into a cell.
pub(crate) struct TypedSink<T> {
    range: KeyRange,
    default: Option<Arc<T>>,
    validate: Option<Validate<T>>,
    /// The number of the last state that was shown.
    shown: AtomicU64,
    outcome: Mutex<Outcome>,
    /// Set with the first value.
    cell: SetOnce<Arc<Cell<T>>>,
}

impl<T: DeserializeOwned> TypedSink<T> {
    pub(crate) fn new(range: KeyRange, default: Option<T>, validate: Option<Validate<T>>) -> Self {
        Self {
            range,
            default: default.map(Arc::new),
            validate,
            shown: AtomicU64::new(0),
            outcome: Mutex::new(Outcome::default()),
            cell: SetOnce::new(),
        }
    }

    /// The cell, as soon as it holds a first value.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn first(&self) -> Arc<Cell<T>> {
        Arc::clone(self.cell.wait().await)
    }

    /// Begins with the default because no state came in time. `None` without a default.
    pub(crate) fn fall_back(&self) -> Option<Arc<Cell<T>>> {
        let default = Shown::Default(Arc::clone(self.default.as_ref()?));
        // Where a first value came in this moment, that is as good.
        self.begin(default, Revision::NONE);
        self.cell.get().cloned()
    }

    /// Makes the cell with its first value; gives the value back when there is a cell.
    fn begin(&self, value: Shown<T>, revision: Revision) -> Option<Shown<T>> {
        // The task and `fall_back` may both want to.
        let _one_at_a_time = self.lock();
        if self.cell.initialized() {
            return Some(value);
        }
        let cell = Arc::new(Cell::new(value, revision));
        // Cannot fail: nobody sets it without the lock.
        let _ = self.cell.set(cell);
        None
    }

    fn put(&self, value: Shown<T>, revision: Revision) {
        if let Some(value) = self.begin(value, revision)
            && let Some(cell) = self.cell.get()
        {
            cell.store(value, revision);
        }
    }

    fn decode(&self, entries: &Entries) -> Result<Option<T>, Rejection> {
        let Some(value) = decode::decode::<T>(&self.range, &mut entries.iter())? else {
            return Ok(None);
        };
        if let Some(validate) = &self.validate
            && validate(&value).is_err()
        {
            return Err(Rejection::invalid());
        }
        Ok(Some(value))
    }

    fn lock(&self) -> MutexGuard<'_, Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: DeserializeOwned + Send + Sync> Sink for TypedSink<T> {
    fn show(&self, state: Numbered<'_>) {
        if self.shown.swap(state.number, Ordering::Relaxed) == state.number {
            return;
        }
        let revision = state.entries.revision();
        // Nothing of ours is left half-done by a panic in there: the cell is written after it.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(state.entries)))
            .unwrap_or_else(|_| Err(Rejection::panicked()));
        let mut outcome = Outcome {
            accepted: revision,
            ..Outcome::default()
        };
        match decoded {
            Ok(Some(value)) => self.put(Shown::Own(value), revision),
            Ok(None) => {
                outcome.missing = true;
                if let Some(default) = &self.default {
                    self.put(Shown::Default(Arc::clone(default)), revision);
                }
            }
            Err(rejection) => {
                tracing::warn!(
                    range = %self.range,
                    %revision,
                    %rejection,
                    "a state was refused; the last good value stays"
                );
                outcome.accepted = self.lock().accepted;
                outcome.rejected = Some(RejectedState {
                    revision,
                    rejection,
                });
            }
        }
        *self.lock() = outcome;
    }

    fn outcome(&self) -> Outcome {
        self.lock().clone()
    }

    fn close(&self, closed: Closed) {
        if let Some(cell) = self.cell.get() {
            cell.close(closed);
        }
    }
}

/// The sinks of one subscription: its handles add and remove them, its task shows them states.
#[derive(Default)]
pub(crate) struct Sinks {
    set: Mutex<Set>,
    added: Notify,
}

#[derive(Default)]
struct Set {
    next: u64,
    sinks: BTreeMap<u64, Arc<dyn Sink>>,
    closed: Option<Closed>,
}

impl Sinks {
    /// Adds a sink; the task shows it what is held. Dropping what is returned removes it.
    pub(crate) fn attach(self: &Arc<Self>, sink: Arc<dyn Sink>) -> Attached {
        let mut set = self.lock();
        let id = set.next;
        set.next += 1;
        set.sinks.insert(id, sink);
        drop(set);
        self.added.notify_one();
        Attached {
            sinks: Arc::clone(self),
            id,
        }
    }

    /// Waits until a sink was added.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// Shows a state to all, and tells what they made of it: the oldest that one of them uses, and
    /// one reason for it. `None` when there are none.
    pub(crate) fn show(&self, state: Option<Numbered<'_>>) -> Option<Outcome> {
        // Without the lock: there is user code in there, and it may well drop a watcher.
        let sinks: Vec<Arc<dyn Sink>> = self.lock().sinks.values().cloned().collect();
        let mut least: Option<Outcome> = None;
        for sink in sinks {
            if let Some(state) = state {
                sink.show(state);
            }
            let outcome = sink.outcome();
            if least
                .as_ref()
                .is_none_or(|least| outcome.accepted < least.accepted)
            {
                least = Some(outcome);
            }
        }
        least
    }

    /// No state will follow, for those that are added later too. The first reason stands.
    pub(crate) fn close(&self, reason: Closed) {
        let mut set = self.lock();
        if set.closed.is_some() {
            return;
        }
        set.closed = Some(reason);
        let sinks: Vec<Arc<dyn Sink>> = set.sinks.values().cloned().collect();
        drop(set);
        for sink in sinks {
            sink.close(reason);
        }
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.lock().closed
    }

    fn lock(&self) -> MutexGuard<'_, Set> {
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a sink attached.
pub(crate) struct Attached {
    sinks: Arc<Sinks>,
    id: u64,
}

impl Drop for Attached {
    fn drop(&mut self) {
        // The sink is dropped after the lock: it holds user code's values.
        let sink = self.sinks.lock().sinks.remove(&self.id);
        drop(sink);
    }
}
