//! etcd compacts its history while the server is away: clients receive the difference.

use driftless_client::EntryChange;
use driftless_test_support::Proxy;
use driftless_test_support::{Etcd, proc, wait_until};
use rustix::process::{Pid, Signal, kill_process};

use super::counters::Counters;
use super::direct::{Direct, Op};
use super::world::{PREFIX, World, change, client, entries, in_time, is_live, prefix, settle};
use crate::DRIFTLESS;

fn puts(keys: std::ops::Range<u32>) -> impl Iterator<Item = Op> {
    keys.map(|n| Op::put(format!("/c/k/{n}"), "1"))
}

/// Some keys go, one of them in the very revision that etcd compacts; one changes, one comes, one
/// comes and goes.
async fn change_and_forget(direct: &mut Direct) {
    direct
        .txn((0..3).map(|n| Op::delete(format!("/c/k/{n}"))))
        .await;
    direct.put("/c/k/5", "2").await;
    direct.put("/c/k/passing", "1").await;
    direct.delete("/c/k/passing").await;
    direct.put("/c/k/new", "1").await;
    let last = direct.delete("/c/k/9").await;
    direct.compact(last).await;
}

fn told(changes: &[EntryChange]) -> Vec<String> {
    let told = changes.iter().map(|change| match change {
        EntryChange::Put { new, .. } => format!("{} is there", new.key),
        EntryChange::Delete { old, .. } => format!("{} is gone", old.key),
        other => panic!("{other:?}"),
    });
    told.collect()
}

const DIFFERENCE: [&str; 6] = [
    "/c/k/0 is gone",
    "/c/k/1 is gone",
    "/c/k/2 is gone",
    "/c/k/5 is there",
    "/c/k/9 is gone",
    "/c/k/new is there",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_server_recovers_from_compaction() {
    let etcd = Etcd::started_blocking();
    let mut direct = Direct::connect(&etcd.url()).await;
    direct.txn(puts(0..10)).await;
    let to_etcd = Proxy::to(etcd.addr().port()).await;
    let server = DRIFTLESS.serve_at(&to_etcd.url(), &[PREFIX], 0, &[]);
    server.wait_ready();
    let range = prefix("/c/k/");
    let mut stayed = entries(&client(&server.url()), &range).await;
    let to_server = Proxy::to(server.addr().port()).await;
    let mut left = entries(&client(&to_server.url()), &range).await;
    let before = stayed.load().revision();

    to_server.cut();
    to_etcd.cut();
    wait_until("the server misses etcd", || {
        Counters::of(&server).get("etcd_lost") == 1
    });
    change_and_forget(&mut direct).await;
    let counted = Counters::of(&server);
    to_etcd.heal();

    // One step, from the old state to the new one.
    let difference = change(&mut stayed).await;
    assert_eq!(told(&difference.changes), DIFFERENCE);
    assert!(difference.revision > before);
    settle(&mut direct, [(&range, &stayed)]).await;
    let new = entries(&client(&server.url()), &range).await;
    settle(&mut direct, [(&range, &new)]).await;
    to_server.heal();
    let difference = change(&mut left).await;
    assert_eq!(told(&difference.changes), DIFFERENCE);
    settle(&mut direct, [(&range, &left)]).await;

    let now = Counters::of(&server);
    assert_eq!(now.get("etcd_lists"), 2, "one at the start, one now");
    assert_eq!(now.get("etcd_history_replaced"), 0);
    let snapshots = now.since(&counted, "syncs_snapshot");
    assert_eq!(snapshots, 1, "for the new client alone");
    let status = stayed.status();
    assert_eq!((status.reconnects, status.diverged), (0, 0), "{status:?}");
    assert_eq!(left.status().diverged, 0);

    // Later changes arrive too.
    let put = direct.put("/c/k/5", "3").await;
    for watcher in [&mut stayed, &mut left] {
        assert_eq!(change(watcher).await.revision, put);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_server_recovers_from_compaction() {
    let mut world = World::start().await;
    world.write(puts(0..10)).await;
    let range = prefix("/c/k/");
    let mut watcher = entries(&world.client(), &range).await;

    let pid = world.server.process.pid();
    proc::pause(pid);
    world.etcd.kill();
    world.etcd.start_blocking();
    let mut direct = Direct::connect(&world.etcd.url()).await;
    change_and_forget(&mut direct).await;
    kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).unwrap();

    let difference = change(&mut watcher).await;
    assert_eq!(told(&difference.changes), DIFFERENCE);
    settle(&mut direct, [(&range, &watcher)]).await;
    assert_eq!(Counters::of(&world.server).get("etcd_lists"), 2);
    assert_eq!(watcher.status().diverged, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_server_recovers_from_compaction() {
    let mut world = World::start().await;
    world.write(puts(0..10)).await;
    let range = prefix("/c/k/");
    let mut watcher = entries(&world.client(), &range).await;

    let port = world.server.addr().port();
    world.server.process.signal(Signal::KILL);
    world.server.process.wait();
    change_and_forget(&mut world.direct).await;
    world.server = DRIFTLESS.serve_at(&world.etcd.url(), &[PREFIX], port, &[]);

    // Nothing is left of what happened in between: still one step, and no key that is gone.
    let difference = in_time("the difference", watcher.changed()).await.unwrap();
    assert_eq!(told(&difference.changes), DIFFERENCE);
    settle(&mut world.direct, [(&range, &watcher)]).await;
    wait_until("it is live", || is_live(&watcher));
    assert_eq!(watcher.status().diverged, 0);
}
