//! A real etcd, a server of it in this process, and what both count.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use driftless_client::{KeyRange, Revision};
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::etcd::{EtcdConfig, EtcdSource};
use driftless_server::{Engine, ServeError, Server, Settings, SettingsBuilder};
use driftless_test_support::{Etcd, eventually, http, in_time};
use etcd_client::{Error, Event, ResponseHeader, Txn, TxnOp};
use leak_tests::{Scraped, Witnesses};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::busy::Busy;
use crate::common::Serving;

/// What is served.
pub(crate) const PREFIX: &str = "/c/";

/// The least that a server takes, in bytes: it is to be full early.
const LOG: usize = 1024 * 1024;

/// How many changes fill what a watched range remembers of them, with some to spare. With values as
/// long as [`padded`] makes them, they fill the change log as well.
const FILL_LOG: u64 = 1_100;

/// How long such a value is, in bytes.
const PADDED: usize = 512;

/// A value that is large enough for its changes to travel as deltas, in bytes.
pub(crate) const LARGE: usize = 64 * 1024;

/// So many changes are told one by one, to a watcher that is behind, and in less time than if each were
/// waited for.
const AT_ONCE: u64 = 100;

/// So many changes are more than any scenario lets wait at once, and mostly take less time than an etcd
/// that says nothing is missed in.
const FAR_BEHIND: usize = 100;

/// How often that is tried where it takes longer.
const FALLS: u32 = 20;

/// What an operation of a transaction costs etcd, in bytes, about.
const AN_OPERATION: usize = 256;

/// How many deleted keys a server remembers, with some to spare.
const GRAVES: u64 = 70_000;

/// How many times [`Keys::pass`] has to be called until it remembers no more of them.
pub(crate) const FILL_GRAVES: u64 = GRAVES / TRANSACTION;

/// How many keys come and go in a transaction: not quite the 128 operations that etcd takes.
const TRANSACTION: u64 = 120;

/// How often etcd is asked for a sign of life: it is to be missed early, after three times as long.
const CONTACT: Duration = Duration::from_millis(50);

/// How long the server waits at most before it tries etcd again: that it is there again is to be noticed
/// at once, however often it was lost.
const RETRY: Duration = Duration::from_millis(40);

/// How long etcd may be silent until it is missed: by far longer than three signs of life, and shorter
/// than HTTP/2's own check takes, which would notice as well.
const MISSED_WITHIN: Duration = Duration::from_secs(10);

/// How long a client may leave unread what is sent to it: the least that a server takes.
const STALL: Duration = Duration::from_secs(1);

/// After so many bytes have been written, etcd may forget what was overwritten: its disk is not what is
/// measured, and it refuses more than 2 GiB.
const COMPACT_EVERY: usize = 64 * 1024 * 1024;

/// How many revisions it keeps all the same: more than anybody here is behind.
const KEPT: i64 = 2_000;

/// A server over a real etcd.
pub(crate) struct Real {
    pub(crate) etcd: Etcd,
    pub(crate) keys: Keys,
    pub(crate) serving: Serving,
}

impl std::ops::Deref for Real {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.serving
    }
}

impl Real {
    /// `/c/a` is 1 and `/c/b` is 2.
    pub(crate) async fn start() -> Self {
        let etcd = Etcd::started().await;
        let config = EtcdConfig::new([etcd.url()]);
        Self::with(etcd, config).await
    }

    /// The server soon misses an etcd that is not there, and soon finds it again. Now and then it misses
    /// one that is busy.
    pub(crate) async fn watchful() -> Self {
        let etcd = Etcd::started().await;
        let reached_at = etcd.url();
        Self::watchful_over(etcd, &reached_at).await
    }

    /// The same, and the server reaches etcd at another address.
    pub(crate) async fn watchful_over(etcd: Etcd, reached_at: &str) -> Self {
        let mut config = EtcdConfig::new([reached_at]);
        config.progress_interval = CONTACT;
        config.retry_within = RETRY;
        Self::with(etcd, config).await
    }

