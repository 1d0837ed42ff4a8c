//! A server on a real etcd, in this process, and how scenarios drive it to its bounds.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use driftless_client::{EntriesWatcher, KeyRange, Revision};
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::etcd::{EtcdConfig, EtcdSource};
use driftless_server::{Engine, Settings, SettingsBuilder};
use driftless_test_support::{Etcd, eventually, in_time};
use etcd_client::Event;
use leak_tests::{Scraped, Witnesses};
use tokio::time::timeout;

use crate::blocked_workers::BlockedWorkers;
use crate::common::InProcessServer;
use crate::writer::{EtcdWriter, padded};

/// The prefix that the server serves.
pub(crate) const PREFIX: &str = "/c/";

/// The size of the change log, in bytes: the smallest that a server accepts, so that it is full early.
const LOG_BYTES: usize = 1024 * 1024;

/// How many changes fill the history of a watched range, with some to spare. If the values are as long as
/// [`padded`] makes them, they fill the change log as well.
const CHANGES_TO_FILL_LOG: u64 = 1_100;

/// [`ServerOnEtcd::fill_log`] waits for the watcher after each this many changes. The server still sends
/// that many one by one, and waiting after each change would take longer.
const WAIT_EVERY: u64 = 100;

/// How many changes etcd makes while the server is blocked: more than wait for the server in any scenario.
/// Usually they take less time than the server needs to notice a silent etcd.
const CHANGES_WHILE_BLOCKED: usize = 100;

/// How often the server is blocked again if it lost etcd meanwhile.
const BLOCK_ATTEMPTS: u32 = 20;

/// How often the server asks etcd for a sign of life. It gives etcd up after three intervals, so a short
/// one makes it detect a loss early.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The longest that the server waits before it tries etcd again. Short, so that it reconnects at once,
/// however often it lost etcd.
const RETRY_WITHIN: Duration = Duration::from_millis(40);

/// The longest that the server may take to detect that etcd is lost: much longer than three progress
/// intervals, and shorter than HTTP/2's own check, which would detect it as well.
const LOSS_DETECTED_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may leave unread what the server sends: the shortest time that a server accepts.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// A server in this process on a real etcd, and a writer to that etcd.
pub(crate) struct ServerOnEtcd {
    pub(crate) etcd: Etcd,
    pub(crate) writer: EtcdWriter,
    pub(crate) server: InProcessServer,
}

impl std::ops::Deref for ServerOnEtcd {
    type Target = InProcessServer;

    fn deref(&self) -> &InProcessServer {
        &self.server
    }
}

impl ServerOnEtcd {
    /// Starts etcd and the server. `/c/a` is 1 and `/c/b` is 2.
    pub(crate) async fn start() -> Self {
        let etcd = Etcd::started().await;
        let config = EtcdConfig::new([etcd.url()]);
        Self::with_config(etcd, config).await
    }

    /// Starts a server that soon detects a lost etcd, and soon finds it again. Now and then it gives up an
    /// etcd that is only busy.
    pub(crate) async fn with_short_etcd_timeouts() -> Self {
        let etcd = Etcd::started().await;
        let url = etcd.url();
        Self::with_short_etcd_timeouts_at(etcd, &url).await
    }

    /// As [`Self::with_short_etcd_timeouts`], with a server that reaches etcd at this URL, such as a
    /// proxy's.
    pub(crate) async fn with_short_etcd_timeouts_at(etcd: Etcd, url: &str) -> Self {
        let mut config = EtcdConfig::new([url]);
        config.progress_interval = PROGRESS_INTERVAL;
        config.retry_within = RETRY_WITHIN;
        Self::with_config(etcd, config).await
    }

    /// Starts a server that compares its state with etcd's at this interval.
    pub(crate) async fn with_audits(interval: Duration) -> Self {
        let etcd = Etcd::started().await;
        let config = EtcdConfig::new([etcd.url()]);
        let settings = settings(&etcd.url()).audit_interval(Some(interval));
        Self::with_settings(etcd, config, settings).await
    }

    async fn with_config(etcd: Etcd, config: EtcdConfig) -> Self {
        let settings = settings(&config.endpoints[0]);
        Self::with_settings(etcd, config, settings).await
    }

    async fn with_settings(etcd: Etcd, config: EtcdConfig, settings: SettingsBuilder) -> Self {
        let mut writer = EtcdWriter::new(&etcd).await;
        writer.put("/c/a", "1").await;
        writer.put("/c/b", "2").await;
        let prefix = KeyRange::prefix(PREFIX).unwrap();
        let metrics = Metrics::new();
        let settings = settings.build().unwrap();
        let (handle, requests) = SourceHandle::channel();
        let source = EtcdSource::new(prefix.clone(), config, metrics.clone(), requests).unwrap();
        let engine = Engine::start(&settings, metrics, [(prefix, source, handle)]);
        let started = Self {
            etcd,
            writer,
            server: InProcessServer::start(engine).await,
        };
        started.grow_frame_table().await;
        started
    }

