//! The harness can fail: it finds each fault, and names it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use common::{Server, alone};
use driftless_client::Client;
use driftless_server::Settings;
use leak_tests::{
    Descriptors, Leak, Leaked, Scraped, Stall, Tasks, Threads, Witness, Witnesses, at_every_poll,
    bounded_gauge, gauge, poll_times, rounds,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Short, where the count cannot return.
const SHORT: Duration = Duration::from_millis(20);

#[test]
fn count_that_does_not_return_is_named_with_both_values() {
    alone(async {
        let before = Witnesses::of_the_process()
            .and(Descriptors::sockets())
            .and(gauge("constants", || 1));
        let before = before.baseline().await.unwrap();
        before.returned().await.unwrap();

        let mut kept = JoinSet::new();
        kept.spawn(std::future::pending::<()>());
        let leaked = before.returned_within(SHORT).await.unwrap_err();
        assert_eq!(leaked.witnesses(), ["tasks"]);
        assert_eq!(
            leaked.to_string(),
            "not back after 20ms: tasks: 0 before and 1 after"
        );
        kept.shutdown().await;
        before.returned().await.unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let leaked = before.returned_within(SHORT).await.unwrap_err();
        assert_eq!(leaked.witnesses(), ["descriptors", "sockets"]);
        let Leaked::Kept { differences, .. } = &leaked else {
            panic!("{leaked}")
        };
        let details = differences[0].details.as_deref().unwrap();
        assert!(details.contains(" socket"), "{details}");
        drop(listener);

        let file = std::fs::File::open("/dev/null").unwrap();
        let leaked = before.returned_within(SHORT).await.unwrap_err();
        assert_eq!(leaked.witnesses(), ["descriptors"]);
        drop(file);
        before.returned().await.unwrap();
    });
}

#[test]
fn count_below_the_baseline_is_a_difference() {
    alone(async {
        let mut tasks = JoinSet::new();
        tasks.spawn(std::future::pending::<()>());
        let before = Witnesses::new().and(Tasks::here());
        let before = before.baseline().await.unwrap();
        tasks.shutdown().await;
        // Who waits for a task is told before the runtime counts it out.
        while Tasks::here().read().await.unwrap() > 0 {
            tokio::task::yield_now().await;
        }
        let leaked = before.returned_within(SHORT).await.unwrap_err();
        assert_eq!(
            leaked.to_string(),
            "not back after 20ms: tasks: 1 before and 0 after"
        );
    });
}

#[test]
fn own_threads_are_counted_without_the_runtimes() {
    alone(async {
        let ours = Threads::but_the_runtimes();
        let others = ours.names().unwrap();
        // One of the blocking pool, which lingers.
        tokio::task::spawn_blocking(|| {}).await.unwrap();
        assert_eq!(
            ours.names()
                .unwrap()
                .iter()
                .filter(|n| n.starts_with("tokio"))
                .count(),
            0
        );
        assert!(Threads::all().names().unwrap().len() > others.len());

        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::Builder::new().name("faulty".to_owned());
        let (named, is_named) = tokio::sync::oneshot::channel();
        let thread = thread.spawn(move || {
            named.send(()).unwrap();
            let _ = stopped.recv();
        });
        is_named.await.unwrap();
        assert!(ours.details().unwrap().contains("faulty"));
        assert!(
            !ours
                .clone()
                .without("fault")
                .details()
                .unwrap()
                .contains("faulty")
        );
        drop(stop);
        thread.unwrap().join().unwrap();
        assert!(!ours.details().unwrap().contains("faulty"));
    });
}

#[test]
fn metrics_page_is_a_witness() {
    alone(async {
        let settings = Settings::builder()
            // Nobody listens there.
            .etcd("http://127.0.0.1:1")
            .prefix("/c/")
            .listen(([127, 0, 0, 1], 0).into())
            .admin(([127, 0, 0, 1], 0).into())
            .build()
            .unwrap();
        let server = driftless_server::Server::bind(settings).await.unwrap();
        let address = server.admin_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(server.run(stop.clone()));
        let counts = Witnesses::new().and_all(Scraped::of_server(&address));
        assert_eq!(counts.read().await.unwrap(), [0, 0, 0]);

        let unknown = Witnesses::new().and(Scraped::new(&address, "driftless_nothing"));
        assert_eq!(
            unknown.read().await.unwrap_err().to_string(),
            format!(
                "driftless_nothing cannot be counted: http://{address}/metrics: the page does not \
                 show it; name one that it shows"
            )
        );
        stop.cancel();
        running.join_all().await;
        assert!(counts.read().await.is_err(), "nobody answers");
    });
}

#[test]
fn etcd_counts_are_read_from_its_metrics() {
    alone(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /metrics HTTP/1.0\r\n"));
                let page = "HTTP/1.0 200 OK\r\n\r\n# TYPE etcd_debugging_mvcc_watcher_total gauge\n\
                            etcd_debugging_mvcc_watcher_total 3\n\
                            etcd_debugging_mvcc_watch_stream_total 2\n";
                stream.write_all(page.as_bytes()).await.unwrap();
            }
        });
        let etcd = Witnesses::new().and_all(Scraped::of_etcd(&address));
        assert_eq!(etcd.read().await.unwrap(), [3, 2]);
    });
}

