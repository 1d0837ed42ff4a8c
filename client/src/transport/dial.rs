//! Dials endpoints: a byte stream, TLS where the endpoint asks for it, and the HTTP/2 handshake.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use driftless_proto::v1;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::caller::Caller;
use super::connection::{Connection, Options};
use super::error::{CallError, MAX_MESSAGE_TEXT, printable, root_cause};
use super::keepalive::Keepalive;
use super::reports::Reports;
use super::requests;
use super::tasks::Tasks;
use super::token::TokenFile;
use crate::jitter::Jitter;
#[cfg(feature = "tls")]
use crate::net::Tls;
use crate::net::{Connect, Endpoint, Io, Preface, PrefaceStream};
use crate::resources::{Resource, ResourceTracker};

/// How long connecting to one endpoint may take, with TLS and the server's first bytes. That is several
/// round trips on any network that configuration is served over; the next endpoint is tried after it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server may send ahead on one stream, in bytes. HTTP/2 libraries close a connection on which
/// thousands of small frames are unread; this bounds how many there can be. A task of its own drains each
/// stream at once, so this costs configuration no throughput.
const STREAM_WINDOW: u32 = 256 * 1024;

/// What the server may send ahead on all streams together, in bytes: four that are read slowly do not hold
/// up the others, and a process buffers no more than this.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How long a keepalive ping may take before the connection counts as lost.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What protects connections.
#[derive(Default)]
pub(crate) struct Security {
    /// For endpoints that ask for TLS. `None` only in tests that have no such endpoint.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    /// The token in it is sent with every call.
    pub(crate) token: Option<TokenFile>,
}

/// Dials one connection at a time, each endpoint at most once.
pub(super) struct Dialer {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) connector: Box<dyn Connect>,
    pub(super) info: v1::ClientInfo,
    pub(super) security: Security,
    pub(super) tracker: ResourceTracker,
    /// Ends the tasks of every connection.
    pub(super) closing: CancellationToken,
    /// Index of the endpoint that failed last; it is tried last.
    pub(super) avoid: Arc<AtomicUsize>,
    /// Whether a dial failed, or a connection ended by itself and was not dropped here.
    pub(super) lost: Arc<AtomicBool>,
    pub(super) keepalive: Keepalive,
    pub(super) jitter: Jitter,
}

impl Dialer {
    /// Tries every endpoint once, in random order.
    ///
    /// # Cancel safety
    /// Dropping it gives the attempt up and leaves no socket behind.
    pub(super) async fn dial(&self) -> Result<Arc<Connection>, CallError> {
        let avoid = self.avoid.load(Ordering::Relaxed);
        let mut order: Vec<usize> = (0..self.endpoints.len()).collect();
        self.jitter.shuffle(&mut order);
        order.sort_by_key(|index| *index == avoid);
        let mut failures = Vec::new();
        for index in order {
            let endpoint = &self.endpoints[index];
            let stage = Stage::new();
            let attempt = self.handshake(index, endpoint, &stage);
            tracing::debug!(%endpoint, "dialling");
            let why = match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(connection)) => return Ok(Arc::new(connection)),
                Ok(Err(why)) => why,
                Err(_) => format!("{} within {CONNECT_TIMEOUT:?}", stage.missing()),
            };
            tracing::debug!(%endpoint, %why, "cannot connect");
            failures.push((index, format!("{endpoint}: {why}")));
        }
        // In the order of the options, so that the same failure reads the same each time.
        failures.sort_unstable();
        let failures: Vec<String> = failures.into_iter().map(|(_, failure)| failure).collect();
        let message = printable(failures.join(", "), MAX_MESSAGE_TEXT);
        Err(CallError::lost(message))
    }

    async fn handshake(
        &self,
        index: usize,
        endpoint: &Endpoint,
        stage: &Stage,
    ) -> Result<Connection, String> {
        let name = endpoint.to_string();
        let guard = self.tracker.track(Resource::Connection(name.clone()));
        let io = self.connector.connect(endpoint);
        let io = io.await.map_err(|error| error.to_string())?;
        let (io, mut preface) = self.secure(endpoint, io, stage).await?;
        stage.reached(2);
        let tasks = Tasks::new(name, self.tracker.clone(), self.closing.clone());
        let (sender, connection) = http2::Builder::new(tasks.executor())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval(self.keepalive.interval())
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| root_cause(&error))?;
        let (requests, driver) = requests::serialize_handover(sender, connection);
        let (ending, lost) = (endpoint.clone(), Arc::clone(&self.lost));
        tasks.spawn(async move {
            let ended = driver.await;
            lost.store(true, Ordering::Relaxed);
            match ended {
                Ok(()) => tracing::debug!(endpoint = %ending, "a connection ended"),
                Err(error) => {
                    let error = root_cause(&error);
                    tracing::debug!(endpoint = %ending, %error, "a connection ended");
                }
            }
        });
        // Only the server's first bytes show that it speaks HTTP/2 and, with TLS 1.3, that it accepts the
        // client's certificate.
        preface.received().await?;
        tracing::debug!(%endpoint, "connected");
        let options = Options {
            reports: Reports::new(self.info.clone(), self.jitter.derive(&"reports")),
            index,
            avoid: Arc::clone(&self.avoid),
            guard,
        };
        let caller = Caller::new(endpoint, requests, self.security.token.clone());
        Ok(Connection::new(endpoint.clone(), caller, tasks, options))
    }

    /// Wraps the byte stream in TLS, where the endpoint asks for it.
    #[cfg(feature = "tls")]
    async fn secure(
        &self,
        endpoint: &Endpoint,
        io: Box<dyn Io>,
        stage: &Stage,
    ) -> Result<(PrefaceStream, Preface), String> {
        match &self.security.tls {
            Some(tls) if endpoint.is_tls() => {
                stage.reached(1);
                let io = tls.connect(endpoint, io).await?;
                Ok(PrefaceStream::over_tls(Box::new(io), tls.explain_later()))
            }
            None if endpoint.is_tls() => Err("there is no TLS here".to_owned()),
            _ => Ok(PrefaceStream::plain(io)),
        }
    }

    /// A build without TLS has no endpoint that asks for it.
    #[cfg(not(feature = "tls"))]
    #[allow(clippy::unused_async)] // As the other one is.
    async fn secure(
        &self,
        _endpoint: &Endpoint,
        io: Box<dyn Io>,
        _stage: &Stage,
    ) -> Result<(PrefaceStream, Preface), String> {
        Ok(PrefaceStream::plain(io))
    }
}

/// How far an attempt has come, to say what it waited for when it times out.
struct Stage(AtomicUsize);

impl Stage {
    /// What is missing at each stage.
    const MISSING: [&str; 3] = [
        "no connection",
        "connected, but the TLS handshake did not finish",
        "connected, but the server sent nothing over HTTP/2",
    ];

    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    fn reached(&self, stage: usize) {
        self.0.store(stage, Ordering::Relaxed);
    }

    fn missing(&self) -> &'static str {
        let stage = self.0.load(Ordering::Relaxed);
        Self::MISSING.get(stage).unwrap_or(&Self::MISSING[0])
    }
}
