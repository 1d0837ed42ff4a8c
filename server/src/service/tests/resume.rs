//! Clients that come back with what they have.

use super::*;

#[tokio::test(start_paused = true)]
async fn another_history_ends_streams_with_goodbye() {
    let etcd = ScriptedEtcd::default();
    let first = etcd.put("/c/a", "1");
    let last = etcd.put("/c/a", "2");
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    watch.read_to(&mut replica, last).await.unwrap();
    etcd.restore(first);
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("goodbye");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::History);
    assert_eq!(watch.status().await.0, Code::Ok);
    // The client is ahead of this history; etcd says that it never was there.
    let have = replica.applier.have(Bytes::new());
    let mut watch = client.watch(&range, have).await;
    loop {
        let frame = watch.frame().await.unwrap();
        let is_snapshot = matches!(&frame, Frame::Snapshot(snapshot) if snapshot.reset);
        replica.take(frame).unwrap();
        if is_snapshot {
            break;
        }
    }
    assert_eq!(
        (replica.revision(), replica.entries()),
        (first, etcd.state(&range))
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_ahead_waits_for_the_server() {
    let (engine, script) = scripted_engine();
    let entries = |value: &'static str, at| vec![entry("/c/a", value, at)];
    assert!(
        script
            .send(state(50, entries("1", 50), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let epoch = Epoch::of_cluster(1, "");
    let have = |revision, entries: &[Entry]| v1::Have {
        epoch: epoch.as_bytes().clone(),
        revision,
        digest: entries.iter().collect::<Digest>().to_bytes(),
        token: Bytes::new(),
    };
    // etcd does not answer: the client gets a retry delay.
    let ahead = have(60, &entries("2", 60));
    let (code, message, pushback) = client
        .watch(&range, Some(ahead.clone()))
        .await
        .status()
        .await;
    assert_eq!(
        (code, pushback),
        (Code::Unavailable, Some(1000)),
        "{message}"
    );

    // etcd is there, and nothing changed in the range: the client has it all.
    script.answer(Some(Revision::new(60)));
    let same = have(60, &entries("1", 50));
    let mut watch = client.watch(&range, Some(same)).await;
    let mut replica = Replica::holding(range.clone(), &epoch, Revision::new(60), entries("1", 50));
    while replica.applied.last() != Some(&"current") {
        replica.take(watch.frame().await.unwrap()).unwrap();
    }

    // The server does not catch up in time.
    let (code, message, _) = client
        .watch(&range, Some(ahead.clone()))
        .await
        .status()
        .await;
    assert_eq!(code, Code::Unavailable, "{message}");

    // It does.
    let watching = client.watch(&range, Some(ahead));
    let say = async {
        let changes = vec![driftless_proto::apply::Edit::Put(entry("/c/a", "2", 60))];
        let revision = Revision::new(60);
        assert!(script.send(Update::Changes { revision, changes }).await);
    };
    let (mut watch, ()) = tokio::join!(watching, say);
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let Some(Frame::Current(current)) = watch.frame().await else {
        panic!("it has it all");
    };
    assert_eq!(current.revision, 60);
}

/// The script's source says nothing of the past, as one does that finds too much there.
#[tokio::test(start_paused = true)]
async fn a_client_before_the_log_gets_a_snapshot() {
    let (engine, script) = scripted_engine();
    let now = vec![entry("/c/a", "new", 50), entry("/c/b", "same", 3)];
    assert!(
        script
            .send(state(50, now.clone(), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let held = vec![entry("/c/a", "old", 10), entry("/c/b", "same", 3)];
    let epoch = Epoch::of_cluster(1, "");
    let mut replica = Replica::holding(range.clone(), &epoch, Revision::new(40), held);
    let have = replica.applier.have(Bytes::new());
    let start = Instant::now();
    let mut watch = client.watch(&range, have).await;
    watch
        .read_to(&mut replica, Revision::new(50))
        .await
        .unwrap();
    assert!(
        start.elapsed() < REQUEST_TIMEOUT,
        "nobody waits for nothing"
    );
    assert_eq!(replica.applied, ["hello", "snapshot"]);
    assert_eq!(replica.entries(), now);
    assert_eq!(engine.metrics().syncs_snapshot.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn clients_do_not_wait_for_a_silent_source() {
    // Nobody answers, and nobody says so.
    let (handle, _requests) = SourceHandle::channel();
    let (script, source) = ScriptedSource::new(SourceHandle::channel().1);
    let served = [(prefix("/c/"), source, handle)];
    let engine = Engine::start(&settings(), Metrics::new(), served);
    let now = vec![entry("/c/a", "new", 50)];
    assert!(
        script
            .send(state(50, now.clone(), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let replica = |value: &'static str, revision| {
        let held = vec![entry("/c/a", value, revision)];
        let epoch = Epoch::of_cluster(1, "");
        Replica::holding(range.clone(), &epoch, Revision::new(revision), held)
    };
    let soon = REQUEST_TIMEOUT + Duration::from_secs(1);

    // What is to come.
    let ahead = replica("newer", 60).applier.have(Bytes::new());
    let call = async { client.watch(&range, ahead).await.status().await };
    let (code, message, _) = timeout(soon, call).await.unwrap();
    assert_eq!(code, Code::Unavailable, "{message}");

    // What was before.
    let mut before = replica("old", 40);
    let have = before.applier.have(Bytes::new());
    let call = async {
        let mut watch = client.watch(&range, have).await;
        let read = watch.read_to(&mut before, Revision::new(50)).await;
        read.unwrap();
    };
    timeout(soon, call).await.unwrap();
    assert_eq!(before.applied, ["hello", "snapshot"]);
    assert_eq!(before.entries(), now);
}
