//! Another history: restored backups and other clusters.

use driftless_server::source::History;
use driftless_test_support::{Etcd, Proxy};

use crate::subject::{Subject, held_by, put};

#[tokio::test]
async fn older_backup_is_another_history() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    etcd.kill();
    let backup = etcd.backup();
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "2").await;
    let known = put(&mut client, "/c/b", "2").await;
    let mut subject = Subject::new(&[etcd.url()]);
    let before = subject.state().await;
    assert_eq!(before.revision, known);

    etcd.kill();
    subject.lost().await;
    etcd.restore(backup.path());
    etcd.start().await;
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert_eq!(
        after.epoch, before.epoch,
        "etcd keeps its id: the epoch cannot tell"
    );
    assert!(after.revision < known);
    assert_eq!(subject.value("/c/a"), Some(&b"1"[..]));
    assert_eq!(subject.metrics.etcd_history_replaced.get(), 1);
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "3").await;
    subject.changes().await;
    assert_eq!(subject.held, held_by(&client).await);
}

#[tokio::test]
async fn backup_past_the_known_revision_is_another_history() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    etcd.kill();
    let backup = etcd.backup();
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "2").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    let before = subject.state().await;
    proxy.cut();
    subject.lost().await;
    etcd.kill();
    etcd.restore(backup.path());
    etcd.start().await;
    let mut client = etcd.client().await;
    // The same key at the same revision and version, and then well past it.
    assert_eq!(put(&mut client, "/c/a", "3").await, before.revision);
    for _ in 0..20 {
        put(&mut client, "/outside", "x").await;
    }
    proxy.heal();
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert!(after.revision > before.revision);
    assert_eq!(subject.value("/c/a"), Some(&b"3"[..]));
}

#[tokio::test]
async fn other_cluster_has_another_epoch() {
    let (first, second) = (Etcd::started().await, Etcd::started().await);
    put(&mut second.client().await, "/c/b", "2").await;
    let proxy = Proxy::to(first.port()).await;
    let mut subject = Subject::new(&[proxy.url(), second.url()]);
    let before = subject.state().await;
    proxy.cut();
    subject.lost().await;
    let after = subject.state().await;
    assert_eq!(after.history, History::Replaced);
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(subject.held.len(), 1);
}
