//! The digest of the prefix at one revision.

use driftless_proto::Revision;
use driftless_proto::digest::Digest;
use driftless_server::source::{History, Update};
use driftless_test_support::{Etcd, eventually};
use etcd_client::TxnOp;

use crate::subject::{Subject, put, txn};

#[tokio::test]
async fn audit_returns_the_digest_at_a_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    for batch in 0..5 {
        let puts = (0..100).map(|n| TxnOp::put(format!("/c/{batch}/{n:02}"), "value", None));
        txn(&mut client, puts.collect()).await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let audit = async |subject: &mut Subject, at: Revision| {
        assert!(subject.handle.audit(at));
        loop {
            if let Update::Audited { revision, digest } = subject.next().await {
                assert_eq!(revision, at);
                return digest;
            }
        }
    };
    let then: Digest = state.entries.iter().collect();
    assert_eq!(audit(&mut subject, state.revision).await, Some(then));
    let changed = put(&mut client, "/c/0/00", "changed").await;
    subject.changes().await;
    assert_eq!(audit(&mut subject, state.revision).await, Some(then));
    let now: Digest = subject.held.values().collect();
    assert_eq!(audit(&mut subject, changed).await, Some(now));
    client.compact(changed.get(), None).await.unwrap();
    assert_eq!(audit(&mut subject, state.revision).await, None);
    assert_eq!(audit(&mut subject, changed.next()).await, None, "not yet");

    assert!(subject.handle.relist());
    let state = subject.state().await;
    assert_eq!(state.history, History::Continues);
    assert_eq!(subject.metrics.etcd_lists.get(), 2);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}
