//! The client library behind a stalled connection catches up in one step, on the same stream.
//!
//! `stalled.rs` measures what stalled connections cost the server.

use driftless_test_support::Proxy;
use driftless_test_support::wait_until;
use tokio::task::JoinSet;

use super::counters::Counters;
use super::direct::Direct;
use super::world::{PREFIX, World, client, entries, is_live, many, prefix, settle};

/// How many clients stall.
const STALLED: usize = 5;

/// More small frames than HTTP/2 libraries tolerate.
const CHANGES: usize = 10_000;

/// Puts made at a time.
const WRITERS: usize = 16;

/// Many small changes, each a transaction of its own.
async fn changes(url: &str) {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let mut direct = Direct::connect(url).await;
        writers.spawn(async move {
            for n in 0..CHANGES / WRITERS {
                let key = format!("/c/{:02}", (writer + n) % 50);
                direct.put(&key, n.to_string()).await;
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_survives_ten_thousand_unread_changes() {
    let mut world = World::start().await;
    let all = prefix(PREFIX);
    let road = Proxy::to(world.server.addr().port()).await;
    let clients = (0..STALLED).map(|_| client(&road.url())).collect();
    let stalled = many(clients, &all).await;
    let reads = entries(&world.client(), &all).await;
    road.stall();
    changes(&world.etcd.url()).await;
    settle(&mut world.direct, [(&all, &reads)]).await;
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("changes"), CHANGES as u64);
    assert_eq!(counters.get("streams"), STALLED as u64 + 1);

    road.heal();
    settle(
        &mut world.direct,
        stalled.iter().map(|watcher| (&all, watcher)),
    )
    .await;
    for watcher in &stalled {
        let status = watcher.status();
        assert!(is_live(watcher), "{status:?}");
        assert_eq!((status.reconnects, status.diverged), (0, 0), "{status:?}");
    }
    let put = world.direct.put("/c/00", "last").await;
    wait_until("they follow again", || {
        stalled
            .iter()
            .all(|watcher| watcher.load().revision() == put)
    });
}
