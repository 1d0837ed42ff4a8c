//! The gRPC service: what all calls share, and which method handles which path.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::FILE_DESCRIPTOR_SET;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service as _;

use super::grpc;
use super::refusals::unavailable;
use super::until_drained::UntilDrained;
use crate::fanout::{Fanout, Unavailable};
use crate::ingest;
use crate::metrics::Metrics;
use crate::session::{Connection, Registry, SlowConsumers};

/// One served prefix.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    /// Where its streams subscribe.
    pub(crate) fanout: Fanout,
    /// Asks its ingest task.
    pub(crate) ingest: ingest::Handle,
}

/// The intervals that both ends of a stream keep.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intervals {
    /// See `Hello.progress_interval_ms`.
    pub(crate) progress: Duration,
    /// See `Hello.ping_interval_ms`.
    pub(crate) ping: Duration,
    /// See `Hello.report_interval_ms`.
    pub(crate) report: Duration,
}

/// All that calls need. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) served: Vec<Served>,
    pub(super) intervals: Intervals,
    pub(super) sessions: Registry,
    pub(super) slow_consumers: SlowConsumers,
    pub(super) metrics: Metrics,
    pub(super) standard: Routes,
    pub(super) health: HealthReporter,
    /// No new streams; the open ones are being ended.
    pub(super) draining: CancellationToken,
}

/// How often a subscription is repeated because the history ended under it, before the client is told
/// to come back.
pub(super) const ATTEMPTS: usize = 3;

impl Service {
    /// Serves these prefixes, none of which need be ready yet. A connection is closed when a piece that
    /// a stream on it has to send is not taken within `stall_timeout`.
    pub(crate) fn new(
        served: Vec<Served>,
        intervals: Intervals,
        stall_timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        let health = HealthReporter::new();
        let mut standard = Routes::new(HealthServer::new(HealthService::from_health_reporter(
            health.clone(),
        )));
        // Both sets of descriptors are part of the binary, and a test reads them back.
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1();
        match reflection {
            Ok(reflection) => standard = standard.add_service(reflection),
            Err(error) => tracing::error!(%error, "reflection is not available"),
        }
        let sessions = Registry::new(metrics.clone(), intervals.progress);
        Self(Arc::new(Inner {
            served,
            intervals,
            slow_consumers: SlowConsumers::new(sessions.clone(), stall_timeout),
            sessions,
            metrics,
            standard: standard.prepare(),
            health,
            draining: CancellationToken::new(),
        }))
    }

    /// The served prefixes.
    pub(crate) fn served(&self) -> &[Served] {
        &self.0.served
    }

    /// Waits until every prefix has its first state.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn ready(&self) {
        for served in &self.0.served {
            served.fanout.synced().await;
        }
    }

    /// Who is connected.
    pub(crate) fn sessions(&self) -> &Registry {
        &self.0.sessions
    }

    /// Sees to the streams that wait for a permit to read a snapshot. Runs until it is dropped.
    pub(crate) async fn run_admission(&self) {
        self.0.sessions.admission().run().await;
    }

    /// Closes the connections of slow consumers. Runs until it is dropped.
    pub(crate) async fn close_slow_consumers(&self) {
        self.0.slow_consumers.run().await;
    }

    /// Whether the server shuts down.
    pub(crate) fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Ends every stream with a goodbye and refuses new ones.
    pub(crate) fn drain(&self) {
        self.0.draining.cancel();
        self.0
            .served
            .iter()
            .for_each(|served| served.fanout.drain());
        self.0.sessions.admission().close();
    }

    /// Answers a call that came on `connection`.
    pub(super) async fn call(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<Body> {
        if !grpc::is_grpc(&request) {
            self.0.metrics.refused.inc();
            return grpc::not_grpc();
        }
        let answer = match request.uri().path() {
            "/driftless.v1.Config/Watch" => self.watch(request, connection).await,
            "/driftless.v1.Config/Get" => self.get(request, connection).await,
            "/driftless.v1.Config/Report" => self.report(request, connection).await,
            // The open health watches have been ended by then; nothing would end this one.
            "/grpc.health.v1.Health/Watch" if self.is_draining() => {
                Err(unavailable(Unavailable::Draining))
            }
            _ => {
                let until_drained = |body| Body::new(UntilDrained::new(body, &self.0.draining));
                let request = request.map(until_drained);
                let Ok(response) = self.0.standard.clone().call(request).await;
                return response;
            }
        };
        answer.unwrap_or_else(|status| {
            self.0.metrics.refused.inc();
            status.into_http()
        })
    }
}
