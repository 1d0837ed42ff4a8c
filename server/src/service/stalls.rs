//! Streams that are not read: watched from outside, because nobody asks them.
//!
//! hyper asks a body for its next piece once the last one has room. A client that does not read
//! makes no room, so its stream is never asked again, and cannot be told anything, nor end itself.
//! It costs little (a cursor, the piece in hand, the connection's buffers), but it costs that for as
//! long as the client likes, and in the middle of a snapshot it pins the state that it is of. So
//! every stream notes when it handed a piece over, one task a server looks through the notes now and
//! then, and where one is too old the connection is closed. The client comes back with what it has
//! and gets what changed since.
//!
//! A stream that has nothing to send is not stalled, however long that lasts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::time::{Instant, sleep};

use super::connection::Connection;
use crate::metrics::Metrics;

/// How often within the timeout the streams are looked through: it is exceeded by a quarter at most.
const LOOKS: u32 = 4;

/// The longest time between two looks, however long the timeout is: the other deadline, of answers,
/// is kept by the same looks.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// How many streams are looked at before others get a turn, and the lock: some 20 µs.
const SLICE: usize = 1024;

/// How long a snapshot or conflated diff may take to be read. It pins the state that it is of, which
/// costs what changed since: at the worst, the whole keyspace once more for each moment at which
/// somebody began to read. So there has to be an end to it for whoever takes a little now and then,
/// too, whatever the size. 100 MiB at 200 KiB/s take this long; whoever is slower than that, or
/// watches more, should watch smaller ranges.
pub(super) const ANSWER_PINNED_AT_MOST: Duration = Duration::from_secs(600);

/// All streams of a server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Stalls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    timeout: Duration,
    /// Of the clock that the streams' notes are on.
    origin: Instant,
    streams: Mutex<Slab<Arc<Stream>>>,
    metrics: Metrics,
}

/// What is known of a stream from outside. Moments are in milliseconds on the server's clock; 0 is
/// none.
#[derive(Debug)]
struct Stream {
    connection: Connection,
    /// When the piece that it has in hand was handed over.
    handed: AtomicU64,
    /// When the answer that it reads has to be over.
    answer_until: AtomicU64,
}

impl Stream {
    /// Whether the connection has to be closed because of it. A stream whose answer takes too long
    /// ends by itself when it is asked for more, and is given until the next look to be asked.
    fn is_stalled(&self, now: u64, timeout: u64, look: u64) -> bool {
        let handed = self.handed.load(Ordering::Relaxed);
        if handed == 0 {
            return false;
        }
        let until = self.answer_until.load(Ordering::Relaxed);
        let since = |moment: u64| now.saturating_sub(moment);
        since(handed) >= timeout || (until > 0 && since(until.max(handed)) >= look)
    }
}

impl Stalls {
    /// A stream is stalled when what it handed over is not taken within `timeout`.
    pub(super) fn new(timeout: Duration, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            timeout,
            origin: Instant::now(),
            streams: Mutex::default(),
            metrics,
        }))
    }

    /// A new stream on `connection`.
    pub(super) fn watch(&self, connection: &Connection) -> Stall {
        let stream = Arc::new(Stream {
            connection: connection.clone(),
            handed: AtomicU64::new(0),
            answer_until: AtomicU64::new(0),
        });
        let slot = self.lock().insert(Arc::clone(&stream));
        Stall {
            stalls: self.clone(),
            stream,
            slot,
        }
    }

    /// Closes the connections of stalled streams. Runs until it is dropped.
    pub(super) async fn run(&self) {
        let look = (self.0.timeout / LOOKS).min(LOOK_AT_LEAST_EVERY);
        loop {
            sleep(look).await;
            self.look_through(look).await;
        }
    }

    async fn look_through(&self, look: Duration) {
        let mut start = 0;
        while let Some((end, stalled)) = self.stalled(start, look) {
            start = end;
            for connection in stalled {
                if connection.close() {
                    self.0.metrics.stalled_closed.inc();
                    let peer = connection.peer().map(tracing::field::display);
                    tracing::info!(peer, "a connection is closed: its client does not read");
                }
            }
            tokio::task::yield_now().await;
        }
    }

    /// The connections of those that are stalled, of a slice of the streams from `start`, and where
    /// the slice ends. `None` after the last.
    fn stalled(&self, start: usize, look: Duration) -> Option<(usize, Vec<Connection>)> {
        let (now, timeout, look) = (self.now(), millis(self.0.timeout), millis(look));
        let streams = self.lock();
        let slots = start..streams.capacity().min(start + SLICE);
        let end = slots.end;
        if slots.is_empty() {
            return None;
        }
        let stalled = slots
            .filter_map(|slot| streams.get(slot))
            .filter(|stream| stream.is_stalled(now, timeout, look))
            .map(|stream| stream.connection.clone());
        Some((end, stalled.collect()))
    }

    fn now(&self) -> u64 {
        // 0 is no moment.
        millis(self.0.origin.elapsed()) + 1
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Arc<Stream>>> {
        let streams = &self.0.streams;
        streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 2)
}

/// One stream's notes about itself. Dropping it ends the watch over it.
#[derive(Debug)]
pub(super) struct Stall {
    stalls: Stalls,
    stream: Arc<Stream>,
    slot: usize,
}

impl Stall {
    /// A piece is handed over, or the next one is being looked for.
    pub(super) fn handed(&self) {
        self.stream
            .handed
            .store(self.stalls.now(), Ordering::Relaxed);
    }

    /// There is nothing to send.
    pub(super) fn waiting(&self) {
        self.stream.handed.store(0, Ordering::Relaxed);
    }

    /// A snapshot or conflated diff begins, which pins the state that it is of.
    pub(super) fn answer_began(&self) {
        let until = self.stalls.now() + millis(ANSWER_PINNED_AT_MOST);
        self.stream.answer_until.store(until, Ordering::Relaxed);
    }

    /// It pins nothing any more.
    pub(super) fn answer_done(&self) {
        self.stream.answer_until.store(0, Ordering::Relaxed);
    }

    /// Whether the answer takes longer than it may.
    pub(super) fn is_overdue(&self) -> bool {
        let until = self.stream.answer_until.load(Ordering::Relaxed);
        until > 0 && self.stalls.now() >= until
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let stream = self.stalls.lock().try_remove(self.slot);
        drop(stream);
    }
}
