//! Servers and etcd start late, stop and come back.

use std::collections::HashSet;
use std::time::Duration;

use driftless_client::{EntriesWatcher, Revision};
use driftless_test_support::Proxy;
use driftless_test_support::{Etcd, free_port, http, wait_for, wait_until};
use rustix::process::Signal;
use tokio::task::JoinSet;

use super::counters::Counters;
use super::direct::{Direct, Op};
use super::world::{
    PREFIX, World, change, client, entries, in_time, is_live, key, many, prefix, reach, settle,
};
use crate::DRIFTLESS;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_order_client_server_etcd_works() {
    let mut etcd = Etcd::started_blocking();
    etcd.put("/c/a", "1");
    etcd.kill();
    let port = free_port();
    let early = client(&format!("http://127.0.0.1:{port}"));
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { early.watch::<u32>("/c/a").await });

    let server = DRIFTLESS.serve_at(&etcd.url(), &[PREFIX], port, &[]);
    let etcd_url = etcd.url();
    let reason = wait_for("it says what is missing", || {
        let (status, text) = http::get(server.admin(), "/readyz")?;
        assert_eq!(status, 503, "{text}");
        text.contains(&etcd_url).then_some(text)
    });
    assert!(reason.contains("/c/*: not in sync: "), "{reason}");
    wait_until("the client asks", || {
        Counters::of(&server).get("connections") > 0
    });
    assert!(waiting.try_join_next().is_none());

    etcd.start_blocking();
    server.wait_ready();
    let watcher = in_time("the first value", waiting.join_next()).await;
    let watcher = watcher.unwrap().unwrap().unwrap();
    assert_eq!(*watcher.load(), 1);
    etcd.put("/c/a", "2");
    wait_until("the client follows", || *watcher.load() == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_restart_needs_no_new_list() {
    let mut etcd = Etcd::started_blocking();
    let road = Proxy::to(etcd.addr().port()).await;
    for name in ["a", "b", "c"] {
        etcd.put(&format!("/c/{name}"), "1");
    }
    let server = DRIFTLESS.serve_at(&road.url(), &[PREFIX], 0, &[]);
    server.wait_ready();
    let mut watcher = entries(&client(&server.url()), &prefix(PREFIX)).await;
    assert_eq!(Counters::of(&server).get("etcd_lists"), 1);

    road.cut();
    wait_until("the server misses etcd", || {
        Counters::of(&server).get("etcd_lost") == 1
    });
    // The state stays valid. Its age is shown a moment after it is counted.
    wait_until("it says that it is old", || {
        let (status, text) = http::get(server.admin(), "/readyz").expect("it answers");
        assert_eq!(status, 200);
        text.contains("last known to be etcd's")
    });
    etcd.kill();
    etcd.start_blocking();
    let mut direct = Direct::connect(&etcd.url()).await;
    direct.put("/c/a", "2").await;
    direct.delete("/c/b").await;
    direct.put("/c/b", "again").await;
    let last = direct.delete("/c/c").await;
    road.heal();

    wait_until("everything arrives", || watcher.load().revision() >= last);
    settle(&mut direct, [(&prefix(PREFIX), &watcher)]).await;
    // And what comes after the restart.
    let put = direct.put("/c/a", "3").await;
    assert_eq!(change(&mut watcher).await.revision, put);
    let counters = Counters::of(&server);
    assert_eq!(counters.get("etcd_lists"), 1, "the watch went on");
    assert_eq!(counters.get("etcd_history_replaced"), 0);
    let status = watcher.status();
    assert_eq!((status.reconnects, status.diverged), (0, 0), "{status:?}");
}

/// How many clients reconnect at a time.
const CLIENTS: usize = 50;

/// The largest answer to a current client, in bytes.
const CURRENT: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn current_clients_receive_nothing_after_a_crash() {
    let mut world = World::start().await;
    let put = |n: usize| Op::put(format!("/c/shop/{n:03}"), vec![b'v'; 200]);
    for start in (0..500).step_by(100) {
        world.write((start..start + 100).map(put)).await;
    }
    let clients = (0..CLIENTS).map(|_| world.client()).collect();
    let shop = prefix("/c/shop/");
    let watchers = many(clients, &shop).await;

    let port = world.server.addr().port();
    world.server.process.signal(Signal::KILL);
    world.server.process.wait();
    // Changes outside their range do not matter.
    world.direct.put("/c/other", "1").await;
    let etcd = world.etcd.url();
    world.server = DRIFTLESS.serve_at(&etcd, &[PREFIX], port, &["--progress-interval", "1h"]);
    wait_until("all are back", || {
        watchers
            .iter()
            .all(|watcher| is_live(watcher) && watcher.status().reconnects == 1)
    });
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("syncs_current"), CLIENTS as u64);
    assert_eq!(counters.get("syncs_snapshot"), 0);
    assert_eq!(counters.get("chunks_encoded"), 0);
    let sent = counters.get("sent_bytes");
    assert!(sent <= CLIENTS as u64 * CURRENT, "{sent} bytes");
    settle(
        &mut world.direct,
        watchers.iter().map(|watcher| (&shop, watcher)),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_off_client_receives_what_it_missed() {
    let mut world = World::with(&["--progress-interval", "1h"]).await;
    let put = |n: usize| Op::put(format!("/c/{n:03}"), vec![b'v'; 1000]);
    world.write((0..100).map(put)).await;
    let road = Proxy::to(world.server.addr().port()).await;
    let all = prefix(PREFIX);
    let mut watcher = entries(&client(&road.url()), &all).await;
    wait_until("it is live", || is_live(&watcher));

    road.cut();
    wait_until("the stream ends", || {
        Counters::of(&world.server).get("streams") == 0
    });
    let before = Counters::of(&world.server);
    world.direct.put("/c/000", "changed").await;
    world.direct.put("/c/new", "1").await;
    let last = world.direct.delete("/c/001").await;
    reach(&world.server, last);
    road.heal();
    // What it missed, one transaction after the other, or several at a time.
    let mut told = 0;
    loop {
        let change = change(&mut watcher).await;
        told += change.changes.len();
        if change.revision == last {
            break;
        }
    }
    assert_eq!(told, 3);
    settle(&mut world.direct, [(&all, &watcher)]).await;
    let now = Counters::of(&world.server);
    assert_eq!(now.since(&before, "syncs_replay"), 1);
    let sent = now.since(&before, "sent_bytes");
    assert!(sent < 1000, "{sent} bytes for three small changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_during_downtime_arrive_with_deletes() {
    let mut world = World::start().await;
    let put = |name| Op::put(format!("/c/{name}"), "1");
    world.write(["a", "b", "c"].map(put)).await;
    let ranges = [prefix(PREFIX), key("/c/a"), key("/c/b"), prefix("/c/none")];
    let mut watchers = Vec::new();
    for range in &ranges {
        watchers.push(entries(&world.client(), range).await);
    }
    let revisions = |watchers: &[EntriesWatcher]| -> Vec<Revision> {
        watchers.iter().map(|w| w.load().revision()).collect()
    };
    let mut before = revisions(&watchers);
    let port = world.server.addr().port();
    for (signal, value) in [(Signal::KILL, "2"), (Signal::TERM, "3")] {
        world.server.process.signal(signal);
        world.server.process.wait();
        world.direct.delete("/c/a").await;
        world.direct.put("/c/b", value).await;
        world.direct.put("/c/c", value).await;
        world.server = DRIFTLESS.serve_at(&world.etcd.url(), &[PREFIX], port, &[]);
        settle(&mut world.direct, ranges.iter().zip(&watchers)).await;
        wait_until("all are live", || watchers.iter().all(is_live));
        let now = revisions(&watchers);
        assert!(before.iter().zip(&now).all(|(before, now)| before <= now));
        before = now;
        world.direct.put("/c/a", value).await;
        settle(&mut world.direct, ranges.iter().zip(&watchers)).await;
    }
    assert!(watchers.iter().all(|w| w.status().diverged == 0));
}

/// How many watches etcd has.
fn etcd_watches(world: &World) -> Option<f64> {
    world.etcd.metric("etcd_debugging_mvcc_watcher_total")
}

/// Kills the server, runs `meanwhile`, and starts another server in its place.
async fn crash<T>(world: &mut World, meanwhile: impl AsyncFnOnce(&mut Direct) -> T) -> T {
    let port = world.server.addr().port();
    world.server.process.signal(Signal::KILL);
    world.server.process.wait();
    let done = meanwhile(&mut world.direct).await;
    let flags = ["--progress-interval", "1h"];
    world.server = DRIFTLESS.serve_at(&world.etcd.url(), &[PREFIX], port, &flags);
    done
}

/// Clients are cut off one after the other, and the server is killed and misses more changes. Each client
/// receives what it missed, and the server asks etcd once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_all_ages_catch_up_after_a_crash() {
    let mut world = World::with(&["--progress-interval", "1h"]).await;
    let put = |n: usize| Op::put(format!("/c/{}/{n:02}", n % 4), vec![b'v'; 500]);
    world.write((0..100).map(put)).await;
    let ranges = [
        prefix(PREFIX),
        prefix("/c/0/"),
        prefix("/c/1/0"),
        key("/c/2/02"),
        prefix("/c/3/"),
    ];
    let mut roads = Vec::new();
    for _ in &ranges {
        roads.push(Proxy::to(world.server.addr().port()).await);
    }
    let mut watchers = Vec::new();
    for n in 0..CLIENTS {
        let road = &roads[n % roads.len()];
        let range = &ranges[n / roads.len() % ranges.len()];
        watchers.push((range, entries(&client(&road.url()), range).await));
    }
    // Each connection is cut a little later than the one before.
    for (n, road) in roads.iter().enumerate() {
        let ops = [
            Op::put("/c/0/00", n.to_string()),
            Op::put(format!("/c/1/0{n}"), "new"),
            Op::delete(format!("/c/3/{:02}", 4 * n + 3)),
        ];
        world.write(ops).await;
        settle(
            &mut world.direct,
            watchers
                .iter()
                .skip(n)
                .step_by(roads.len())
                .map(|(range, w)| (*range, w)),
        )
        .await;
        road.cut();
        let left = (CLIENTS / roads.len() * (roads.len() - 1 - n)) as u64;
        wait_until("the streams end", || {
            Counters::of(&world.server).get("streams") == left
        });
    }
    let revisions: HashSet<_> = watchers.iter().map(|(_, w)| w.load().revision()).collect();
    assert!(revisions.len() >= roads.len(), "{revisions:?}");

    let edits = async |direct: &mut Direct| {
        direct.put("/c/0/00", "while it was down").await;
        direct.delete("/c/2/02").await;
        direct.put("/c/2/02", "made again").await;
        let all = [
            Op::delete("/c/0/04"),
            Op::put("/c/1/01", "with others"),
            Op::put("/c/3/new", "with others"),
        ];
        direct.txn(all).await;
        direct.delete("/c/3/new").await;
        direct.put("/elsewhere", "1").await
    };
    crash(&mut world, edits).await;
    roads.iter().for_each(Proxy::heal);
    let back = |n| {
        move |watchers: &[(_, EntriesWatcher)]| {
            watchers
                .iter()
                .all(|(_, w)| is_live(w) && w.status().reconnects >= n)
        }
    };
    wait_until("all are back", || back(1)(&watchers));
    let held = watchers.iter().map(|(range, watcher)| (*range, watcher));
    settle(&mut world.direct, held).await;
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("syncs_snapshot"), 0, "{counters:?}");
    let told = ["syncs_current", "syncs_replay", "syncs_diff"].map(|name| counters.get(name));
    assert_eq!(told.iter().sum::<u64>(), CLIENTS as u64);
    assert!(told[1] + told[2] > CLIENTS as u64 / 2, "{told:?}");
    assert_eq!(counters.get("etcd_backfill_watches"), 1);
    assert_eq!(counters.get("backfills_rejected"), 0);
    assert_eq!(counters.get("etcd_lists"), 1);
    wait_until("one watch at etcd", || etcd_watches(&world) == Some(1.0));

    // etcd forgets what they missed: everything, to those whose range changed.
    let forgotten = async |direct: &mut Direct| {
        direct.delete("/c/0/08").await;
        let last = direct.put("/c/3/late", "1").await;
        direct.compact(last).await;
    };
    crash(&mut world, forgotten).await;
    wait_until("all are back", || back(2)(&watchers));
    let held = watchers.iter().map(|(range, watcher)| (*range, watcher));
    settle(&mut world.direct, held).await;
    let counters = Counters::of(&world.server);
    let changed = (CLIENTS / ranges.len() * 3) as u64;
    assert_eq!(counters.get("syncs_snapshot"), changed, "{counters:?}");
    assert_eq!(counters.get("syncs_current"), CLIENTS as u64 - changed);
    wait_until("one watch at etcd", || etcd_watches(&world) == Some(1.0));
    assert!(watchers.iter().all(|(_, w)| w.status().diverged == 0));
}

/// A server that cannot reach etcd goes on serving, and its clients can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_the_age_of_the_state_without_etcd() {
    let mut world = World::with(&["--progress-interval", "200ms"]).await;
    world.write([Op::put("/c/a", "1")]).await;
    let old = entries(&world.client(), &key("/c/a")).await;
    world.etcd.kill();
    wait_until("the server misses etcd", || {
        Counters::of(&world.server).get("etcd_lost") == 1
    });
    let new = entries(&world.client(), &key("/c/a")).await;
    assert_eq!(new.load().get(b"/c/a").unwrap().value, "1");
    // The age grows while progress frames arrive: they prove the state, but no contact with etcd.
    let aged = Duration::from_millis(1500);
    wait_until("the age grows", || {
        [&old, &new]
            .iter()
            .all(|watcher| is_live(watcher) && watcher.status().age() > Some(aged))
    });
    world.etcd.start_blocking();
    wait_until("the age is small again", || {
        [&old, &new]
            .iter()
            .all(|watcher| watcher.status().age() < Some(Duration::from_secs(1)))
    });
    let mut direct = Direct::connect(&world.etcd.url()).await;
    let put = direct.put("/c/a", "2").await;
    wait_until("changes arrive", || {
        let revisions: HashSet<_> = [&old, &new].iter().map(|w| w.load().revision()).collect();
        revisions.iter().all(|revision| *revision >= put)
    });
}
