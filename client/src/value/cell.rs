//! Holds a watcher's current value: one writer, any number of wait-free readers.
//!
//! The only user of arc-swap. It knows nothing of how states become values.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, Cache, Guard};
use driftless_proto::Revision;
use tokio::sync::watch;

use super::entries::Entries;
use super::freshness::{Freshness, Moment, Proof};
use crate::error::Closed;

/// A value and the state that it was made from.
pub(crate) struct Versioned<T> {
    value: Published<T>,
    /// What it was made from; empty for a default that is used because no state came in time.
    state: Entries,
    /// Incremented with each value of a cell.
    number: u64,
    /// When the state was last known to be etcd's, at the time when the value was made.
    proven: Proof,
    /// When it was last known to be etcd's, once a newer state is known.
    superseded: Moment,
}

impl<T> Versioned<T> {
    pub(crate) const fn revision(&self) -> Revision {
        self.state.revision()
    }

    pub(crate) const fn state(&self) -> &Entries {
        &self.state
    }

    pub(crate) const fn number(&self) -> u64 {
        self.number
    }
}

impl<T> Deref for Versioned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.value {
            Published::Decoded(value) => value,
            Published::Default(value) => value,
        }
    }
}

/// A decoded value, or the default, which may be published more than once.
pub(crate) enum Published<T> {
    Decoded(T),
    Default(Arc<T>),
}

/// Where a watched value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ValueSource {
    /// From etcd, by way of a server.
    Server,
    /// It is the [default](crate::WatchBuilder::default_value): the key does not exist, or no good
    /// value came in time.
    Default,
}

impl fmt::Display for ValueSource {
    /// One word, stable.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Default => "default",
        })
    }
}

/// The announcement of a cell's newest value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    /// The number of the newest value, or of the one before it: the value is replaced first.
    pub(crate) number: u64,
    /// No value will follow.
    pub(crate) closed: Option<Closed>,
}

impl Version {
    /// Whether a reader who saw the value with the number `seen` has something new to see. It may have seen
    /// that value before it was announced here; then this version is behind, and not newer.
    pub(crate) const fn is_newer_than(&self, seen: u64) -> bool {
        self.number > seen || self.closed.is_some()
    }
}

/// The current value, and a channel that announces its replacement.
pub(crate) struct Cell<T> {
    slot: ArcSwap<Versioned<T>>,
    version: watch::Sender<Version>,
    freshness: Freshness,
}

impl<T> Cell<T> {
    pub(crate) fn new(
        value: Published<T>,
        state: Entries,
        proven: Proof,
        freshness: Freshness,
    ) -> Self {
        let number = 0;
        let version = Version {
            number,
            closed: None,
        };
        Self {
            slot: ArcSwap::from_pointee(Versioned {
                value,
                state,
                number,
                proven,
                superseded: Moment::never(),
            }),
            version: watch::Sender::new(version),
            freshness,
        }
    }

    /// Replaces the value, which was last etcd's at `before`, by one that was at `proven`; then wakes the
    /// waiters. They find the new value, or an even newer one.
    pub(crate) fn store(&self, value: Published<T>, state: Entries, before: Proof, proven: Proof) {
        // There is one writer, so nobody else increments it meanwhile.
        let number = self.version.borrow().number + 1;
        self.supersede(before);
        self.slot.store(Arc::new(Versioned {
            value,
            state,
            number,
            proven,
            superseded: Moment::never(),
        }));
        self.version.send_modify(|version| version.number = number);
    }

    /// Notes that the value is no longer etcd's: it last was at `before`.
    pub(crate) fn supersede(&self, before: Proof) {
        self.slot.load().superseded.set_once(before);
    }

    /// No value will follow.
    pub(crate) fn close(&self, closed: Closed) {
        self.version
            .send_modify(|version| version.closed = Some(closed));
    }

    pub(crate) fn load(&self) -> Loaded<'_, T> {
        Loaded {
            guard: self.slot.load(),
            not_send: PhantomData,
            cell: self,
        }
    }

    /// The value, to keep.
    pub(crate) fn keep(&self) -> Arc<Versioned<T>> {
        self.slot.load_full()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// See [`Loaded::age`].
    pub(crate) fn age(&self, value: &Versioned<T>) -> Option<Duration> {
        // A default without a state was never proven.
        if value.revision() == Revision::NONE {
            return None;
        }
        self.freshness.age(value.proven, &value.superseded)
    }

    /// See [`Loaded::is_stale`].
    pub(crate) fn is_stale(&self, value: &Versioned<T>) -> bool {
        self.freshness
            .max_age()
            .is_some_and(|most| self.age(value).is_none_or(|age| age > most))
    }

    pub(crate) const fn max_age(&self) -> Option<Duration> {
        self.freshness.max_age()
    }
}

/// The value as one thread last saw it: reading it costs a check that it is still the newest.
pub(crate) struct Cached<T> {
    cache: Cache<Slot<T>, Arc<Versioned<T>>>,
    cell: Arc<Cell<T>>,
}

