//! The typed watcher.

use std::fmt;
use std::sync::Arc;

use driftless_proto::{Key, Revision};
use tokio::sync::watch;

use super::status::StatusWatcher;
use crate::error::{Closed, Stale};
use crate::subscription::{DecoderGuard, Subscription};
use crate::value::{Cell, Entries, Loaded, Status, Version};

/// What a watcher moved to.
#[derive(Clone)]
#[non_exhaustive]
pub struct ValueChange {
    /// The revision of the state that the newest value was made from.
    pub revision: Revision,
    old: Entries,
    new: Entries,
}

impl ValueChange {
    /// The keys that differ from what the value told of before was made from, in ascending order:
    /// put, or deleted. All of them for a value that follows a default for want of a state.
    ///
    /// Found when asked for, at the cost of what changed and without allocating for each key.
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
/// Dropping it ends all that it caused (the task, the stream, and the connection), unless others
/// watch the same range: its clones, and what was made of it ([`ValueReader`](crate::ValueReader), [`PartWatcher`](crate::PartWatcher),
/// [`ValueUpdates`](crate::ValueUpdates), [`CallbackGuard`](crate::CallbackGuard)), each of which keeps the watch going as it does. A clone tells changes by itself,
/// from where this one is.
///
/// It holds the keys and values of the state that [`changed`](Self::changed) told of last (at the
/// start: the first one), to tell the next change's keys. They share their memory with the current
/// state as far as they are the same; for a watch that is only ever [loaded](Self::load), in which
/// every key is replaced in time, that is the range once more. A [`ValueReader`](crate::ValueReader) does without.
pub struct Watcher<T> {
    pub(super) cell: Arc<Cell<T>>,
    pub(super) version: watch::Receiver<Version>,
    /// The number of the value that was current at the start, or that `changed` told of last.
    seen: u64,
    /// The state that it was made from: what changes are told against. It shares with the current
    /// one what is the same in them, so it costs what changed since, and at most as much again as
    /// the range holds.
    seen_state: Entries,
    pub(super) status: StatusWatcher,
    pub(super) handle: Arc<Handle>,
}

/// What all that shows one watch keeps alive together.
pub(super) struct Handle {
    // Before `subscription`: fields are dropped in order, and the decoder goes before the task is ended.
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

    /// The value now. Wait-free: no lock, and no allocation but for a few words at a thread's first
    /// load; from any thread.
    ///
    /// Two loads may see two values. Load once per piece of work, and do not hold it across an
    /// await: see [`Loaded`].
    pub fn load(&self) -> Loaded<'_, T> {
        self.cell.load()
    }

    /// The value now, unless it is older than the watch's [`max_age`](crate::WatchBuilder::max_age). As
    /// wait-free as [`load`](Self::load), and a look at the clock.
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
    /// told of, and tells its revision and which keys changed. The latest value counts; those in
    /// between are not told. It resolves also for values that [`load`](Self::load) has shown
    /// already.
    ///
    /// A value is made of each state of the range that is not refused, so it may well be equal to
    /// the one before: a key was put again as it was, or one that no field takes was put. Where a
    /// change is costly to act on, compare the parts that matter, or look at [`ValueChange::keys`].
    ///
    /// A state that is refused makes no value: [`watch_status`](Self::watch_status) tells of it.
    ///
    /// # Errors
    /// When no value will follow.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call resolves for all that this one would have.
    pub async fn changed(&mut self) -> Result<ValueChange, Closed> {
        let seen = self.seen;
        let news = self
            .version
            .wait_for(|version| version.is_news_after(seen))
            .await;
        // Cannot fail while the cell is held; if it could, it would mean this.
        let Version { number, closed } = *news.map_err(|_| Closed::Ended)?;
        if number <= seen {
            return Err(closed.unwrap_or(Closed::Ended));
        }
        // Of this version, or of one that is about to be told: then it is told now, and once.
        let now = self.cell.keep();
        self.seen = now.number();
        let old = std::mem::replace(&mut self.seen_state, now.state().clone());
        Ok(ValueChange {
            revision: now.revision(),
            old,
            new: now.state().clone(),
        })
    }

    /// How the watcher is doing.
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

    /// Follows the status apart from this watcher, so that both can be waited for at a time: a state
    /// that is refused changes no value.
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