/// A count that the test moves.
fn counter() -> (Arc<AtomicI64>, impl Fn() -> i64 + Send + Sync + 'static) {
    let count = Arc::new(AtomicI64::new(0));
    let read = Arc::clone(&count);
    (count, move || read.load(Ordering::SeqCst))
}

/// Ten thousand rounds over a count of bytes that `grow` moves.
async fn grown(grow: impl Fn(&AtomicI64, u64)) -> leak_tests::Outcome {
    let (bytes, count) = counter();
    let witnesses = Witnesses::new().and(bounded_gauge("bytes", leak_tests::GROWTH_SLACK, count));
    rounds(10_000)
        .named("faulty")
        .only(witnesses)
        .run(async |round| grow(&bytes, round))
        .await
}

#[test]
fn losing_64_bytes_every_hundred_rounds_is_a_leak() {
    alone(async {
        let outcome = grown(|bytes, round| {
            if round % 100 == 0 {
                bytes.fetch_add(64, Ordering::SeqCst);
            }
        })
        .await;
        assert_eq!(outcome.noticed_by(), ["bytes"]);
        assert_eq!((outcome.repeated, outcome.rounds), (true, 40_000));
        assert!(matches!(
            &outcome.leaks[..],
            [Leak::Grew { from, to, .. }] if (15_000..16_000).contains(&(to - from))
        ));
        let said = outcome.to_string();
        assert!(said.contains("about 0.64 a round"), "{said}");
    });
}

#[test]
fn table_that_grows_once_is_no_leak() {
    alone(async {
        for at in [10, 3_000, 5_000, 9_000] {
            let outcome = grown(|bytes, round| {
                if round == at {
                    bytes.fetch_add(64 * 1024, Ordering::SeqCst);
                }
            })
            .await;
            outcome.assert_no_leak();
        }
    });
}

#[test]
fn bytes_that_come_and_go_are_no_leak() {
    alone(async {
        let outcome = grown(|bytes, round| {
            let held = (round * 7919) % 100_000;
            bytes.store(i64::try_from(held).unwrap(), Ordering::SeqCst);
        })
        .await;
        outcome.assert_no_leak();
        assert!(!outcome.repeated);
    });
}

#[test]
fn round_that_keeps_something_ends_the_run() {
    alone(async {
        let kept = std::cell::RefCell::new(JoinSet::new());
        let outcome = rounds(1_000)
            .named("forgetful")
            .only(Witnesses::of_the_process())
            .run(async |round| {
                if round == 60 {
                    kept.borrow_mut().spawn(std::future::pending::<()>());
                }
            })
            .await;
        assert_eq!(outcome.noticed_by(), ["tasks"]);
        // After fifty rounds of warm-up.
        assert!(matches!(outcome.leaks[..], [Leak::Kept { round: 10, .. }]));
        let said = outcome.to_string();
        assert!(said.starts_with("forgetful, 11 rounds: after round 10, not back after 5s: "));
    });
}

#[test]
fn witness_at_the_end_is_compared_with_the_start() {
    alone(async {
        let (held, count) = counter();
        let outcome = rounds(10)
            .only(Witnesses::new())
            .at_the_end(Witnesses::new().and(gauge("watches", count)))
            .run(async |round| {
                // In the last round only.
                if round == 59 {
                    held.store(1, Ordering::SeqCst);
                }
            })
            .await;
        assert_eq!(outcome.noticed_by(), ["watches"]);
    });
}

#[test]
fn rounds_measure_times_and_keep_few_points() {
    alone(async {
        let outcome = rounds(2_000)
            .without_bytes()
            .promised(Duration::from_millis(100))
            .run(async |_| tokio::task::yield_now().await)
            .await;
        outcome.assert_no_leak();
        assert!(outcome.median.is_some());
        for curve in &outcome.curves {
            let points = curve.points.len();
            assert!((200..=400).contains(&points), "{}: {points}", curve.witness);
        }
    });
}

