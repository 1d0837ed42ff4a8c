//! How many snapshots and conflated diffs are on their way at a time: as many as drain well, which
//! is measured. The rest wait in order, at the cost of their place, or are told when to come back.
//!
//! A crowd that all reads at once is served last as a whole: every stream's first chunk waits for
//! every other's. In turn, most are done early, and what a live stream has to say is not behind
//! thousands of chunks. How many in turn is a question of the network and not of taste: a link with
//! 50 ms of latency wants hundreds at a time, loopback a dozen. So the limit follows the time that a
//! piece takes from being handed over until the connection asks for the next, as congestion control
//! does (TCP Vegas, and Netflix's concurrency limits after it): it grows while pieces drain about as
//! fast as they ever did and shrinks once they queue.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tonic::Status;

use super::{grpc, unavailable};
use crate::fanout::Unavailable;
use crate::metrics::{Held, Metrics};

/// Where the limit starts. The first window is a probe, of a quarter of it.
const START: f64 = 64.0;

/// The fewest at a time: so many cores a server surely has, and a few to wait for the network.
const FEWEST: f64 = 8.0;

/// The most at a time. Each has one chunk in hand and another in its connection: 512 MiB if none
/// were shared.
const MOST: f64 = 4096.0;

/// How many measured pieces a decision rests on, at least.
const WINDOW: u32 = 32;

/// Pieces queue when they take more than this many times what they took at best.
const TOLERATED: f64 = 2.0;

/// What becomes of the limit then.
const SHRINK: f64 = 0.8;

/// After so many windows the best time is measured anew, since it may never be so good again; with a
/// quarter at a time, since whatever queues now must not pass for the best.
const PROBE_EVERY: u32 = 128;
const PROBE: f64 = 0.25;

/// A stream that has not taken its piece for so long, or not begun, is not counted any more: its
/// place goes to the next, and it reads on when it does.
const IDLE: Duration = Duration::from_secs(1);

/// How often those that wait are looked after, while there are any.
const TICK: Duration = Duration::from_millis(250);

/// How many may wait. Each is an open stream, of some KiB.
const QUEUE: usize = 16 * 1024;

/// A stream that waited for so long is told to come back: its client, which hears nothing meanwhile,
/// would give up soon after.
const WAIT_AT_MOST: Duration = Duration::from_secs(20);

/// What a client is told to wait, at least and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Who may read an answer, of the whole server. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    metrics: Metrics,
    wait_at_most: Duration,
    state: Mutex<State>,
    /// Somebody waits.
    waiting: Notify,
}

#[derive(Debug)]
struct State {
    limit: Limit,
    /// By number, in the order in which they came.
    waiting: BTreeMap<u64, Waiting>,
    running: HashMap<u64, Running>,
    /// Those of `running` that are not idle.
    active: usize,
    next: u64,
    /// How long a turn takes, on average.
    turn: Option<Duration>,
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
    /// When its turn began, or it took the piece before.
    moved: Instant,
    idle: bool,
    _counted: Held,
}

/// Why a stream is not given a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is too much before it: it should come back after this.
    Later(Duration),
    /// The server shuts down.
    Closed,
}

impl Refused {
    /// What a call is told that has nothing to say it with but its status. Counts it.
    pub(super) fn status(self, metrics: &Metrics) -> Status {
        match self {
            Self::Closed => unavailable(Unavailable::Draining),
            Self::Later(after) => {
                metrics.answers_deferred.inc();
                let status = Status::resource_exhausted(
                    "too many clients wait for a snapshot; retry after the time given",
                );
                grpc::retry_after(after, status)
            }
        }
    }
}

impl Admission {
    /// For clients that give up when they hear nothing for three of `progress`.
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
                turn: None,
                closed: false,
            }),
            waiting: Notify::new(),
        }))
    }

    /// A place in the queue.
    ///
    /// # Errors
    /// When the wait would be too long, or the server shuts down.
    pub(super) fn enter(&self) -> Result<Turn, Refused> {
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
        Ok(Turn {
            admission: self.clone(),
            number,
        })
    }

    /// Looks after those that wait: passes on the places of the idle, and tells those that waited too
    /// long. Runs until it is dropped.
    pub(super) async fn run(&self) {
        loop {
            self.0.waiting.notified().await;
            while self.sweep() {
                sleep(TICK).await;
            }
        }
    }

    /// Whether anybody waits still.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        let mut idle = 0;
        for running in state.running.values_mut() {
            // One that never began has nothing in hand: its client has no room for what comes first.
            let stuck = now - running.handed.unwrap_or(running.moved) > IDLE;
            if stuck && !running.idle {
                running.idle = true;
                idle += 1;
            }
        }
        state.active -= idle;
        let mut woken = state.promote(now, &self.0.metrics);
        // They came in order, so those that waited longest are first.
        let at_most = self.0.wait_at_most;
        let late = state.waiting.values_mut();
        let late = late.take_while(|waiting| now - waiting.since > at_most);
        woken.extend(late.filter_map(|waiting| waiting.waker.take()));
        let waits = !state.waiting.is_empty();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        waits
    }

    /// Nobody is given a turn any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let waiting = state.waiting.values_mut();
        let woken: Vec<_> = waiting.filter_map(|waiting| waiting.waker.take()).collect();
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = &self.0.state;
        state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives turns to as many as the limit allows; returns whom to wake.
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
                _counted: Held::new(&metrics.answers_reading),
            };
            self.running.insert(number, running);
            woken.extend(waiting.waker);
        }
        woken
    }

    /// How long somebody would wait who came now, as far as can be told.
    fn wait(&self) -> Duration {
        let turn = self.turn.unwrap_or_default();
        turn.mul_f64(self.waiting.len() as f64 / self.limit.get() as f64)
    }
}

