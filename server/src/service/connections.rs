//! Runs every connection from the moment it is accepted until it ends.
//!
//! On the way it applies what holds for all of them: the limit on their number, the timeouts, TLS, and
//! the shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use super::Service;
use super::driver::{ConnectionDriver, StreamExecutor, Transport};
use super::flood::FloodGuard;
use super::idle::{IdleLimits, IdleTimer};
use super::places::{Place, Places};
use super::write_clock::WriteClock;
use crate::auth::CertificateChain;
use crate::metrics::Metrics;
use crate::net::{Coalesce, Listener, Tls, peer_certificates};
use crate::session::{Connection, ConnectionGuard};

/// How long a connection may take to make its first call. It costs a descriptor meanwhile.
const FIRST_CALL_WITHIN: Duration = Duration::from_secs(30);

/// How long a connection may be without an open call after its last one. Clients that call now and
/// then keep theirs, and others reconnect when they need to: at most every few minutes.
const NEXT_CALL_WITHIN: Duration = Duration::from_secs(300);

/// How long a connection without an open call keeps its place when all are taken: after it was
/// accepted, and after its last call. As long as a client needs to make its next call.
const KEPT_FOR: Duration = Duration::from_secs(5);

/// How long a ping may go unanswered.
const PING_ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How long a TLS handshake may take. The client holds a place among the connections meanwhile.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long to wait for a client that does nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    first_call: Duration,
    next_call: Duration,
    kept: Duration,
    ping_answer: Duration,
    handshake: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_call: FIRST_CALL_WITHIN,
            next_call: NEXT_CALL_WITHIN,
            kept: KEPT_FOR,
            ping_answer: PING_ANSWER_WITHIN,
            handshake: HANDSHAKE_WITHIN,
        }
    }
}

impl Timeouts {
    /// The same, but idle connections give way after this time.
    #[cfg(test)]
    pub(super) const fn kept_for(mut self, time: Duration) -> Self {
        self.kept = time;
        self
    }

    /// The same time for everything.
    pub(crate) const fn all(within: Duration) -> Self {
        Self {
            first_call: within,
            next_call: within,
            kept: within,
            ping_answer: within,
            handshake: within,
        }
    }
}

/// What a stream may have waiting in its connection, in bytes: one segment. hyper's default is
/// several times that, for each of thousands of stalled streams.
const SEND_BUFFER: usize = 64 * 1024;

/// What a client may send ahead of what was read, in bytes: on one stream, and on all of a connection.
/// Requests are small and read at once, so less than hyper's megabyte for each costs no throughput; what
/// is sent ahead counts in full among what a connection may cost.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;

/// Largest headers of a request, in bytes: a token of 16 KiB and the rest. A token of more than
/// [`BearerToken::MAX_BYTES`](crate::auth::BearerToken::MAX_BYTES) is accepted, but not kept.
const MAX_HEADERS: u32 = 20 * 1024;

/// How many calls may have been cancelled before the server saw them, in what it reads at a time; as
/// many as may be open, if that is more. h2's default of 20 closes the connections of healthy clients
/// that begin and cancel some calls at once.
const CANCELLED_EARLY: usize = 1024;

/// How many calls of one connection, in all its time, may break HTTP/2's rules or come while as many as
/// allowed are open. hyper's default is 1,024, which a client can reach in one moment: it may begin
/// hundreds of calls before it hears how many it may have.
const FAILED_CALLS: usize = 16 * 1024;

/// How many calls and connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Open calls of one connection.
    pub(crate) streams: u32,
}

/// All connections of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    service: Service,
    metrics: Metrics,
    tls: Option<Tls>,
    ping: Duration,
    timeouts: Timeouts,
    places: Places,
    max_streams: u32,
    /// One task a connection.
    tasks: TaskTracker,
    /// Cancelled when no more connections are accepted.
    drain: CancellationToken,
}

impl Connections {
    /// None yet.
    pub(crate) fn new(service: Service, limits: ConnectionLimits) -> Self {
        let metrics = service.0.metrics.clone();
        let ping = service.0.intervals.ping;
        Self {
            service,
            places: Places::new(limits.connections, metrics.clone()),
            max_streams: limits.streams,
            metrics,
            tls: None,
            ping,
            timeouts: Timeouts::default(),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
        }
    }

    /// Serves every connection from now on over TLS. Default: none.
    pub(crate) fn set_tls(&mut self, tls: Tls) {
        self.tls = Some(tls);
    }

    /// The same, with these timeouts.
    pub(crate) const fn with_timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Accepts connections until the shutdown begins; then it closes the listener, so that clients go
    /// elsewhere. While there are as many connections as allowed, and all are in use, the next ones wait
    /// in the listener's backlog.
    ///
    /// # Cancel safety
    /// Dropping the future closes the listener; connections that were accepted continue.
    pub(crate) async fn accept(&self, listener: TcpListener) {
        // A shutdown waits for this to end: one more connection may come of it.
        let _accepting = self.tasks.token();
        self.drain
            .run_until_cancelled(self.accept_all(listener))
            .await;
    }

