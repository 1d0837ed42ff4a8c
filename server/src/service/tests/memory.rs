//! What is refused and ended while memory is short, and what goes on.

use super::permits::{client_that_reads, large};
use super::*;
use crate::memory::Level;

/// When a client should come back that was refused for lack of memory, in milliseconds.
const RETRY: u64 = 10_000;

/// A watcher that holds everything.
async fn in_sync(client: &Client, etcd: &ScriptedEtcd) -> (Call, Replica) {
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range);
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    (watch, replica)
}

fn set_level(engine: &Engine, level: Level) {
    engine.service().sessions().pressure().set(level);
}

async fn assert_refused(mut call: Call) {
    let (code, message, pushback) = call.status().await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("short of memory"), "{message}");
    assert_eq!(pushback, Some(RETRY));
}

#[tokio::test(start_paused = true)]
async fn tight_memory_refuses_snapshots_only() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let (range, client) = (prefix("/c/"), Client::new(&engine).await);
    let (mut live, mut replica) = in_sync(&client, &etcd).await;
    let (_, mut away) = in_sync(&client, &etcd).await;
    let have = away.applier.have(Bytes::new());

    set_level(&engine, Level::Tight);
    let get = v1::GetRequest {
        range: Some((&range).into()),
        client: None,
    };
    assert_refused(client.call(GET, &get).await).await;
    assert_refused(client.watch(&range, None).await).await;
    let unknown = v1::Have {
        digest: Bytes::from_static(&[7; 16]),
        ..have.clone().unwrap()
    };
    assert_refused(client.watch(&range, Some(unknown)).await).await;
    assert_eq!(metrics.memory_refused.get(), 3);
    assert_eq!(metrics.syncs_deferred.get(), 0);

    // Those that have the state, or one from which the log leads to it, come back.
    let mut watch = client.watch(&range, have.clone()).await;
    watch.frame().await.unwrap();
    assert!(matches!(watch.frame().await, Some(Frame::Current(_))));
    let last = etcd.put("/c/a", "2");
    live.read_to(&mut replica, last).await.unwrap();
    let mut watch = client.watch(&range, have).await;
    watch.read_to(&mut away, last).await.unwrap();
    assert_eq!(away.applied.last(), Some(&"diff"));
    assert_eq!(away.entries(), etcd.state(&range));

    set_level(&engine, Level::Normal);
    assert_eq!(client.get(&range).await, etcd.state(&range));
    assert_eq!(metrics.memory_refused.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn stream_that_waits_for_a_permit_leaves_when_memory_is_tight() {
    let etcd = large();
    let engine = engine(&etcd);
    engine.ready().await;
    let (client, _reading) = client_that_reads(&engine, &prefix("/c/")).await;
    let _busy = engine.service().sessions().admission().keep_busy();
    let mut watch = client.watch(&prefix("/c/"), None).await;
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    set_level(&engine, Level::Tight);
    let start = Instant::now();
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("it still waits");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Rebalance);
    assert_eq!(u64::from(goodbye.retry_after_ms), RETRY);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(engine.metrics().memory_refused.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn critical_memory_ends_idle_and_slow_ones_and_no_others() {
    let etcd = ScriptedEtcd::default();
    for key in 0..30 {
        etcd.put(format!("/c/{key:02}"), vec![key; 9_000]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    // Its connection has room for what one stream leaves unread, and for the other.
    let mut live_client = Client::connect(&engine, (65_535, 1024 * 1024)).await;
    let (mut live, mut replica) = in_sync(&live_client, &etcd).await;
    let mut idle = Client::new(&engine).await;
    idle.get(&range).await;
    // One on a connection of its own, one beside a stream that keeps up. Neither has read anything yet.
    let mut stalled = Client::new(&engine).await;
    let _unread = stalled.watch(&range, None).await;
    let mut beside = live_client.watch(&range, None).await;
    until(|| metrics.syncs_in_progress.get() == 2).await;
    // A connection that is younger may be about to make a call.
    sleep(Duration::from_secs(5)).await;

    // First those that have no stream, politely.
    set_level(&engine, Level::Critical);
    idle.connection.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(metrics.memory_ended.get(), 1);
    let last = etcd.put("/c/00", "1");
    live.read_to(&mut replica, last).await.unwrap();

    // Then streams. One reads again, so it learns why it has to go.
    until(|| metrics.memory_ended.get() == 3).await;
    let goodbye = loop {
        if let Frame::Goodbye(goodbye) = beside.frame().await.unwrap() {
            break goodbye;
        }
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Rebalance);
    assert_eq!(u64::from(goodbye.retry_after_ms), RETRY);
    assert_eq!(beside.status().await.0, Code::Ok);
    // The other one does not, and is cut off.
    let _ = stalled.connection.join_next().await.unwrap().unwrap();
    until(|| metrics.connections.get() == 1).await;

    for value in 0..60_u8 {
        sleep(Duration::from_secs(1)).await;
        let last = etcd.put("/c/00", vec![value]);
        live.read_to(&mut replica, last).await.unwrap();
    }
    assert!(live_client.is_alive());
    assert_eq!(replica.entries(), etcd.state(&range));
    assert_eq!((metrics.connections.get(), metrics.streams.get()), (1, 1));
    assert_eq!(metrics.syncs_in_progress.get(), 0);
}

/// A burst of connections would otherwise get what those that were closed have freed.
#[tokio::test]
async fn critical_memory_accepts_no_connections() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    set_level(&engine, Level::Critical);
    let connections = engine.connections().clone();
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepting = JoinSet::new();
    accepting.spawn(async move { connections.accept(listener).await });
    let live = Client::new(&engine).await;
    let waiting = tokio::net::TcpStream::connect(address).await.unwrap();
    for value in 0..20_u8 {
        let last = etcd.put("/c/a", vec![value]);
        // Those that are there are served.
        let served = &engine.service().served()[0].fanout;
        served.reached(last).await;
        assert_eq!(engine.metrics().connections.get(), 1);
    }
    set_level(&engine, Level::Normal);
    until_true(|| engine.metrics().connections.get() == 2).await;
    drop((waiting, live));
}

/// As [`until`], on the real clock.
async fn until_true(mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it does not come about"
        );
        tokio::task::yield_now().await;
    }
}
