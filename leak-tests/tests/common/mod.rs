//! A server in the test's process, on a real socket, so that the tasks and descriptors of both ends are
//! counted.
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

/// How often a server with short client timeouts pings and sends progress: the shortest interval that a
/// server accepts.
const SHORT_INTERVAL: Duration = Duration::from_millis(100);

/// How long such a server waits for a client. On a busy machine a client may be too slow, and reconnects.
const SHORT_CLIENT_TIMEOUT: Duration = Duration::from_millis(100);

/// How much the size of the change log may vary, in bytes: it depends on the sizes of the changes that fit,
/// and a change of 64 KiB counts twice.
const LOG_SLACK: i64 = 256 * 1024;

/// Runs a test in a runtime of its own while no other test runs: descriptors are counted for the whole
/// process.
pub(crate) fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = lock(&ALONE);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test);
}

/// A server in this process, on a socket.
pub(crate) struct InProcessServer {
    pub(crate) metrics: Metrics,
    pub(crate) address: SocketAddr,
    /// Cancelled to break all open connections.
    connections: Arc<Mutex<CancellationToken>>,
    engine: Arc<Engine>,
    _accepting: JoinSet<()>,
}

impl InProcessServer {
    /// Waits until the engine is in sync, and then accepts connections for it.
    pub(crate) async fn start(engine: Engine) -> Self {
        in_time("the server is in sync", engine.ready()).await;
        Self::start_without_sync(engine).await
    }

    /// Accepts connections for the engine.
    async fn start_without_sync(engine: Engine) -> Self {
        let metrics = engine.metrics().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let engine = Arc::new(engine);
        let accepting_engine = Arc::clone(&engine);
        let connections = Arc::new(Mutex::new(CancellationToken::new()));
        let current = Arc::clone(&connections);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // As the whole server does.
                let _ = stream.set_nodelay(true);
                let broken = lock(&current).clone().cancelled_owned();
                let broken = Box::pin(broken);
                accepting_engine.serve(BreakableStream { stream, broken });
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

    /// Serves a connection that is not a socket.
    pub(crate) fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.engine.serve(io);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.url()).unwrap()
    }

    /// A client whose network stalls when `stall` begins.
    pub(crate) fn stalling_client(&self, stall: &Stall) -> Client {
        let builder = Client::builder().endpoint(self.url());
        builder.connector(stall.over_tcp()).build().unwrap()
    }

    /// Breaks all open connections, as if a machine between the two ends had failed.
    pub(crate) fn break_connections(&self) {
        std::mem::take(&mut *lock(&self.connections)).cancel();
    }

    /// The server's gauges of what it holds for its clients, and of its work in progress for them.
    pub(crate) fn gauges(&self) -> Witnesses {
        let metrics = self.metrics.clone();
        let log = bounded_gauge("bytes of the log", LOG_SLACK, move || {
            metrics.log_bytes.get()
        });
        self.client_gauges()
            .and(self.metric("answers", |metrics| metrics.syncs_in_progress.get()))
            .and(self.metric("delta jobs", |metrics| metrics.delta_jobs.get()))
            .and(log)
    }

    /// The server's gauges of what it holds for its clients.
    fn client_gauges(&self) -> Witnesses {
        Witnesses::new()
            .and(self.metric("streams", |metrics| metrics.streams.get()))
            .and(self.metric("scopes", |metrics| metrics.scopes.get()))
            .and(self.metric("connections", |metrics| metrics.connections.get()))
    }

    fn metric(&self, name: &'static str, read: fn(&Metrics) -> i64) -> impl Witness + use<> {
        let metrics = self.metrics.clone();
        gauge(name, move || read(&metrics))
    }

    /// All counts that must return: those of the process, and the server's gauges.
    pub(crate) fn witnesses(&self) -> Witnesses {
        Witnesses::of_the_process().and_those_of(&self.client_gauges())
    }

    /// The counts before a client connects.
    pub(crate) async fn baseline(&self) -> Baseline {
        self.witnesses().baseline().await.unwrap()
    }
}

/// A server of `/c/` on a scripted etcd. `/c/a` is 1 and `/c/b` is 2.
pub(crate) struct Server {
    pub(crate) etcd: ScriptedEtcd,
    server: InProcessServer,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(scripted(), |settings| settings).await
    }

    /// Starts a server whose etcd has this value as well.
    pub(crate) async fn with_value(key: &str, value: impl AsRef<[u8]>) -> Self {
        let etcd = scripted();
        etcd.put(key, value);
        Self::with(etcd, |settings| settings).await
    }

    /// Starts a server that soon disconnects silent clients.
    pub(crate) async fn with_short_client_timeouts() -> Self {
        Self::with(scripted(), |settings| {
            let settings = settings.progress_interval(SHORT_INTERVAL);
            let settings = settings.ping_interval(SHORT_INTERVAL);
            settings.client_timeouts(SHORT_CLIENT_TIMEOUT)
        })
        .await
    }

    /// Starts a server that never reaches etcd.
    pub(crate) async fn without_etcd() -> Self {
        let etcd = ScriptedEtcd::default();
        etcd.disconnect();
        let engine = engine(&etcd, |settings| settings);
        let server = InProcessServer::start_without_sync(engine).await;
        Self { etcd, server }
    }

    async fn with(
        etcd: ScriptedEtcd,
        set: impl FnOnce(SettingsBuilder) -> SettingsBuilder,
    ) -> Self {
        let server = InProcessServer::start(engine(&etcd, set)).await;
        Self { etcd, server }
    }
}

/// A scripted etcd with the keys that each server has.
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
    type Target = InProcessServer;

    fn deref(&self) -> &InProcessServer {
        &self.server
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that fails once its connection is broken.
struct BreakableStream {
    stream: TcpStream,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for BreakableStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for BreakableStream {
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
