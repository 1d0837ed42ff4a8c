//! What clients of all ages get after a server's restart, when the past is too much to be read whole.

use driftless_test_support::{Proxy, wait_until};
use rustix::process::Signal;

use super::counters::Counters;
use super::direct::Op;
use super::world::{PREFIX, World, client, entries, is_live, prefix, settle};
use crate::DRIFTLESS;

/// How many clients were there when the server was killed.
const RECENT: usize = 20;

/// A small log, so that little of the past is too much.
const FLAGS: [&str; 4] = ["--log-bytes", "1MiB", "--progress-interval", "1h"];

/// Regression: the oldest client chose how far back the server reads, and when that was too much, all
/// clients got a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_client_takes_no_replay_from_recent_ones() {
    let mut world = World::with(&FLAGS).await;
    let put = |n: usize| Op::put(format!("/c/{n:02}"), vec![b'v'; 500]);
    world.write((0..50).map(put)).await;
    let all = prefix(PREFIX);
    let road = Proxy::to(world.server.addr().port()).await;
    let old = entries(&client(&road.url()), &all).await;
    let mut recent = Vec::new();
    for _ in 0..RECENT {
        recent.push(entries(&world.client(), &all).await);
    }
    road.cut();
    wait_until("the old client is gone", || {
        Counters::of(&world.server).get("streams") == RECENT as u64
    });
    // 3 MiB, with what was there before each change.
    for n in 0..400u32 {
        let value = [&n.to_be_bytes()[..], &[b'v'; 4_000]].concat();
        world.direct.put("/c/large", value).await;
    }
    settle(
        &mut world.direct,
        recent.iter().map(|watcher| (&all, watcher)),
    )
    .await;

    let port = world.server.addr().port();
    world.server.process.signal(Signal::KILL);
    world.server.process.wait();
    world.direct.put("/c/00", "changed").await;
    world.direct.delete("/c/01").await;
    world.server = DRIFTLESS.serve_at(&world.etcd.url(), &[PREFIX], port, &FLAGS);
    road.heal();
    wait_until("all are back", || {
        recent
            .iter()
            .chain([&old])
            .all(|watcher| is_live(watcher) && watcher.status().reconnects >= 1)
    });
    let watchers = recent.iter().chain([&old]);
    settle(&mut world.direct, watchers.map(|watcher| (&all, watcher))).await;
    let counters = Counters::of(&world.server);
    let told = ["syncs_replay", "syncs_diff"].map(|name| counters.get(name));
    assert_eq!(told.iter().sum::<u64>(), RECENT as u64, "{counters:?}");
    assert_eq!(counters.get("syncs_snapshot"), 1, "{counters:?}");
    // 1,024 revisions and 256 are too much, 64 are not.
    assert_eq!(counters.get("etcd_backfill_watches"), 3, "{counters:?}");
    assert_eq!(counters.get("backfills_rejected"), 0);
}
