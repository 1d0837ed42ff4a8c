//! Small frames that lie unread do not end a connection.

use super::*;

/// Publishes while the clients do not read, then lets them; they are alive and come to the state.
async fn unread(changes: usize, every: Duration) {
    for windows in WINDOWS {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/k", "0");
        let engine = engine(&etcd);
        engine.ready().await;
        let mut client = Client::connect(&engine, windows).await;
        let range = prefix("/c/");
        let mut watch = client.watch(&range, None).await;
        for n in 0..changes {
            etcd.put("/c/k", n.to_string());
            if every > Duration::ZERO {
                advance(every).await;
            }
            tokio::task::yield_now().await;
        }
        let last = etcd.revision();
        let served = engine.service().served()[0].fanout.clone();
        served.reached(last).await;
        sleep(Duration::from_secs(1)).await;
        let metrics = engine.metrics();
        if let Some(ended) = client.connection.try_join_next() {
            panic!("with {windows:?}: {ended:?}");
        }
        assert_eq!((metrics.connections.get(), metrics.streams.get()), (1, 1));
        assert!(metrics.log_bytes.get() <= 1024 * 1024);
        // Nothing more than the window and what HTTP/2 buffers for a stream.
        let most = u64::from(windows.0) + 2 * 64 * 1024;
        assert!(
            metrics.sent_bytes.get() <= most,
            "{}",
            metrics.sent_bytes.get()
        );
        let mut replica = Replica::new(range.clone());
        watch.read_to(&mut replica, last).await.unwrap();
        assert_eq!(replica.entries(), etcd.state(&range));
        assert!(client.is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_unread_changes_do_not_end_a_connection() {
    unread(10_000, Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn unread_changes_at_100_hz_do_not_end_a_connection() {
    unread(2_000, Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn slow_unread_changes_do_not_end_a_connection() {
    unread(2_000, Duration::from_millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn unread_progress_does_not_end_a_connection() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    sleep(Duration::from_secs(6 * 3600)).await;
    let last = etcd.put("/c/k", "v");
    let mut replica = Replica::new(range.clone());
    watch.read_to(&mut replica, last).await.unwrap();
    assert_eq!(replica.entries(), etcd.state(&range));
    assert!(client.is_alive());
}
