//! The server as a whole: bind, serve, shut down.
//!
//! It owns every task that it causes: one ingest task a prefix, the accept loop, the admin endpoint,
//! the one that looks at certificates, and one task a connection, which serves all its streams.
//! [`Server::run`] ends when its shutdown token is cancelled, and then nothing is left of it, at etcd
//! neither.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use driftless_proto::KeyRange;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::delta::JobPool;
use crate::fanout::{self, fanout};
use crate::ingest;
use crate::metrics::Metrics;
use crate::net::{self, NamedFile, Reloader, Tls, TlsError, listen};
use crate::ops;
use crate::service::{Connections, Intervals, Served, Service, Timeouts};
use crate::session::Registry;
use crate::settings::{self, Setting, Settings};
use crate::source::etcd::{EtcdConfig, EtcdConfigError, EtcdSource};
use crate::source::{Source, SourceHandle};

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("{setting}: cannot listen on {address}: {source}; {}", advice(source))]
    Listen {
        /// Which setting names it.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A file of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// etcd's endpoints are not usable.
    #[error(transparent)]
    Etcd(#[from] EtcdConfigError),
}

/// What to do about an address that cannot be listened on.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop what listens there, or choose another port",
        io::ErrorKind::AddrNotAvailable => {
            "choose an address of this machine, or 0.0.0.0 for all that it has"
        }
        io::ErrorKind::PermissionDenied => "choose a port above 1023",
        _ => "choose another address",
    }
}

/// The files as [`net`] takes them, which knows no settings.
pub(crate) fn tls_files(files: &settings::TlsFiles) -> net::TlsFiles {
    let named = |setting: Setting, path: &Path| NamedFile {
        setting: setting.name(),
        path: path.to_owned(),
    };
    net::TlsFiles {
        cert: named(Setting::TlsCert, files.cert()),
        key: named(Setting::TlsKey, files.key()),
        client_ca: files
            .client_ca()
            .map(|path| named(Setting::TlsClientCa, path)),
    }
}

/// Why a server stopped by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A task that ends only with the server has ended: a bug.
    #[error("the {task} task ended by itself: {reason}")]
    Task {
        /// Which.
        task: String,
        /// How.
        reason: String,
    },
    /// Connections had to be cut off when the drain timeout was over.
    #[error("{connections} connections did not end in time and were cut off")]
    CutOff {
        /// How many.
        connections: usize,
    },
}

/// A server that is bound and not running yet.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    listener: TcpListener,
    local: SocketAddr,
    admin: Option<(TcpListener, SocketAddr)>,
    tls: Option<(Tls, Reloader)>,
    metrics: Metrics,
    sources: Vec<(KeyRange, EtcdSource, SourceHandle)>,
}

impl Server {
    /// Reads the files of TLS and binds the addresses. Leaves no task running, and does not look for
    /// etcd yet.
    ///
    /// # Errors
    /// When a file of TLS cannot be used, an address is in use or not of this machine, or etcd's URLs
    /// cannot work.
    ///
    /// # Cancel safety
    /// Cancel-safe: what was bound is closed.
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        let bind = |setting, address| {
            let bound = listen(address).and_then(|listener| Ok((listener.local_addr()?, listener)));
            bound.map_err(|source| StartError::Listen {
                setting,
                address,
                source,
            })
        };
        let tls = match settings.tls() {
            Some(files) => Some(net::load_tls(tls_files(files)).await?),
            None => None,
        };
        let (local, listener) = bind("listen", settings.listen())?;
        let admin = settings
            .admin()
            .map(|address| bind("admin", address))
            .transpose()?;
        let admin = admin.map(|(address, listener)| (listener, address));
        let metrics = Metrics::new();
        let mut config = EtcdConfig::new(settings.etcd().iter().cloned());
        config.generation = settings.generation().to_owned();
        let source = |prefix: &KeyRange| {
            let (handle, requests) = SourceHandle::channel();
            let source =
                EtcdSource::new(prefix.clone(), config.clone(), metrics.clone(), requests)?;
            Ok::<_, StartError>((prefix.clone(), source, handle))
        };
        let sources = settings.prefixes().iter().map(source);
        let sources = sources.collect::<Result<_, _>>()?;
        Ok(Self {
            settings,
            listener,
            local,
            admin,
            tls,
            metrics,
            sources,
        })
    }

    /// Where gRPC is served, with the real port.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether gRPC is served over TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Where health and metrics are served, with the real port.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown` is cancelled; then says goodbye on every stream and returns once
    /// everything has ended, after the drain timeout at the latest.
    ///
    /// # Errors
    /// When connections had to be cut off, or there is a bug.
    ///
    /// # Cancel safety
    /// Dropping it ends everything at once: connections are cut off, without a goodbye.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let mut engine = Engine::start(&self.settings, self.metrics, self.sources);
        if let Some((tls, reloader)) = self.tls {
            engine.connections.lay_tls(tls);
            engine.spawn("tls", reloader.run());
        }
        let connections = engine.connections.clone();
        let listener = self.listener;
        engine.spawn("accept", async move { connections.accept(listener).await });
        if let Some((listener, _)) = self.admin {
            let app = ops::router(engine.service.clone(), engine.metrics.clone());
            engine.spawn("admin", async move { ops::serve(listener, app).await });
        }
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = engine.ended() => Err(ended),
        };
        let cut_off = engine.shut_down(self.settings.drain_timeout()).await;
        ended?;
        match cut_off {
            0 => Ok(()),
            connections => Err(ServeError::CutOff { connections }),
        }
    }
}

