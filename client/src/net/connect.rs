//! How bytes reach a server: TCP, or whatever the caller brings.
//!
//! A connector opens byte streams and knows nothing of what travels on them.

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use super::endpoint::Endpoint;

/// A byte stream to a server.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A byte stream that is being opened.
///
/// # Cancel safety
/// The client drops it when an attempt takes too long or nobody needs the connection any more.
/// Dropping it must close what was opened so far.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>>;

/// Opens byte streams to servers.
///
/// The library dials TCP by itself; a connector of one's own is for tests (over
/// [`tokio::io::duplex`]) and for networks that need more than a host and a port. It is called once
/// per attempt, and the attempt is dropped after 5 s. TLS, where the endpoint asks for it, is laid over
/// what it returns.
pub trait Connect: Send + Sync + 'static {
    /// Opens a stream to `endpoint`.
    ///
    /// # Cancel safety
    /// The client may drop the future at any await, as [`Connecting`] says.
    fn connect(&self, endpoint: &Endpoint) -> Connecting;
}

impl<F> Connect for F
where
    F: Fn(&Endpoint) -> Connecting + Send + Sync + 'static,
{
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        self(endpoint)
    }
}
