//! The cost of a change does not depend on the number of watchers.

use driftless_test_support::Proxy;
use driftless_test_support::{Etcd, wait_until};

use super::counters::Counters;
use super::direct::{Direct, Op};
use super::world::{World, change, client, entries, in_time, is_live, key, many, prefix};
use crate::DRIFTLESS;

/// So long that no progress is sent while a test counts bytes.
const QUIET: [&str; 2] = ["--progress-interval", "1h"];

const SUBSCRIBERS: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_is_encoded_once_for_all_subscribers() {
    let mut world = World::with(&QUIET).await;
    world.write([Op::put("/c/a", "0")]).await;
    let clients = (0..SUBSCRIBERS).map(|_| world.client()).collect();
    let mut watchers = many(clients, &prefix("/c/")).await;
    let before = Counters::of(&world.server);
    assert_eq!(before.get("streams"), SUBSCRIBERS as u64);
    assert_eq!(before.get("connections"), SUBSCRIBERS as u64);
    assert_eq!(before.get("scopes"), 1);

    for (count, value) in (1..).zip(["1", "2", "3"]) {
        world.etcd.put("/c/a", value);
        for watcher in &mut watchers {
            change(watcher).await;
            assert_eq!(watcher.load().get(b"/c/a").unwrap().value, value);
        }
        let now = Counters::of(&world.server);
        assert_eq!(now.since(&before, "changes"), count);
        assert_eq!(now.since(&before, "changes_encoded"), count);
        assert_eq!(now.since(&before, "frames_encoded"), count);
        assert_eq!(now.since(&before, "chunks_encoded"), 0);
    }
    let watches = world.etcd.metric("etcd_debugging_mvcc_watcher_total");
    assert_eq!(watches, Some(1.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_has_one_watch_for_each_served_prefix() {
    let etcd = Etcd::started_blocking();
    let watches = |count: f64| {
        let name = "etcd_debugging_mvcc_watcher_total";
        wait_until("etcd counts its watches", || {
            etcd.metric(name) == Some(count)
        });
    };
    watches(0.0);
    let server = DRIFTLESS.serve(&etcd, &["/c/", "/d/"]);
    watches(2.0);
    let clients: Vec<_> = (0..10).map(|_| client(&server.url())).collect();
    let mut held = many(clients.clone(), &prefix("/c/")).await;
    held.extend(many(clients.clone(), &key("/c/a")).await);
    held.extend(many(clients, &prefix("/d/x")).await);
    assert_eq!(Counters::of(&server).get("streams"), 30);
    watches(2.0);
    drop(held);
    wait_until("the streams end", || {
        Counters::of(&server).get("streams") == 0
    });
    watches(2.0);
    assert!(server.stop().status.success());
    watches(0.0);
}

/// The number of range requests to etcd, by its own count.
fn ranges_read(etcd: &Etcd) -> f64 {
    let count = etcd.metric("etcd_mvcc_range_total");
    count.expect("etcd counts what it reads")
}

/// So many clients come with nothing, read once, lose their connection while a key changes, and come
/// back with what they have. How often etcd was read meanwhile.
async fn come_read_and_come_back(world: &mut World, count: usize) -> f64 {
    let proxy = Proxy::to(world.server.addr().port()).await;
    let before = ranges_read(&world.etcd);
    let counted = Counters::of(&world.server);
    let clients: Vec<_> = (0..count).map(|_| client(&proxy.url())).collect();
    let mut watchers = many(clients.clone(), &prefix("/c/")).await;
    for client in &clients {
        let got = in_time("what is there", client.get(prefix("/c/")).into_future());
        assert!(got.await.unwrap().get(b"/c/a").is_some());
    }
    proxy.cut();
    wait_until("the streams end", || {
        Counters::of(&world.server).get("streams") == 0
    });
    let revision = world.direct.put("/c/a", count.to_string()).await;
    proxy.heal();
    for watcher in &mut watchers {
        assert_eq!(change(watcher).await.revision, revision);
    }
    wait_until("all are back", || watchers.iter().all(is_live));
    let now = Counters::of(&world.server);
    let snapshots = now.since(&counted, "syncs_snapshot");
    assert_eq!(snapshots, count as u64, "they came with nothing once");
    let resumed = now.since(&counted, "syncs_replay") + now.since(&counted, "syncs_diff");
    assert!(resumed >= count as u64, "{resumed} came with what they had");
    ranges_read(&world.etcd) - before
}

/// The server reads etcd once for a prefix, and never for a client: not for a new one, not for one that
/// reconnects, not for one that reads once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_cause_no_reads_from_etcd() {
    /// What the server asks etcd by the clock, and etcd itself, while so many clients are served.
    const BY_THE_CLOCK: f64 = 10.0;
    let mut world = World::with(&QUIET).await;
    world.write([Op::put("/c/a", "0")]).await;
    let few = come_read_and_come_back(&mut world, 10).await;
    let many = come_read_and_come_back(&mut world, SUBSCRIBERS).await;
    assert!(
        many <= few + BY_THE_CLOCK,
        "{many} reads for {SUBSCRIBERS} clients, {few} for 10"
    );
    assert_eq!(Counters::of(&world.server).get("etcd_lists"), 1);
    // The count does notice a read.
    let before = ranges_read(&world.etcd);
    world.direct.list(&prefix("/c/")).await;
    assert!(ranges_read(&world.etcd) > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overlapping_ranges_share_the_encoding() {
    let mut world = World::with(&QUIET).await;
    let ranges = [
        prefix("/c/"),
        prefix("/c/shop/"),
        prefix("/c/shop/li"),
        key("/c/shop/limits"),
    ];
    let mut watchers = Vec::new();
    for range in &ranges {
        for _ in 0..3 {
            watchers.push(entries(&world.client(), range).await);
        }
    }
    let before = Counters::of(&world.server);
    assert_eq!(before.get("scopes"), ranges.len() as u64);
    for count in 1..=5 {
        let value = count.to_string();
        let revision = world.direct.put("/c/shop/limits", value).await;
        for watcher in &mut watchers {
            assert_eq!(change(watcher).await.revision, revision);
        }
        let now = Counters::of(&world.server);
        assert_eq!(now.since(&before, "changes_encoded"), count);
        let frames = now.since(&before, "frames_encoded");
        assert_eq!(frames, count * ranges.len() as u64, "one for each range");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn change_outside_the_range_sends_nothing() {
    let mut world = World::with(&QUIET).await;
    let mut watchers = Vec::new();
    for range in [prefix("/c/shop/"), key("/c/shop/limits")] {
        for _ in 0..10 {
            watchers.push(entries(&world.client(), &range).await);
        }
    }
    // What each put of the same size costs: revisions of one length on the wire, and the server's
    // clock, which takes a byte or two more as it goes on. A frame is far more than that.
    let clock = 2 * watchers.len() as u64;
    async fn cost(world: &mut World, watchers: &mut [driftless_client::EntriesWatcher]) -> u64 {
        let before = Counters::of(&world.server);
        let revision = world.direct.put("/c/shop/limits", "value").await;
        for watcher in watchers {
            assert_eq!(change(watcher).await.revision, revision);
        }
        let cost = Counters::of(&world.server).since(&before, "sent_bytes");
        assert!(cost > 0);
        cost
    }
    let first = cost(&mut world, &mut watchers).await;
    assert!(first > 20 * watchers.len() as u64);

    let before = Counters::of(&world.server);
    for elsewhere in ["/c/other", "/c/shop", "/c/shop0", "/d/shop/limits"] {
        world.direct.put(elsewhere, "value").await;
    }
    world.direct.delete("/c/other").await;
    let after = cost(&mut world, &mut watchers).await;
    assert!(after.abs_diff(first) <= clock, "{after} bytes, not {first}");
    let now = Counters::of(&world.server);
    assert_eq!(now.since(&before, "changes"), 5, "of the served prefix");
    assert_eq!(now.since(&before, "changes_encoded"), 1, "the watched one");
    let sent = now.since(&before, "sent_bytes");
    assert_eq!(sent, after, "nothing but what is watched was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unwatched_change_is_not_encoded() {
    let world = World::with(&QUIET).await;
    let mut direct = Direct::connect(&world.etcd.url()).await;
    for n in 0..20 {
        direct.put("/c/a", n.to_string()).await;
    }
    wait_until("the changes arrive", || {
        Counters::of(&world.server).get("changes") == 20
    });
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("changes_encoded"), 0);
    assert_eq!(counters.get("scopes"), 0);
}
