//! The typed watcher.

use std::fmt;
use std::sync::Arc;

use driftless_proto::{Key, Revision};
use tokio::sync::watch;

use super::status::StatusWatcher;
use crate::error::{Closed, Stale};
use crate::subscription::{DecoderGuard, Subscription};
use crate::value::{Cell, Entries, Loaded, Status, Version};

/// A change of a watched value.
#[derive(Clone)]
#[non_exhaustive]
pub struct ValueChange {
    /// The revision of the state that the newest value was made from.
    pub revision: Revision,
    old: Entries,
    new: Entries,
}

impl ValueChange {
    /// The keys that were put or deleted since the change before, in ascending order. All keys, if the
    /// value before was a default because no state had come.
    ///
    /// Computed on demand, at the cost of what changed and without an allocation for each key.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.new.changed_keys_since(&self.old)
    }
}

impl fmt::Debug for ValueChange {
    /// The revision and the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Keys<'a>(&'a ValueChange);
        impl fmt::Debug for Keys<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_list().entries(self.0.keys()).finish()
            }
        }
        f.debug_struct("ValueChange")
            .field("revision", &self.revision)
            .field("keys", &Keys(self))
            .finish()
    }
}

/// A value that is always current: the last good one.
///
/// Dropping it ends everything that it caused (the task, the stream, and the connection), unless
/// others watch the same range: its clones, and what was made from it
/// ([`ValueReader`](crate::ValueReader), [`PartWatcher`](crate::PartWatcher),
/// [`ValueUpdates`](crate::ValueUpdates), [`CallbackGuard`](crate::CallbackGuard)), each of which
/// keeps the watch alive as it does. A clone reports changes independently, starting from where this
/// one is.
///
/// It holds the keys and values of the state that [`changed`](Self::changed) last returned (at first: the
/// initial one), to find the keys of the next change. They share memory with the current state as far as
/// the two are equal. A watch that is only ever [loaded](Self::load), and in which every key is replaced
/// in time, holds its range twice because of that. A [`ValueReader`](crate::ValueReader) does without.
pub struct Watcher<T> {
    pub(super) cell: Arc<Cell<T>>,
    pub(super) version: watch::Receiver<Version>,
    /// The number of the value that was current at the start, or that `changed` last returned.
    seen: u64,
    /// The state that it was made from: changes are computed against it. It shares equal entries with the
    /// current one, so it costs what changed since, and at most as much again as the range holds.
    seen_state: Entries,
    pub(super) status: StatusWatcher,
    pub(super) handle: Arc<Handle>,
}

/// What a watcher and everything made from it keep alive together.
pub(super) struct Handle {
    // Before `subscription`, because fields are dropped in order: the decoder goes before the task ends.
    _decoder: DecoderGuard,
    pub(super) subscription: Arc<Subscription>,
}

impl<T> Clone for Watcher<T> {
    fn clone(&self) -> Self {
        Self {
            cell: Arc::clone(&self.cell),
            version: self.version.clone(),
            seen: self.seen,
            seen_state: self.seen_state.clone(),
            status: self.status.clone(),
            handle: Arc::clone(&self.handle),
        }
    }
}

impl<T> Watcher<T> {
    /// Begins at the value that is current now.
    pub(super) fn new(
        cell: Arc<Cell<T>>,
        status: StatusWatcher,
        decoder: DecoderGuard,
        subscription: Arc<Subscription>,
    ) -> Self {
        let version = cell.subscribe();
        let now = cell.keep();
        let (seen, seen_state) = (now.number(), now.state().clone());
        Self {
            cell,
            version,
            seen,
            seen_state,
            status,
            handle: Arc::new(Handle {
                _decoder: decoder,
                subscription,
            }),
        }
    }

    /// The current value, from any thread. Wait-free: no lock, and no allocation except a few words at a
    /// thread's first load.
    ///
    /// Two loads may see two values. Load once per piece of work, and do not hold the result across an
    /// await: see [`Loaded`].
    pub fn load(&self) -> Loaded<'_, T> {
        self.cell.load()
    }

    /// The current value, unless it is older than the watch's [`max_age`](crate::WatchBuilder::max_age).
    /// As wait-free as [`load`](Self::load), plus one reading of the clock.
    ///
    /// # Errors
    /// When it is too old, or its age is not known.
    pub fn load_fresh(&self) -> Result<Loaded<'_, T>, Stale> {
        let loaded = self.load();
        if loaded.is_stale() {
            return Err(self.stale(&loaded));
        }
        Ok(loaded)
    }

    fn stale(&self, loaded: &Loaded<'_, T>) -> Stale {
        Stale {
            range: self.handle.subscription.range().clone(),
            age: loaded.age(),
            max_age: self.cell.max_age().unwrap_or_default(),
        }
    }

    /// Waits for a value newer than the one that this watcher began with, or that this method last
    /// returned, and returns its revision and which keys changed. Only the latest value counts; those in
    /// between are skipped. It resolves for a value that [`load`](Self::load) has returned already, too.
    ///
    /// Each state of the range that is not refused makes a value, so it may be equal to the one before:
    /// a key was put again with the same bytes, or one that no field takes. Where a change is costly to
    /// act on, compare the parts that matter, or look at [`ValueChange::keys`].
    ///
    /// A state that is refused makes no value; [`watch_status`](Self::watch_status) reports it.
    ///
    /// # Errors
    /// When no value will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call resolves for all that this one would have.
    pub async fn changed(&mut self) -> Result<ValueChange, Closed> {
        let seen = self.seen;
        let changed = self
            .version
            .wait_for(|version| version.is_newer_than(seen))
            .await;
        // Cannot fail while `self` holds the cell.
        let Version { number, closed } = *changed.map_err(|_| Closed::Ended)?;
        if number <= seen {
            return Err(closed.unwrap_or(Closed::Ended));
        }
        // The value of this version, or of the next one, whose announcement is then skipped.
        let now = self.cell.keep();
        self.seen = now.number();
        let old = std::mem::replace(&mut self.seen_state, now.state().clone());
        Ok(ValueChange {
            revision: now.revision(),
            old,
            new: now.state().clone(),
        })
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

    /// Follows the status independently of this watcher, so that both can be awaited at the same time: a
    /// state that is refused changes no value.
    ///
    /// ```
    /// # async fn follow(mut watcher: driftless_client::Watcher<u32>) -> Result<(), driftless_client::Closed> {
    /// let mut status = watcher.watch_status();
    /// loop {
    ///     tokio::select! {
    ///         changed = watcher.changed() => println!("{}", changed?.revision),
    ///         status = status.changed() => match status.last_rejection {
    ///             Some(rejected) => println!("refused: {}", rejected.rejection),
    ///             None => println!("{}", status.state),
    ///         },
    ///     }
    /// }
    /// # }
    /// ```
    pub fn watch_status(&self) -> StatusWatcher {
        self.status.clone()
    }
}

impl<T> fmt::Debug for Watcher<T> {
    /// The range and the revision, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("range", self.handle.subscription.range())
            .field("revision", &self.load().revision())
            .finish_non_exhaustive()
    }
}
