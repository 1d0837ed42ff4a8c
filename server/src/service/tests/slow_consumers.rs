//! Slow consumers: what they cost, and when their connections are closed.

use super::*;

/// What one change of the large ones carries, in bytes: nearly a segment, so that no two share one.
const LARGE: usize = 60_000;

fn settings_with(timeout: Duration) -> Settings {
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .log_bytes(1024 * 1024)
        .stall_timeout(timeout);
    settings.build().unwrap()
}

fn count(replica: &Replica, frame: &str) -> usize {
    let applied = replica.applied.iter();
    applied.filter(|applied| **applied == frame).count()
}

/// A watcher that holds everything.
async fn in_sync(client: &Client, etcd: &ScriptedEtcd) -> (Call, Replica) {
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range);
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    (watch, replica)
}

impl Call {
    /// Takes one piece of what lies there; `None` at the end.
    async fn drip(&mut self) -> Option<()> {
        let data = self.body.data().await?.expect("the connection lives");
        self.body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        self.buffer.put(data);
        Some(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_gets_one_conflated_diff_at_last() {
    const CHANGES: usize = 100_000;
    /// Made at a time: fewer than a stream that is behind gets one by one.
    const BURST: usize = 100;
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/0", "0");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let stalled_client = Client::new(&engine).await;
    let (mut stalled, mut behind) = in_sync(&stalled_client, &etcd).await;
    let reading_client = Client::new(&engine).await;
    let (mut reading, mut replica) = in_sync(&reading_client, &etcd).await;

    let (frames, mut at_half) = (metrics.frames_encoded.get(), 0);
    for burst in 0..CHANGES / BURST {
        let mut last = Revision::NONE;
        for n in 0..BURST {
            last = etcd.put(format!("/c/{}", n % 10), burst.to_string());
        }
        reading.read_to(&mut replica, last).await.unwrap();
        if burst * BURST == CHANGES / 2 {
            at_half = metrics.sent_bytes.get();
        }
    }
    assert_eq!(count(&replica, "diff"), CHANGES, "it missed none");
    assert_eq!(count(&replica, "conflated"), 0);
    assert_eq!(metrics.conflated.get(), 0);
    assert_eq!(metrics.frames_encoded.get() - frames, CHANGES as u64);
    assert!(metrics.log_bytes.get() <= 1024 * 1024);
    // All that was sent in the second half went to the one that reads.
    let sent = metrics.sent_bytes.get() - at_half;
    let most = (CHANGES / 2 * 160) as u64;
    assert!(sent < most, "{sent} bytes for {} changes", CHANGES / 2);

    let last = etcd.revision();
    stalled.read_to(&mut behind, last).await.unwrap();
    assert_eq!(
        count(&behind, "conflated"),
        1,
        "{:?}",
        behind.applied.last()
    );
    assert_eq!(behind.applied.last(), Some(&"conflated"));
    // Before it, what fitted into the window, the buffer and the piece in hand, at 128 bytes or more.
    let old = count(&behind, "diff");
    assert!(old <= (65_535 + 64 * 1024 + 16 * 1024) / 64, "{old}");
    assert_eq!(behind.entries(), etcd.state(&prefix("/c/")));
    let last = etcd.put("/c/0", "and on");
    stalled.read_to(&mut behind, last).await.unwrap();
    assert_eq!(behind.applied.last(), Some(&"diff"));
    assert_eq!(metrics.slow_consumers_closed.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_pins_two_segments_and_the_window() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/k", "0");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let client = Client::new(&engine).await;
    let (mut watch, mut replica) = in_sync(&client, &etcd).await;
    let served = engine.service().served()[0].fanout.clone();
    let before = metrics.sent_bytes.get();
    for n in 0..1000 {
        let last = etcd.put("/c/k", vec![n as u8; LARGE]);
        served.reached(last).await;
        sleep(Duration::from_millis(1)).await;
    }
    let handed = metrics.sent_bytes.get() - before;
    assert!(handed <= 65_535 + 2 * 64 * 1024, "{handed}");
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    let old = count(&replica, "diff");
    assert!((1..=3).contains(&old), "{old}");
    assert_eq!(count(&replica, "conflated"), 1);
    assert_eq!(replica.entries(), etcd.state(&prefix("/c/")));
}

#[tokio::test(start_paused = true)]
async fn slow_consumers_are_closed_and_idle_ones_are_not() {
    let timeout = Duration::from_secs(60);
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine_of(&etcd, &settings_with(timeout));
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let mut idle = Client::new(&engine).await;
    let other = KeyRange::key("/c/b").unwrap();
    let mut idle_watch = idle.watch(&other, None).await;
    let mut idle_replica = Replica::new(other);
    let mut stalled = Client::new(&engine).await;
    let (watch, mut replica) = in_sync(&stalled, &etcd).await;
    let (second, _) = in_sync(&stalled, &etcd).await;

    // More than lies unread in window and buffers, and less than the log has room for.
    for value in 0..6 {
        etcd.put("/c/a", vec![value; LARGE]);
        sleep(Duration::from_millis(100)).await;
    }
    let start = Instant::now();
    stalled.connection.join_next().await.unwrap().unwrap().ok();
    let took = start.elapsed();
    assert!(
        took > timeout - Duration::from_secs(2) && took <= timeout * 5 / 4,
        "{took:?}"
    );
    assert_eq!(
        metrics.slow_consumers_closed.get(),
        1,
        "two streams, one connection"
    );
    until(|| metrics.streams.get() == 1 && metrics.connections.get() == 1).await;
    drop((watch, second));

    // It comes back with what it has.
    let client = Client::new(&engine).await;
    let have = replica.applier.have(Bytes::new());
    let mut watch = client.watch(&prefix("/c/"), have).await;
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(replica.entries(), etcd.state(&prefix("/c/")));
    assert_eq!(count(&replica, "snapshot"), 1, "the first");
    assert_eq!(metrics.syncs_replay.get() + metrics.syncs_diff.get(), 1);

    // Twenty minutes of signs of life.
    for _ in 0..120 {
        let frame = idle_watch.frame().await.unwrap();
        idle_replica.take(frame).unwrap();
    }
    assert!(idle.is_alive());
    assert_eq!(metrics.slow_consumers_closed.get(), 1);
}

/// With a window of nothing a stream is asked for its first piece, and never again.
#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_window_is_closed() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine_of(&etcd, &settings_with(Duration::from_secs(60)));
    engine.ready().await;
    for path in [WATCH, GET] {
        let mut client = Client::connect(&engine, (0, 65_535)).await;
        let range = Some(v1::Range::from(&prefix("/c/")));
        let request = v1::GetRequest {
            range,
            client: None,
        };
        // Both have their range in the same field.
        let call = client.call(path, &request).await;
        let start = Instant::now();
        client.connection.join_next().await.unwrap().unwrap().ok();
        assert!(start.elapsed() <= Duration::from_secs(75), "{path}");
        drop(call);
    }
    assert_eq!(engine.metrics().slow_consumers_closed.get(), 2);
    until(|| engine.metrics().scopes.get() == 0).await;
}

/// 16 MiB in values of a segment each.
fn much() -> ScriptedEtcd {
    let etcd = ScriptedEtcd::default();
    for key in 0..=255 {
        etcd.put(format!("/c/{key:02x}"), vec![key; 64 * 1024]);
    }
    etcd
}

/// The server kept a permit for each of them, until there was none for anybody else.
#[tokio::test(start_paused = true)]
async fn a_client_that_opens_no_window_delays_nobody() {
    const CLOSED: usize = 100;
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    let mut closed = Vec::new();
    for _ in 0..CLOSED {
        let client = Client::connect(&engine, (0, 65_535)).await;
        let watch = client.watch(&range, None).await;
        closed.push((client, watch));
    }
    let client = Client::new(&engine).await;
    assert_eq!(client.get(&range).await, etcd.state(&range));
    let (watch, replica) = in_sync(&client, &etcd).await;
    assert_eq!(replica.entries(), etcd.state(&range));
    assert_eq!(metrics.syncs_deferred.get(), 0);
    drop((client, watch, closed));
    until(|| metrics.syncs_in_progress.get() == 0 && metrics.streams.get() == 0).await;
}

/// A snapshot is made as it is read: of one that is not, what fits into the window and what is in
/// hand.
#[tokio::test(start_paused = true)]
async fn an_unread_snapshot_costs_a_few_chunks() {
    let etcd = much();
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    // All that is going to happen by itself happens.
    sleep(Duration::from_secs(5)).await;
    assert_eq!(metrics.syncs_in_progress.get(), 1);
    let made = metrics.chunks_encoded.get();
    assert!((1..=4).contains(&made), "{made}");
    let sent = metrics.sent_bytes.get();
    assert!(sent <= 65_535 + 2 * 64 * 1024, "{sent}");

    // It was not lost but not made yet.
    let mut replica = Replica::new(range.clone());
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(replica.entries(), etcd.state(&range));
    assert!(metrics.chunks_encoded.get() > 100);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_read_in_drips_ends_after_ten_minutes() {
    let etcd = much();
    let engine = engine_of(&etcd, &settings_with(Duration::from_secs(120)));
    engine.ready().await;
    let metrics = engine.metrics().clone();
    // A window for each: neither is to wait for the other.
    let mut client = Client::connect(&engine, (65_535, 1024 * 1024)).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    let request = v1::GetRequest {
        range: Some((&range).into()),
        client: None,
    };
    let mut get = client.call(GET, &request).await;
    let start = Instant::now();
    let (mut open, mut both) = (2, Duration::ZERO);
    while open > 0 {
        // Slowly enough not to be done, and fast enough to be asked for more soon after the deadline.
        sleep(Duration::from_millis(200)).await;
        open = 0;
        for call in [&mut watch, &mut get] {
            if call.drip().await.is_some() {
                open += 1;
            }
        }
        if metrics.syncs_in_progress.get() == 2 {
            both = start.elapsed();
        }
    }
    let pinned = 600..660;
    assert!(pinned.contains(&both.as_secs()), "{both:?}");
    assert_eq!(metrics.syncs_in_progress.get(), 0);

    let mut bytes = std::mem::take(&mut watch.buffer).freeze();
    let mut messages = take_messages::<v1::WatchResponse>(&mut bytes);
    let Some(Frame::Goodbye(goodbye)) = messages.pop().unwrap().frame else {
        panic!("goodbye is the last");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Stalled);
    assert_eq!((goodbye.retry_after_ms, goodbye.purge), (5000, false));
    assert_eq!(watch.status().await.0, Code::Ok);
    let (code, message, pushback) = get.status().await;
    assert_eq!(
        (code, pushback),
        (Code::DeadlineExceeded, Some(5000)),
        "{message}"
    );
    assert!(client.is_alive());
    assert_eq!(metrics.slow_consumers_closed.get(), 0);

    // Whoever reads it gets it.
    assert_eq!(client.get(&range).await, etcd.state(&range));
}

#[tokio::test(start_paused = true)]
async fn an_abandoned_snapshot_ends_with_its_connection() {
    let etcd = much();
    let engine = engine_of(&etcd, &settings_with(Duration::from_secs(24 * 3600)));
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let mut watch = client.watch(&prefix("/c/"), None).await;
    let start = Instant::now();
    for _ in 0..50 {
        sleep(Duration::from_secs(10)).await;
        watch.drip().await.unwrap();
    }
    client.connection.join_next().await.unwrap().unwrap().ok();
    let took = start.elapsed().as_secs();
    assert!((600..=660).contains(&took), "{took}");
    assert_eq!(engine.metrics().slow_consumers_closed.get(), 1);
    until(|| engine.metrics().syncs_in_progress.get() == 0).await;
}
