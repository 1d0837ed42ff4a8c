//! gRPC: the only user of tonic and hyper.
//!
//! `Watch` and `Get` answer with a body of our own, so that one encoded frame serves all
//! streams; health checking and reflection are tonic's, mounted beside them. All calls of all
//! connections go through [`Service`].

mod body;
mod connections;
mod driver;
mod get;
mod grpc;
mod report;
mod resume;
#[cfg(test)]
mod tests;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use driftless_proto::{FILE_DESCRIPTOR_SET, KeyRange, v1};
use http::{Request, Response};
use http_body::Frame;
use hyper::body::Incoming;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service as _;

use crate::fanout::{Fanout, Unavailable};
use crate::ingest;
use crate::metrics::Metrics;
use crate::session::{Connection, Registry, SlowConsumers};
pub use connections::Connections;
pub(crate) use connections::Timeouts;

/// One served prefix.
#[derive(Clone, Debug)]
pub struct Served {
    /// Its streams' side.
    pub fanout: Fanout,
    /// Asks its ingest task.
    pub ingest: ingest::Handle,
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
    sessions: Registry,
    slow_consumers: SlowConsumers,
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

/// The same for one that asked while the server shuts down: another server, or the next process, may
/// well be there already.
const RETRY_DRAINING: Duration = Duration::from_millis(100);

/// The same when the history of etcd changed again and again while the call was answered.
const RETRY_HISTORY: Duration = Duration::from_secs(1);

/// How often a subscription is made anew because the history ended under it, before the client is
/// told to come back.
const ATTEMPTS: usize = 3;

impl Service {
    /// For these prefixes, none of them ready yet. A connection is closed when something that a
    /// stream on it has to send is not taken within `stall_timeout`.
    pub fn new(
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

    /// Who is connected.
    pub fn sessions(&self) -> &Registry {
        &self.0.sessions
    }

    /// Sees to the streams that wait for a permit to read a snapshot. Runs until it is dropped.
    pub async fn run_admission(&self) {
        self.0.sessions.admission().run().await;
    }

    /// Closes the connections of slow consumers. Runs until it is dropped.
    pub async fn close_slow_consumers(&self) {
        self.0.slow_consumers.run().await;
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
        self.0.sessions.admission().close();
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
                    .map(|served| served.fanout.prefix().start().to_string())
                    .collect();
                let names = names.join(", ");
                let meant = match self.meant(&range) {
                    Some(meant) => format!("; did you mean {meant}?"),
                    None => String::new(),
                };
                Err(Status::not_found(format!(
                    "{range} is not served here, only what starts with {names}{meant}"
                )))
            }
        }
    }

    /// What is served and may be meant: a prefix that this is the beginning of, or what it is with a
    /// slash before it.
    fn meant(&self, range: &KeyRange) -> Option<String> {
        let start = range.start().as_ref();
        let with_slash = [b"/", start].concat();
        let mut prefixes = self.0.served.iter().map(|served| served.fanout.prefix());
        // The root is the beginning of everything.
        let begins = |prefix: &&KeyRange| prefix.start().as_ref().strip_suffix(b"/") == Some(start);
        if let Some(prefix) = prefixes.clone().find(begins) {
            return Some(prefix.start().to_string());
        }
        let covers = |prefix: &KeyRange| with_slash.starts_with(prefix.start().as_ref());
        prefixes.any(covers).then(|| format!("/{}", range.start()))
    }

    /// Answers a call that came on `connection`.
    async fn call(&self, request: Request<Incoming>, connection: &Connection) -> Response<Body> {
        if !grpc::is_grpc(&request) {
            self.0.metrics.refused.inc();
            return grpc::not_grpc();
        }
        let answer = match request.uri().path() {
            "/driftless.v1.Config/Watch" => self.watch(request, connection).await,
            "/driftless.v1.Config/Get" => self.get(request, connection).await,
            "/driftless.v1.Config/Report" => self.report(request, connection).await,
            // Those who watch it have been let go by then: nobody would end this one.
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

/// What a call is told when its prefix has nothing to serve.
fn unavailable(why: Unavailable) -> Status {
    match why {
        Unavailable::NotSynced => grpc::retry_after(
            RETRY_UNSYNCED,
            Status::unavailable(
                "the server has not read its state from etcd yet; its /readyz says why",
            ),
        ),
        Unavailable::Draining => grpc::retry_after(
            RETRY_DRAINING,
            Status::unavailable("the server is shutting down"),
        ),
    }
}

/// What a call is told when no history lasted for long enough to answer it.
fn history_changed() -> Status {
    grpc::retry_after(
        RETRY_HISTORY,
        Status::unavailable("the history of etcd changed while the call was answered; retry"),
    )
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

/// A request that is over once the server shuts down, so that a call which its client keeps open, as
/// those do that look at what a server offers, is over too.
struct UntilDrained<B> {
    body: B,
    drained: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<B> UntilDrained<B> {
    fn new(body: B, draining: &CancellationToken) -> Self {
        Self {
            body,
            drained: Box::pin(draining.clone().cancelled_owned()),
        }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for UntilDrained<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.get_mut();
        // What has arrived is answered.
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => this.drained.as_mut().poll(cx).map(|()| None),
            ready => ready,
        }
    }
}
