//! What the calls of one connection share, and what bounds them together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::serving::Orders;

/// What the requests of one connection may hold together while they arrive, in bytes: twice the
/// largest report, and far more than all the requests that a client begins at a time, which arrive
/// whole. A connection may have thousands of calls open, so a bound for each is none.
const REQUESTS_IN_FLIGHT: usize = 2 * 1024 * 1024;

/// One connection, as its calls see it. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Option<SocketAddr>,
    orders: Arc<Orders>,
    /// Bytes of requests that have not arrived completely.
    arriving: AtomicUsize,
}

/// What has arrived of one request counts for as long as this lives.
#[derive(Debug)]
pub(super) struct Arriving<'a> {
    connection: &'a Connection,
    bytes: usize,
}

impl Connection {
    /// From `peer`, where that is known. Whoever owns it follows the `orders`.
    pub(super) fn new(peer: Option<SocketAddr>, orders: Arc<Orders>) -> Self {
        Self(Arc::new(Inner {
            peer,
            orders,
            arriving: AtomicUsize::new(0),
        }))
    }

    /// The other end.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        self.0.peer
    }

    /// Ends it, with everything on it. Whether it was open.
    pub(super) fn close(&self) -> bool {
        self.0.orders.end()
    }

    /// A request begins to arrive.
    pub(super) const fn arriving(&self) -> Arriving<'_> {
        Arriving {
            connection: self,
            bytes: 0,
        }
    }
}

impl Arriving<'_> {
    /// More of it is there. False: that is too much, with what other requests hold.
    pub(super) fn add(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        let before = self
            .connection
            .0
            .arriving
            .fetch_add(bytes, Ordering::Relaxed);
        before + bytes <= REQUESTS_IN_FLIGHT
    }
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let arriving = &self.connection.0.arriving;
        arriving.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
