//! Connectors: how bytes reach a server.
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
/// By default the library dials TCP. A custom connector is for tests (over [`tokio::io::duplex`]) and for
/// networks that need more than a host and a port. It is called once for each attempt, and the attempt is
/// dropped after 5 s. If the endpoint needs TLS, the library wraps the stream in it.
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
