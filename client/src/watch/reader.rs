//! Reading in a hot loop: a thread caches the value until there is a newer one.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::Revision;

use super::watcher::{Handle, Watcher};
use crate::value::{Cached, Cell};

impl<T> Watcher<T> {
    /// A reader for a hot loop in one thread, which caches the value that it saw last: reading costs about
    /// a nanosecond, and an old value lives until every reader has read again.
    ///
    /// ```
    /// # fn threads(watcher: driftless_client::Watcher<u32>) {
    /// let mut limit = watcher.reader();
    /// std::thread::spawn(move || {
    ///     for request in 0..1_000_000 {
    ///         if request > *limit.load() { /* … */ }
    ///     }
    /// });
    /// # }
    /// ```
    pub fn reader(&self) -> ValueReader<T> {
        ValueReader::new(Arc::clone(&self.cell), Arc::clone(&self.handle))
    }
}

/// Reads a watch's value at the cost of one atomic load, about a nanosecond. One thread's own: it is
/// [`Send`], and reading takes `&mut self`. Made by [`Watcher::reader`](crate::Watcher::reader), and
/// keeps the watch alive as a watcher does.
///
/// It holds the value that it read last: a reader that never reads again keeps that value in memory.
pub struct ValueReader<T> {
    cached: Cached<T>,
    handle: Arc<Handle>,
}

impl<T> ValueReader<T> {
    pub(super) fn new(cell: Arc<Cell<T>>, handle: Arc<Handle>) -> Self {
        Self {
            cached: Cached::new(cell),
            handle,
        }
    }

    /// The current value. Wait-free: no lock, no allocation. If the value was replaced since the last call,
    /// the old one may be freed here.
    pub fn load(&mut self) -> &T {
        self.cached.load()
    }

    /// The revision of the state that the current value was made from, as
    /// [`Loaded::revision`](crate::Loaded::revision).
    pub fn revision(&mut self) -> Revision {
        self.cached.load().revision()
    }

    /// How old the current value may be, as [`Loaded::age`](crate::Loaded::age).
    pub fn age(&mut self) -> Option<Duration> {
        let cell = Arc::clone(self.cached.cell());
        cell.age(self.cached.load())
    }

    /// Whether the current value is too old, as [`Loaded::is_stale`](crate::Loaded::is_stale).
    pub fn is_stale(&mut self) -> bool {
        let cell = Arc::clone(self.cached.cell());
        cell.is_stale(self.cached.load())
    }
}

impl<T> Clone for ValueReader<T> {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(self.cached.cell()), Arc::clone(&self.handle))
    }
}

impl<T> fmt::Debug for ValueReader<T> {
    /// The range, and never the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueReader")
            .field("range", self.handle.subscription.range())
            .finish_non_exhaustive()
    }
}
