//! Both ends in one process, over real sockets, so that the tasks and descriptors of both are counted.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use driftless_client::{Client, KeyRange};
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::scripted::ScriptedEtcd;
use driftless_server::{Engine, Settings, SettingsBuilder};
use driftless_test_support::in_time;
use leak_tests::{Baseline, Stall, Witness, Witnesses, bounded_gauge, gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How often an impatient server pings and sends progress: the least that a server takes.
const IMPATIENT_PING: Duration = Duration::from_millis(100);

/// How long it waits for a client. A client that is too slow, on a busy machine, reconnects.
const IMPATIENT_PATIENCE: Duration = Duration::from_millis(100);

/// How much the size of the change log may vary, in bytes: how many changes fit depends on their sizes,
/// and one of 64 KiB counts twice.
const LOG_SLACK: i64 = 256 * 1024;

/// Runs a test in a runtime of its own while no other runs: descriptors are counted for the whole
/// process.
pub(crate) fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = lock(&ALONE);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A server in this process, on a socket.
pub(crate) struct Serving {
    pub(crate) metrics: Metrics,
    pub(crate) address: SocketAddr,
    /// Cancelled to lose all connections there are.
    connections: Arc<Mutex<CancellationToken>>,
    engine: Arc<Engine>,
    _accepting: JoinSet<()>,
}

impl Serving {
    /// Serves, once it is in sync.
    pub(crate) async fn of(engine: Engine) -> Self {
        in_time("the server is in sync", engine.ready()).await;
        Self::as_it_is(engine).await
    }

    async fn as_it_is(engine: Engine) -> Self {
        let metrics = engine.metrics().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let engine = Arc::new(engine);
        let accepted = Arc::clone(&engine);
        let connections = Arc::new(Mutex::new(CancellationToken::new()));
        let lost = Arc::clone(&connections);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // As the server itself does.
                let _ = stream.set_nodelay(true);
                let lost = lock(&lost).clone().cancelled_owned();
                let lost = Box::pin(lost);
                accepted.serve(Losable { stream, lost });
            }
        });
        Self {
            metrics,
            address,
            connections,
            engine,
            _accepting: accepting,
        }
    }

    /// Serves a connection that is no socket.
    pub(crate) fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.engine.serve(io);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.url()).unwrap()
    }

    /// A client whose network stalls.
    pub(crate) fn stalling_client(&self, stall: &Stall) -> Client {
        let builder = Client::builder().endpoint(self.url());
        builder.connector(stall.over_tcp()).build().unwrap()
    }

    /// Breaks all connections, as if a machine between the two ends had failed.
    pub(crate) fn lose_connections(&self) {
        std::mem::take(&mut *lock(&self.connections)).cancel();
    }

    /// What the server holds for its clients, and its work in progress for them.
    pub(crate) fn gauges(&self) -> Witnesses {
        let metrics = self.metrics.clone();
        let log = bounded_gauge("bytes of the log", LOG_SLACK, move || {
            metrics.log_bytes.get()
        });
        self.held_for_clients()
            .and(self.reads("answers", |metrics| metrics.syncs_in_progress.get()))
            .and(self.reads("delta jobs", |metrics| metrics.delta_jobs.get()))
            .and(log)
    }

    /// What the server holds for its clients.
    fn held_for_clients(&self) -> Witnesses {
        Witnesses::new()
            .and(self.reads("streams", |metrics| metrics.streams.get()))
            .and(self.reads("scopes", |metrics| metrics.scopes.get()))
            .and(self.reads("connections", |metrics| metrics.connections.get()))
    }

    fn reads(&self, name: &'static str, read: fn(&Metrics) -> i64) -> impl Witness + use<> {
        let metrics = self.metrics.clone();
        gauge(name, move || read(&metrics))
    }

    /// What must return at both ends.
    pub(crate) fn witnesses(&self) -> Witnesses {
        Witnesses::of_the_process().and_those_of(&self.held_for_clients())
    }

    /// The counts while nobody watches.
    pub(crate) async fn baseline(&self) -> Baseline {
        self.witnesses().baseline().await.unwrap()
    }
}

/// A server of `/c/` over a model of etcd; `/c/a` is 1 and `/c/b` is 2.
pub(crate) struct Server {
    pub(crate) etcd: ScriptedEtcd,
    serving: Serving,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::of(scripted(), |settings| settings).await
    }

    /// One that has this value as well from the start.
    pub(crate) async fn holding(key: &str, value: impl AsRef<[u8]>) -> Self {
        let etcd = scripted();
        etcd.put(key, value);
        Self::of(etcd, |settings| settings).await
    }

    /// One that soon disconnects clients that do nothing.
    pub(crate) async fn impatient() -> Self {
        Self::of(scripted(), |settings| {
            let settings = settings.progress_interval(IMPATIENT_PING);
            let settings = settings.ping_interval(IMPATIENT_PING);
            settings.client_timeouts(IMPATIENT_PATIENCE)
        })
        .await
    }

    /// One whose etcd is never there.
    pub(crate) async fn without_etcd() -> Self {
        let etcd = ScriptedEtcd::default();
        etcd.disconnect();
        let serving = Serving::as_it_is(engine(&etcd, |settings| settings)).await;
        Self { etcd, serving }
    }

    async fn of(etcd: ScriptedEtcd, set: impl FnOnce(SettingsBuilder) -> SettingsBuilder) -> Self {
        let serving = Serving::of(engine(&etcd, set)).await;
        Self { etcd, serving }
    }
}

/// A model of etcd with the keys that each server has.
fn scripted() -> ScriptedEtcd {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    etcd.put("/c/b", "2");
    etcd
}

fn engine(etcd: &ScriptedEtcd, set: impl FnOnce(SettingsBuilder) -> SettingsBuilder) -> Engine {
    let prefix = KeyRange::prefix("/c/").unwrap();
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/");
    let settings = set(settings).build().unwrap();
    let (handle, requests) = SourceHandle::channel();
    let source = etcd.source(prefix.clone(), requests);
    Engine::start(&settings, Metrics::new(), [(prefix, source, handle)])
}

impl std::ops::Deref for Server {
    type Target = Serving;

    fn deref(&self) -> &Serving {
        &self.serving
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that ends when its connection is lost.
struct Losable {
    stream: TcpStream,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Losable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.lost.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Losable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