    /// The server compares its state with etcd's so often.
    pub(crate) async fn audited(every: Duration) -> Self {
        let etcd = Etcd::started().await;
        let config = EtcdConfig::new([etcd.url()]);
        let settings = settings(&etcd.url()).audit_interval(Some(every));
        Self::of(etcd, config, settings).await
    }

    async fn with(etcd: Etcd, config: EtcdConfig) -> Self {
        let settings = settings(&config.endpoints[0]);
        Self::of(etcd, config, settings).await
    }

    async fn of(etcd: Etcd, config: EtcdConfig, settings: SettingsBuilder) -> Self {
        let mut keys = Keys::of(&etcd).await;
        keys.put("/c/a", "1").await;
        keys.put("/c/b", "2").await;
        let prefix = KeyRange::prefix(PREFIX).unwrap();
        let metrics = Metrics::new();
        let settings = settings.build().unwrap();
        let (handle, requests) = SourceHandle::channel();
        let source = EtcdSource::new(prefix.clone(), config, metrics.clone(), requests).unwrap();
        let engine = Engine::start(&settings, metrics, [(prefix, source, handle)]);
        let serving = Serving::of(engine).await;
        let world = Self {
            etcd,
            keys,
            serving,
        };
        world.falls_behind().await;
        world
    }

    /// The server is further behind than it will ever be. HTTP/2 keeps the frames of a connection that
    /// were not looked at yet in a table, which doubles whenever there are more than ever: how many there
    /// are is a matter of chance otherwise, and of how busy the machine is.
    pub(crate) async fn falls_behind(&self) {
        for _ in 0..FALLS {
            let before = self.metrics.etcd_attempts.get();
            self.is_held_up().await;
            // On a busy machine that may take so long that etcd is missed: what has its room then is the
            // connection of before.
            if self.metrics.etcd_attempts.get() == before {
                return;
            }
        }
        panic!("etcd was missed {FALLS} times while the server was held up");
    }

    /// Its runtime does nothing while much is written, and then it hears of that.
    async fn is_held_up(&self) {
        let mut busy = Busy::workers();
        let endpoint = self.etcd.url();
        let revision = busy.meanwhile("etcd changes often", changes_often(endpoint));
        // It reads all that etcd said before it looks at any of that.
        busy.let_one_go();
        let client = self.client();
        let watching = client.entries("/c/b").into_future();
        let mut watcher = in_time("a first state", watching).await.unwrap();
        let hears = async {
            while watcher.load().revision() < revision {
                watcher.changed().await.unwrap();
            }
        };
        in_time("the server hears of what was written", hears).await;
    }

    /// So many large values, which the server has heard of when this returns.
    pub(crate) async fn hold_much(&mut self, values: u64) {
        self.keys.put_much(0, values).await;
        let client = self.client();
        let last = format!("/c/much/{:03}", values - 1);
        let watching = client.entries(last.as_str()).into_future();
        let mut watcher = in_time("a first state", watching).await.unwrap();
        let heard = async {
            while watcher.load().is_empty() {
                watcher.changed().await.unwrap();
            }
        };
        in_time("the server hears of what was written", heard).await;
    }

    /// How many changes the server has heard of.
    pub(crate) fn heard(&self) -> u64 {
        self.metrics.changes.get()
    }

    /// Waits until it has heard of so many.
    pub(crate) async fn hears(&self, changes: u64) {
        eventually("the server hears of what was written", async || {
            self.heard() >= changes
        })
        .await;
    }

    /// What etcd has to say of its watches.
    pub(crate) fn etcds_watches(&self) -> Witnesses {
        etcds_watches(&self.etcd)
    }

    /// Until the server keeps as much of what changed as it ever will, every change adds to it. Who
    /// watches waits for some at a time: what is kept of one that nobody was told of is less.
    pub(crate) async fn fill_log(&mut self, key: &str, mut reach: impl AsyncFnMut(Revision)) {
        for number in 1..=FILL_LOG {
            let revision = self.keys.put(key, padded("0")).await;
            if number % AT_ONCE == 0 {
                reach(revision).await;
            }
        }
    }
}

