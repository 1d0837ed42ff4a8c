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
    /// The changes from now on as a stream of old and new values. The latest value counts: what was
    /// replaced before the stream was polled is not told.
    pub fn into_stream(self) -> ValueUpdates<T>
    where
        T: Send + Sync + 'static,
    {
        ValueUpdates::new(self)
    }
}

/// A value, and the one that it took the place of. It keeps both in memory.
pub struct ValueUpdate<T> {
    old: Arc<Versioned<T>>,
    new: Arc<Versioned<T>>,
}

impl<T> ValueUpdate<T> {
    /// What was told of before, or was current at the start.
    pub fn previous(&self) -> &T {
        &self.old
    }

    /// What there is now.
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

/// The changes of a value. Made by [`Watcher::into_stream`](crate::Watcher::into_stream), and keeps
/// the watch going as a watcher does. When no value will follow, it says why, once, and ends.
///
/// # Cancel safety
/// Dropping a future that waits for the next item loses nothing. Dropping the stream ends the watch.
pub struct ValueUpdates<T> {
    cell: Arc<Cell<T>>,
    /// Waits for a value that is newer than what was told.
    news: ReusableBoxFuture<'static, watch::Receiver<Version>>,
    told: Arc<Versioned<T>>,
    ended: bool,
    status: StatusWatcher,
    handle: Arc<Handle>,
}

async fn news(mut version: watch::Receiver<Version>, told: u64) -> watch::Receiver<Version> {
    // It fails only when the cell is gone, which the stream holds.
    let _ = version
        .wait_for(|version| version.is_news_after(told))
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
        let told = cell.keep();
        Self {
            news: ReusableBoxFuture::new(news(version, told.number())),
            cell,
            told,
            ended: false,
            status,
            handle,
        }
    }

    /// How the watcher is doing.
    pub fn status(&self) -> Status {
        self.status.status()
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<ValueUpdate<T>, Closed>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let version = ready!(self.news.poll(cx));
        let Version { number, closed } = *version.borrow();
        if number <= self.told.number() {
            self.ended = true;
            return Poll::Ready(Some(Err(closed.unwrap_or(Closed::Ended))));
        }
        // Of this version, or of one that is about to be told: then it is told now, and once.
        let new = self.cell.keep();
        self.news.set(news(version, new.number()));
        let old = std::mem::replace(&mut self.told, Arc::clone(&new));
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
    /// The range and the revision that was told of last, and never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValueUpdates")
            .field("range", self.handle.subscription.range())
            .field("told", &self.told.revision())
            .finish_non_exhaustive()
    }
}
