//! The changes of a watched value as a stream of old and new.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use driftless_proto::{Key, Revision};
use futures_core::Stream;
use tokio::sync::watch;
use tokio_util::sync::ReusableBoxFuture;

use crate::cell::{Version, Versioned};
use crate::entries::Entries;
use crate::error::Closed;
use crate::status::Status;
use crate::watcher::Watcher;

/// A value, and the one that it took the place of. It keeps both in memory.
pub struct Update<T> {
    old: Arc<Versioned<T>>,
    new: Arc<Versioned<T>>,
    old_state: Entries,
    new_state: Entries,
}

impl<T> Update<T> {
    /// What was told of before, or was current at the start.
    pub fn previous(&self) -> &T {
        &self.old
    }

    /// What there is now.
    pub fn current(&self) -> &T {
        &self.new
    }

    /// The revision of the state that the new value was made from.
    pub fn revision(&self) -> Revision {
        self.new.revision()
    }

    /// The keys that differ, as [`Changed::keys`](crate::Changed::keys).
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.new_state.changed_keys_since(&self.old_state)
    }
}

impl<T> fmt::Debug for Update<T> {
    /// The revision, and never the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Update")
            .field("revision", &self.revision())
            .finish_non_exhaustive()
    }
}

/// The changes of a value. Made by [`Watcher::into_stream`](crate::Watcher::into_stream), and keeps
/// the watch going as a watcher does. When no value will follow, it says why, once, and ends.
///
/// # Cancel safety
/// Dropping a future that waits for the next item loses nothing. Dropping the stream ends the watch.
pub struct Updates<T> {
    watcher: Watcher<T>,
    /// Waits for a value that is newer than what was told.
    news: ReusableBoxFuture<'static, watch::Receiver<Version>>,
    told: Arc<Versioned<T>>,
    told_state: Entries,
    ended: bool,
}

async fn news(mut version: watch::Receiver<Version>, told: u64) -> watch::Receiver<Version> {
    // It fails only when the cell is gone, which the stream holds.
    let _ = version
        .wait_for(|version| version.number > told || version.closed.is_some())
        .await;
    version
}

impl<T: Send + Sync + 'static> Updates<T> {
    pub(crate) fn new(watcher: Watcher<T>) -> Self {
        let told_state = watcher.version.borrow().state.clone();
        let told = watcher.cell.keep();
        let version = watcher.version.clone();
        Self {
            news: ReusableBoxFuture::new(news(version, told.number())),
            told,
            told_state,
            ended: false,
            watcher,
        }
    }

    /// How the watcher is doing.
    pub fn status(&self) -> Status {
        self.watcher.status()
    }

    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Update<T>, Closed>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let version = ready!(self.news.poll(cx));
        let (number, state, closed) = {
            let version = version.borrow();
            (version.number, version.state.clone(), version.closed)
        };
        if number <= self.told.number() {
            self.ended = true;
            return Poll::Ready(Some(Err(closed.unwrap_or(Closed::Ended))));
        }
        // Of this version, or of one that is about to be told: then it is told now, and once.
        let new = self.watcher.cell.keep();
        self.news.set(news(version, new.number()));
        Poll::Ready(Some(Ok(Update {
            old: std::mem::replace(&mut self.told, Arc::clone(&new)),
            new,
            old_state: std::mem::replace(&mut self.told_state, state.clone()),
            new_state: state,
        })))
    }
}

impl<T: Send + Sync + 'static> Stream for Updates<T> {
    type Item = Result<Update<T>, Closed>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().next(cx)
    }
}

impl<T> fmt::Debug for Updates<T> {
    /// The range and the revision that was told of last, and never a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updates")
            .field("range", self.watcher.handle.shared.range())
            .field("told", &self.told.revision())
            .finish_non_exhaustive()
    }
}
