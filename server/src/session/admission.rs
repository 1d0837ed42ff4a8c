//! Limits how many snapshots and conflated diffs are read at a time, by permits. As many are given as
//! drain well, which is [measured](super::limit). The other streams wait in order of arrival, or get a
//! retry delay.
//!
//! If a crowd read all at once, all of it would finish last: every stream's first chunk would wait for
//! every other's. In order, most finish early, and live streams do not wait behind thousands of chunks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::limit::Limit;
use crate::metrics::{GaugeGuard, Metrics};

/// A stream that has not taken its piece, or not begun, for this long no longer counts against the limit:
/// the next stream gets a permit, and this one may still read on.
const IDLE: Duration = Duration::from_secs(1);

/// How often the queue is swept, while it is not empty.
const TICK: Duration = Duration::from_millis(250);

/// How many streams may wait. Each costs a few KiB.
const QUEUE: usize = 16 * 1024;

/// A stream that has waited this long gets a retry delay: its client, which receives nothing meanwhile,
/// would give up soon after.
const WAIT_AT_MOST: Duration = Duration::from_secs(20);

/// The shortest and the longest retry delay.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Who may read a snapshot or conflated diff, of the whole server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    wait_at_most: Duration,
    state: Mutex<State>,
    /// Notified when a stream begins to wait.
    waiting: Notify,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    /// By number, which is the order of arrival.
    waiting: BTreeMap<u64, Waiting>,
    running: HashMap<u64, Running>,
    /// Those of `running` that are not idle.
    active: usize,
    next: u64,
    /// How long a permit is held, on average.
    held_for: Option<Duration>,
    closed: bool,
}

#[derive(Debug)]
struct Waiting {
    since: Instant,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Running {
    since: Instant,
    /// When the piece that it has in hand was handed over.
    handed: Option<Instant>,
    /// When it got the permit, or took the piece before.
    moved: Instant,
    idle: bool,
    _counted: GaugeGuard,
}

/// Why a stream is not given a permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Too many are before it: it should come back after this time.
    Later(Duration),
    /// The server shuts down.
    Closed,
}

impl Admission {
    /// For clients that give up when they receive nothing for three times `progress`.
    pub(super) fn new(metrics: Metrics, progress: Duration) -> Self {
        Self(Arc::new(Inner {
            metrics,
            wait_at_most: WAIT_AT_MOST.min(progress * 2),
            state: Mutex::new(State {
                limit: Limit::new(),
                waiting: BTreeMap::new(),
                running: HashMap::new(),
                active: 0,
                next: 0,
                held_for: None,
                closed: false,
            }),
            waiting: Notify::new(),
        }))
    }

    /// Takes a place in the queue.
    ///
    /// # Errors
    /// When the wait would be too long, or the server shuts down.
    pub(super) fn request(&self) -> Result<Permit, Refused> {
        let now = Instant::now();
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        let wait = state.wait();
        if state.waiting.len() >= QUEUE || wait > self.0.wait_at_most {
            return Err(Refused::Later(retry(wait)));
        }
        let number = state.next;
        state.next += 1;
        let waiting = Waiting {
            since: now,
            waker: None,
        };
        state.waiting.insert(number, waiting);
        let woken = state.promote(now, &self.0.metrics);
        let waits = !state.waiting.is_empty();
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

    /// Gives waiting streams the permits of idle ones, and refuses those that waited too long. Runs until
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
        let mut idle = 0;
        for running in state.running.values_mut() {
            // A stream that never began has no piece in hand: its client has no room for the first.
            let stuck = now - running.handed.unwrap_or(running.moved) > IDLE;
            if stuck && !running.idle {
                running.idle = true;
                idle += 1;
            }
        }
        state.active -= idle;
        let mut woken = state.promote(now, &self.0.metrics);
        // In order of arrival, so those that waited longest are first.
        let at_most = self.0.wait_at_most;
        let late = state.waiting.values_mut();
        let late = late.take_while(|waiting| now - waiting.since > at_most);
        woken.extend(late.filter_map(|waiting| waiting.waker.take()));
        let waits = !state.waiting.is_empty();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        waits
    }

