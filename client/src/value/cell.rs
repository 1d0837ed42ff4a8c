//! Where a watcher's current value lives: one writer, any number of wait-free readers.
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
    /// What it was made from; an empty one for a default that was taken because no state came in time.
    state: Entries,
    /// Grows by one with each value of a cell.
    number: u64,
    /// When the state was last known to be etcd's as the value was made.
    proven: Proof,
    /// When it was last known to be, once a newer one is known.
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

/// A value of its own, or the default, which may be shown again and again.
pub(crate) enum Published<T> {
    Decoded(T),
    Default(Arc<T>),
}

/// Where a value comes from.
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

/// What has happened to a cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    /// That of the newest value, or of the one before it: the value is replaced first.
    pub(crate) number: u64,
    /// No value will follow.
    pub(crate) closed: Option<Closed>,
}

impl Version {
    /// Whether there is something to tell to whoever was told of the value with this number. They may
    /// have been told of it before this version was: then the version is behind, and no news.
    pub(crate) const fn is_news_after(&self, told: u64) -> bool {
        self.number > told || self.closed.is_some()
    }
}

/// The current value, and a bell that rings when it is replaced.
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

    /// Replaces the value, which was last etcd's at `before`, by one that is at `proven`; then wakes
    /// who waits. Whoever is woken finds the new one, or one that is newer still.
    pub(crate) fn store(&self, value: Published<T>, state: Entries, before: Proof, proven: Proof) {
        // One task writes, so nobody else counts meanwhile.
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

    /// The value is etcd's no longer: it last was at `before`.
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

    /// The value, to be kept.
    pub(crate) fn keep(&self) -> Arc<Versioned<T>> {
        self.slot.load_full()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
    }

    /// See [`Loaded::age`].
    pub(crate) fn age(&self, value: &Versioned<T>) -> Option<Duration> {
        // A default for want of a state was never proven to be anything.
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

/// The value as one thread last saw it: reading it costs a look at whether it is still the newest.
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
/// Hold it for as long as one piece of work needs one consistent value, and no longer: it keeps an
/// old value in memory, and each thread has a few slots only in which holding one costs nothing. It
/// must not live across an `.await`, where nobody knows how long that is, so it is not [`Send`], and
/// a future that holds one cannot be spawned:
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
    /// The revision of the state that this value was made from. [`Revision::NONE`] for a default
    /// that was taken because no state came in time.
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

    /// How old this value may be: the time since it was last proven to be what etcd holds. It grows
    /// while the server, or the server's etcd, cannot be reached, and once a newer state is known
    /// that this value does not show, because it was refused or came after this load. `None` for a
    /// default that was taken because no state came in time, and from a server that does not tell
    /// the time.
    ///
    /// Resolution: the interval at which the server hears of etcd and tells (10 s by default).
    pub fn age(&self) -> Option<Duration> {
        self.cell.age(&self.guard)
    }

    /// Whether this value is older than the watch's
    /// [`max_age`](crate::WatchBuilder::max_age), or of unknown age. Never, where none was set.
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
    fn a_held_value_outlives_its_replacement() {
        let cell = Cell::new(
            Published::Decoded(1),
            at(1),
            Proof::NONE,
            Freshness::unknown(),
        );
        let mut bell = cell.subscribe();
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
        assert!(bell.has_changed().unwrap());
        assert_eq!(bell.borrow_and_update().number, 1);
    }

    /// A watcher that found the next value before its version was told took that for its end.
    #[test]
    fn a_version_that_is_behind_is_no_news() {
        let version = |number, closed| Version { number, closed };
        assert!(!version(4, None).is_news_after(5));
        assert!(!version(5, None).is_news_after(5));
        assert!(version(6, None).is_news_after(5));
        assert!(version(4, Some(Closed::Ended)).is_news_after(5));
    }

    #[test]
    fn replaced_values_are_freed() {
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
