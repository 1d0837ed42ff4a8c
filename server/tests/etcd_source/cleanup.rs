//! What a source leaves behind at etcd: nothing.

use std::time::Duration;

use driftless_test_support::{Etcd, Proxy, eventually};

use crate::subject::{Subject, put};

#[tokio::test]
async fn dropped_source_leaves_no_watch_at_etcd() {
    let etcd = Etcd::started().await;
    assert_eq!(etcd.watches().await, (0, 0));
    for _ in 0..10 {
        let mut subject = Subject::new(&[etcd.url()]);
        subject.state().await;
        subject
            .during(eventually("one watch", async || {
                etcd.watches().await == (1, 1)
            }))
            .await;
        drop(subject);
        eventually("no watch", async || etcd.watches().await == (0, 0)).await;
    }
}

/// Dropped at any await before its first updates: while it connects, lists, opens the watch, watches.
#[tokio::test]
async fn source_dropped_at_any_await_leaves_no_watch() {
    let etcd = Etcd::started().await;
    put(&mut etcd.client().await, "/c/a", "1").await;
    let mut watched = 0;
    for polls in 0.. {
        let mut subject = Subject::new(&[etcd.url()]);
        let mut polled = 0;
        let updates = async {
            loop {
                subject.next().await;
            }
        };
        let mut updates = std::pin::pin!(updates);
        let some_polls = std::future::poll_fn(|cx| {
            polled += 1;
            if polled > polls {
                return std::task::Poll::Ready(());
            }
            let _: std::task::Poll<()> = updates.as_mut().poll(cx);
            std::task::Poll::Pending
        });
        // Once nothing wakes it any more, it watches. A few more rounds, because polls differ.
        let some_polls = tokio::time::timeout(Duration::from_millis(50), some_polls);
        watched += usize::from(some_polls.await.is_err());
        if watched == 5 {
            break;
        }
    }
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}

#[tokio::test]
async fn reconnects_leave_no_watch_behind() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    for n in 0..5 {
        proxy.cut();
        subject.lost().await;
        put(&mut client, "/c/a", n.to_string()).await;
        proxy.heal();
        assert_eq!(subject.changes().await.len(), 1);
    }
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_lost.get(), 5);
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}