/// A key is put [`FAR_BEHIND`] times, one after the other: what changes faster than etcd tells of it comes
/// in one frame. Returns at which revision it was put last, once etcd has told of that.
async fn changes_often(etcd: String) -> Revision {
    let mut client = etcd_client::Client::connect([etcd], None).await.unwrap();
    let mut told = client.watch("/c/b", None).await.unwrap();
    let mut last = 0;
    for _ in 0..FAR_BEHIND {
        let put = client.put("/c/b", "2", None).await.unwrap();
        last = put.header().unwrap().revision();
    }
    let is_last = |event: &Event| event.kv().is_some_and(|entry| entry.mod_revision() == last);
    while !told
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

/// A whole server, in this process, with its admin endpoint.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    pub(crate) admin: SocketAddr,
    stop: CancellationToken,
    running: JoinSet<Result<(), ServeError>>,
}

impl Running {
    /// Of these settings, once it is in sync.
    pub(crate) async fn start(settings: SettingsBuilder) -> Self {
        let settings = settings.admin((Ipv4Addr::LOCALHOST, 0).into());
        let server = Server::bind(settings.build().unwrap()).await.unwrap();
        let address = server.local_addr();
        let scheme = if server.is_tls() { "https" } else { "http" };
        let admin = server.admin_addr().unwrap();
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(server.run(stop.clone()));
        eventually("the server is in sync", || is_ready(admin)).await;
        Self {
            address,
            scheme,
            admin,
            stop,
            running,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Asks it whether it is in sync.
    pub(crate) async fn is_ready(&self) -> bool {
        is_ready(self.admin).await
    }

    /// Its metrics, from its admin endpoint.
    pub(crate) async fn metrics(&self) -> String {
        let page = http::get_async(self.admin, "/metrics").await;
        page.expect("it answers").1
    }

    /// What it shows of itself, and how much. Asking takes a connection to it, in this process.
    pub(crate) fn shows(&self) -> Witnesses {
        let address = self.admin.to_string();
        Witnesses::new()
            .and_all(Scraped::of_server(&address))
            .and(Scraped::series(address))
    }

    /// Shuts it down, and waits until it is.
    pub(crate) async fn stop(self) {
        self.ended().await.unwrap();
    }

    /// The same where it may have to cut off somebody.
    pub(crate) async fn ended(mut self) -> Result<(), ServeError> {
        self.stop.cancel();
        let ended = in_time("the server ends", self.running.join_next()).await;
        ended.unwrap().unwrap()
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    let page = http::get_async(admin, "/readyz").await;
    page.is_some_and(|(status, _)| status == 200)
}

/// What etcd has to say of its watches.
pub(crate) fn etcds_watches(etcd: &Etcd) -> Witnesses {
    let address = format!("127.0.0.1:{}", etcd.port());
    Witnesses::new().and_all(Scraped::of_etcd(&address))
}

/// Waits until the server has missed etcd, from now on: it tries to reach it again. It may have lost it
/// before by itself, on a busy machine.
pub(crate) fn etcd_is_missed(serving: &Serving) -> impl Future<Output = ()> {
    let metrics = serving.metrics.clone();
    let before = metrics.etcd_attempts.get();
    async move {
        let missed = eventually("etcd is missed", async || {
            metrics.etcd_attempts.get() > before
        });
        let missed = timeout(MISSED_WITHIN, missed).await;
        assert!(
            missed.is_ok(),
            "etcd is not missed within {MISSED_WITHIN:?}"
        );
    }
}

/// Settings whose bounds are reached early.
pub(crate) fn settings(etcd: &str) -> SettingsBuilder {
    Settings::builder()
        .etcd(etcd)
        .prefix(PREFIX)
        .listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .log_bytes(LOG)
        .stall_timeout(STALL)
        .audit_interval(None)
}

/// A [`Padded`] whose number is this text, as long as any other: what is kept of one takes the place
/// of another.
pub(crate) fn padded(number: &str) -> String {
    let start = format!("{{\"number\":{number},\"pad\":\"");
    let pad = PADDED - start.len() - 2;
    format!("{start}{:pad$}\"}}", "")
}

/// A value, as a service has it.
#[derive(serde::Deserialize)]
pub(crate) struct Padded {
    pub(crate) number: u64,
}

/// Writes to etcd as an admin does.
pub(crate) struct Keys {
    client: etcd_client::Client,
    /// Bytes since etcd was told to forget.
    written: usize,
}

impl Keys {
    pub(crate) async fn of(etcd: &Etcd) -> Self {
        Self {
            client: etcd.client().await,
            written: 0,
        }
    }

    /// Returns at which revision.
    pub(crate) async fn put(&mut self, key: &str, value: impl Into<Vec<u8>>) -> Revision {
        self.try_put(key, value).await.unwrap()
    }

    /// The same where etcd may be away.
    pub(crate) async fn try_put(
        &mut self,
        key: &str,
        value: impl Into<Vec<u8>>,
    ) -> Result<Revision, Error> {
        let value = value.into();
        self.written += value.len();
        let answer = self.client.put(key, value, None).await?;
        Ok(self.wrote(answer.header()).await)
    }

    /// Returns at which revision. etcd forgets what is old now and then, or its disk would be full.
    async fn wrote(&mut self, header: Option<&ResponseHeader>) -> Revision {
        let revision = header.map(ResponseHeader::revision).unwrap();
        if self.written > COMPACT_EVERY {
            self.written = 0;
            // Another time, where etcd is away by now, or has not so many.
            let _ = self.client.compact(revision - KEPT, None).await;
        }
        Revision::new(revision)
    }

    /// So many large values, in keys of their own: of one key only the last would be sent.
    pub(crate) async fn put_much(&mut self, round: u64, values: u64) {
        for number in 0..values {
            // Nothing that a delta would make small.
            let mut seed = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number;
            let mut value = Vec::with_capacity(LARGE);
            while value.len() < LARGE {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // The upper half is the better one.
                value.extend_from_slice(&seed.to_be_bytes()[..4]);
            }
            self.put(&format!("/c/much/{number:03}"), value).await;
        }
    }

    /// Deletes a key where etcd may be away.
    pub(crate) async fn try_delete(&mut self, key: &str) -> Result<(), Error> {
        self.client.delete(key, None).await.map(drop)
    }

    /// Keys that nobody had come and go: in one transaction, and in another. Returns when they are
    /// gone. Their names are as long as those of any other number.
    pub(crate) async fn pass(&mut self, number: u64) -> Revision {
        self.try_pass(number).await.unwrap()
    }

    /// The same where etcd may be away.
    pub(crate) async fn try_pass(&mut self, number: u64) -> Result<Revision, Error> {
        let name = |n| format!("/c/passing/{number:020}/{n:03}");
        let puts = (0..TRANSACTION).map(|n| TxnOp::put(name(n), "v", None));
        self.transaction(puts).await?;
        let deletes = (0..TRANSACTION).map(|n| TxnOp::delete(name(n), None));
        // Who saw neither of the two has something to see all the same.
        let mark = TxnOp::put("/c/passed", format!("{number:020}"), None);
        self.transaction(deletes.chain([mark])).await
    }

    /// So many small changes at once, each by itself.
    pub(crate) async fn burst(&self, changes: usize) {
        let mut putting = JoinSet::new();
        for number in 0..changes {
            let mut client = self.client.clone();
            putting.spawn(async move {
                let key = format!("/c/burst/{number:03}");
                client.put(key, "v", None).await.unwrap();
            });
        }
        putting.join_all().await;
    }

    async fn transaction(
        &mut self,
        operations: impl IntoIterator<Item = TxnOp>,
    ) -> Result<Revision, Error> {
        let operations: Vec<_> = operations.into_iter().collect();
        self.written += operations.len() * AN_OPERATION;
        let asked = Txn::new().and_then(operations);
        let answer = self.client.txn(asked).await?;
        Ok(self.wrote(answer.header()).await)
    }
}
