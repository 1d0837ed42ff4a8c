//! gRPC: the only user of tonic and hyper.
//!
//! `Watch` and `Get` answer with a body of our own, so that one encoded frame serves all
//! streams; health checking and reflection are tonic's, mounted beside them. All calls of all
//! connections go through [`Service`].

mod body;
mod get;
mod grpc;
mod listen;
mod report;
mod resume;
#[cfg(test)]
mod tests;
mod watch;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{FILE_DESCRIPTOR_SET, KeyRange, v1};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service as _;

use crate::fanout::{Fanout, Unavailable};
use crate::metrics::Metrics;
use crate::source::CatchUp;
pub use listen::{Connections, listen};
pub use report::Watches;

/// One served prefix.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its streams' side.
    pub fanout: Fanout,
    /// Its source's side.
    pub catch_up: CatchUp,
}

/// The intervals that both ends of a stream keep.
#[derive(Clone, Copy, Debug)]
pub struct Intervals {
    /// See `Hello.progress_interval_ms`.
    pub progress: Duration,
    /// See `Hello.ping_interval_ms`.
    pub ping: Duration,
    /// See `Hello.report_interval_ms`.
    pub report: Duration,
}

/// All that calls need. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Service(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    served: Vec<Served>,
    intervals: Intervals,
    watches: Watches,
    metrics: Metrics,
    standard: Routes,
    health: HealthReporter,
    /// No new streams; the open ones are being ended.
    draining: CancellationToken,
}

/// The name under which the health of the service is told.
const SERVICE: &str = "driftless.v1.Config";

/// How long a client should wait before it asks again while the server has nothing to serve yet.
const RETRY_UNSYNCED: Duration = Duration::from_secs(1);

impl Service {
    /// For these prefixes, none of them ready yet.
    pub fn new(served: Vec<Served>, intervals: Intervals, metrics: Metrics) -> Self {
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
        let watches = Watches::default();
        Self(Arc::new(Inner {
            served,
            intervals,
            watches,
            metrics,
            standard: standard.prepare(),
            health,
            draining: CancellationToken::new(),
        }))
    }

    /// The served prefixes.
    pub fn served(&self) -> &[Served] {
        &self.0.served
    }

    /// Waits until every prefix has its first state.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn ready(&self) {
        for served in &self.0.served {
            served.fanout.synced().await;
        }
    }

    /// Keeps the standard health service truthful: not serving until every prefix has its first
    /// state, nor once the server shuts down. Runs until it is dropped.
    pub async fn keep_health(&self) {
        let draining = &self.0.draining;
        self.set_serving(ServingStatus::NotServing).await;
        if draining.run_until_cancelled(self.ready()).await.is_some() {
            self.set_serving(ServingStatus::Serving).await;
            draining.cancelled().await;
        }
        self.set_serving(ServingStatus::NotServing).await;
        // Those who watch it are told and let go, or they would hold up the shutdown.
        let mut health = self.0.health.clone();
        for name in ["", SERVICE] {
            health.clear_service_status(name).await;
        }
        self.set_serving(ServingStatus::NotServing).await;
        std::future::pending().await
    }

    async fn set_serving(&self, status: ServingStatus) {
        self.0.health.set_service_status("", status).await;
        self.0.health.set_service_status(SERVICE, status).await;
    }

    /// Whether the server shuts down.
    pub fn is_draining(&self) -> bool {
        self.0.draining.is_cancelled()
    }

    /// Ends every stream with a goodbye and refuses new ones.
    pub fn drain(&self) {
        self.0.draining.cancel();
        self.0
            .served
            .iter()
            .for_each(|served| served.fanout.drain());
    }

    /// The prefix that holds `range`.
    fn find(&self, range: Option<v1::Range>) -> Result<(KeyRange, &Served), Status> {
        let range = KeyRange::try_from(range)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let served = self
            .0
            .served
            .iter()
            .find(|served| served.fanout.prefix().covers(&range));
        match served {
            Some(served) => Ok((range, served)),
            None => {
                let names: Vec<String> = self
                    .0
                    .served
                    .iter()
                    .map(|served| served.fanout.prefix().to_string())
                    .collect();
                let names = names.join(", ");
                Err(Status::not_found(format!(
                    "{range} is not served here; this server serves {names}"
                )))
            }
        }
    }

    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let answer = match request.uri().path() {
            "/driftless.v1.Config/Watch" => self.watch(request).await,
            "/driftless.v1.Config/Get" => self.get(request).await,
            "/driftless.v1.Config/Report" => self.report(request).await,
            _ => {
                let Ok(response) = self.0.standard.clone().call(request.map(Body::new)).await;
                return response;
            }
        };
        answer.unwrap_or_else(|status| {
            self.0.metrics.refused.inc();
            status.into_http()
        })
    }
}

/// What a call is told when its prefix has nothing to serve.
fn unavailable(why: Unavailable) -> Status {
    match why {
        Unavailable::NotSynced => grpc::retry_after(
            RETRY_UNSYNCED,
            Status::unavailable("the server has not read its state from etcd yet; retry"),
        ),
        Unavailable::Draining => {
            Status::unavailable("the server is shutting down; retry on another")
        }
    }
}

/// Whether `text` is short enough for what people write in a label.
fn short(text: &str) -> bool {
    text.len() <= 256
}

/// Refuses what is too much to keep for a stream.
fn check_client(client: Option<&v1::ClientInfo>) -> Result<(), Status> {
    const LABELS: usize = 32;
    let Some(client) = client else { return Ok(()) };
    if client.labels.len() > LABELS {
        let count = client.labels.len();
        return Err(Status::invalid_argument(format!(
            "a client has {count} labels; at most {LABELS} are allowed"
        )));
    }
    let texts = client.labels.iter().flat_map(|(name, value)| [name, value]);
    match texts
        .chain([&client.instance, &client.library])
        .all(|text| short(text))
    {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "a client's instance, library, label or label's value is longer than 256 bytes",
        )),
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move { Ok(Self::call(&service, request).await) })
    }
}
