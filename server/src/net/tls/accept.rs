//! The server's side of a TLS handshake.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;

/// For how long, and for how many bytes, to go on reading from a client whose handshake failed: closing
/// a socket with unread data in it discards the alert that was just written.
const LINGER: (Duration, usize) = (Duration::from_secs(1), 64 * 1024);

/// Accepts TLS connections with the newest certificate that can be used. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Mutex<Arc<ServerConfig>>>);

impl Tls {
    pub(super) fn new(config: ServerConfig) -> Self {
        Self(Arc::new(Mutex::new(Arc::new(config))))
    }

    /// Does the TLS handshake over `io`, within this time.
    ///
    /// # Errors
    /// Why the handshake failed, for people. The client was told.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn accept<S>(&self, io: S, within: Duration) -> Result<TlsStream<S>, String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = Arc::clone(&self.0.lock());
        let accept = TlsAcceptor::from(config).accept(io).into_fallible();
        match timeout(within, accept).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err((error, io))) => {
                let _ = timeout(LINGER.0, linger(io)).await;
                Err(error.to_string())
            }
            Err(_) => Err(format!("it did not end within {within:?}")),
        }
    }

    /// From now on, handshakes use this.
    pub(super) fn replace(&self, config: ServerConfig) {
        *self.0.lock() = Arc::new(config);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The certificates that the client showed, its own first, as DER.
pub(crate) fn peer_certificates<S>(stream: &TlsStream<S>) -> impl Iterator<Item = &[u8]> {
    let (_, session) = stream.get_ref();
    let certificates = session.peer_certificates().unwrap_or_default();
    certificates.iter().map(AsRef::as_ref)
}

/// Reads until the other end has closed, or has sent too much.
async fn linger(mut io: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = io.shutdown().await;
    let (mut received, mut buffer) = (0, [0; 1024]);
    while received < LINGER.1 {
        match io.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => received += read,
        }
    }
}