/// The inside of a server, over any sources and any connections: [`Server`] is one over etcd and
/// TCP. Dropping it ends everything at once: connections are cut off, without the goodbye that
/// [`Engine::shut_down`] says.
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
        self.connections.cut_off();
    }
}

impl Engine {
    /// Starts a task for each source. Of `settings`, the addresses, the files of TLS and etcd's URLs are
    /// not used.
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
        };
        let limits = ingest::Limits {
            audit_interval: settings.audit_interval(),
            jobs: JobPool::new(metrics.clone()),
        };
        let origin = Instant::now();
        let mut served = Vec::new();
        let mut tasks = JoinSet::new();
        for (prefix, source, handle) in sources {
            let (publisher, fanout) =
                fanout(prefix.clone(), fanout_limits, metrics.clone(), origin);
            served.push(Served {
                fanout,
                ingest: ingest::Handle::new(handle.clone()),
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
        let connections = Connections::new(service.clone(), settings.max_connections());
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
        let service = engine.service.clone();
        engine.spawn("slow consumers", async move {
            service.close_slow_consumers().await;
        });
        engine
    }

    /// Who is connected, to be read: what an admin's questions will be answered from.
    pub fn sessions(&self) -> &Registry {
        self.service.sessions()
    }

    /// The server's counters.
    pub const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    #[cfg(test)]
    pub(crate) const fn service(&self) -> &Service {
        &self.service
    }

    #[cfg(test)]
    pub(crate) fn lay_tls(&mut self, tls: Tls) {
        self.connections.lay_tls(tls);
    }

    /// Serves one connection, in a task that ends with it.
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

    /// Ends everything: goodbyes first, and what has not ended after `within` is cut off. Returns how
    /// many connections had to be.
    ///
    /// # Cancel safety
    /// Dropping it cuts off what is left.
    pub async fn shut_down(mut self, within: Duration) -> usize {
        let cut_off = self.connections.shut_down(sleep(within)).await;
        // Ingest last, so that the streams' last words are true; dropping a source ends its watch.
        self.tasks.shutdown().await;
        cut_off
    }

    /// A task that ends only when the engine drops it.
    fn spawn(&mut self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let name = name.to_owned();
        self.tasks.spawn(async move {
            task.await;
            name
        });
    }

    /// Which of the tasks has ended, which none should.
    async fn ended(&mut self) -> ServeError {
        match self.tasks.join_next().await {
            Some(Ok(task)) => ServeError::Task {
                task,
                reason: "it returned".to_owned(),
            },
            Some(Err(error)) => ServeError::Task {
                task: "some".to_owned(),
                reason: error.to_string(),
            },
            None => ServeError::Task {
                task: "every".to_owned(),
                reason: "none was started".to_owned(),
            },
        }
    }
}
