//! What the client reports of the states that it received.

use std::collections::BTreeMap;
use std::time::Duration;

use driftless_client::Client;
use driftless_proto::v1::watch_response::Frame;
use tokio::time::Instant;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server};

async fn watching(
    client: &Client,
    server: &mut Server,
    etcd: &EtcdModel,
    range: &str,
) -> (driftless_client::Watcher<u32>, Call) {
    let (watcher, call) = tokio::join!(client.watch::<u32>(range).into_future(), async {
        let call = server.next_call().await;
        call.send_state(etcd).await;
        call
    });
    (watcher.unwrap(), call)
}

#[tokio::test(start_paused = true)]
async fn only_changed_outcomes_are_reported_once_per_interval() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.builder().label("service", "shop").build().unwrap();
    let (_watcher, call) = watching(&client, &mut server, &etcd, "/a").await;
    let other = EtcdModel::with(&[("/b", "1")]);
    let (_other, _other_call) = watching(&client, &mut server, &other, "/b").await;
    let start = Instant::now();
    let report = server.reports.recv().await.unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(13));
    let info = report.client.unwrap();
    assert_eq!(info.labels["service"], "shop");
    assert_eq!(report.watches.len(), 2, "one call for all watches");
    let watch = &report.watches[0];
    assert_eq!(watch.watch_id, &b"0123456789abcdef"[..]);
    assert_eq!(watch.outcome.as_ref().unwrap().applied_revision, 11);

    // Idle, but alive: a bookmark is not reported.
    for _ in 0..4 {
        call.send(etcd.progress()).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(server.reports.try_recv().is_err());

    call.send(etcd.put("/a", "2")).await;
    call.send(etcd.put("/a", "CANARY")).await;
    let mut report = server.reports.recv().await.unwrap();
    assert!(!format!("{report:?}").contains("CANARY"));
    assert_eq!(report.watches.len(), 1);
    let watch = report.watches.remove(0);
    assert!(watch.sequence > 1);
    let outcome = watch.outcome.unwrap();
    assert_eq!(outcome.applied_revision, etcd.revision - 1);
    let rejection = outcome.rejection.unwrap();
    assert_eq!(
        (rejection.revision, &*rejection.kind),
        (etcd.revision, "type")
    );
    assert_eq!(rejection.key, &b"/a"[..]);
}

#[tokio::test(start_paused = true)]
async fn idle_entries_watcher_reports_once() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = tokio::join!(client.entries("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let report = server.reports.recv().await.unwrap();
    let outcome = report.watches[0].outcome.clone().unwrap();
    assert_eq!(outcome.applied_revision, 11);
    for _ in 0..4 {
        call.send(etcd.progress()).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(server.reports.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn rejection_is_sent_with_the_next_request() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = watching(&client, &mut server, &etcd, "/a").await;
    call.send(etcd.put("/a", "x")).await;
    drop(call);
    let call = server.next_call().await;
    assert_eq!(
        call.resume_revision(),
        Some(12),
        "the range is held, whoever refuses it"
    );
    let outcome = call.request.outcome.unwrap();
    assert_eq!(outcome.applied_revision, 11);
    assert_eq!(outcome.rejection.unwrap().revision, 12);
}

#[tokio::test(start_paused = true)]
async fn divergence_is_reported_after_its_repair() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, mut call) = watching(&client, &mut server, &etcd, "/a").await;
    for times in 1..3 {
        // The server's digest differs from the client's.
        let mut progress = etcd.progress();
        if let Frame::Progress(progress) = &mut progress {
            progress.digest = EtcdModel::default().digest();
        }
        call.send(progress).await;
        call.wait_until_ended().await;
        call = server.next_call().await;
        assert_eq!(call.resume_revision(), None, "it starts over");
        etcd.put("/a", &times.to_string());
        call.send_state(&etcd).await;
        let outcome = loop {
            let report = server.reports.recv().await.unwrap();
            let outcome = report.watches[0].outcome.clone().unwrap();
            if outcome.applied_revision == etcd.revision {
                break outcome;
            }
        };
        assert_eq!(outcome.diverged, times);
    }
}

/// A server refused a whole report because of one key that was too long.
#[tokio::test(start_paused = true)]
async fn key_that_is_too_long_is_left_out_of_a_report() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/p/a", "1")]);
    let client = server.client();
    let range = driftless_client::KeyRange::prefix("/p/").unwrap();
    let watching = client.watch::<BTreeMap<String, u32>>(range).into_future();
    let (watcher, call) = tokio::join!(watching, async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let _watcher = watcher.unwrap();
    let long = "\u{fc}".repeat(4096);
    call.send(etcd.put(&format!("/p/{long}"), "x")).await;
    let report = server.reports.recv().await.unwrap();
    let outcome = report.watches[0].outcome.clone().unwrap();
    let rejection = outcome.rejection.unwrap();
    assert_eq!(rejection.key, "");
    assert_eq!(rejection.path, long[..4096]);
}
