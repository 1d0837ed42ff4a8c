//! Drives one connection and all its streams in one task.
//!
//! hyper would spawn a task for each stream beside the connection's. A change would then cost two
//! wake-ups for each subscriber: the stream's task hands its frame over, and the connection's task
//! writes it. Here one task polls the streams first and the connection right after them, so that what
//! they hand over is written at once.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hyper::rt::Executor;
use parking_lot::Mutex;

use super::idle::{IdleTimer, Verdict};
use crate::session::ConnectionControl;

/// hyper's connection.
pub(super) trait Transport: Future {
    /// Takes no new calls; the open ones continue.
    fn drain(self: Pin<&mut Self>);
}

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Collects the streams that hyper spawns, until the connection's task takes them.
#[derive(Clone, Default)]
pub(super) struct StreamExecutor(Arc<Mutex<Vec<Stream>>>);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for StreamExecutor {
    fn execute(&self, stream: F) {
        // A panic is a bug. It costs only its stream, which is reset, and not the connection's others.
        // The panic hook has reported it.
        let stream = AssertUnwindSafe(stream).catch_unwind().map(drop);
        // Only while the connection is polled, whose task looks here right after.
        self.0.lock().push(Box::pin(stream));
    }
}

/// The connection's own waker. It passes wake-ups on, except while the streams are polled, since the
/// connection is polled after them anyway.
#[derive(Debug)]
struct DeferredWaker {
    state: AtomicU8,
    /// It knows the task.
    control: Arc<ConnectionControl>,
}

impl DeferredWaker {
    const IDLE: u8 = 0;
    const POLLED_SOON: u8 = 1;

    /// The connection will be polled: it need not be woken until [`DeferredWaker::end`].
    fn begin(&self) {
        self.state.store(Self::POLLED_SOON, Ordering::Release);
    }

    /// The connection is polled now. An earlier waker stored its reason before it touched the atomic, so
    /// this poll sees the reason.
    fn end(&self) {
        self.state.swap(Self::IDLE, Ordering::AcqRel);
    }
}

impl Wake for DeferredWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // A write and not a load, so that it is ordered before or after `end`.
        if self.state.fetch_or(0, Ordering::AcqRel) == Self::IDLE {
            self.control.wake();
        }
    }
}

/// Serves a connection to its end.
pub(super) struct ConnectionDriver<C> {
    connection: Pin<Box<C>>,
    streams: FuturesUnordered<Stream>,
    executor: StreamExecutor,
    control: Arc<ConnectionControl>,
    draining: bool,
    deferred: Arc<DeferredWaker>,
    /// The same as a waker.
    waker: Waker,
    /// After the connection, whose place it frees.
    idle: IdleTimer,
}

impl<C: Transport> ConnectionDriver<C> {
    /// `connection` spawns its streams on `executor`. `idle` decides how long it may have none.
    pub(super) fn new(
        connection: C,
        executor: StreamExecutor,
        control: Arc<ConnectionControl>,
        idle: IdleTimer,
    ) -> Self {
        let deferred = Arc::new(DeferredWaker {
            state: AtomicU8::new(DeferredWaker::IDLE),
            control: Arc::clone(&control),
        });
        Self {
            connection: Box::pin(connection),
            streams: FuturesUnordered::new(),
            executor,
            control,
            draining: false,
            waker: Waker::from(Arc::clone(&deferred)),
            deferred,
            idle,
        }
    }

    fn drain(&mut self) {
        if !std::mem::replace(&mut self.draining, true) {
            self.connection.as_mut().drain();
        }
    }

    /// Tells a client that has nothing open to go elsewhere, as far as that can be written at once.
    fn say_goodbye(&mut self) {
        if self.streams.is_empty() {
            self.drain();
            let mut cx = Context::from_waker(Waker::noop());
            let _ = self.connection.as_mut().poll(&mut cx);
        }
    }
}

impl<C> Drop for ConnectionDriver<C> {
    fn drop(&mut self) {
        // Streams that were spawned in the connection's last poll, and were never taken: each holds the
        // list that it is on, so neither would be freed by itself.
        let spawned = std::mem::take(&mut *self.executor.0.lock());
        drop(spawned);
    }
}

