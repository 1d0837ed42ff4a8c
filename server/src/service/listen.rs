//! The accept loop and the connections: the edge at which bad luck and bad manners arrive.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::body::Body;

use super::Service;
use super::coalesce::Coalesce;
use super::driver::{ConnectionDriver, StreamExecutor, Transport};
use crate::auth::CertificateChain;
use crate::metrics::Metrics;
use crate::session::{Connection, ConnectionGuard};
use crate::tls::{self, Tls};

/// How many connections may wait to be accepted. A thousand clients that return at the same moment
/// overflow the usual 128 (measured), and each that is dropped comes back a second later at the
/// earliest. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long to leave the listener alone when a connection could not be accepted for lack of
/// descriptors or memory: asking again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may take to make its first call. It costs a descriptor meanwhile.
const FIRST_CALL_WITHIN: Duration = Duration::from_secs(30);

/// How long a ping may go unanswered.
const PING_ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How long a client may take to agree on TLS. It holds a place among the connections meanwhile.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How long a client that does nothing is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    first_call: Duration,
    ping_answer: Duration,
    handshake: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_call: FIRST_CALL_WITHIN,
            ping_answer: PING_ANSWER_WITHIN,
            handshake: HANDSHAKE_WITHIN,
        }
    }
}

impl Patience {
    /// The same time for everything.
    pub(crate) const fn of(within: Duration) -> Self {
        Self {
            first_call: within,
            ping_answer: within,
            handshake: within,
        }
    }
}

/// How many calls one connection may have open at a time.
const MAX_STREAMS: u32 = 4096;

/// What a stream may have waiting in its connection, in bytes: one segment. hyper's default is
/// several times that, for each of thousands of stalled streams.
const SEND_BUFFER: usize = 64 * 1024;

/// Largest headers of a request, in bytes: a token of 16 KiB, and what else there is.
const MAX_HEADERS: u32 = 20 * 1024;

/// Binds a listener that can be bound again at once after a restart, with a deep backlog.
///
/// # Errors
/// When the address is in use or not one of this machine.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A listener that outlives bad luck.
#[derive(Debug)]
pub(crate) struct Accepting {
    listener: TcpListener,
    /// Said once for as long as it lasts, and not ten times a second.
    failing: bool,
}

impl Accepting {
    pub(crate) const fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            failing: false,
        }
    }

    /// The next connection, and whose it is.
    ///
    /// # Cancel safety
    /// Cancel-safe: no connection is lost.
    pub(crate) async fn next(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("connections are accepted again");
                    }
                    // Small messages must not wait for each other.
                    let _ = stream.set_nodelay(true);
                    return (stream, peer);
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::warn!(%error, "connections cannot be accepted; trying on");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// All connections of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    service: Service,
    metrics: Metrics,
    tls: Option<Tls>,
    ping: Duration,
    patience: Patience,
    places: Arc<Semaphore>,
    /// One a connection.
    tasks: TaskTracker,
    /// No more connections.
    drain: CancellationToken,
}

impl Connections {
    /// At most `limit` connections at a time.
    pub fn new(service: Service, limit: usize) -> Self {
        let metrics = service.0.metrics.clone();
        let ping = service.0.intervals.ping;
        Self {
            service,
            metrics,
            tls: None,
            ping,
            patience: Patience::default(),
            places: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
        }
    }

    /// Lays TLS over every connection from now on. Default: none.
    pub(crate) fn lay_tls(&mut self, tls: Tls) {
        self.tls = Some(tls);
    }

