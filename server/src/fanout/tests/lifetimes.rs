//! What is dropped with its last user, or with its history.

use super::*;

#[tokio::test(start_paused = true)]
async fn dropped_streams_leave_nothing_behind() {
    let mut prefix_c = Prefix::new();
    let scopes = prefix_c.fanout.metrics().scopes.clone();
    for _ in 0..3 {
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(Stream::cold(&prefix_c, prefix("/c/")).await);
            streams.push(Stream::cold(&prefix_c, KeyRange::key("/c/a").unwrap()).await);
        }
        assert_eq!(scopes.get(), 2, "one a range");
        streams.iter_mut().for_each(Stream::drain);
        prefix_c.put("/c/a", "1");
        streams.iter_mut().for_each(Stream::drain);
        assert_eq!(prefix_c.frames_kept(), 2, "one a range");
        let waiting = streams[0].subscriber.scope_streams();
        assert_eq!(waiting, 3);
        streams.remove(0);
        assert_eq!(streams[1].subscriber.scope_streams(), 2);
        // A subscriber that never waited, and a stream that was never polled.
        drop(prefix_c.fanout.subscribe(prefix("/c/b")));
        drop(Stream::cold(&prefix_c, prefix("/c/")).await);
        drop(streams);
        assert_eq!(scopes.get(), 0);
        assert_eq!(prefix_c.frames_kept(), 0);
        assert!(prefix_c.fanout.0.published.lock().scopes.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn new_history_ends_old_streams_and_keeps_new_ones() {
    let mut prefix_c = Prefix::new();
    prefix_c.etcd.put("/c/a", "2");
    prefix_c.relist(History::Continues);
    let mut old = Stream::cold(&prefix_c, prefix("/c/")).await;
    let behind = prefix_c.subscribe(prefix("/c/")).await;
    old.drain();
    let woken = old.woken();
    prefix_c.etcd.restore(Revision::new(2));
    prefix_c.relist(History::Replaced);
    assert_eq!(old.woken(), woken + 1);
    old.drain();
    assert_eq!(old.ended, Some(Ending::History));
    assert!(old.subscriber.view().is_none());
    assert!(behind.view().is_none());
    let cx = Context::from_waker(Waker::noop());
    let next = behind.next(Revision::NONE, 0, &cx);
    assert!(matches!(next, Next::Ending(Ending::History)));

    let mut new = Stream::cold(&prefix_c, prefix("/c/")).await;
    new.drain();
    drop((old, behind));
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 1);
    prefix_c.put("/c/a", "3");
    new.drain();
    assert_eq!(new.replica.entries(), prefix_c.etcd.state(&prefix("/c/")));

    prefix_c.fanout.drain();
    new.drain();
    assert_eq!(new.ended, Some(Ending::Drain));
    let refused = prefix_c.fanout.subscribe(prefix("/c/"));
    assert_eq!(refused.unwrap_err(), Unavailable::Draining);
    drop(new);
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn new_history_drops_held_back_changes() {
    let mut prefix_c = Prefix::new();
    let stream = Stream::cold(&prefix_c, prefix("/c/")).await;
    while !prefix_c.put("/c/a", "v") {}
    drop(stream);
    prefix_c.etcd.restore(Revision::new(2));
    prefix_c.relist(History::Replaced);
    assert_eq!(prefix_c.fanout.metrics().scopes.get(), 0);
    assert_eq!(prefix_c.fanout.metrics().log_bytes.get(), 0);
}