#[test]
fn missing_allocator_is_reported_not_noticed() {
    alone(async {
        let outcome = rounds(5).run(async |_| {}).await;
        assert!(matches!(outcome.leaks[..], [Leak::Unreadable(_)]));
        assert!(outcome.noticed_by().is_empty());
        let said = outcome.to_string();
        assert!(said.contains("use_jemalloc!"), "{said}");
    });
}

#[test]
fn rounds_end_at_their_time_limit() {
    alone(async {
        let slow = async |_| tokio::time::sleep(Duration::from_millis(5)).await;
        let outcome = rounds(1_000_000)
            .without_bytes()
            .within(Duration::from_millis(500))
            .run(slow)
            .await;
        outcome.assert_no_leak();
        assert!((5..100).contains(&outcome.rounds), "{}", outcome.rounds);

        let never_mind = rounds(1_000_000).within(Duration::ZERO).run(slow).await;
        assert_eq!(never_mind.rounds, 5);
    });
}

/// The clock jumps, and counts rounds: each takes a second, and two when they are done again.
#[tokio::test(start_paused = true)]
async fn what_grew_is_done_again_for_as_long_and_no_longer() {
    let grows = async |seconds: u64, slower: u64| {
        let bytes = Arc::new(AtomicI64::new(0));
        let lost = Arc::clone(&bytes);
        let read = move || bytes.load(Ordering::Relaxed);
        let outcome = rounds(1_000_000)
            .warm_up(0)
            .only(Witnesses::new().and(bounded_gauge("bytes", 0, read)))
            .within(Duration::from_secs(seconds))
            .run(async |round| {
                lost.fetch_add(1, Ordering::Relaxed);
                let takes = if round < slower { 1 } else { 2 };
                tokio::time::sleep(Duration::from_secs(takes)).await;
            })
            .await;
        assert!(outcome.repeated && !outcome.leaks.is_empty(), "{outcome}");
        outcome.rounds
    };
    assert_eq!(grows(400, 400).await, 200);
    // Fewer would tell nothing.
    assert_eq!(grows(120, 120).await, 100);
}

#[test]
fn future_is_polled_n_times_and_dropped() {
    alone(async {
        struct Polled(u32, Arc<AtomicI64>);
        impl Future for Polled {
            type Output = u32;
            fn poll(
                mut self: std::pin::Pin<&mut Self>,
                context: &mut std::task::Context<'_>,
            ) -> std::task::Poll<u32> {
                self.0 += 1;
                if self.0 == 4 {
                    return std::task::Poll::Ready(self.0);
                }
                context.waker().wake_by_ref();
                std::task::Poll::Pending
            }
        }
        impl Drop for Polled {
            fn drop(&mut self) {
                self.1.fetch_add(i64::from(self.0), Ordering::SeqCst);
            }
        }
        let polls = Arc::new(AtomicI64::new(0));
        for (times, output, so_far) in [(0, None, 0), (1, None, 1), (3, None, 4), (9, Some(4), 8)] {
            let polled = Polled(0, Arc::clone(&polls));
            assert_eq!(poll_times(times, polled).await, output);
            assert_eq!(polls.load(Ordering::SeqCst), so_far);
        }
        let needed = at_every_poll(async |times| {
            let polled = Polled(0, Arc::clone(&polls));
            poll_times(times, polled).await.is_some()
        });
        assert_eq!(needed.await, 4);
        // One that nobody wakes is dropped all the same.
        assert!(poll_times(1, std::future::pending::<()>()).await.is_none());
    });
}

#[test]
fn stalled_operation_is_pending_until_dropped() {
    alone(async {
        let server = Server::start().await;
        let before = server.baseline().await;
        let client = |stall: &Stall| {
            let builder = Client::builder().endpoint(server.url());
            builder.connector(stall.over_tcp()).build().unwrap()
        };
        // Counts, and lets everything through.
        let stall = Stall::never();
        let answer = client(&stall).get("/c/a").await;
        assert_eq!(answer.unwrap().len(), 1);
        assert!(!stall.has_happened() && stall.operations() > 3);
        before.returned().await.unwrap();

        // Once connected, which is the first operation, not a byte.
        let stall = Stall::after(1);
        let (client, reading) = (client(&stall), async {
            stall.happened().await;
            assert_eq!(stall.operations(), 1);
        });
        let get = client.get("/c/a").timeout(SHORT).into_future();
        let (answer, ()) = tokio::join!(get, reading);
        assert!(answer.unwrap_err().is_retryable());
        before.returned().await.unwrap();
    });
}
