//! Endpoints, restarts, compaction and silence.

use std::time::{Duration, Instant};

use driftless_server::source::History;
use driftless_test_support::{Etcd, PATIENCE, Proxy, eventually, free_port};
use etcd_client::TxnOp;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::subject::{PROGRESS_INTERVAL, Subject, delete, held_by, put, txn, write};

#[tokio::test]
async fn source_waits_until_etcd_starts() {
    let mut etcd = Etcd::new();
    let mut subject = Subject::new(&[etcd.url()]);
    let reason = subject.lost().await;
    assert!(reason.starts_with("http://127.0.0.1:"), "{reason}");
    let handle = subject.handle.clone();
    let answer = subject.during(handle.revision()).await;
    assert_eq!(answer, None, "nobody is there to answer");
    let (state, ()) = tokio::join!(subject.state(), etcd.start());
    assert!(state.entries.is_empty());
    assert_eq!(
        subject.metrics.etcd_lost.get(),
        1,
        "lost once, not once per attempt"
    );
}

#[tokio::test]
async fn next_endpoint_is_tried_after_a_dead_one() {
    let etcd = Etcd::started().await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut subject = Subject::new(&[dead, etcd.url()]);
    subject.lost().await;
    subject.state().await;
}

#[tokio::test]
async fn next_endpoint_is_tried_after_a_silent_one() {
    let etcd = Etcd::started().await;
    // The backlog accepts connections; nobody answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_at = format!("http://{}", silent.local_addr().unwrap());
    let mut subject = Subject::new(&[silent_at, etcd.url()]);
    // HTTP/2 pings alone would take fifteen seconds.
    let lost = tokio::time::timeout(Duration::from_secs(10), subject.lost());
    lost.await.unwrap();
    subject.state().await;
}

#[tokio::test]
async fn etcd_restart_needs_no_list() {
    let mut etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    etcd.kill();
    subject.lost().await;
    etcd.start().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/b", "2").await;
    put(&mut client, "/c/b", "3").await;
    let ops = vec![TxnOp::delete("/c/a", None), TxnOp::put("/c/c", "4", None)];
    txn(&mut client, ops).await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.changes().await.len(), 2);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    assert_eq!(subject.metrics.etcd_watches.get(), 2);
    assert_eq!(subject.metrics.etcd_lost.get(), 1);
    assert_eq!(etcd.watches().await, (1, 1));
}

#[tokio::test]
async fn compaction_while_disconnected_leads_to_a_list() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    put(&mut client, "/c/b", "1").await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    delete(&mut client, "/c/a").await;
    put(&mut client, "/c/b", "2").await;
    let last = put(&mut client, "/c/d", "2").await;
    client.compact(last.get(), None).await.unwrap();
    proxy.heal();
    let state = subject.state().await;
    assert_eq!(state.history, History::Continues);
    assert_eq!(state.revision, last);
    assert_eq!(subject.held, held_by(&client).await);
    assert_eq!(subject.metrics.etcd_lists.get(), 2);
    put(&mut client, "/c/d", "3").await;
    subject.changes().await;
}

/// etcd (before 3.4.36 and 3.5.18) opens a watch at the revision that it was compacted at, but has lost
/// the deletes of that revision.
#[tokio::test]
async fn delete_at_the_compacted_revision_is_reported() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    let proxy = Proxy::to(etcd.port()).await;
    // Without progress, which would reveal it too.
    let mut subject = Subject::with_interval(&[proxy.url()], PATIENCE * 2);
    subject.state().await;
    proxy.cut();
    subject.lost().await;
    let gone = delete(&mut client, "/c/a").await;
    let physical = etcd_client::CompactionOptions::new().with_physical();
    client.compact(gone.get(), Some(physical)).await.unwrap();
    proxy.heal();
    assert!(subject.state().await.entries.is_empty());
}

#[tokio::test]
async fn stopped_etcd_is_lost() {
    let etcd = Etcd::started().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    etcd.pause();
    let start = Instant::now();
    subject.lost().await;
    assert!(
        start.elapsed() < PROGRESS_INTERVAL * 20,
        "{:?}",
        start.elapsed()
    );
    etcd.resume();
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    subject.changes().await;
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    // The silent watch does not stay.
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

/// As with SIGSTOP: by the clock, etcd has been silent for long.
#[tokio::test]
async fn stopped_server_does_not_count_as_silent_etcd() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut subject = Subject::new(&[etcd.url()]);
    subject.state().await;
    for value in ["1", "2", "3"] {
        // It stops the whole test: there is one thread.
        std::thread::sleep(PROGRESS_INTERVAL * 5);
        subject.next().await;
        put(&mut client, "/c/a", value).await;
        subject.changes().await;
    }
    assert_eq!(subject.metrics.etcd_lost.get(), 0);
    assert_eq!(subject.metrics.etcd_watches.get(), 1);
}

#[tokio::test]
async fn state_equals_etcd_after_random_faults() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut etcd = Etcd::started().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut subject = Subject::new(&[proxy.url()]);
    subject.state().await;
    for round in 0..12 {
        let breaking = async {
            let mut client = etcd.client().await;
            write(&mut client, &mut random).await;
            match round % 6 {
                0 => proxy.cut(),
                1 => {
                    etcd.kill();
                    etcd.start().await;
                    client = etcd.client().await;
                }
                2 => {
                    etcd.pause();
                    tokio::time::sleep(PROGRESS_INTERVAL * random.random_range(0..5)).await;
                    etcd.resume();
                }
                3 => {
                    proxy.cut();
                    write(&mut client, &mut random).await;
                    let last = put(&mut client, "/c/0", "compacted").await;
                    client.compact(last.get(), None).await.unwrap();
                }
                _ => {}
            }
            write(&mut client, &mut random).await;
            proxy.heal();
            write(&mut client, &mut random).await;
            held_by(&client).await
        };
        let expected = subject.during(breaking).await;
        let what = format!("the state of etcd in round {round} of seed {seed}");
        subject
            .until(&what, |subject| subject.held == expected)
            .await;
    }
    assert_eq!(
        subject.metrics.etcd_history_replaced.get(),
        0,
        "seed {seed}"
    );
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}