    /// The same, with this patience. Default: that of the constants.
    pub(crate) const fn patient(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// Accepts connections until the shutdown begins; then the listener is closed, so that clients
    /// go elsewhere. While there are as many connections as allowed, the next ones wait in the
    /// listener's backlog.
    ///
    /// # Cancel safety
    /// Dropping it closes the listener; connections that were accepted go on.
    pub async fn accept(&self, listener: TcpListener) {
        // A shutdown waits for this to end: one more connection may come of it.
        let _accepting = self.tasks.token();
        self.drain
            .run_until_cancelled(self.accept_all(listener))
            .await;
    }

    async fn accept_all(&self, listener: TcpListener) {
        let mut accepting = Accepting::new(listener);
        // The semaphore is never closed.
        while let Ok(place) = Arc::clone(&self.places).acquire_owned().await {
            let (stream, peer) = accepting.next().await;
            self.serve_holding(Coalesce(stream), Some(peer), place);
        }
    }

    /// Serves one connection over anything that reads and writes, in a task of its own, which ends
    /// with the connection, and at the latest at the end of [`Connections::shut_down`].
    pub fn serve(&self, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        self.serve_holding(io, None, ());
    }

    fn serve_holding(
        &self,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        peer: Option<SocketAddr>,
        place: impl Send + 'static,
    ) {
        let session = self.service.sessions().connect(peer);
        // A task of its own shape for each: one without TLS has no room for a handshake.
        match self.tls.clone() {
            None => {
                let driver = self.drive(io, &session);
                self.tasks.spawn(async move {
                    let _holding = (place, session);
                    driver.await;
                });
            }
            Some(tls) => {
                let connections = self.clone();
                self.tasks.spawn(async move {
                    let _place = place;
                    connections.drive_over(&tls, io, &session).await;
                });
            }
        }
    }

    /// Makes the TLS handshake first, unless the shutdown begins before that is done.
    async fn drive_over(
        &self,
        tls: &Tls,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        session: &ConnectionGuard,
    ) {
        let handshake = tokio::select! {
            () = self.drain.cancelled() => return,
            handshake = tls.accept(io, self.patience.handshake) => handshake,
        };
        match handshake {
            Ok(io) => {
                if let Some(chain) = CertificateChain::new(tls::peer_certificates(&io)) {
                    session.connection().set_certificates(chain);
                }
                self.drive(io, session).await;
            }
            // The client's affair: it is told, and says so where it is at home.
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
    ) -> impl Future<Output = ()> + Send + 'static {
        let called = Arc::new(AtomicBool::new(false));
        let connection = session.connection().clone();
        let control = Arc::clone(connection.control());
        let service = Calls {
            service: self.service.clone(),
            connection,
            called: Arc::clone(&called),
        };
        let executor = StreamExecutor::default();
        let mut builder = http2::Builder::new(executor.clone());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(self.ping)
            .keep_alive_timeout(self.patience.ping_answer)
            .max_concurrent_streams(MAX_STREAMS)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(MAX_HEADERS)
            // gRPC has no use for it, and each second's would be another entry in the client's table
            // of headers.
            .auto_date_header(false);
        let connection = builder.serve_connection(TokioIo::new(io), service);
        let within = self.patience.first_call;
        ConnectionDriver::new(connection, executor, control, called, within)
    }

    /// Ends every connection: streams get their goodbye, and what has not ended when `deadline`
    /// resolves is cut off. Returns the number of connections that had to be.
    ///
    /// # Cancel safety
    /// Not cancel-safe: dropped half-way, what is left ends with its peers, unless somebody cuts it
    /// off, as an engine that is dropped does.
    pub async fn shut_down(&self, deadline: impl Future<Output = ()>) -> usize {
        self.drain();
        self.service.drain();
        self.tasks.close();
        tokio::select! {
            () = self.tasks.wait() => return 0,
            () = deadline => {}
        }
        let left = self.metrics.connections.get();
        self.cut_off();
        self.tasks.wait().await;
        usize::try_from(left).unwrap_or(0)
    }

    /// No more connections are accepted, and no more calls.
    pub(crate) fn drain(&self) {
        self.drain.cancel();
        self.service.sessions().drain_connections();
    }

    /// Ends every connection at once, and those that come in this moment.
    pub(crate) fn cut_off(&self) {
        self.service.sessions().close_connections();
    }
}

/// Whether an error of `accept` is about the connection and not about us.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
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
    /// Whether one came.
    called: Arc<AtomicBool>,
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.called.store(true, Ordering::Relaxed);
        let calls = self.clone();
        Box::pin(async move { Ok(calls.service.call(request, &calls.connection).await) })
    }
}
