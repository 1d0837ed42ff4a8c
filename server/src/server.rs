//! The server as a whole: an [`Engine`] over etcd and TCP. Binds, serves, shuts down.
//!
//! It adds to the engine's tasks the accept loop, the admin endpoint and the one that reloads
//! certificates. [`Server::run`] ends when its shutdown token is cancelled, and then nothing is left of
//! it, here or at etcd.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use driftless_proto::KeyRange;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::memory::{Monitor, Pressure, Resident, cgroup_limit};
use crate::metrics::Metrics;
use crate::net::{self, NamedFile, Reloader, Tls, TlsError, listen};
use crate::ops;
use crate::settings::{self, MemoryLimit, Setting, Settings};
use crate::source::SourceHandle;
use crate::source::etcd::{EtcdConfig, EtcdConfigError, EtcdSource};

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
    /// A TLS file cannot be used.
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

/// The TLS files for [`net`], which knows no settings.
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

/// Why a server stopped without being told to, or not in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A task ended that should end only with the server: a bug.
    #[error("the {task} task ended unexpectedly: {reason}; this is a bug")]
    Task {
        /// Which.
        task: String,
        /// How.
        reason: String,
    },
    /// Connections had not ended by the drain timeout, and were cut off.
    #[error("{connections} connections did not end in time and were cut off")]
    CutOff {
        /// How many.
        connections: usize,
    },
}

/// What reads the memory of the process, if that has a limit. The gauge says which.
///
/// A server has one and an engine has none: the memory is that of the whole process.
fn memory_monitor(settings: &Settings, pressure: Pressure, metrics: Metrics) -> Option<Monitor> {
    let limit = match settings.memory_limit() {
        MemoryLimit::Off => return None,
        MemoryLimit::Bytes(limit) => limit,
        MemoryLimit::Cgroup => cgroup_limit().or_else(|| {
            tracing::debug!(
                "there is no memory limit: the cgroup has none, and memory_limit is not set"
            );
            None
        })?,
    };
    match Resident::open() {
        Ok(resident) => {
            tracing::debug!(bytes = limit, "the memory of the process is limited");
            Some(Monitor::new(resident, limit, pressure, metrics))
        }
        Err(error) => {
            tracing::warn!(%error, "the resident memory cannot be read; there is no memory limit");
            None
        }
    }
}

/// A server over etcd and TCP, bound and not running yet.
///
/// # Examples
/// etcd need not be there: the server looks for it until it finds it.
///
/// ```
/// use driftless_server::{Server, Settings};
/// use tokio_util::sync::CancellationToken;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let settings = Settings::builder()
///     .etcd("http://127.0.0.1:2379")
///     .prefix("/config/")
///     .listen(([127, 0, 0, 1], 0).into())
///     .build()?;
/// let server = Server::bind(settings).await?;
/// println!("serving gRPC on {}", server.local_addr());
///
/// let shutdown = CancellationToken::new();
/// let stop = shutdown.clone();
/// // A real server would cancel it when it gets a signal.
/// tokio::spawn(async move { stop.cancel() });
/// server.run(shutdown).await?;
/// # Ok(())
/// # }
/// ```
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
    /// Reads the TLS files and binds the addresses. Starts no task, and does not connect to etcd yet.
    ///
    /// # Errors
    /// When a TLS file cannot be used, an address is in use or not one of this machine, or etcd's URLs
    /// cannot be used.
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
        // More would not fit in the prefix's share of the log.
        config.backfill_bytes = settings.log_bytes() / settings.prefixes().len().max(1);
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

    /// The address that gRPC is served on, with the port that was bound.
    pub const fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Whether gRPC is served over TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The address that health and metrics are served on, with the port that was bound. `None` when they
    /// are not served.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(_, address)| *address)
    }

    /// Serves until `shutdown` is cancelled. Then it says goodbye on every stream and returns once
    /// everything has ended, after the drain timeout at the latest.
    ///
    /// # Errors
    /// When connections had to be cut off, or a task ended that should not.
    ///
    /// # Cancel safety
    /// Dropping the future ends everything at once: connections are closed, without a goodbye.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let mut engine = Engine::start(&self.settings, self.metrics, self.sources);
        if let Some((tls, reloader)) = self.tls {
            engine.set_tls(tls);
            engine.spawn("tls", reloader.run());
        }
        let connections = engine.connections().clone();
        let listener = self.listener;
        engine.spawn("accept", async move { connections.accept(listener).await });
        if let Some((listener, _)) = self.admin {
            let app = ops::router(engine.service().clone(), engine.metrics().clone());
            engine.spawn("admin", async move { ops::serve(listener, app).await });
        }
        let pressure = engine.service().sessions().pressure().clone();
        if let Some(monitor) = memory_monitor(&self.settings, pressure, engine.metrics().clone()) {
            engine.spawn("memory", monitor.run());
        }
        let ended = tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            (task, reason) = engine.task_ended() => Err(ServeError::Task { task, reason }),
        };
        let cut_off = engine.shut_down(self.settings.drain_timeout()).await;
        ended?;
        match cut_off {
            0 => Ok(()),
            connections => Err(ServeError::CutOff { connections }),
        }
    }
}
