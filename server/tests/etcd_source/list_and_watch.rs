//! What the source lists and watches.

use driftless_proto::apply::Edit;
use driftless_server::source::History;
use driftless_test_support::{Etcd, Proxy};
use etcd_client::TxnOp;

use crate::subject::{Subject, delete, held_by, put, txn};

#[tokio::test]
async fn list_holds_the_prefix_at_one_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    for batch in 0..25 {
        let puts = (0..100).map(|n| TxnOp::put(format!("/c/{batch:02}/{n:02}"), "value", None));
        txn(&mut client, puts.collect()).await;
    }
    put(&mut client, "/b/outside", "x").await;
    let last = put(&mut client, "/c0", "just behind the prefix").await;
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    assert_eq!(state.revision, last);
    assert_eq!(state.history, History::Continues);
    assert_eq!(state.entries.len(), 2_500);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn each_transaction_is_one_update() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    assert!(subject.state().await.entries.is_empty());

    put(&mut client, "/c/a", "1").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 1));
    put(&mut client, "/c/a", "2").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 2));
    delete(&mut client, "/c/a").await;
    assert!(matches!(
        &subject.changes().await[..],
        [Edit::Delete { .. }]
    ));
    put(&mut client, "/c/a", "3").await;
    assert!(matches!(&subject.changes().await[..], [Edit::Put(entry)] if entry.version == 1));

    put(&mut client, "/outside", "x").await;
    let mut ops: Vec<TxnOp> = (0..99)
        .map(|n| TxnOp::put(format!("/c/many/{n:02}"), [0_u8, 255], None))
        .collect();
    ops.push(TxnOp::delete("/c/a", None));
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 100);
    assert_eq!(subject.held, held_by(&client).await);

    let all = client.delete("/c/", Some(etcd_client::DeleteOptions::new().with_prefix()));
    assert_eq!(all.await.unwrap().deleted(), 99);
    assert_eq!(subject.changes().await.len(), 99);
    assert!(subject.held.is_empty());
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_watches.get(), 1);
}

#[tokio::test]
async fn large_values_are_listed_and_watched() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let value = |n: u8| vec![n; 1024 * 1024];
    for n in 0..50 {
        put(&mut client, format!("/c/{n:02}"), value(n)).await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    assert_eq!(subject.state().await.entries.len(), 50);
    for n in 50..60 {
        put(&mut client, format!("/c/{n:02}"), value(n)).await;
    }
    subject
        .until("all values", |subject| subject.held.len() == 60)
        .await;
    assert!(subject.held == held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn fragmented_transaction_is_one_update() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    // Each transaction has 1.2 MB. The watch catches up in fragments of 2 MiB, which end in the middle of
    // a transaction.
    let keys = ["/c/1", "/c/2", "/c/3"];
    for n in 0..12_u8 {
        let puts = keys.map(|key| TxnOp::put(key, vec![n; 400_000], None));
        txn(&mut client, puts.to_vec()).await;
    }
    proxy.heal();
    for n in 0..12_u8 {
        assert_eq!(subject.changes().await.len(), 3, "transaction {n}");
        assert!(keys.iter().all(|key| subject.value(key).unwrap()[0] == n));
    }
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn oversized_keys_are_left_out() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let long = |end: &str| format!("/c/{}{end}", "k".repeat(1024 * 1024));
    put(&mut client, long("a"), "x").await;
    put(&mut client, "/c/z", "1").await;
    let mut subject = Subject::new(&[etcd.url()]);
    assert_eq!(subject.state().await.entries.len(), 1);
    put(&mut client, long("b"), "x").await;
    let ops = vec![
        TxnOp::delete(long("a"), None),
        TxnOp::put("/c/z", "2", None),
    ];
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 1);
    // They count in the number of keys that proves that nothing changed.
    let outside = put(&mut client, "/outside", "x").await;
    let handle = subject.handle.clone();
    assert_eq!(subject.during(handle.revision()).await, Some(outside));
    subject
        .until("the revision", |subject| subject.revision >= outside)
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}

#[tokio::test]
async fn revision_request_advances_an_idle_prefix() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    for _ in 0..20 {
        put(&mut client, "/c/a", "x").await;
        let outside = put(&mut client, "/outside", "x").await;
        let (one, other) = (subject.handle.clone(), subject.handle.clone());
        let both = async { tokio::join!(one.revision(), other.revision()) };
        let (one, other) = subject.during(both).await;
        assert!(one >= Some(outside) && other >= Some(outside));
        subject
            .until("the revision", |subject| Some(subject.revision) >= one)
            .await;
    }
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1, "no list was needed");
}

#[tokio::test]
async fn idle_prefix_advances_by_progress() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    let outside = put(&mut client, "/outside", "x").await;
    subject
        .until("the revision", |subject| subject.revision >= outside)
        .await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
}