    async fn accept_all(&self, listener: TcpListener) {
        let mut listener = Listener::new(listener);
        loop {
            // One more may come when this changes while the listener is awaited.
            self.service
                .sessions()
                .pressure()
                .allows_connections()
                .await;
            let (stream, peer) = listener.next().await;
            // One more than there are places waits here: it decides that another has to go.
            let place = self.places.take().await;
            self.serve_with(Coalesce(stream), Some(peer), Some(place));
        }
    }

    /// Serves one connection over anything that reads and writes, in a task of its own, which ends
    /// with the connection, and at the latest at the end of [`Connections::shut_down`].
    pub(crate) fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.serve_with(io, None, None);
    }

    fn serve_with(
        &self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Option<SocketAddr>,
        place: Option<Place>,
    ) {
        let session = self.service.sessions().connect(peer);
        // A task of its own shape for each: one without TLS has no room for a handshake.
        match self.tls.clone() {
            None => {
                let driver = self.drive(io, &session, place);
                self.tasks.spawn(async move {
                    let _session = session;
                    driver.await;
                });
            }
            Some(tls) => {
                let connections = self.clone();
                self.tasks.spawn(async move {
                    connections.drive_over(&tls, io, &session, place).await;
                });
            }
        }
    }

    /// Does the TLS handshake first. Returns when the shutdown begins before that is done.
    async fn drive_over(
        &self,
        tls: &Tls,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        session: &ConnectionGuard,
        place: Option<Place>,
    ) {
        let handshake = tokio::select! {
            () = self.drain.cancelled() => return,
            handshake = tls.accept(io, self.timeouts.handshake) => handshake,
        };
        match handshake {
            Ok(io) => {
                if let Some(chain) = CertificateChain::new(peer_certificates(&io)) {
                    session.connection().set_certificates(chain);
                }
                self.drive(io, session, place).await;
            }
            // The client was told why, and reports it on its side.
            Err(why) => {
                self.metrics.tls_handshakes_failed.inc();
                let peer = session.connection().peer().map(tracing::field::display);
                tracing::debug!(peer, %why, "the TLS handshake failed");
            }
        }
    }

    fn drive(
        &self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        session: &ConnectionGuard,
        place: Option<Place>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let connection = session.connection().clone();
        let control = Arc::clone(connection.control());
        let metrics = self.metrics.clone();
        let io = FloodGuard::new(io, self.max_streams, connection.peer(), metrics);
        let service = Calls {
            service: self.service.clone(),
            connection,
        };
        let executor = StreamExecutor::default();
        let mut builder = http2::Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.ping)
            .keep_alive_timeout(self.timeouts.ping_answer)
            .max_concurrent_streams(self.max_streams)
            .max_pending_accept_reset_streams(CANCELLED_EARLY.max(self.max_streams as usize))
            .max_local_error_reset_streams(FAILED_CALLS)
            .max_send_buf_size(SEND_BUFFER)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEADERS)
            // gRPC has no use for it, and each second's would be another entry in the client's table
            // of headers.
            .auto_date_header(false);
        let io = TokioIo::new(WriteClock::new(io, session.connection().clone()));
        let connection = builder.serve_connection(io, service);
        let limits = IdleLimits {
            kept: self.timeouts.kept,
            first_call: self.timeouts.first_call,
            between_calls: self.timeouts.next_call,
        };
        let idle = IdleTimer::new(limits, place, Arc::clone(&control));
        ConnectionDriver::new(connection, executor, control, idle)
    }

    /// Says goodbye on every stream, and closes the connections that have not ended when `deadline`
    /// resolves. Returns how many those were.
    ///
    /// # Cancel safety
    /// Not cancel-safe: once the future is dropped, the remaining connections end with their clients,
    /// or when the engine is dropped.
    pub(crate) async fn shut_down(&self, deadline: impl Future<Output = ()>) -> usize {
        self.drain();
        self.service.drain();
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return 0,
            () = deadline => {}
        }
        let left = self.metrics.connections.get();
        self.close_all();
        self.tasks.wait().await;
        usize::try_from(left).unwrap_or(0)
    }

    /// Accepts no more connections and no more calls.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
        self.service.sessions().drain_connections();
    }

    /// Closes every connection at once, and any that is being accepted.
    pub(crate) fn close_all(&self) {
        self.service.sessions().close_connections();
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin + 'static> Transport
    for http2::Connection<TokioIo<I>, Calls, StreamExecutor>
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// The service for one connection.
#[derive(Clone, Debug)]
struct Calls {
    service: Service,
    connection: Connection,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let calls = self.clone();
        Box::pin(async move { Ok(calls.service.call(request, &calls.connection).await) })
    }
}