    /// Gives no more permits.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiting = state.waiting.values_mut();
        let woken: Vec<_> = waiting.filter_map(|waiting| waiting.waker.take()).collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

impl State {
    /// Gives permits to as many as the limit allows; returns whom to wake.
    fn promote(&mut self, now: Instant, metrics: &Metrics) -> Vec<Waker> {
        let mut woken = Vec::new();
        while self.active < self.limit.get()
            && let Some((number, waiting)) = self.waiting.pop_first()
        {
            self.active += 1;
            let running = Running {
                since: now,
                handed: None,
                moved: now,
                idle: false,
                _counted: GaugeGuard::new(&metrics.syncs_in_progress),
            };
            self.running.insert(number, running);
            woken.extend(waiting.waker);
        }
        woken
    }

    /// The estimated wait of a stream that comes now.
    fn wait(&self) -> Duration {
        let held_for = self.held_for.unwrap_or_default();
        held_for.mul_f64(self.waiting.len() as f64 / self.limit.get() as f64)
    }
}

fn retry(wait: Duration) -> Duration {
    wait.clamp(RETRY.0, RETRY.1)
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
        if state.running.contains_key(&self.number) {
            return Poll::Ready(Ok(()));
        }
        if state.closed {
            return Poll::Ready(Err(Refused::Closed));
        }
        let wait = state.wait();
        let Some(waiting) = state.waiting.get_mut(&self.number) else {
            return Poll::Ready(Err(Refused::Closed));
        };
        if waiting.since.elapsed() > self.admission.0.wait_at_most {
            return Poll::Ready(Err(Refused::Later(retry(wait))));
        }
        waiting.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// A piece was handed to the connection.
    pub(super) fn piece_handed(&self) {
        if let Some(running) = self.admission.lock().running.get_mut(&self.number) {
            running.handed = Some(Instant::now());
        }
    }

    /// The connection asks for the next.
    pub(super) fn piece_taken(&self) {
        let now = Instant::now();
        let mut state = self.admission.lock();
        let Some(running) = state.running.get_mut(&self.number) else {
            return;
        };
        let Some(handed) = running.handed.take() else {
            return;
        };
        running.moved = now;
        if std::mem::take(&mut running.idle) {
            state.active += 1;
        }
        let active = state.active;
        state.limit.measured(now - handed, active);
        let woken = state.promote(now, &self.admission.0.metrics);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.admission.lock();
        let waited = state.waiting.remove(&self.number);
        let ran = state.running.remove(&self.number);
        if let Some(ran) = &ran {
            if !ran.idle {
                state.active -= 1;
            }
            let took = now - ran.since;
            // Smoothed over some ten permits.
            let smooth = |before: Duration| (before * 9 + took) / 10;
            state.held_for = Some(state.held_for.map_or(took, smooth));
        }
        let woken = state.promote(now, &self.admission.0.metrics);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        drop((waited, ran));
    }
}

#[cfg(test)]
impl Admission {
    /// Takes all the permits there are, in a task that keeps them until it is dropped: they read all the
    /// time, and are never done.
    pub(crate) fn keep_busy(&self) -> tokio::task::JoinSet<()> {
        let free = self.lock().limit.get();
        let permits: Vec<Permit> = (0..free).filter_map(|_| self.request().ok()).collect();
        let mut busy = tokio::task::JoinSet::new();
        busy.spawn(async move {
            loop {
                // Measured as nothing, so that the limit stays.
                permits.iter().for_each(Permit::piece_handed);
                sleep(IDLE / 2).await;
            }
        });
        busy
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;
    use crate::session::limit;

    fn admission() -> Admission {
        Admission::new(Metrics::new(), Duration::from_secs(10))
    }

    /// How many are let in before anything was measured.
    const FIRST: usize = (limit::START * limit::PROBE) as usize;

    struct Never;
    impl Wake for Never {
        fn wake(self: Arc<Self>) {}
    }

    fn admitted(permit: &Permit) -> bool {
        let waker = Waker::from(Arc::new(Never));
        permit.poll(&Context::from_waker(&waker)) == Poll::Ready(Ok(()))
    }

    fn request(admission: &Admission, count: usize) -> Vec<Permit> {
        (0..count).map(|_| admission.request().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn permits_are_given_in_order_and_returned() {
        let admission = admission();
        let mut permits = request(&admission, 100);
        let start = FIRST;
        let first =
            |permits: &[Permit]| permits.iter().take_while(|permit| admitted(permit)).count();
        assert_eq!(first(&permits), start);
        assert!(!permits[start..].iter().any(admitted));
        // One that waits leaves, one that reads leaves.
        permits.remove(start);
        assert_eq!(first(&permits), start);
        permits.remove(0);
        assert_eq!(first(&permits), start);
        assert_eq!(admission.0.metrics.syncs_in_progress.get(), FIRST as i64);
        permits.clear();
        let state = admission.lock();
        assert!(state.waiting.is_empty() && state.running.is_empty() && state.active == 0);
        assert_eq!(admission.0.metrics.syncs_in_progress.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_does_not_hold_up_the_queue() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let start = FIRST;
        let stalled = request(&admission, start);
        stalled.iter().for_each(Permit::piece_handed);
        let next = admission.request().unwrap();
        let permit = std::future::poll_fn(|cx| next.poll(cx));
        assert_eq!(permit.await, Ok(()), "after a second of the paused clock");
        // They read again, and are counted again.
        stalled.iter().for_each(Permit::piece_taken);
        assert_eq!(admission.lock().active, start + 1);
        let late = admission.request().unwrap();
        assert!(!admitted(&late));
        drop((stalled, next));
        assert_eq!(admission.lock().active, 1);
    }

    /// They kept their permits until their connections were closed.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_never_begins_does_not_hold_up_the_queue() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let stalled = request(&admission, FIRST);
        let next = admission.request().unwrap();
        let permit = std::future::poll_fn(|cx| next.poll(cx));
        assert_eq!(permit.await, Ok(()));
        assert_eq!(admission.lock().active, 1);
        // They begin after all, and are counted again.
        stalled.iter().for_each(Permit::piece_handed);
        stalled.iter().for_each(Permit::piece_taken);
        assert_eq!(admission.lock().active, FIRST + 1);
        drop((stalled, next));
        assert_eq!(admission.lock().active, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_ends_with_a_retry_delay() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let mut busy = admission.keep_busy();
        let waiting = admission.request().unwrap();
        let permit = std::future::poll_fn(|cx| waiting.poll(cx));
        assert_eq!(permit.await, Err(Refused::Later(RETRY.0)));
        drop(waiting);
        // Permits were held for 20 s: as many again would wait that long, and whoever comes then is told.
        busy.shutdown().await;
        let running = request(&admission, FIRST);
        let queue: Vec<_> = (0..1000).map_while(|_| admission.request().ok()).collect();
        assert!(queue.len() <= FIRST + 1, "{}", queue.len());
        assert!(matches!(
            admission.request(),
            Err(Refused::Later(wait)) if wait > Duration::from_secs(19)
        ));
        drop((running, queue));
    }

    /// By itself, with nobody who looks whether anybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_returned_permit_wakes_the_next_in_the_queue() {
        let admission = admission();
        let mut permits = request(&admission, FIRST + 1);
        let next = permits.pop().unwrap();
        let waits = std::future::poll_fn(|cx| next.poll(cx));
        let waits = tokio::time::timeout(Duration::from_secs(1), waits);
        let start = Instant::now();
        let (result, ()) = tokio::join!(waits, async { drop(permits) });
        // A limit that is over looks once more.
        assert_eq!((result, start.elapsed()), (Ok(Ok(())), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn close_ends_the_wait() {
        let admission = admission();
        let permits = request(&admission, FIRST + 1);
        let last = std::future::poll_fn(|cx| permits[FIRST].poll(cx));
        let ((), result) = tokio::join!(async { admission.close() }, last);
        assert_eq!(result, Err(Refused::Closed));
        assert_eq!(admission.request().unwrap_err(), Refused::Closed);
        assert!(admitted(&permits[0]), "those that read go on");
    }
}
