//! What streams that are behind get, and what the log keeps for them.

use super::*;

#[tokio::test(start_paused = true)]
async fn stream_far_behind_gets_one_conflated_diff() {
    let mut prefix_c = Prefix::new();
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.applied();
    for n in 0..5000 {
        prefix_c.put(&format!("/c/{}", n % 7), &n.to_string());
    }
    prefix_c.publisher.flush();
    assert!(matches!(stream.next(), Next::Behind));
    assert!(stream.step());
    assert!(stream.drain_is_quiet());
    assert_eq!(stream.applied(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
    assert_eq!(prefix_c.fanout.metrics().changes_encoded.get(), 0);
    assert!(stream.subscriber.scope_changes() <= 1024);
}

/// Regression: it was copied for each stream, as if it had been coalesced with others.
#[tokio::test(start_paused = true)]
async fn change_too_large_to_coalesce_is_shared() {
    let mut prefix_c = Prefix::new();
    let mut one = Stream::cold(&prefix_c, prefix("/c/")).await;
    let mut two = Stream::cold(&prefix_c, prefix("/c/")).await;
    for n in 0..3 {
        // Two of them do not fit into one piece.
        prefix_c.put("/c/a", &n.to_string().repeat(10_000));
    }
    for _ in 0..3 {
        let (from_one, from_two) = (one.next(), two.next());
        match (&from_one, &from_two) {
            (Next::Frame { frame: one, .. }, Next::Frame { frame: two, .. }) => {
                assert!(Arc::ptr_eq(one, two));
            }
            other => panic!("{other:?}"),
        }
        assert!(one.take(from_one) && two.take(from_two));
    }
    assert!(one.drain_is_quiet() && two.drain_is_quiet());
    assert_eq!(one.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));
}

#[tokio::test(start_paused = true)]
async fn change_dropped_from_the_log_is_sent_conflated() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "first");
    let mut prefix_c = Prefix::with(etcd, 4096);
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    stream.drain();
    stream.applied();
    for n in 0..20 {
        prefix_c.put("/c/a", &n.to_string());
    }
    let log_bytes = prefix_c.fanout.metrics().log_bytes.get();
    assert!(0 < log_bytes && log_bytes <= 4096);
    stream.drain();
    assert_eq!(stream.applied(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
    // A change that is larger than the log's budget is dropped at once.
    prefix_c.put("/c/a", &"v".repeat(5000));
    stream.drain();
    assert_eq!(stream.applied(), ["conflated"]);
    assert_eq!(
        stream.replica.entries(),
        prefix_c.etcd.state(&prefix("/c/"))
    );
}

/// Neither the scope's first state keeps it, nor the change that replaced it, since nobody wants the
/// delta.
#[tokio::test(start_paused = true)]
async fn replaced_value_is_not_kept() {
    let hour = Duration::from_secs(3600);
    let (fanout, script, _ingest) = ingesting(&ScriptedEtcd::default(), hour).await;
    let put = async |key: &str, value: Bytes, revision: i64| {
        let put = driftless_proto::apply::Edit::Put(entry(key, value, revision));
        let (revision, changes) = (Revision::new(revision), vec![put]);
        assert!(script.send(Update::Changes { revision, changes }).await);
        fanout.reached(revision).await;
    };
    let value = Bytes::from(vec![b'1'; 4096]);
    put("/c/a", value.clone(), 2).await;
    // Larger than the log's budget, so that the log is empty afterwards.
    put("/c/large", Bytes::from(vec![b'v'; 1024 * 1024]), 3).await;
    let subscriber = fanout.subscribe(prefix("/c/")).unwrap();
    subscriber.view().unwrap();
    assert!(!value.is_unique());
    put("/c/a", Bytes::from(vec![b'2'; 4096]), 4).await;
    assert!(value.is_unique());
}

/// The log has a budget of bytes, and a scope refers to hundreds of changes of any size.
#[tokio::test(start_paused = true)]
async fn scope_keeps_no_change_the_log_dropped() {
    let mut prefix_c = Prefix::new();
    let _watched = prefix_c.subscribe(prefix("/c/")).await;
    let kept = |prefix_c: &Prefix| {
        let published = prefix_c.fanout.0.published.lock();
        let log = &published.state.as_ref().unwrap().log;
        let batches = log.batches_since(&prefix("/c/"), log.floor(), usize::MAX);
        batches.unwrap().last().map(Arc::downgrade)
    };
    prefix_c.put("/c/a", "1");
    let change = kept(&prefix_c).unwrap();
    assert!(change.upgrade().is_some());
    // Larger than the log's budget, so that the log is empty afterwards.
    prefix_c.put("/c/large", &"v".repeat(2 * 1024 * 1024));
    assert!(change.upgrade().is_none());
}

/// Regression: each scope left its diffs in the log's batches, whose budget does not count them.
#[tokio::test(start_paused = true)]
async fn returning_client_does_not_fill_the_log_with_diffs() {
    let mut prefix_c = Prefix::new();
    let start = prefix_c.etcd.revision();
    let held = prefix_c.etcd.state(&prefix("/c/"));
    for n in 0..50 {
        prefix_c.put("/c/a", &n.to_string());
    }
    for _ in 0..10 {
        let replica = Replica::holding(prefix("/c/"), &prefix_c.etcd.epoch(), start, held.clone());
        let mut stream = Stream::start(&prefix_c, replica, prefix("/c/")).await;
        stream.drain();
        assert_eq!(stream.applied(), ["diff"; 50]);
        assert!(prefix_c.frames_kept() <= 50);
    }
    assert_eq!(prefix_c.frames_kept(), 0);
    // Diffs that a scope does not refer to any more are dropped at once.
    let mut stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    for n in 0..2000 {
        prefix_c.put("/c/a", &n.to_string());
        prefix_c.publisher.flush();
        stream.drain();
    }
    assert!(prefix_c.frames_kept() <= 256, "{}", prefix_c.frames_kept());
}

/// Regression: after the changes that it had missed, the client was sent an empty conflated diff, made
/// by scanning everything that had changed in the prefix.
#[tokio::test(start_paused = true)]
async fn replay_ends_with_the_last_change() {
    let mut prefix_c = Prefix::new();
    let range = KeyRange::key("/c/a").unwrap();
    let start = prefix_c.etcd.revision();
    let replica = Replica::holding(
        range.clone(),
        &prefix_c.etcd.epoch(),
        start,
        prefix_c.etcd.state(&range),
    );
    prefix_c.put("/c/a", "2");
    prefix_c.put("/c/b", "2");
    let mut stream = Stream::start(&prefix_c, replica, range.clone()).await;
    stream.drain();
    assert_eq!(stream.applied(), ["diff"]);
    prefix_c.progress();
    stream.drain();
    assert_eq!(stream.applied(), ["progress"]);
    assert_eq!(stream.replica.revision(), prefix_c.etcd.revision());
    prefix_c.put("/c/a", "3");
    stream.drain();
    assert_eq!(stream.applied(), ["diff"]);
    assert_eq!(stream.replica.entries(), prefix_c.etcd.state(&range));
}

#[tokio::test(start_paused = true)]
async fn change_refs_reach_back_for_older_clients() {
    let mut prefix_c = Prefix::new();
    let range = prefix("/c/a");
    let mut clients = Vec::new();
    for n in 0..5 {
        clients.push(Replica::holding(
            range.clone(),
            &prefix_c.etcd.epoch(),
            prefix_c.etcd.revision(),
            prefix_c.etcd.state(&range),
        ));
        prefix_c.put("/c/a", &n.to_string());
        prefix_c.put("/c/b", "unrelated");
        prefix_c.txn(vec![Op::put(format!("/c/a{n}"), ""), Op::delete("/c/b")]);
    }
    // A scope that refers to a change already.
    let mut live = Stream::cold(&prefix_c, range.clone()).await;
    prefix_c.put("/c/a", "live");
    live.drain();
    live.applied();
    let mut streams = vec![live];
    for (n, replica) in clients.into_iter().enumerate().rev() {
        let mut stream = Stream::start(&prefix_c, replica, range.clone()).await;
        stream.drain();
        assert_eq!(stream.applied(), vec!["diff"; 2 * (5 - n) + 1]);
        streams.push(stream);
    }
    prefix_c.put("/c/a", "for all");
    for stream in &mut streams {
        stream.drain();
        assert_eq!(stream.applied(), ["diff"]);
        assert_eq!(stream.replica.entries(), prefix_c.etcd.state(&range));
    }
}

#[tokio::test(start_paused = true)]
async fn revisions_inside_a_conflated_batch_are_unknown() {
    let mut prefix_c = Prefix::new();
    let stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    let before = prefix_c.etcd.revision();
    let digest_before: Digest = prefix_c.etcd.state(&prefix("/c/")).iter().collect();
    let inside = prefix_c.etcd.put("/c/a", "2");
    prefix_c.etcd.put("/c/a", "3");
    prefix_c.relist(History::Continues);
    let after = prefix_c.etcd.put("/c/b", "1");
    let subscriber = &stream.subscriber;
    let late = prefix_c.subscribe(prefix("/c/a")).await;
    for subscriber in [subscriber, &late] {
        let view = subscriber.view().unwrap();
        assert!(subscriber.digest_at(inside, &view).await.is_none());
        let digest = subscriber.digest_at(before, &view).await;
        assert!(digest == Some(digest_before), "its start is known");
        let digest = subscriber.digest_at(after, &view).await;
        assert!(digest == Some(view.digest), "so is what comes after it");
    }
}
