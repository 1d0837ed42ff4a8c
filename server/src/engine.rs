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
use crate::fanout::{self, fanout};
use crate::ingest;
use crate::metrics::Metrics;
use crate::net::Tls;
use crate::service::{Connections, Intervals, Served, Service, Timeouts};
use crate::session::Registry;
use crate::settings::Settings;
use crate::source::{Source, SourceHandle};

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
            let handle = ingest::Handle::new(handle);
            let (publisher, fanout) =
                fanout(prefix.clone(), fanout_limits, metrics.clone(), origin);
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
