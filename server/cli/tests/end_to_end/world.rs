//! One etcd, one server, and its clients.

use std::future::Future;

use driftless_client::{Client, EntriesChange, EntriesWatcher, KeyRange, Revision, WatchState};
use driftless_test_support::{Etcd, PATIENCE, ServerProcess, http, wait_until};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::direct::{Direct, Op};
use crate::DRIFTLESS;

/// What servers serve here.
pub(crate) const PREFIX: &str = "/c/";

/// The wait between two polls that need a round trip.
const POLL: std::time::Duration = std::time::Duration::from_millis(20);

/// An etcd and a server of [`PREFIX`] that is in sync with it.
pub(crate) struct World {
    pub(crate) server: ServerProcess,
    pub(crate) direct: Direct,
    pub(crate) etcd: Etcd,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With more flags for the server.
    pub(crate) async fn with(flags: &[&str]) -> Self {
        let etcd = Etcd::started_blocking();
        let server = DRIFTLESS.serve_at(&etcd.url(), &[PREFIX], 0, flags);
        server.wait_ready();
        Self {
            direct: Direct::connect(&etcd.url()).await,
            server,
            etcd,
        }
    }

    /// Writes all of it in one transaction, and waits until the server has it.
    pub(crate) async fn write(&mut self, ops: impl IntoIterator<Item = Op>) {
        let revision = self.direct.txn(ops).await;
        reach(&self.server, revision);
    }

    /// A client that shares nothing with others.
    pub(crate) fn client(&self) -> Client {
        client(&self.server.url())
    }
}

/// Waits until a server of [`PREFIX`] has reached this revision.
#[track_caller]
pub(crate) fn reach(server: &ServerProcess, revision: Revision) {
    wait_until("the server has what was written", || {
        let (_, text) = http::get(server.admin(), "/readyz").expect("it answers");
        let (_, rest) = text.split_once("at revision ").unwrap_or_default();
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits
            .and_then(|digits| digits.parse().ok())
            .is_some_and(|at: i64| at >= revision.get())
    });
}

/// A client of the server at `url`.
pub(crate) fn client(url: &str) -> Client {
    Client::connect(url).expect("a valid URL")
}

pub(crate) fn prefix(text: &str) -> KeyRange {
    KeyRange::prefix(text).unwrap()
}

pub(crate) fn key(text: &str) -> KeyRange {
    KeyRange::key(text).unwrap()
}

/// Does not wait for ever.
pub(crate) async fn in_time<F: Future>(what: &str, work: F) -> F::Output {
    timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A watcher that is in sync.
pub(crate) async fn entries(client: &Client, range: &KeyRange) -> EntriesWatcher {
    in_time("the first state", client.entries(range).into_future())
        .await
        .unwrap()
}

/// The next change.
pub(crate) async fn change(watcher: &mut EntriesWatcher) -> EntriesChange {
    in_time("a change", watcher.changed()).await.unwrap()
}

/// Watchers of one range, each of a client of its own.
pub(crate) async fn many(clients: Vec<Client>, range: &KeyRange) -> Vec<EntriesWatcher> {
    let mut joining = JoinSet::new();
    for client in clients {
        let range = range.clone();
        joining.spawn(async move { entries(&client, &range).await });
    }
    joining.join_all().await
}

/// True if a watcher's stream is live and in sync.
pub(crate) fn is_live(watcher: &EntriesWatcher) -> bool {
    watcher.status().state == WatchState::Live
}

/// Waits until every watcher has etcd's state. Nobody may write meanwhile.
pub(crate) async fn settle<'a>(
    direct: &mut Direct,
    watchers: impl IntoIterator<Item = (&'a KeyRange, &'a EntriesWatcher)>,
) {
    let deadline = Instant::now() + PATIENCE;
    for (range, watcher) in watchers {
        let (_, listed) = direct.list(range).await;
        loop {
            let held = watcher.load();
            if held.iter().eq(listed.iter()) {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "{range}: {held:?} is not what etcd holds: {listed:?}; {:?}",
                watcher.status()
            );
            sleep(POLL).await;
        }
    }
}
