//! One connection: who is at the other end, and what its calls share.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::time::Instant;

use super::calls::{Calls, Unread};
use super::control::ConnectionControl;
use super::kept::KeptByStreams;
use super::registry::{Clock, Registry};
use crate::auth::CertificateChain;
use crate::metrics::GaugeGuard;

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
    calls: Calls,
    /// Whether the network takes what is written.
    unwritten: Unread,
    clock: Clock,
    kept: KeptByStreams,
}

impl Connection {
    pub(super) fn new(id: ConnectionId, peer: Option<SocketAddr>, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            id,
            peer,
            since: Instant::now(),
            certificates: OnceLock::new(),
            control: Arc::default(),
            streams: AtomicUsize::new(0),
            calls: Calls::default(),
            unwritten: Unread::nothing(clock),
            clock,
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

    /// The network takes no more of what is written to it.
    pub(crate) fn write_blocked(&self) {
        self.0.unwritten.start();
    }

    /// The network takes something again.
    pub(crate) fn write_unblocked(&self) {
        self.0.unwritten.stop();
    }

    /// Whether the other end has left something unread for this long, in milliseconds: an answer, or
    /// anything at all that was written.
    pub(super) fn is_stalled(&self, now: u64, timeout: u64) -> bool {
        self.0.unwritten.is_stalled(now, timeout) || self.0.calls.are_stalled(now, timeout)
    }

    /// What its calls hold, in bytes.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.0.calls.held()
    }

    pub(super) fn calls(&self) -> &Calls {
        &self.0.calls
    }

    pub(super) fn clock(&self) -> Clock {
        self.0.clock
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
