//! What the source says about the age of its state, and why etcd is lost.

use std::time::Instant;

use driftless_server::source::Update;
use driftless_test_support::{Etcd, PATIENCE, free_port};

use crate::subject::{Subject, put};

#[tokio::test]
async fn idle_prefix_reaches_what_changes_elsewhere() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    for _ in 0..3 {
        let elsewhere = put(&mut client, "/outside", "x").await;
        let asked = tokio::time::Instant::now();
        let start = Instant::now();
        let mut proof = None;
        while proof.is_none() || subject.revision < elsewhere {
            assert!(start.elapsed() < PATIENCE);
            if let Update::Proof(new) = subject.next().await {
                // It may have been asked before the write, but then it does not know of it.
                assert!(new.asked_at >= asked || new.revision < elsewhere);
                proof = proof.or(Some(new).filter(|new| new.revision >= elsewhere));
            }
        }
    }
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_lost.get(), 0);
}

#[tokio::test]
async fn latest_reason_of_a_loss_is_reported() {
    let port = free_port();
    let mut subject = Subject::new(&[format!("http://127.0.0.1:{port}")]);
    let refused = subject.lost().await;
    assert!(refused.contains("refused"), "{refused}");
    // The backlog accepts connections; nobody answers.
    let silent = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE);
        if let Update::Lost { reason } = subject.next().await {
            assert_ne!(reason, refused, "once for each reason");
            if reason.contains("no answer") {
                break;
            }
        }
    }
    assert_eq!(subject.metrics.etcd_lost.get(), 1, "one loss");
    drop(silent);
}
