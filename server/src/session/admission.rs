//! Limits how many snapshots and conflated diffs are read at a time, by permits.
//!
//! If a crowd read all at once, all of it would finish last: every stream's first chunk would wait for
//! every other's. In turns, most finish early, and live streams do not wait behind thousands of chunks.
//!
//! * As many permits are given as drain well, which is [measured](limit).
//! * Those that wait take [turns](fair_queue): first peers, then the connections of a peer.
//! * A permit is for those that read. Whoever is [slow](pace) gives it back and reads on without one.
//! * A few permits are for [newcomers](readers::RESERVED) only, and not for long: a cold start does not
//!   wait for long reads, however many there are.
//! * Nobody waits for longer than its client does; it gets a retry delay instead.

mod fair_queue;
mod limit;
mod pace;
mod readers;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

pub(super) use fair_queue::Requester;
use readers::{Readers, Turn};

use crate::memory::{Pressure, RETRY_TIGHT};
use crate::metrics::Metrics;

/// How often permits are taken back, while somebody waits.
const TICK: Duration = Duration::from_millis(250);

/// What part of the time for which a client waits is for its turn; the rest is to read in.
const QUEUED: (u32, u32) = (2, 3);

/// The longest that anybody waits. A client receives nothing meanwhile, so its network may forget the
/// connection.
const QUEUED_AT_MOST: Duration = Duration::from_secs(20);

/// The shortest and the longest retry delay.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Who may read a snapshot or conflated diff, of the whole server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pressure: Pressure,
    state: Mutex<State>,
    /// Notified when a stream begins to wait.
    waiting: Notify,
}

#[derive(Debug)]
struct State {
    readers: Readers,
    closed: bool,
}

/// Why a stream is not given a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many are before it: it should come back after this time.
    Later(Duration),
    /// Memory is short: it should come back after this time.
    Memory(Duration),
    /// The server shuts down.
    Closed,
}

impl Refused {
    fn later(wait: Duration) -> Self {
        Self::Later(wait.clamp(RETRY.0, RETRY.1))
    }
}

impl Admission {
    pub(super) fn new(metrics: Metrics, pressure: Pressure) -> Self {
        Self(Arc::new(Inner {
            pressure,
            state: Mutex::new(State {
                readers: Readers::new(metrics, Instant::now()),
                closed: false,
            }),
            waiting: Notify::new(),
        }))
    }

    /// Takes a place in the queue for a stream whose client gives up after `patience`.
    ///
    /// # Errors
    /// When the wait would be too long, or the server shuts down.
    pub(super) fn request(&self, who: Requester, patience: Duration) -> Result<Permit, Refused> {
        let now = Instant::now();
        let at_most = (patience / QUEUED.1 * QUEUED.0).min(QUEUED_AT_MOST);
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        if !self.0.pressure.level().allows_syncs() {
            return Err(Refused::Memory(RETRY_TIGHT));
        }
        let number = state.readers.request(who, at_most, now);
        let number = number.map_err(Refused::later)?;
        let woken = state.readers.promote(now);
        let waits = state.readers.waiting() > 0;
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        if waits {
            self.0.waiting.notify_one();
        }
        Ok(Permit {
            admission: self.clone(),
            number,
        })
    }

    /// Gives waiting streams the permits of slow ones, and refuses those that waited too long. Runs until
    /// it is dropped.
    pub(crate) async fn run(&self) {
        loop {
            self.0.waiting.notified().await;
            while self.sweep() {
                sleep(TICK).await;
            }
        }
    }

    /// Returns whether any stream still waits.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let mut woken = state.readers.sweep(now);
        woken.extend(state.readers.promote(now));
        let waits = state.readers.waiting() > 0;
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        waits
    }

    /// Gives no more permits.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake_waiting();
    }

    /// Lets those that wait look again whether they may.
    pub(crate) fn wake_waiting(&self) {
        let mut state = self.lock();
        let woken = state.readers.wake_all();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// One stream's place, in the queue and then among those that read. Dropping it returns it.
#[derive(Debug)]
pub(super) struct Permit {
    admission: Admission,
    number: u64,
}

impl Permit {
    /// Whether the stream may read now.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Result<(), Refused>> {
        let mut state = self.admission.lock();
        let closed = state.closed;
        let is_tight = !self.admission.0.pressure.level().allows_syncs();
        match state.readers.turn(self.number, cx, Instant::now()) {
            Turn::Now => Poll::Ready(Ok(())),
            _ if closed => Poll::Ready(Err(Refused::Closed)),
            _ if is_tight => Poll::Ready(Err(Refused::Memory(RETRY_TIGHT))),
            Turn::Later => Poll::Pending,
            Turn::Never(wait) => Poll::Ready(Err(Refused::later(wait))),
            Turn::Unknown => Poll::Ready(Err(Refused::Closed)),
        }
    }

    /// A piece was handed to the connection.
    pub(super) fn piece_handed(&self) {
        let mut state = self.admission.lock();
        state.readers.piece_handed(self.number, Instant::now());
    }

    /// The connection asks for the next. Returns `false` when the stream has to end here: it is slow, and
    /// its place was needed.
    pub(super) fn piece_taken(&self) -> bool {
        let now = Instant::now();
        let mut state = self.admission.lock();
        let goes_on = state.readers.piece_taken(self.number, now);
        let woken = state.readers.promote(now);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        goes_on
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.admission.lock();
        let left = state.readers.leave(self.number, now);
        let woken = state.readers.promote(now);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        drop(left);
    }
}
