//! Sync responses: how long they are shared, and when they are evicted.

use super::*;

/// Regression: responses were evicted with the next progress, which may be an hour away.
#[tokio::test(start_paused = true)]
async fn idle_response_is_evicted_without_progress() {
    let etcd = ScriptedEtcd::default();
    etcd.txn((0..100).map(|n| Op::put(format!("/c/{n:02}"), vec![n; 2000])));
    let hour = Duration::from_secs(3600);
    let (fanout, _script, _ingest) = ingesting(&etcd, hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    let room = fanout.0.chunk_cache.room();
    let ask = || {
        let view = stream.view().unwrap();
        stream.sync_response(SyncKind::Snapshot { reset: false }, Revision::NONE, view)
    };
    let response = ask();
    let mut reader = SyncReader::new(Arc::clone(&response));
    while !matches!(reader.next(fanout.metrics()), Chunk::Done) {}
    let kept = Arc::downgrade(&response);
    drop((reader, response));
    let taken = room - fanout.0.chunk_cache.room();
    assert!(taken >= 100 * 2000, "{taken}");

    // Kept while somebody asks for it, and a little longer.
    for _ in 0..3 {
        tokio::time::sleep(IDLE_FOR - Duration::from_secs(1)).await;
        assert!(std::ptr::eq(Arc::as_ptr(&ask()), kept.as_ptr()));
    }
    tokio::time::sleep(IDLE_FOR + EVICT_EVERY + Duration::from_millis(1)).await;
    assert!(kept.upgrade().is_none());
    assert_eq!(fanout.0.chunk_cache.room(), room);
    assert_eq!(stream.progress_number(), 0, "that hour is not over");
    assert!(stream.view().is_some(), "the range is watched still");
}

#[tokio::test(start_paused = true)]
async fn chunks_are_dropped_and_not_kept_while_memory_is_tight() {
    let etcd = ScriptedEtcd::default();
    etcd.txn((0..100).map(|n| Op::put(format!("/c/{n:02}"), vec![n; 2000])));
    let hour = Duration::from_secs(3600);
    let (fanout, _script, _ingest) = ingesting(&etcd, hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    let room = fanout.0.chunk_cache.room();
    let read = || {
        let view = stream.view().unwrap();
        let kind = SyncKind::Snapshot { reset: false };
        let response = stream.sync_response(kind, Revision::NONE, view);
        let mut reader = SyncReader::new(Arc::clone(&response));
        let mut chunks = 0;
        while let Chunk::Ready(_) = reader.next(fanout.metrics()) {
            chunks += 1;
        }
        (Arc::downgrade(&response), chunks)
    };
    let (kept, chunks) = read();
    assert!(kept.upgrade().is_some() && fanout.0.chunk_cache.room() < room);
    fanout.keep_chunks(false).await;
    assert!(kept.upgrade().is_none());
    assert_eq!(fanout.0.chunk_cache.room(), room);
    // Whoever reads gets the same, and leaves nothing behind.
    assert_eq!(read().1, chunks);
    assert_eq!(fanout.0.chunk_cache.room(), room);
    fanout.keep_chunks(false).await;
    fanout.keep_chunks(true).await;
    assert_eq!(read().1, chunks);
    assert!(fanout.0.chunk_cache.room() < room);
}

/// Somebody always asks for it, and it pins its state.
#[tokio::test(start_paused = true)]
async fn busy_response_is_replaced_when_old() {
    let hour = Duration::from_secs(3600);
    let (fanout, _script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    let ask = || {
        let view = stream.view().unwrap();
        stream.sync_response(SyncKind::Snapshot { reset: false }, Revision::NONE, view)
    };
    let first = Arc::downgrade(&ask());
    // So often that it is never idle.
    let every = IDLE_FOR / 2;
    let most = SHARED_FOR.div_duration_f64(every) as usize;
    for asked in 1..=most {
        tokio::time::sleep(every).await;
        let is_first = std::ptr::eq(Arc::as_ptr(&ask()), first.as_ptr());
        assert_eq!(is_first, asked < most, "asked for {asked} times");
    }
    assert!(first.upgrade().is_none());
}

/// Each client was away since another revision, and each response pins a state.
#[tokio::test(start_paused = true)]
async fn scope_keeps_a_bounded_number_of_responses() {
    let hour = Duration::from_secs(3600);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let stream = fanout.subscribe(prefix("/c/")).unwrap();
    let mut responses = Vec::new();
    for revision in 2..50 {
        say_put(&script, "/c/a", Revision::new(revision)).await;
        fanout.reached(Revision::new(revision)).await;
        let since = Revision::new(revision - 1);
        let view = stream.view().unwrap();
        let response = stream.sync_response(SyncKind::Diff { since }, Revision::NONE, view);
        responses.push(Arc::downgrade(&response));
    }
    let kept = responses
        .iter()
        .filter(|response| response.upgrade().is_some());
    assert_eq!(kept.count(), 8);
}

/// Who joins later gets the same snapshot, and must not think it newer.
#[tokio::test(start_paused = true)]
async fn shared_snapshot_keeps_the_time_of_its_state() {
    let mut served = Prefix::new();
    let stream = served.subscribe(prefix("/c/")).await;
    let kind = SyncKind::Snapshot { reset: false };
    let first = stream.view().unwrap();
    let known_at = first.contact_ms;
    assert_ne!(known_at, 0);
    let response = stream.sync_response(kind, Revision::NONE, first);

    tokio::time::advance(Duration::from_secs(5)).await;
    served.put("/c/a", "newer");
    served.publisher.prove(Proof {
        asked_at: Instant::now(),
        revision: served.etcd.revision(),
    });
    let view = stream.view().unwrap();
    assert_eq!(view.contact_ms, known_at + 5000);
    let shared = stream.sync_response(kind, Revision::NONE, view);
    assert!(Arc::ptr_eq(&shared, &response));
    let mut reader = SyncReader::new(shared);
    let Chunk::Ready(chunk) = reader.next(served.fanout.metrics()) else {
        panic!("it is small");
    };
    let messages = frames(chunk.segments());
    let Some(Frame::Snapshot(snapshot)) = messages.last() else {
        panic!("{messages:?}");
    };
    assert_eq!(snapshot.contact_ms, known_at);
}