impl<C: Transport> Future for ConnectionDriver<C> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.control.register(cx.waker());
        if this.control.is_closed() {
            this.say_goodbye();
            return Poll::Ready(());
        }
        if this.control.is_draining() {
            this.drain();
        }
        loop {
            this.deferred.begin();
            while let Poll::Ready(Some(())) = this.streams.poll_next_unpin(cx) {}
            this.deferred.end();
            // How a connection ends does not matter here: networks fail, processes die.
            let mut inner = Context::from_waker(&this.waker);
            if this.connection.as_mut().poll(&mut inner).is_ready() {
                return Poll::Ready(());
            }
            let spawned = std::mem::take(&mut *this.executor.0.lock());
            if !spawned.is_empty() {
                this.idle.called();
                this.streams.extend(spawned);
                continue;
            }
            match this.idle.poll(!this.streams.is_empty(), cx) {
                Verdict::Stay => return Poll::Pending,
                Verdict::Drain => this.drain(),
                Verdict::Close => {
                    this.say_goodbye();
                    return Poll::Ready(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::task::Poll;
    use std::time::Duration;

    use futures_util::task::AtomicWaker;
    use tokio::time::{Instant, timeout};

    use super::super::idle::IdleLimits;
    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    const LIMITS: IdleLimits = IdleLimits {
        kept: Duration::from_secs(5),
        first_call: SOON,
        between_calls: Duration::from_secs(300),
    };

    /// What a test wants of a connection.
    struct Scripted<F>(F, Arc<AtomicBool>);

    impl<F: FnMut(&mut Context<'_>) -> Poll<()> + Unpin> Future for Scripted<F> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            (self.get_mut().0)(cx)
        }
    }

    impl<F: FnMut(&mut Context<'_>) -> Poll<()> + Unpin> Transport for Scripted<F> {
        fn drain(self: Pin<&mut Self>) {
            self.1.store(true, Ordering::Relaxed);
        }
    }

    fn driver<F: FnMut(&mut Context<'_>) -> Poll<()> + Unpin>(
        connection: F,
        executor: &StreamExecutor,
        control: &Arc<ConnectionControl>,
    ) -> (ConnectionDriver<Scripted<F>>, Arc<AtomicBool>) {
        let drained = Arc::new(AtomicBool::new(false));
        let connection = Scripted(connection, Arc::clone(&drained));
        let idle = IdleTimer::new(LIMITS, None, Arc::clone(control));
        let driver = ConnectionDriver::new(connection, executor.clone(), Arc::clone(control), idle);
        (driver, drained)
    }

    /// Another thread wakes the connection at any moment, also while the streams are polled: no
    /// wake-up is lost, or this never ends.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn concurrent_wake_ups_are_not_lost() {
        const TIMES: u64 = 100_000;
        let (executor, control) = (StreamExecutor::default(), Arc::default());
        let (said, heard) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let waker = Arc::new(AtomicWaker::new());
        let connection = {
            let (said, heard, waker) = (said.clone(), heard.clone(), waker.clone());
            move |cx: &mut Context<'_>| {
                waker.register(cx.waker());
                let now = said.load(Ordering::Acquire);
                heard.store(now, Ordering::Release);
                if now == TIMES {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }
        };
        let (driver, _) = driver(connection, &executor, &control);
        // A stream that is polled at every turn, for as long as a few loads take.
        executor.execute(poll_fn({
            let heard = Arc::clone(&heard);
            move |_| {
                for _ in 0..20 {
                    std::hint::black_box(heard.load(Ordering::Relaxed));
                }
                Poll::<()>::Pending
            }
        }));
        let teller = std::thread::spawn(move || {
            for n in 1..=TIMES {
                said.store(n, Ordering::Release);
                waker.wake();
                // Every other time it is waited for, so that there is nobody else to wake it.
                let start = std::time::Instant::now();
                while n % 2 == 0 && heard.load(Ordering::Acquire) < n && start.elapsed() < SOON {
                    std::hint::spin_loop();
                }
            }
        });
        assert!(timeout(SOON, driver).await.is_ok(), "a wake-up was lost");
        teller.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn streams_are_polled_first_and_end_with_the_connection() {
        let (executor, control) = (StreamExecutor::default(), Arc::default());
        let order = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let order = Arc::clone(&order);
            move || order.lock().push(what)
        };
        let held = Arc::new(());
        let (connected, streamed) = (note("connection"), note("stream"));
        let (begin, mut first) = (executor.clone(), true);
        let kept = Arc::clone(&held);
        let connection = move |_: &mut Context<'_>| {
            connected();
            if std::mem::take(&mut first) {
                let (streamed, kept) = (streamed.clone(), Arc::clone(&kept));
                begin.execute(async move {
                    streamed();
                    pending::<()>().await;
                    drop(kept);
                });
            }
            Poll::Pending
        };
        let (driver, drained) = driver(connection, &executor, &control);
        let task = async {
            tokio::task::yield_now().await;
            control.drain();
            tokio::task::yield_now().await;
            assert!(drained.load(Ordering::Relaxed));
            assert!(control.close() && !control.close());
        };
        tokio::join!(timeout(SOON, driver), task).0.unwrap();
        let order = order.lock();
        assert_eq!(order[..3], ["connection", "stream", "connection"]);
        assert_eq!(
            Arc::strong_count(&held),
            1,
            "nothing is left of the streams"
        );
    }

    /// hyper's streams hold the executor, which is the list that they are on.
    #[tokio::test]
    async fn streams_spawned_in_the_last_poll_are_dropped() {
        let (executor, control) = (StreamExecutor::default(), Arc::default());
        let held = Arc::new(());
        let (begin, kept) = (executor.clone(), Arc::clone(&held));
        let connection = move |_: &mut Context<'_>| {
            let (list, kept) = (begin.clone(), Arc::clone(&kept));
            begin.execute(async move {
                pending::<()>().await;
                drop((list, kept));
            });
            Poll::Ready(())
        };
        let (driver, _) = driver(connection, &executor, &control);
        timeout(SOON, driver).await.unwrap();
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicking_stream_ends_alone() {
        let (executor, control) = (
            StreamExecutor::default(),
            Arc::<ConnectionControl>::default(),
        );
        let polled = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&polled);
        executor.execute(async { panic!("for the test") });
        executor.execute(async move {
            for _ in 0..3 {
                tokio::task::yield_now().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        let idle = |_: &mut Context<'_>| Poll::Pending;
        let (driver, _) = driver(idle, &executor, &control);
        assert!(
            timeout(SOON, driver).await.is_err(),
            "the connection goes on"
        );
        assert_eq!(polled.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_connections_without_a_call_time_out() {
        let (executor, control) = (StreamExecutor::default(), Arc::default());
        let idle = |_: &mut Context<'_>| Poll::Pending;
        let start = Instant::now();
        let (never_called, drained) = driver(idle, &executor, &control);
        let mut never_called = Box::pin(never_called);
        assert!(timeout(LIMITS.first_call, &mut never_called).await.is_err());
        assert!(drained.load(Ordering::Relaxed), "it is told");
        // Its client does not go.
        never_called.await;
        assert_eq!(start.elapsed(), LIMITS.first_call + Duration::from_secs(5));

        executor.execute(pending::<()>());
        let (busy, drained) = driver(idle, &executor, &control);
        assert!(timeout(LIMITS.between_calls * 9, busy).await.is_err());
        assert!(!drained.load(Ordering::Relaxed));

        executor.execute(async {});
        let start = Instant::now();
        let (called, drained) = driver(idle, &executor, &control);
        let mut called = Box::pin(called);
        assert!(timeout(LIMITS.between_calls, &mut called).await.is_err());
        assert!(drained.load(Ordering::Relaxed), "it is told");
        called.await;
        assert_eq!(
            start.elapsed(),
            LIMITS.between_calls + Duration::from_secs(5)
        );
    }

    /// An evicted client is told to go, unless it has calls, which end with the connection.
    #[tokio::test(start_paused = true)]
    async fn closed_connections_say_goodbye_if_nothing_is_open() {
        let polled = Arc::new(AtomicU64::new(0));
        for calls in [0, 1] {
            let (executor, control) = (
                StreamExecutor::default(),
                Arc::<ConnectionControl>::default(),
            );
            (0..calls).for_each(|_| executor.execute(pending::<()>()));
            let counted = Arc::clone(&polled);
            let connection = move |_: &mut Context<'_>| {
                counted.fetch_add(1, Ordering::Relaxed);
                Poll::Pending
            };
            let (driver, drained) = driver(connection, &executor, &control);
            let mut driver = Box::pin(driver);
            assert!(timeout(Duration::from_secs(1), &mut driver).await.is_err());
            let before = polled.load(Ordering::Relaxed);
            control.close();
            driver.await;
            let last_polls = polled.load(Ordering::Relaxed) - before;
            assert_eq!(
                (last_polls, drained.load(Ordering::Relaxed)),
                match calls {
                    0 => (1, true),
                    _ => (0, false),
                }
            );
        }
    }
}
