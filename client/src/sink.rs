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
use tokio::sync::{Notify, SetOnce, watch};

use crate::cell::{Cell, Shown};
use crate::decode::{self, Format, Rejection};
use crate::entries::Entries;
use crate::error::{Closed, NO_FOLDER, is_folder};
use crate::freshness::{Freshness, Proof};
use crate::status::RejectedState;

/// A state, numbered: the number grows when entries changed, and starts at 1.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'a> {
    pub(crate) number: u64,
    pub(crate) entries: &'a Entries,
    /// When the state was last proven to be etcd's.
    pub(crate) proven: Proof,
    /// When the state before it was.
    pub(crate) before: Proof,
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

/// A validator, with the reason where it is part of the program. Any other text is free to quote the
/// value, so it is kept nowhere.
pub(crate) type Validate<T> = Box<dyn Fn(&T) -> Result<(), Option<&'static str>> + Send + Sync>;

/// Decodes states into a cell.
pub(crate) struct TypedSink<T> {
    range: KeyRange,
    format: Option<Format>,
    default: Option<Arc<T>>,
    validate: Option<Validate<T>>,
    freshness: Freshness,
    /// The number of the last state that was shown.
    shown: AtomicU64,
    /// Wakes for what a status tells of it: not for each state that is used.
    outcome: watch::Sender<Outcome>,
    /// Held while the cell is made: the task and a caller who waited long enough may both want to.
    beginning: Mutex<()>,
    /// Set with the first value.
    cell: SetOnce<Arc<Cell<T>>>,
}

impl<T: DeserializeOwned> TypedSink<T> {
    pub(crate) fn new(
        range: KeyRange,
        format: Option<Format>,
        default: Option<T>,
        validate: Option<Validate<T>>,
        freshness: Freshness,
    ) -> Self {
        Self {
            range,
            format,
            default: default.map(Arc::new),
            validate,
            freshness,
            shown: AtomicU64::new(0),
            outcome: watch::Sender::new(Outcome::default()),
            beginning: Mutex::new(()),
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
        self.begin(default, &Entries::default(), Proof::NONE);
        self.cell.get().cloned()
    }

    /// Makes the cell with its first value; gives the value back when there is a cell.
    fn begin(&self, value: Shown<T>, state: &Entries, proven: Proof) -> Option<Shown<T>> {
        let _one_at_a_time = self
            .beginning
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.cell.initialized() {
            return Some(value);
        }
        let cell = Cell::new(value, state.clone(), proven, self.freshness.clone());
        // Cannot fail: nobody sets it without the lock.
        let _ = self.cell.set(Arc::new(cell));
        None
    }

    fn put(&self, value: Shown<T>, state: Numbered<'_>) {
        let Numbered {
            entries,
            proven,
            before,
            ..
        } = state;
        if let Some(value) = self.begin(value, entries, proven)
            && let Some(cell) = self.cell.get()
        {
            cell.store(value, entries.clone(), before, proven);
        }
    }

    /// The value stays, though it is not what the state says.
    fn keep(&self, state: Numbered<'_>) {
        if let Some(cell) = self.cell.get() {
            cell.supersede(state.before);
        }
    }

    fn decode(&self, entries: &Entries) -> Result<Option<T>, Rejection> {
        let mut all = entries.iter();
        let Some(value) = decode::decode::<T>(&self.range, &mut all, self.format)? else {
            return Ok(None);
        };
        if let Some(validate) = &self.validate {
            validate(&value).map_err(Rejection::invalid)?;
        }
        Ok(Some(value))
    }

    /// What became of what was shown, and news of it.
    pub(crate) fn outcomes(&self) -> watch::Receiver<Outcome> {
        self.outcome.subscribe()
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
            Ok(Some(value)) => self.put(Shown::Own(value), state),
            Ok(None) => {
                outcome.missing = true;
                match &self.default {
                    Some(default) => self.put(Shown::Default(Arc::clone(default)), state),
                    None => self.keep(state),
                }
            }
            Err(rejection) => {
                self.keep(state);
                outcome.accepted = self.outcome.borrow().accepted;
                outcome.rejected = Some(RejectedState {
                    revision,
                    rejection,
                });
            }
        }
        self.outcome.send_if_modified(|now| {
            let news = (&now.rejected, now.missing) != (&outcome.rejected, outcome.missing);
            *now = outcome;
            news
        });
    }

    fn outcome(&self) -> Outcome {
        self.outcome.borrow().clone()
    }

    fn close(&self, closed: Closed) {
        if let Some(cell) = self.cell.get() {
            cell.close(closed);
        }
    }
}

/// The sinks of one subscription: its handles add and remove them, its task shows them states.
pub(crate) struct Sinks {
    range: KeyRange,
    set: Mutex<Set>,
    added: Notify,
}

/// What is wrong, and since when: since the value in question was put, where it is one value, else
/// since this state.
type Refusal = (Rejection, Revision);

#[derive(Default)]
struct Set {
    next: u64,
    sinks: BTreeMap<u64, Arc<dyn Sink>>,
    /// What is wrong with the state that was shown last, each refusal once. It was logged.
    refusals: Vec<Refusal>,
    /// There was no key in the state that was shown last. It was logged where that is odd.
    empty: bool,
    closed: Option<Closed>,
}

impl Sinks {
    pub(crate) fn new(range: KeyRange) -> Self {
        Self {
            range,
            set: Mutex::default(),
            added: Notify::new(),
        }
    }

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
        let mut refusals: Vec<Refusal> = Vec::new();
        for sink in sinks {
            if let Some(state) = state {
                sink.show(state);
            }
            let outcome = sink.outcome();
            if let (Some(state), Some(rejected)) = (state, &outcome.rejected) {
                let refusal = since(rejected, state.entries);
                if !refusals.contains(&refusal) {
                    refusals.push(refusal);
                }
            }
            if least
                .as_ref()
                .is_none_or(|least| outcome.accepted < least.accepted)
            {
                least = Some(outcome);
            }
        }
        if let Some(state) = state.filter(|_| least.is_some()) {
            self.log(refusals, state.entries);
        }
        least
    }

    /// Logs what was not wrong before. What stays wrong is logged once, however many watchers refuse
    /// it, whatever else changes in the range meanwhile, and whether or not the connection holds.
    fn log(&self, refusals: Vec<Refusal>, state: &Entries) {
        let (before, was_empty) = {
            let mut set = self.lock();
            (
                std::mem::replace(&mut set.refusals, refusals.clone()),
                std::mem::replace(&mut set.empty, state.is_empty()),
            )
        };
        let (range, revision) = (&self.range, state.revision());
        if state.is_empty() && !was_empty {
            match range {
                KeyRange::Prefix(_) => tracing::info!(
                    %range,
                    %revision,
                    "there is no key under this prefix; only defaults can be in force"
                ),
                // Also where an `Option` makes do with it: no key that is a value ends like this.
                KeyRange::Key(key) if is_folder(key) => {
                    tracing::info!(%range, %revision, "{NO_FOLDER}");
                }
                KeyRange::Key(_) => {}
            }
        }
        for refusal in refusals.iter().filter(|refusal| !before.contains(refusal)) {
            tracing::warn!(
                %range,
                %revision,
                rejection = %refusal.0,
                "a state was refused; the last good value stays"
            );
        }
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

fn since(rejected: &RejectedState, state: &Entries) -> Refusal {
    let rejection = rejected.rejection.clone();
    let since = match rejection.key() {
        Some(key) => state
            .get(key.as_ref())
            .map_or(Revision::NONE, |entry| entry.mod_revision),
        None => rejected.revision,
    };
    (rejection, since)
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