fn retry(wait: Duration) -> Duration {
    wait.clamp(RETRY.0, RETRY.1)
}

/// One stream's place, in the queue and then among those that read. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Turn {
    admission: Admission,
    number: u64,
}

impl Turn {
    /// Whether it is this stream's turn.
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
    pub(super) fn handed(&self) {
        if let Some(running) = self.admission.lock().running.get_mut(&self.number) {
            running.handed = Some(Instant::now());
        }
    }

    /// The connection asks for the next.
    pub(super) fn taken(&self) {
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

impl Drop for Turn {
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
            // Smoothed over some ten turns.
            state.turn = Some(state.turn.map_or(took, |turn| (turn * 9 + took) / 10));
        }
        let woken = state.promote(now, &self.admission.0.metrics);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
        drop((waited, ran));
    }
}

/// How many at a time: a pure function of what was measured.
#[derive(Debug)]
struct Limit {
    limit: f64,
    /// The least that the pieces of a window took on average, in seconds; unknown while probing.
    best: Option<f64>,
    windows: u32,
    sum: f64,
    count: u32,
    /// The most that were active in this window.
    active: usize,
}

impl Limit {
    const fn new() -> Self {
        Self {
            limit: START,
            best: None,
            windows: 0,
            sum: 0.0,
            count: 0,
            active: 0,
        }
    }

    fn get(&self) -> usize {
        match self.best {
            Some(_) => self.limit as usize,
            None => (self.limit * PROBE).max(FEWEST) as usize,
        }
    }

    /// A piece took this long, with so many active.
    fn measured(&mut self, took: Duration, active: usize) {
        self.sum += took.as_secs_f64();
        self.count += 1;
        self.active = self.active.max(active);
        // One piece of each at least, or a window sees only the fast ones.
        if self.count < WINDOW.max(u32::try_from(active).unwrap_or(u32::MAX)) {
            return;
        }
        let average = self.sum / f64::from(self.count);
        let active = self.active;
        (self.sum, self.count, self.active) = (0.0, 0, 0);
        let Some(best) = self.best else {
            // Those from before the probe read on: their pieces say nothing about fewer.
            if active <= self.get() {
                self.best = Some(average);
            }
            return;
        };
        if average > best * TOLERATED {
            self.limit = (self.limit * SHRINK).max(FEWEST);
        } else if active as f64 >= self.limit * SHRINK {
            // Only what was used is known to drain well.
            self.limit = (self.limit + self.limit.sqrt()).min(MOST);
        }
        self.best = Some(best.min(average));
        self.windows += 1;
        if self.windows == PROBE_EVERY {
            self.windows = 0;
            self.best = None;
        }
    }
}

