//! What the calls of one connection hold together, and which of their answers lie unread.
//!
//! A connection may have hundreds of calls open, so a bound for each of them is none. Two things are
//! counted for the connection instead. [`HeldBytes`] are the bytes of requests that arrive or are being
//! answered, what streams keep of them, and answers that the client has not taken. [`Answer`] says since when an answer waits
//! for its client. Both are counted until they are dropped, whoever drops them: HTTP/2 drops a piece
//! of an answer when it has written it.
//!
//! What streams of the registry send is not counted here: they share it, and have a clock of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use slab::Slab;

use super::connection::Connection;
use super::registry::Clock;

/// What the calls of one connection may hold together, in bytes: one and a half of the largest report,
/// and far more than all the requests that a client begins at a time, which arrive whole, and all the
/// answers that are on their way to a client that reads. Each open stream counts with its range and the
/// outcome that its client reported: 1.5 KiB for each of a thousand, of which a client that is not after
/// trouble needs a tenth. With what HTTP/2 needs for a thousand calls, a connection stays below 4 MiB.
const MOST_HELD: usize = 1536 * 1024;

/// What the calls of one connection hold.
#[derive(Debug, Default)]
pub(super) struct Calls {
    held: AtomicUsize,
    /// The answers that are open.
    answers: Mutex<Slab<Arc<Unread>>>,
}

impl Calls {
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether an answer was not taken for this long, in milliseconds.
    pub(super) fn are_stalled(&self, now: u64, timeout: u64) -> bool {
        let answers = self.answers.lock();
        answers
            .iter()
            .any(|(_, unread)| unread.is_stalled(now, timeout))
    }
}

/// Since when something is not taken, in milliseconds on the registry's [`Clock`]. 0: nothing is there to
/// be taken.
#[derive(Debug)]
pub(super) struct Unread {
    clock: Clock,
    since: AtomicU64,
}

impl Unread {
    /// Nothing is there to be taken.
    pub(super) const fn nothing(clock: Clock) -> Self {
        Self {
            clock,
            since: AtomicU64::new(0),
        }
    }

    pub(super) fn start(&self) {
        self.since.store(self.clock.now(), Ordering::Relaxed);
    }

    pub(super) fn stop(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    pub(super) fn is_stalled(&self, now: u64, timeout: u64) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        since > 0 && now.saturating_sub(since) >= timeout
    }
}

/// What one call holds. It counts among its connection's bytes until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    connection: Connection,
    bytes: usize,
}

impl HeldBytes {
    /// Nothing yet.
    pub(crate) fn of(connection: &Connection) -> Self {
        Self {
            connection: connection.clone(),
            bytes: 0,
        }
    }

    /// The call holds this much more. Returns `false`, and counts nothing, when the connection's calls
    /// would hold too much.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        let held = &self.connection.calls().held;
        let fits = |held: usize| held.checked_add(bytes).filter(|held| *held <= MOST_HELD);
        let added = held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok();
        if added {
            self.bytes += bytes;
        }
        added
    }

    /// The call holds this much from now on. Returns `false`, and changes nothing, when the connection's
    /// calls would hold too much.
    pub(crate) fn set(&mut self, bytes: usize) -> bool {
        let Some(less) = self.bytes.checked_sub(bytes) else {
            return self.add(bytes - self.bytes);
        };
        let held = &self.connection.calls().held;
        held.fetch_sub(less, Ordering::Relaxed);
        self.bytes = bytes;
        true
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        let held = &self.connection.calls().held;
        held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// An answer that is being sent. [`SlowConsumers`](super::SlowConsumers) closes the connection of one
/// that is not taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Answer {
    connection: Connection,
    key: usize,
    unread: Arc<Unread>,
}

impl Answer {
    /// An answer that begins now.
    pub(crate) fn new(connection: &Connection) -> Self {
        let unread = Arc::new(Unread::nothing(connection.clock()));
        unread.start();
        let key = connection
            .calls()
            .answers
            .lock()
            .insert(Arc::clone(&unread));
        Self {
            connection: connection.clone(),
            key,
            unread,
        }
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// A piece is handed to the connection.
    pub(crate) fn piece_handed(&self) {
        self.unread.start();
    }

    /// There is nothing to send.
    pub(crate) fn idle(&self) {
        self.unread.stop();
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let gone = self.connection.calls().answers.lock().remove(self.key);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;
    use crate::metrics::Metrics;
    use crate::session::Registry;

    #[tokio::test(start_paused = true)]
    async fn calls_hold_no_more_than_the_bound() {
        let registry = Registry::new(Metrics::new());
        let guard = registry.connect(None);
        let connection = guard.connection();
        let (mut one, mut other) = (HeldBytes::of(connection), HeldBytes::of(connection));
        assert!(one.add(MOST_HELD - 1) && other.add(1));
        assert!(!other.add(1) && !one.add(usize::MAX));
        assert_eq!(connection.held_bytes(), MOST_HELD);
        assert!(one.set(7) && other.set(MOST_HELD - 7) && !one.set(8));
        assert_eq!(connection.held_bytes(), MOST_HELD);
        assert!(other.set(1));
        drop(one);
        assert_eq!(
            connection.held_bytes(),
            1,
            "what was refused is not counted"
        );
        drop(other);
        assert_eq!(connection.held_bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn only_answers_that_lie_unread_are_stalled() {
        const TIMEOUT: u64 = 60_000;
        let registry = Registry::new(Metrics::new());
        let guard = registry.connect(None);
        let connection = guard.connection();
        let stalled = || connection.is_stalled(registry.clock().now(), TIMEOUT);
        let (taken, idle) = (Answer::new(connection), Answer::new(connection));
        idle.idle();
        advance(Duration::from_millis(TIMEOUT - 1)).await;
        assert!(!stalled());
        taken.piece_handed();
        advance(Duration::from_millis(TIMEOUT - 1)).await;
        assert!(!stalled(), "the client took a piece meanwhile");
        advance(Duration::from_millis(1)).await;
        assert!(stalled());
        drop(taken);
        assert!(!stalled());
        idle.piece_handed();
        advance(Duration::from_millis(TIMEOUT)).await;
        assert!(stalled());
    }
}
