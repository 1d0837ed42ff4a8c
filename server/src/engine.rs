//! All of a server but its ports and etcd: ingest, fan-out, sessions and gRPC.
//!
//! It owns every task that it causes: one ingest task a prefix, one a connection, which serves all its
//! streams, and those that keep health, admission and slow consumers.

use std::time::Duration;

use driftless_proto::KeyRange;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::delta::JobPool;
use crate::encode::PinnedStates;
use crate::fanout::{self, fanout};
use crate::ingest;
use crate::metrics::Metrics;
use crate::net::Tls;
use crate::service::{ConnectionLimits, Connections, Intervals, Served, Service, Timeouts};
use crate::session::Registry;
use crate::settings::Settings;
use crate::source::{Source, SourceHandle};

/// A server without ports and without etcd: it takes any sources and any connections.
/// [`Server`](crate::Server) is one over etcd and TCP.
///
/// Dropping it ends everything at once: connections are closed, without the goodbye that
/// [`Engine::shut_down`] says.
///
/// # Examples
/// A source that reports one state, and a client over an in-memory pipe:
///
/// ```
/// use std::time::Duration;
///
/// use driftless_proto::{Epoch, KeyRange, Revision};
/// use driftless_server::source::{History, SourceHandle, State, Update};
/// use driftless_server::{Engine, Metrics, Settings, Source};
///
/// /// Reports its state once, and then that nothing changes.
/// struct Fixed(Option<State>);
///
/// impl Source for Fixed {
///     async fn next(&mut self) -> Update {
///         match self.0.take() {
///             Some(state) => Update::State(state),
///             None => std::future::pending().await,
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // The engine uses neither the address nor etcd; the settings require both to be named.
/// let settings = Settings::builder()
///     .etcd("http://127.0.0.1:2379")
///     .prefix("/config/")
///     .build()?;
/// let state = State {
///     epoch: Epoch::of_cluster(1, ""),
///     revision: Revision::new(7),
///     entries: Vec::new(),
///     history: History::Continues,
///     asked_at: Some(tokio::time::Instant::now()),
/// };
/// // The other end of the handle receives requests to the source, which this one never answers.
/// let (handle, _requests) = SourceHandle::channel();
/// let sources = [(KeyRange::prefix("/config/")?, Fixed(Some(state)), handle)];
/// let engine = Engine::start(&settings, Metrics::new(), sources);
/// engine.ready().await;
///
/// // Give `client` to a gRPC client; it speaks HTTP/2.
/// let (client, server) = tokio::io::duplex(64 * 1024);
/// engine.serve(server);
/// assert_eq!(engine.sessions().connections().count(), 1);
///
/// drop(client);
/// let closed_late = engine.shut_down(Duration::from_secs(5)).await;
/// assert_eq!(closed_late, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Engine {
    service: Service,
    metrics: Metrics,
    connections: Connections,
    tasks: JoinSet<String>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.connections.drain();
        self.connections.close_all();
    }
}

impl Engine {
    /// Starts one task a source, and those that the engine needs itself; they end with the engine. Of
    /// `settings`, the addresses, the TLS files, the prefixes and etcd's URLs are not used.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start<S: Source>(
        settings: &Settings,
        metrics: Metrics,
        sources: impl IntoIterator<Item = (KeyRange, S, SourceHandle)>,
    ) -> Self {
        let sources: Vec<_> = sources.into_iter().collect();
        // One budget for the server; each prefix has an equal share of it.
        let log_bytes = settings.log_bytes() / sources.len().max(1);
        let fanout_limits = fanout::Limits {
            log_bytes,
            progress_interval: settings.progress_interval(),
            pinned: PinnedStates::new(settings.pinned_bytes(), metrics.clone()),
        };
        let limits = ingest::Limits {
            audit_interval: settings.audit_interval(),
            jobs: JobPool::new(metrics.clone()),
        };
        let origin = Instant::now();
        let mut served = Vec::new();
        let mut tasks = JoinSet::new();
        for (prefix, source, handle) in sources {
            let handle = ingest::Handle::new(handle);
            let limits_of_fanout = fanout_limits.clone();
            let (publisher, fanout) =
                fanout(prefix.clone(), limits_of_fanout, metrics.clone(), origin);
            served.push(Served {
                fanout,
                ingest: handle.clone(),
            });
            let limits = limits.clone();
            tasks.spawn(async move {
                ingest::run(source, handle, publisher, limits).await;
                format!("ingest of {prefix}")
            });
        }
        let intervals = Intervals {
            progress: settings.progress_interval(),
            ping: settings.ping_interval(),
            report: settings.report_interval(),
        };
        let service = Service::new(served, intervals, settings.stall_timeout(), metrics.clone());
        let limits = ConnectionLimits {
            connections: settings.max_connections(),
            // Within its bounds, which fit.
            streams: u32::try_from(settings.max_streams_per_connection()).unwrap_or(u32::MAX),
        };
        let connections = Connections::new(service.clone(), limits);
        let timeouts = settings.client_timeouts().map(Timeouts::all);
        let connections = connections.with_timeouts(timeouts.unwrap_or_default());
        let mut engine = Self {
            service,
            metrics,
            connections,
            tasks,
        };
        let health = engine.service.clone();
        engine.spawn("health", async move { health.keep_health().await });
        let admission = engine.service.clone();
        engine.spawn("admission", async move { admission.run_admission().await });
        let relief = engine.service.clone();
        engine.spawn(
            "memory relief",
            async move { relief.relieve_memory().await },
        );
        let service = engine.service.clone();
        engine.spawn("slow consumers", async move {
            service.close_slow_consumers().await;
        });
        engine
    }

    /// Who is connected: each connection and stream, with who it is, how far it is and what its client
    /// reported. To be read only.
    pub fn sessions(&self) -> &Registry {
        self.service.sessions()
    }

    /// What the server counts.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) const fn service(&self) -> &Service {
        &self.service
    }

    pub(crate) const fn connections(&self) -> &Connections {
        &self.connections
    }

    /// Serves every connection from now on over TLS. Default: none.
    pub(crate) fn set_tls(&mut self, tls: Tls) {
        self.connections.set_tls(tls);
    }

    /// Serves one connection over anything that reads and writes, such as an in-memory pipe: HTTP/2
    /// without TLS. The task that it spawns ends with the connection, or with the engine.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.connections.serve(io);
    }

    /// Waits until every prefix has its first state.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn ready(&self) {
        self.service.ready().await;
    }

    /// Says goodbye on every stream, and closes the connections that have not ended after `within`.
    /// Returns how many had to be closed. Nothing is left of the engine then.
    ///
    /// # Cancel safety
    /// Dropping the future closes what is left at once.
    pub async fn shut_down(mut self, within: Duration) -> usize {
        let cut_off = self.connections.shut_down(sleep(within)).await;
        // Ingest last, so that the streams' last words are true; dropping a source ends its watch.
        self.tasks.shutdown().await;
        cut_off
    }

    /// A task that ends only when the engine drops it.
    pub(crate) fn spawn(&mut self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.to_owned();
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a task has ended, which none should. Returns which, and how.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn task_ended(&mut self) -> (String, String) {
        match self.tasks.join_next().await {
            Some(Ok(task)) => (task, "it returned".to_owned()),
            Some(Err(error)) => ("some".to_owned(), error.to_string()),
            None => ("every".to_owned(), "none was started".to_owned()),
        }
    }
}
