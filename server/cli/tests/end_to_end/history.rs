//! etcd is replaced by an older backup of itself: from then on, its revisions mean something else.

use driftless_client::{EntriesWatcher, KeyRange};
use driftless_test_support::Proxy;
use driftless_test_support::{Etcd, ServerProcess, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

use super::counters::Counters;
use super::direct::Direct;
use super::world::{PREFIX, change, client, entries, is_live, prefix, settle};
use crate::DRIFTLESS;

/// An etcd that has moved on from its backup, and a server with a client, which have too.
struct Restorable {
    etcd: Etcd,
    backup: TempDir,
    to_etcd: Proxy,
    server: ServerProcess,
    range: KeyRange,
    watcher: EntriesWatcher,
}

impl Restorable {
    async fn new() -> Self {
        let mut etcd = Etcd::started_blocking();
        etcd.put("/c/a", "old");
        etcd.put("/c/gone", "old");
        etcd.kill();
        let backup = etcd.backup();
        etcd.start_blocking();
        let to_etcd = Proxy::to(etcd.addr().port()).await;
        let server = DRIFTLESS.serve_at(&to_etcd.url(), &[PREFIX], 0, &[]);
        server.wait_ready();
        let range = prefix(PREFIX);
        let watcher = entries(&client(&server.url()), &range).await;

        let mut direct = Direct::connect(&etcd.url()).await;
        direct.put("/c/a", "new").await;
        direct.put("/c/new", "new").await;
        let last = direct.delete("/c/gone").await;
        wait_until("the client moved on", || watcher.load().revision() == last);
        Self {
            etcd,
            backup,
            to_etcd,
            server,
            range,
            watcher,
        }
    }

    async fn restore(&mut self) -> Direct {
        self.etcd.kill();
        self.etcd.restore(self.backup.path());
        self.etcd.start_blocking();
        Direct::connect(&self.etcd.url()).await
    }

    /// Waits until the client holds what the other etcd does, and sees that it follows that one.
    async fn follows(&mut self, direct: &mut Direct) {
        settle(direct, [(&self.range, &self.watcher)]).await;
        wait_until("it is live", || is_live(&self.watcher));
        let put = direct.put("/c/a", "after").await;
        // What `settle` did not load is told here too.
        while self.watcher.load().revision() < put {
            change(&mut self.watcher).await;
        }
        settle(direct, [(&self.range, &self.watcher)]).await;
        assert_eq!(self.watcher.load().revision(), put);
        // Told a moment after the entries are shown.
        wait_until("the status tells of it", || {
            self.watcher.status().revision == put
        });
        let status = self.watcher.status();
        assert_eq!(status.diverged, 0, "{status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_a_restored_etcd_back() {
    let mut world = Restorable::new().await;
    let before = world.watcher.load().revision();
    let mut direct = world.restore().await;
    wait_until("the client goes back", || {
        world.watcher.load().revision() < before
    });
    assert_eq!(world.watcher.load().get(b"/c/a").unwrap().value, "old");
    assert!(world.watcher.load().get(b"/c/gone").is_some());
    assert!(world.watcher.load().get(b"/c/new").is_none());
    world.follows(&mut direct).await;
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("etcd_history_replaced"), 1);
    assert_eq!(counters.get("etcd_lists"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_etcd_that_grew_past_is_detected() {
    let mut world = Restorable::new().await;
    let before = world.watcher.load().revision();
    world.to_etcd.cut();
    wait_until("the server misses etcd", || {
        Counters::of(&world.server).get("etcd_lost") == 1
    });
    let mut direct = world.restore().await;
    // Other revisions with the same numbers, and more of them.
    while direct.put("/c/other", "of another history").await <= before.next() {}
    world.to_etcd.heal();
    wait_until("the client has the other history", || {
        world.watcher.load().get(b"/c/other").is_some()
    });
    assert!(world.watcher.load().get(b"/c/new").is_none());
    world.follows(&mut direct).await;
    let counters = Counters::of(&world.server);
    assert_eq!(counters.get("etcd_history_replaced"), 1);
}

/// The new server does not know the other history; only its clients do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_follow_a_restore_across_a_server_restart() {
    let mut world = Restorable::new().await;
    let port = world.server.addr().port();
    world.server.process.signal(Signal::KILL);
    world.server.process.wait();
    let mut direct = world.restore().await;
    let etcd = world.to_etcd.url();
    world.server = DRIFTLESS.serve_at(&etcd, &[PREFIX], port, &[]);
    world.follows(&mut direct).await;
}
