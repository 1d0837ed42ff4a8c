//! Where states become typed values: one decoder for each typed watcher of a subscription.
//!
//! The subscription's task publishes each state to a decoder, in order; the decoder keeps its last good
//! value in a [`Cell`]. User code (`Deserialize`, the validator) runs here, on that task, and its panics are
//! caught here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use driftless_proto::{KeyRange, Revision};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{SetOnce, watch};

use super::format::Format;
use super::range::decode;
use crate::error::{Closed, Rejection};
use crate::value::{Cell, Entries, Freshness, Proof, Published, RejectedState};

/// A state with its version, which grows when entries changed and starts at 1.
#[derive(Clone, Copy)]
pub(crate) struct VersionedState<'a> {
    pub(crate) version: u64,
    pub(crate) entries: &'a Entries,
    /// When this state was last proven to be etcd's.
    pub(crate) proven: Proof,
    /// When the state before it was.
    pub(crate) previous_proven: Proof,
}

/// What a watcher made of the states that were published to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The revision of the last state that it uses.
    pub(crate) accepted: Revision,
    /// Why it does not use the newest.
    pub(crate) rejected: Option<RejectedState>,
    /// The last state had nothing to make a value of.
    pub(crate) missing: bool,
}

/// Takes the states of one range.
pub(crate) trait Decoder: Send + Sync {
    /// Takes a state. Does nothing when it already has this version.
    fn publish(&self, state: VersionedState<'_>);
    /// What became of the last state.
    fn outcome(&self) -> Outcome;
    /// No state will follow.
    fn close(&self, closed: Closed);
}

/// A validator. It returns the reason of a refusal only if that is part of the program: any other text may
/// quote the value, so it is not kept.
pub(crate) type Validate<T> = Box<dyn Fn(&T) -> Result<(), Option<&'static str>> + Send + Sync>;

/// Decodes states into a cell.
pub(crate) struct TypedDecoder<T> {
    range: KeyRange,
    format: Option<Format>,
    default: Option<Arc<T>>,
    validate: Option<Validate<T>>,
    freshness: Freshness,
    /// The version of the last state.
    version: AtomicU64,
    /// Wakes for what a [`Status`](crate::value::Status) shows of it: not for each state that is used.
    outcome: watch::Sender<Outcome>,
    /// Held while the cell is made: the task, and a caller whose wait timed out, may both want to make it.
    creating: Mutex<()>,
    /// Set with the first value.
    cell: SetOnce<Arc<Cell<T>>>,
}

impl<T: DeserializeOwned> TypedDecoder<T> {
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
            version: AtomicU64::new(0),
            outcome: watch::Sender::new(Outcome::default()),
            creating: Mutex::new(()),
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
        let default = Published::Default(Arc::clone(self.default.as_ref()?));
        // If a first value came at this moment, that is used.
        self.create(default, &Entries::default(), Proof::NONE);
        self.cell.get().cloned()
    }

    /// Makes the cell with its first value; returns the value if there is a cell already.
    fn create(&self, value: Published<T>, state: &Entries, proven: Proof) -> Option<Published<T>> {
        let _one_at_a_time = self.creating.lock();
        if self.cell.initialized() {
            return Some(value);
        }
        let cell = Cell::new(value, state.clone(), proven, self.freshness.clone());
        // Cannot fail: nobody sets it without the lock.
        let _ = self.cell.set(Arc::new(cell));
        None
    }

    fn store(&self, value: Published<T>, state: VersionedState<'_>) {
        let VersionedState {
            entries,
            proven,
            previous_proven,
            ..
        } = state;
        if let Some(value) = self.create(value, entries, proven)
            && let Some(cell) = self.cell.get()
        {
            cell.store(value, entries.clone(), previous_proven, proven);
        }
    }

    /// Keeps the value, though the new state has another or none.
    fn keep(&self, state: VersionedState<'_>) {
        if let Some(cell) = self.cell.get() {
            cell.supersede(state.previous_proven);
        }
    }

    fn decode(&self, entries: &Entries) -> Result<Option<T>, Rejection> {
        let mut all = entries.iter();
        let Some(value) = decode::<T>(&self.range, &mut all, self.format)? else {
            return Ok(None);
        };
        if let Some(validate) = &self.validate {
            validate(&value).map_err(Rejection::invalid)?;
        }
        Ok(Some(value))
    }

    /// What became of the last state, to wait for its changes.
    pub(crate) fn watch_outcome(&self) -> watch::Receiver<Outcome> {
        self.outcome.subscribe()
    }
}

impl<T: DeserializeOwned + Send + Sync> Decoder for TypedDecoder<T> {
    fn publish(&self, state: VersionedState<'_>) {
        if self.version.swap(state.version, Ordering::Relaxed) == state.version {
            return;
        }
        let revision = state.entries.revision();
        // A panic leaves nothing of ours half-done: the cell is written afterwards.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.decode(state.entries)))
            .unwrap_or_else(|_| Err(Rejection::panicked()));
        let mut outcome = Outcome {
            accepted: revision,
            ..Outcome::default()
        };
        match decoded {
            Ok(Some(value)) => self.store(Published::Decoded(value), state),
            Ok(None) => {
                outcome.missing = true;
                match &self.default {
                    Some(default) => self.store(Published::Default(Arc::clone(default)), state),
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
            let changed = (&now.rejected, now.missing) != (&outcome.rejected, outcome.missing);
            *now = outcome;
            changed
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
