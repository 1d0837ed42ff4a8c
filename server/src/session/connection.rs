//! One connection: who is at the other end, and what its calls share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use super::control::ConnectionControl;
use super::kept::KeptByStreams;
use super::registry::Registry;
use crate::auth::CertificateChain;
use crate::metrics::GaugeGuard;

/// What the requests of one connection may hold together while they arrive, in bytes: twice the
/// largest report, and far more than all the requests that a client begins at a time, which arrive
/// whole. A connection may have thousands of calls open, so a bound for each is none.
const ARRIVING_BYTES: usize = 2 * 1024 * 1024;

/// Names a connection among all that a server ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub(super) u64);

/// One connection. Cheap to clone; reading from it after it has ended is harmless.
#[derive(Clone, Debug)]
pub struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: ConnectionId,
    peer: Option<SocketAddr>,
    since: Instant,
    certificates: OnceLock<CertificateChain>,
    control: Arc<ConnectionControl>,
    streams: AtomicUsize,
    /// Bytes of requests that have not arrived completely.
    arriving: AtomicUsize,
    kept: KeptByStreams,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, peer: Option<SocketAddr>) -> Self {
        Self(Arc::new(Inner {
            id,
            peer,
            since: Instant::now(),
            certificates: OnceLock::new(),
            control: Arc::default(),
            streams: AtomicUsize::new(0),
            arriving: AtomicUsize::new(0),
            kept: KeptByStreams::default(),
        }))
    }

    /// Its name on this server.
    pub fn id(&self) -> ConnectionId {
        self.0.id
    }

    /// The address of the other end. `None` for a connection that was handed over without one.
    pub fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// When it was accepted.
    pub fn since(&self) -> Instant {
        self.0.since
    }

    /// The certificates that the other end showed. `None` without TLS, while the handshake goes on, when
    /// the server asks for none, or when the first one is too long to be kept.
    pub fn certificates(&self) -> Option<&CertificateChain> {
        self.0.certificates.get()
    }

    /// How many calls of `Watch` and `Get` are open on it.
    pub fn streams(&self) -> usize {
        self.0.streams.load(Ordering::Relaxed)
    }

    /// The other end showed these certificates. Only the first call has an effect.
    pub(crate) fn set_certificates(&self, certificates: CertificateChain) {
        let _ = self.0.certificates.set(certificates);
    }

    pub(crate) fn control(&self) -> &Arc<ConnectionControl> {
        &self.0.control
    }

    /// Closes it at once, with everything on it. Returns whether it is the first time.
    pub(crate) fn close(&self) -> bool {
        self.0.control.close()
    }

    /// A request begins to arrive.
    pub(crate) const fn arriving(&self) -> ArrivingRequest<'_> {
        ArrivingRequest {
            connection: self,
            bytes: 0,
        }
    }

    pub(super) fn kept(&self) -> &KeptByStreams {
        &self.0.kept
    }

    pub(super) fn stream_opened(&self) {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stream_closed(&self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps a connection in the registry. Its task owns it.
#[derive(Debug)]
pub(crate) struct ConnectionGuard {
    registry: Registry,
    connection: Connection,
    _counted: GaugeGuard,
}

impl ConnectionGuard {
    pub(super) fn new(registry: Registry, connection: Connection) -> Self {
        let counted = GaugeGuard::new(&registry.metrics().connections);
        Self {
            registry,
            connection,
            _counted: counted,
        }
    }

    pub(crate) const fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.registry.remove_connection(self.connection.id());
    }
}

/// What has arrived of one request. It counts among the connection's bytes until this is dropped.
#[derive(Debug)]
pub(crate) struct ArrivingRequest<'a> {
    connection: &'a Connection,
    bytes: usize,
}

impl ArrivingRequest<'_> {
    /// More bytes have arrived. Returns `false` when the connection's requests hold too much.
    pub(crate) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let arriving = &self.connection.0.arriving;
        let before = arriving.fetch_add(bytes, Ordering::Relaxed);
        before + bytes <= ARRIVING_BYTES
    }
}

impl Drop for ArrivingRequest<'_> {
    fn drop(&mut self) {
        let arriving = &self.connection.0.arriving;
        arriving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