struct Slot<T>(Arc<Cell<T>>);

impl<T> Deref for Slot<T> {
    type Target = ArcSwap<Versioned<T>>;

    fn deref(&self) -> &Self::Target {
        &self.0.slot
    }
}

impl<T> Cached<T> {
    pub(crate) fn new(cell: Arc<Cell<T>>) -> Self {
        Self {
            cache: Cache::new(Slot(Arc::clone(&cell))),
            cell,
        }
    }

    pub(crate) fn load(&mut self) -> &Versioned<T> {
        self.cache.load()
    }

    pub(crate) const fn cell(&self) -> &Arc<Cell<T>> {
        &self.cell
    }
}

/// The value at one moment. It derefs to `T` and stays the same for as long as it is held.
///
/// Hold it for as long as one piece of work needs one consistent value, and no longer: it keeps an old value
/// in memory, and each thread can hold only a few at no cost. It must not live across an `.await`, which may
/// take any time, so it is not [`Send`], and a future that holds one cannot be spawned:
///
/// ```compile_fail
/// # async fn serve(_: u32) {}
/// # fn spawn(watcher: driftless_client::Watcher<u32>) {
/// tokio::spawn(async move {
///     let value = watcher.load();
///     serve(*value).await; // `value` is still held here
///     drop(value);
/// });
/// # }
/// ```
///
/// Copy out what is needed after the await instead:
///
/// ```
/// # async fn serve(_: u32) {}
/// # fn spawn(watcher: driftless_client::Watcher<u32>) {
/// tokio::spawn(async move {
///     let value = *watcher.load();
///     serve(value).await;
/// });
/// # }
/// ```
pub struct Loaded<'a, T> {
    guard: Guard<Arc<Versioned<T>>>,
    not_send: PhantomData<*const ()>,
    cell: &'a Cell<T>,
}

impl<T> Loaded<'_, T> {
    /// The revision of the state that this value was made from. [`Revision::NONE`] for a default that is
    /// used because no state came in time.
    pub fn revision(&self) -> Revision {
        self.guard.revision()
    }

    /// Where this value comes from.
    pub fn source(&self) -> ValueSource {
        match self.guard.value {
            Published::Decoded(_) => ValueSource::Server,
            Published::Default(_) => ValueSource::Default,
        }
    }

    /// How old this value may be: the time since it was last proven to be what etcd holds. It grows while
    /// the server, or the server's etcd, cannot be reached; and once a newer state is known that this value
    /// is not made from, because that was refused or came after this load. `None` for a default that is
    /// used because no state came in time, and from a server that does not send its time.
    ///
    /// Resolution: a server asks etcd every 5 s, and tells its clients every 10 s by default.
    pub fn age(&self) -> Option<Duration> {
        self.cell.age(&self.guard)
    }

    /// Whether this value is older than the watch's [`max_age`](crate::WatchBuilder::max_age), or of unknown
    /// age. Always false if none was set.
    pub fn is_stale(&self) -> bool {
        self.cell.is_stale(&self.guard)
    }
}

impl<T> Deref for Loaded<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> fmt::Debug for Loaded<'_, T> {
    /// The revision, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: i64) -> Entries {
        let mut state = Entries::default();
        state.set_revision(Revision::new(revision));
        state
    }

    #[test]
    fn loaded_value_outlives_its_replacement() {
        let cell = Cell::new(
            Published::Decoded(1),
            at(1),
            Proof::NONE,
            Freshness::unknown(),
        );
        let mut version = cell.subscribe();
        let old = cell.load();
        cell.store(
            Published::Default(Arc::new(2)),
            at(2),
            Proof::NONE,
            Proof::NONE,
        );
        assert_eq!((*old, old.revision()), (1, Revision::new(1)));
        assert_eq!(
            (*cell.load(), cell.load().revision()),
            (2, Revision::new(2))
        );
        assert!(version.has_changed().unwrap());
        assert_eq!(version.borrow_and_update().number, 1);
    }

    /// A watcher that found the next value before its announcement took that for its end.
    #[test]
    fn version_that_is_behind_is_not_newer() {
        let version = |number, closed| Version { number, closed };
        assert!(!version(4, None).is_newer_than(5));
        assert!(!version(5, None).is_newer_than(5));
        assert!(version(6, None).is_newer_than(5));
        assert!(version(4, Some(Closed::Ended)).is_newer_than(5));
    }

    #[test]
    fn replaced_value_is_freed() {
        let value = Arc::new(());
        let cell = Cell::new(
            Published::Decoded(Arc::clone(&value)),
            at(0),
            Proof::NONE,
            Freshness::unknown(),
        );
        let held = cell.load();
        cell.store(
            Published::Decoded(Arc::new(())),
            at(0),
            Proof::NONE,
            Proof::NONE,
        );
        assert_eq!(Arc::strong_count(&value), 2);
        drop(held);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
