//! The gRPC service: what all calls share, and which method handles which path.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::FILE_DESCRIPTOR_SET;
use http::request::Parts;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service as _;

use super::answer::guarded;
use super::arrival::{Arriving, Refusal, busy};
use super::grpc;
use super::refusals::unavailable;
use crate::fanout::{Fanout, Unavailable};
use crate::ingest;
use crate::metrics::Metrics;
use crate::session::{Connection, HeldBytes, Registry, SlowConsumers};

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

/// What an open call of reflection counts for, in bytes, beside what arrives and what was handed over: a
/// message of the largest size, the copies of it that are made to answer it, and the answer, which
/// waits until the one before it is taken.
const REFLECTION: usize = 256 * 1024;

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
        let sessions = Registry::new(metrics.clone());
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

    /// Answers a call that came on `connection`. Whatever it is, its request arrives under the same guard
    /// ([`arrival`](super::arrival)), and its answer leaves under one: [`answer`](super::answer), or the
    /// body of a registered stream.
    pub(super) async fn call(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Response<Body> {
        if !grpc::is_grpc(&request) {
            self.0.metrics.refused.inc();
            return grpc::not_grpc();
        }
        let answered = match Method::of(request.uri().path()) {
            Some(method) => self.answer(method, request, connection).await,
            // Without a look at the rest of the request.
            None => Err(Status::unimplemented("the server has no such call")),
        };
        answered.unwrap_or_else(|status| {
            self.0.metrics.refused.inc();
            status.into_http()
        })
    }

    async fn answer(
        &self,
        method: Method,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let arriving = Arriving::new(body, connection, method.max_message());
        if method == Method::Reflection {
            return self.reflect(head, arriving, connection).await;
        }
        let request = Request::from_parts(head, arriving.message().await?);
        match method {
            Method::Watch => self.watch(request, connection).await,
            Method::Get => self.get(request, connection).await,
            // The open health watches have been ended by then; nothing would end this one.
            Method::HealthWatch if self.is_draining() => Err(unavailable(Unavailable::Draining)),
            Method::Report => {
                let answer = self.report(request.into_body())?;
                Ok(guarded(answer, connection, None, Refusal::default()))
            }
            _ => {
                let (head, arrived) = request.into_parts();
                let (message, _held) = arrived.into_bytes();
                let body = Body::new(Full::new(message));
                let answer = self.standard(Request::from_parts(head, body)).await;
                Ok(guarded(answer, connection, None, Refusal::default()))
            }
        }
    }

    /// Answers the one call whose client sends several messages.
    async fn reflect(
        &self,
        head: Parts,
        arriving: Arriving,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let mut held = HeldBytes::of(connection);
        if !held.add(REFLECTION) {
            return Err(busy());
        }
        let refusal = Refusal::default();
        let messages = arriving.messages(&self.0.draining, &refusal);
        let request = Request::from_parts(head, Body::new(messages));
        let answer = self.standard(request).await;
        Ok(guarded(answer, connection, Some(held), refusal))
    }

    /// Answers a call of the standard services.
    async fn standard(&self, request: Request<Body>) -> Response<Body> {
        let Ok(response) = self.0.standard.clone().call(request).await;
        response
    }
}

/// The calls that the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Watch,
    Get,
    Report,
    HealthCheck,
    HealthWatch,
    Reflection,
}

impl Method {
    /// Which call a path means.
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/driftless.v1.Config/Watch" => Self::Watch,
            "/driftless.v1.Config/Get" => Self::Get,
            "/driftless.v1.Config/Report" => Self::Report,
            "/grpc.health.v1.Health/Check" => Self::HealthCheck,
            "/grpc.health.v1.Health/Watch" => Self::HealthWatch,
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo" => Self::Reflection,
            _ => return None,
        })
    }

    /// Its largest message, in bytes, with gRPC's prefix.
    pub(super) const fn max_message(self) -> usize {
        match self {
            // Twice what the contract's limits come to, which are 4 KiB each for the range, the token,
            // and the key and path of a rejection, and 16 KiB of labels.
            Self::Watch | Self::Get => 64 * 1024,
            // 1 KiB for each of a thousand watches, a rejection included.
            Self::Report => 1024 * 1024,
            // The name of a service.
            Self::HealthCheck | Self::HealthWatch => 1024,
            // The name of a symbol or a file, and of a host.
            Self::Reflection => 64 * 1024,
        }
    }
}
