//! The changes of a watched value as a stream of old and new.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use driftless_proto::{Key, Revision};
use futures_core::Stream;
use tokio::sync::watch;
use tokio_util::sync::ReusableBoxFuture;

use super::status::StatusWatcher;
use super::watcher::{Handle, Watcher};
use crate::error::Closed;
use crate::value::Status;
use crate::value::{Cell, Version, Versioned};

impl<T> Watcher<T> {
    /// The changes from now on, as a stream of old and new values. Only the latest value counts: one that
    /// was replaced before the stream was polled is skipped.
    pub fn into_stream(self) -> ValueUpdates<T>
    where
        T: Send + Sync + 'static,
    {
        ValueUpdates::new(self)
    }
}

/// A value, and the one that it replaced. It keeps both in memory.
pub struct ValueUpdate<T> {
    old: Arc<Versioned<T>>,
    new: Arc<Versioned<T>>,
}

impl<T> ValueUpdate<T> {
    /// The value of the update before, or the one at the start.
    pub fn previous(&self) -> &T {
        &self.old
    }

    /// The new value.
    pub fn current(&self) -> &T {
        &self.new
    }

    /// The revision of the state that the current value was made from.
    pub fn revision(&self) -> Revision {
        self.new.revision()
    }

    /// The keys that differ, as [`ValueChange::keys`](crate::ValueChange::keys).
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.new.state().changed_keys_since(self.old.state())
    }
}

impl<T> fmt::Debug for ValueUpdate<T> {
    /// The revision, and never the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueUpdate")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

/// A stream of the changes of a value. Made by [`Watcher::into_stream`](crate::Watcher::into_stream), and keeps
/// the watch alive as a watcher does. When no value will follow, it yields the reason, once, and ends.
///
/// # Cancel safety
/// Dropping a future that waits for the next item loses nothing. Dropping the stream ends the watch.
pub struct ValueUpdates<T> {
    cell: Arc<Cell<T>>,
    /// Waits for a value that is newer than `seen`.
    newer: ReusableBoxFuture<'static, watch::Receiver<Version>>,
    seen: Arc<Versioned<T>>,
    ended: bool,
    status: StatusWatcher,
    handle: Arc<Handle>,
}

async fn newer(mut version: watch::Receiver<Version>, seen: u64) -> watch::Receiver<Version> {
    // Cannot fail: the stream holds the cell.
    let _ = version
        .wait_for(|version| version.is_newer_than(seen))
        .await;
    version
}

impl<T: Send + Sync + 'static> ValueUpdates<T> {
    pub(super) fn new(watcher: Watcher<T>) -> Self {
        let Watcher {
            cell,
            version,
            status,
            handle,
            ..
        } = watcher;
        let seen = cell.keep();
        Self {
            newer: ReusableBoxFuture::new(newer(version, seen.number())),
            cell,
            seen,
            ended: false,
            status,
            handle,
        }
    }

    /// The status now.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ValueUpdate<T>, Closed>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let version = ready!(self.newer.poll(cx));
        let Version { number, closed } = *version.borrow();
        if number <= self.seen.number() {
            self.ended = true;
            return Poll::Ready(Some(Err(closed.unwrap_or(Closed::Ended))));
        }
        // The value of this version, or of the next one, whose announcement is then skipped.
        let new = self.cell.keep();
        self.newer.set(newer(version, new.number()));
        let old = std::mem::replace(&mut self.seen, Arc::clone(&new));
        Poll::Ready(Some(Ok(ValueUpdate { old, new })))
    }
}

impl<T: Send + Sync + 'static> Stream for ValueUpdates<T> {
    type Item = Result<ValueUpdate<T>, Closed>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().next(cx)
    }
}

impl<T> fmt::Debug for ValueUpdates<T> {
    /// The range and the revision of the last update, and never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueUpdates")
            .field("range", self.handle.subscription.range())
            .field("revision", &self.seen.revision())
            .finish_non_exhaustive()
    }
}
