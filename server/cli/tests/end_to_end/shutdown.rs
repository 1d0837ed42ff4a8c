//! A server that stops sends `Goodbye` and does not wait for clients that do not read.

use std::time::{Duration, Instant};

use driftless_client::{Client, EntriesWatcher};
use driftless_test_support::Proxy;
use driftless_test_support::{Finished, ServerProcess, proc, wait_until};

use super::counters::Counters;
use super::direct::Op;
use super::world::{PREFIX, World, change, client, is_live, many, prefix, settle};
use crate::DRIFTLESS;

const STREAMS: usize = 200;

const STALLED: usize = 5;

/// The clients that read.
const WELL: usize = 50;

/// The limit that service managers set, and that `--help` promises.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Stops a server, which must end with status 0 in time.
fn stop(server: ServerProcess) -> Finished {
    let start = Instant::now();
    let finished = server.stop();
    assert!(start.elapsed() < ENDS_WITHIN, "{:?}", start.elapsed());
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    finished
}

fn was_told(watcher: &EntriesWatcher) -> bool {
    let why = watcher.status().last_error.unwrap_or_default();
    why.contains("shutting down")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_move_to_another_server_on_shutdown() {
    let mut world = World::start().await;
    world.write([Op::put("/c/a", "1")]).await;
    let other = DRIFTLESS.serve(&world.etcd, &[PREFIX]);
    let both = || -> Client {
        Client::builder()
            .endpoint(world.server.url())
            .endpoint(other.url())
            .build()
            .unwrap()
    };
    let clients: Vec<Client> = (0..STREAMS).map(|_| both()).collect();
    let all = prefix(PREFIX);
    let mut watchers = many(clients, &all).await;
    let stay = Counters::of(&other).get("streams");
    let move_on = STREAMS as u64 - stay;
    assert_eq!(Counters::of(&world.server).get("streams"), move_on);

    let finished = stop(world.server);
    assert!(!finished.stderr.contains("cut off"), "{finished:?}");
    wait_until("all are with the other", || {
        watchers.iter().all(is_live) && Counters::of(&other).get("streams") == STREAMS as u64
    });
    let counters = Counters::of(&other);
    assert_eq!(counters.get("syncs_current"), move_on);
    let told = watchers.iter().filter(|watcher| was_told(watcher)).count();
    assert_eq!(told as u64, move_on);
    let put = world.direct.put("/c/a", "2").await;
    for watcher in &mut watchers {
        assert_eq!(change(watcher).await.revision, put);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_wait_for_the_only_server() {
    let mut world = World::start().await;
    world.write([Op::put("/c/a", "1")]).await;
    let all = prefix(PREFIX);
    let watchers = many((0..STREAMS).map(|_| world.client()).collect(), &all).await;

    let port = world.server.addr().port();
    let finished = stop(world.server);
    assert!(!finished.stderr.contains("cut off"), "{finished:?}");
    wait_until("all know", || {
        watchers.iter().all(|watcher| !is_live(watcher))
    });
    assert!(watchers.iter().all(|w| w.load().len() == 1), "it is kept");
    world.direct.put("/c/a", "2").await;
    world.server = DRIFTLESS.serve_at(&world.etcd.url(), &[PREFIX], port, &[]);
    settle(
        &mut world.direct,
        watchers.iter().map(|watcher| (&all, watcher)),
    )
    .await;
    wait_until("all are live", || watchers.iter().all(is_live));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_clients_do_not_delay_shutdown() {
    let mut world = World::start().await;
    let all = prefix(PREFIX);
    let road = Proxy::to(world.server.addr().port()).await;
    let stalled = many((0..STALLED).map(|_| client(&road.url())).collect(), &all).await;
    let well = many((0..WELL).map(|_| world.client()).collect(), &all).await;
    road.stall();
    // More than the windows of their streams: what is said to them last does not leave the server.
    world.direct.put("/c/a", vec![1; 1 << 20]).await;
    let last = world.direct.put("/c/b", vec![2; 1 << 20]).await;
    wait_until("the others have it", || {
        well.iter().all(|w| w.load().revision() == last)
    });

    let pid = world.server.process.pid();
    let stopping = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| stop(world.server));
        wait_until("the others are sent away", || !well.iter().any(is_live));
        assert!(
            proc::is_running(pid),
            "they did not have to wait for its end"
        );
        stopping.join().unwrap()
    });
    let cut_off = format!("{STALLED} connections did not end in time and were cut off");
    assert!(stopping.stderr.contains(&cut_off), "{stopping:?}");
    assert!(stalled.iter().all(|w| w.load().revision() < last));
}
