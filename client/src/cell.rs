//! Where a watcher's current value lives: one writer, any number of wait-free readers.
//!
//! The only user of arc-swap. It knows nothing of how states become values.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use driftless_proto::Revision;
use tokio::sync::watch;

use crate::entries::Entries;
use crate::error::Closed;

/// A value and the state that it was made from.
pub(crate) struct Versioned<T> {
    value: Shown<T>,
    revision: Revision,
}

/// A value of its own, or the default, which may be shown again and again.
pub(crate) enum Shown<T> {
    Own(T),
    Default(Arc<T>),
}

/// What has happened to a cell.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    /// Grows by one with each value.
    pub(crate) number: u64,
    /// The state that the newest value was made from; an empty one for a default that was taken
    /// because no state came in time.
    pub(crate) state: Entries,
    /// No value will follow.
    pub(crate) closed: Option<Closed>,
}

/// The current value, and a bell that rings when it is replaced.
pub(crate) struct Cell<T> {
    slot: ArcSwap<Versioned<T>>,
    version: watch::Sender<Version>,
}

impl<T> Cell<T> {
    pub(crate) fn new(value: Shown<T>, state: Entries) -> Self {
        let revision = state.revision();
        let version = Version {
            number: 0,
            state,
            closed: None,
        };
        Self {
            slot: ArcSwap::from_pointee(Versioned { value, revision }),
            version: watch::Sender::new(version),
        }
    }

    /// Replaces the value, then wakes who waits: whoever is woken finds it.
    pub(crate) fn store(&self, value: Shown<T>, state: Entries) {
        let revision = state.revision();
        self.slot.store(Arc::new(Versioned { value, revision }));
        self.version.send_modify(|version| {
            version.number += 1;
            version.state = state;
        });
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
            cell: PhantomData,
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Version> {
        self.version.subscribe()
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
    cell: PhantomData<&'a Cell<T>>,
}

impl<T> Loaded<'_, T> {
    /// The revision of the state that this value was made from. [`Revision::NONE`] for a default
    /// that was taken because no state came in time.
    pub fn revision(&self) -> Revision {
        self.guard.revision
    }
}

impl<T> Deref for Loaded<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.guard.value {
            Shown::Own(value) => value,
            Shown::Default(value) => value,
        }
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
        let cell = Cell::new(Shown::Own(1), at(1));
        let mut bell = cell.subscribe();
        let old = cell.load();
        cell.store(Shown::Default(Arc::new(2)), at(2));
        assert_eq!((*old, old.revision()), (1, Revision::new(1)));
        assert_eq!(
            (*cell.load(), cell.load().revision()),
            (2, Revision::new(2))
        );
        assert!(bell.has_changed().unwrap());
        assert_eq!(bell.borrow_and_update().number, 1);
    }

    #[test]
    fn replaced_values_are_freed() {
        let value = Arc::new(());
        let cell = Cell::new(Shown::Own(Arc::clone(&value)), at(0));
        let held = cell.load();
        cell.store(Shown::Own(Arc::new(())), at(0));
        assert_eq!(Arc::strong_count(&value), 2);
        drop(held);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