#[cfg(test)]
impl Admission {
    /// Takes all the turns there are, in a task that keeps them until it is dropped: they read all the
    /// time, and are never done.
    pub(super) fn keep_busy(&self) -> tokio::task::JoinSet<()> {
        let free = self.lock().limit.get();
        let turns: Vec<Turn> = (0..free).filter_map(|_| self.enter().ok()).collect();
        let mut busy = tokio::task::JoinSet::new();
        busy.spawn(async move {
            loop {
                // Measured as nothing, so that the limit stays.
                turns.iter().for_each(Turn::handed);
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

    fn admission() -> Admission {
        Admission::new(Metrics::new(), Duration::from_secs(10))
    }

    /// How many are let in before anything was measured.
    const FIRST: usize = (START * PROBE) as usize;

    struct Never;
    impl Wake for Never {
        fn wake(self: Arc<Self>) {}
    }

    fn admitted(turn: &Turn) -> bool {
        let waker = Waker::from(Arc::new(Never));
        turn.poll(&Context::from_waker(&waker)) == Poll::Ready(Ok(()))
    }

    fn enter(admission: &Admission, count: usize) -> Vec<Turn> {
        (0..count).map(|_| admission.enter().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn turns_are_given_in_order_and_given_back() {
        let admission = admission();
        let mut turns = enter(&admission, 100);
        let start = FIRST;
        let first = |turns: &[Turn]| turns.iter().take_while(|turn| admitted(turn)).count();
        assert_eq!(first(&turns), start);
        assert!(!turns[start..].iter().any(admitted));
        // One that waits leaves, one that reads leaves.
        turns.remove(start);
        assert_eq!(first(&turns), start);
        turns.remove(0);
        assert_eq!(first(&turns), start);
        assert_eq!(admission.0.metrics.answers_reading.get(), FIRST as i64);
        turns.clear();
        let state = admission.lock();
        assert!(state.waiting.is_empty() && state.running.is_empty() && state.active == 0);
        assert_eq!(admission.0.metrics.answers_reading.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_does_not_hold_the_others_up() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let start = FIRST;
        let stalled = enter(&admission, start);
        stalled.iter().for_each(Turn::handed);
        let next = admission.enter().unwrap();
        let turn = std::future::poll_fn(|cx| next.poll(cx));
        assert_eq!(turn.await, Ok(()), "after a second of the paused clock");
        // They read again, and are counted again.
        stalled.iter().for_each(Turn::taken);
        assert_eq!(admission.lock().active, start + 1);
        let late = admission.enter().unwrap();
        assert!(!admitted(&late));
        drop((stalled, next));
        assert_eq!(admission.lock().active, 1);
    }

    /// They kept their turns for as long as they were put up with.
    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_even_begin_to_read_does_not_hold_the_others_up() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let stalled = enter(&admission, FIRST);
        let next = admission.enter().unwrap();
        let turn = std::future::poll_fn(|cx| next.poll(cx));
        assert_eq!(turn.await, Ok(()));
        assert_eq!(admission.lock().active, 1);
        // They begin after all, and are counted again.
        stalled.iter().for_each(Turn::handed);
        stalled.iter().for_each(Turn::taken);
        assert_eq!(admission.lock().active, FIRST + 1);
        drop((stalled, next));
        assert_eq!(admission.lock().active, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waited_too_long_is_told_when_to_come_back() {
        let admission = admission();
        let mut tasks = tokio::task::JoinSet::new();
        let run = admission.clone();
        tasks.spawn(async move { run.run().await });
        let mut busy = admission.keep_busy();
        let waiting = admission.enter().unwrap();
        let turn = std::future::poll_fn(|cx| waiting.poll(cx));
        assert_eq!(turn.await, Err(Refused::Later(RETRY.0)));
        drop(waiting);
        // Turns took 20 s: as many again would wait that long, and whoever comes then is told.
        busy.shutdown().await;
        let running = enter(&admission, FIRST);
        let queue: Vec<_> = (0..1000).map_while(|_| admission.enter().ok()).collect();
        assert!(queue.len() <= FIRST + 1, "{}", queue.len());
        assert!(matches!(
            admission.enter(),
            Err(Refused::Later(wait)) if wait > Duration::from_secs(19)
        ));
        drop((running, queue));
    }

    /// By itself, with nobody who looks whether anybody waits.
    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_over_wakes_who_has_the_next() {
        let admission = admission();
        let mut turns = enter(&admission, FIRST + 1);
        let next = turns.pop().unwrap();
        let waits = std::future::poll_fn(|cx| next.poll(cx));
        let waits = tokio::time::timeout(Duration::from_secs(1), waits);
        let start = Instant::now();
        let (result, ()) = tokio::join!(waits, async { drop(turns) });
        // A limit that is over looks once more.
        assert_eq!((result, start.elapsed()), (Ok(Ok(())), Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn a_shutdown_ends_the_wait() {
        let admission = admission();
        let turns = enter(&admission, FIRST + 1);
        let last = std::future::poll_fn(|cx| turns[FIRST].poll(cx));
        let ((), result) = tokio::join!(async { admission.close() }, last);
        assert_eq!(result, Err(Refused::Closed));
        assert_eq!(admission.enter().unwrap_err(), Refused::Closed);
        assert!(admitted(&turns[0]), "those that read go on");
    }

    /// Runs a simulated link on which `capacity` pieces drain at a time, each in 10 ms.
    fn settled(capacity: f64) -> f64 {
        let mut limit = Limit::new();
        for _ in 0..200_000 {
            let active = limit.get();
            let queued = (active as f64 / capacity).max(1.0);
            limit.measured(Duration::from_secs_f64(0.010 * queued), active);
        }
        limit.limit
    }

    #[test]
    fn the_limit_follows_what_drains() {
        for capacity in [20.0, 100.0, 1000.0] {
            let limit = settled(capacity);
            assert!(
                (capacity * 0.5..=capacity * 3.5).contains(&limit),
                "{limit} for {capacity}"
            );
        }
        // As many as TOLERATED allows over the fewest that a probe tries, and a step.
        assert!((FEWEST..=FEWEST * 3.0).contains(&settled(1.0)));
        assert!(settled(1e9) <= MOST);
    }

    #[test]
    fn a_limit_that_is_not_used_does_not_grow() {
        let mut limit = Limit::new();
        for _ in 0..100_000 {
            limit.measured(Duration::from_millis(1), 3);
        }
        assert_eq!(limit.limit, START);
    }
}