    /// Makes the server lag further behind etcd than it ever will later. HTTP/2 keeps a connection's unread
    /// frames in a table, which doubles when there are more of them than ever before. Without this, chance
    /// and the load of the machine would decide when it doubles.
    pub(crate) async fn grow_frame_table(&self) {
        for _ in 0..BLOCK_ATTEMPTS {
            let before = self.metrics.etcd_attempts.get();
            self.block_while_etcd_changes().await;
            // On a busy machine this may take so long that the server gives etcd up. Then it was the table
            // of the lost connection that grew.
            if self.metrics.etcd_attempts.get() == before {
                return;
            }
        }
        panic!("the server lost etcd in each of {BLOCK_ATTEMPTS} attempts to block it");
    }

    /// Blocks the server's runtime while etcd makes many changes, and then waits until the server has them.
    async fn block_while_etcd_changes(&self) {
        let mut blocked = BlockedWorkers::all();
        let endpoint = self.etcd.url();
        let revision = blocked.run_elsewhere("etcd changes often", put_repeatedly(endpoint));
        // With one worker, the server reads all that etcd sent before it processes any of it.
        blocked.release_one();
        let client = self.client();
        let watching = client.entries("/c/b").into_future();
        let mut watcher = in_time("a first state", watching).await.unwrap();
        let received = async {
            while watcher.load().revision() < revision {
                watcher.changed().await.unwrap();
            }
        };
        in_time("the server receives what was written", received).await;
    }

    /// Writes this many large values, and waits until the server has them.
    pub(crate) async fn load_large_values(&mut self, values: u64) {
        self.writer.put_large_values(0, values).await;
        let client = self.client();
        let last = format!("/c/much/{:03}", values - 1);
        let watching = client.entries(last.as_str()).into_future();
        let mut watcher = in_time("a first state", watching).await.unwrap();
        let received = async {
            while watcher.load().is_empty() {
                watcher.changed().await.unwrap();
            }
        };
        in_time("the server receives what was written", received).await;
    }

    /// How many changes the server has received from etcd.
    pub(crate) fn changes_received(&self) -> u64 {
        self.metrics.changes.get()
    }

    /// Waits until the server has received this many changes from etcd.
    pub(crate) async fn wait_for_changes(&self, changes: u64) {
        eventually("the server receives what was written", async || {
            self.changes_received() >= changes
        })
        .await;
    }

    /// etcd's own counts of its watches.
    pub(crate) fn etcd_watch_counts(&self) -> Witnesses {
        etcd_watch_counts(&self.etcd)
    }

    /// Fills the server's memory of recent changes: until it is full, every change adds to it.
    /// `wait_for_watcher` is called now and then, because the server keeps less of a change that it sent to
    /// nobody.
    pub(crate) async fn fill_log(
        &mut self,
        key: &str,
        mut wait_for_watcher: impl AsyncFnMut(Revision),
    ) {
        for number in 1..=CHANGES_TO_FILL_LOG {
            let revision = self.writer.put(key, padded("0")).await;
            if number % WAIT_EVERY == 0 {
                wait_for_watcher(revision).await;
            }
        }
    }
}

/// Puts a key [`CHANGES_WHILE_BLOCKED`] times, one after the other: concurrent changes would come in one
/// frame. Returns the last revision once etcd has sent it to a watch.
async fn put_repeatedly(etcd: String) -> Revision {
    let mut client = etcd_client::Client::connect([etcd], None).await.unwrap();
    let mut watch = client.watch("/c/b", None).await.unwrap();
    let mut last = 0;
    for _ in 0..CHANGES_WHILE_BLOCKED {
        let put = client.put("/c/b", "2", None).await.unwrap();
        last = put.header().unwrap().revision();
    }
    let is_last = |event: &Event| event.kv().is_some_and(|entry| entry.mod_revision() == last);
    while !watch
        .message()
        .await
        .unwrap()
        .unwrap()
        .events()
        .iter()
        .any(is_last)
    {}
    Revision::new(last)
}

/// Waits until a watcher has received this revision.
pub(crate) async fn wait_for_entries(watcher: &mut EntriesWatcher, revision: Revision) {
    let received = async { while watcher.changed().await.unwrap().revision < revision {} };
    in_time("a change arrives", received).await;
}

/// etcd's own counts of its watches.
pub(crate) fn etcd_watch_counts(etcd: &Etcd) -> Witnesses {
    let address = format!("127.0.0.1:{}", etcd.port());
    Witnesses::new().and_all(Scraped::of_etcd(&address))
}

/// Resolves when the server tries to connect to etcd again, counted from this call. On a busy machine it
/// may have lost etcd by itself before.
pub(crate) fn etcd_loss_detected(server: &InProcessServer) -> impl Future<Output = ()> {
    let metrics = server.metrics.clone();
    let before = metrics.etcd_attempts.get();
    async move {
        let detected = eventually("the server detects that etcd is lost", async || {
            metrics.etcd_attempts.get() > before
        });
        let detected = timeout(LOSS_DETECTED_WITHIN, detected).await;
        assert!(
            detected.is_ok(),
            "the server does not detect within {LOSS_DETECTED_WITHIN:?} that etcd is lost"
        );
    }
}

/// A server's settings, with bounds that are reached early.
pub(crate) fn settings(etcd: &str) -> SettingsBuilder {
    Settings::builder()
        .etcd(etcd)
        .prefix(PREFIX)
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .log_bytes(LOG_BYTES)
        .stall_timeout(STALL_TIMEOUT)
        .audit_interval(None)
}
