//! Crowds that read snapshots at the same time.

use super::*;

/// A crowd starts with nothing while keys change, and some clients never read. All others reach the right
/// state, and what they read was encoded once.
#[tokio::test(start_paused = true)]
async fn a_crowd_shares_a_snapshot_despite_stalled_readers() {
    const STALLED: usize = 40;
    const CROWD: usize = 200;
    let etcd = ScriptedEtcd::default();
    for key in 0..60 {
        etcd.put(format!("/c/{key:02}"), vec![key; 9_000]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");

    let one = Client::new(&engine).await;
    let mut watch = one.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    let revision = etcd.revision();
    watch.read_to(&mut replica, revision).await.unwrap();
    let chunks = metrics.chunks_encoded.get();
    assert!(chunks > 8, "{chunks}");
    drop((one, watch));

    // None of them ever reads.
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let client = Client::new(&engine).await;
        let watch = client.watch(&range, None).await;
        stalled.push((client, watch));
    }
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let client = Client::new(&engine).await;
        let (theirs, range) = (etcd.clone(), range.clone());
        crowd.spawn(async move {
            let mut watch = client.watch(&range, None).await;
            let mut replica = Replica::new(range.clone());
            let last = loop {
                let now = theirs.revision();
                watch.read_to(&mut replica, now).await.unwrap();
                if now == theirs.revision() {
                    break now;
                }
            };
            assert_eq!(replica.revision(), last);
            replica.entries()
        });
        if crowd.len() % 20 == 0 {
            etcd.put("/c/07", vec![crowd.len() as u8; 9_000]);
        }
    }
    while let Some(entries) = crowd.join_next().await {
        assert_eq!(entries.unwrap().len(), 60);
    }
    assert_eq!(metrics.syncs_deferred.get(), 0);
    // One more for those that come when nobody came for a while, two minutes later, or after more
    // changes than are replayed.
    let at_most = chunks * 2;
    assert!(
        metrics.chunks_encoded.get() <= at_most,
        "{} chunks encoded for {CROWD} clients, {chunks} for one",
        metrics.chunks_encoded.get()
    );
    drop(stalled);
    until(|| metrics.syncs_in_progress.get() == 0 && metrics.scopes.get() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_wait_for_a_permit_gets_a_retry_delay() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    let mut busy = engine.service().sessions().admission().keep_busy();
    let mut client = Client::new(&engine).await;

    let mut watch = client.watch(&range, None).await;
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("there is no permit for it");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Rebalance);
    assert!(goodbye.retry_after_ms >= 1000 && !goodbye.purge);
    assert_eq!(watch.status().await.0, Code::Ok);
    assert_eq!(metrics.syncs_deferred.get(), 1);

    let request = v1::GetRequest {
        range: Some((&range).into()),
        client: None,
    };
    let (code, message, pushback) = client.call(GET, &request).await.status().await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("retry"), "{message}");
    assert!(
        pushback.is_some_and(|millis| millis >= 1000),
        "{pushback:?}"
    );
    assert_eq!(metrics.syncs_deferred.get(), 2);

    // A waiting stream still gets its permit, and so does a client that comes back.
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    replica.take(watch.frame().await.unwrap()).unwrap();
    busy.shutdown().await;
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(replica.applied, ["hello", "snapshot"]);
    assert_eq!(replica.entries(), etcd.state(&range));
    assert_eq!(client.get(&range).await, etcd.state(&range));
    assert_eq!(metrics.syncs_deferred.get(), 2);
    assert!(client.is_alive());
    until(|| metrics.syncs_in_progress.get() == 0).await;
}
