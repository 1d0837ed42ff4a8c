//! No client is told that its state is younger than it is, and no server calls itself in sync that is
//! not.

use std::time::{Duration, Instant};

use driftless_test_support::{Etcd, Proxy, http, proc, wait_until};
use rustix::process::Signal;

use crate::DRIFTLESS;
use crate::counters::Counters;
use crate::direct::{Direct, Op};
use crate::world::{PREFIX, World, client, entries, is_live, key, prefix, reach};

/// Tells clients often what the server knows.
const FLAGS: &[&str] = &["--progress-interval", "100ms"];

/// What etcd said before the server stood still is no news afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_stood_still_does_not_rejuvenate_clients() {
    /// Far above what a loaded machine needs to read a socket.
    const STANDS_STILL: Duration = Duration::from_secs(4);
    // So seldom that clients do not take it for dead meanwhile.
    let mut world = World::with(&["--progress-interval", "2s"]).await;
    world.write([Op::put("/c/a", "1")]).await;
    let watcher = entries(&world.client(), &key("/c/a")).await;
    wait_until("the age is known", || watcher.status().age().is_some());

    let server = world.server.process.pid();
    proc::pause(server);
    // Whatever the server has asked etcd, it asked before.
    let stopped = Instant::now();
    let put = world.direct.put("/c/a", "2").await;
    tokio::time::sleep(STANDS_STILL).await;
    world.etcd.kill();
    proc::signal(server, Signal::CONT);
    let mut told = Duration::ZERO;
    wait_until("clients learn of the change and of the loss", || {
        let age = stopped.elapsed();
        let status = watcher.status();
        assert!(status.age() >= Some(age), "{:?} < {age:?}", status.age());
        // Some progress came after the change, too.
        told = if status.revision >= put { age } else { told };
        told > STANDS_STILL + Duration::from_secs(1)
            && Counters::of(&world.server).get("etcd_lost") == 1
    });
    assert!(is_live(&watcher));
}

/// Cut off from etcd while others write, and connected again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_is_not_in_sync_before_it_caught_up() {
    const TRANSACTIONS: usize = 470;
    let etcd = Etcd::started_blocking();
    let road = Proxy::to(etcd.port()).await;
    let server = DRIFTLESS.serve_at(&road.url(), &[PREFIX], 0, FLAGS);
    server.wait_ready();
    let watcher = entries(&client(&server.url()), &prefix(PREFIX)).await;
    wait_until("the age is known", || watcher.status().age().is_some());

    road.cut();
    wait_until("the server misses etcd", || {
        Counters::of(&server).get("etcd_lost") == 1
    });
    let mut direct = Direct::connect(&etcd.url()).await;
    // Each revision, and a moment after which etcd had it for certain.
    let mut written = Vec::new();
    for n in 0..TRANSACTIONS {
        let revision = direct.put(&format!("/c/{n:03}"), vec![b'v'; 4096]).await;
        written.push((revision, Instant::now()));
    }
    let last = written[TRANSACTIONS - 1].0;
    road.heal();
    wait_until("the server has caught up", || {
        let now = Instant::now();
        let status = watcher.status();
        if let Some((_, newer)) = written.iter().find(|(at, _)| *at > status.revision) {
            let age = now - *newer;
            assert!(status.age() >= Some(age), "{:?} < {age:?}", status.age());
        }
        let (_, text) = http::get(server.admin(), "/readyz").expect("it answers");
        let synced = text.contains("in sync at revision");
        assert_eq!(
            synced,
            text.contains(&format!("at revision {last}\n")),
            "{text}"
        );
        synced
    });
    reach(&server, last);
    wait_until("the client has caught up", || {
        watcher.status().revision >= last
    });
    assert_eq!(Counters::of(&server).get("etcd_lists"), 1);
}
