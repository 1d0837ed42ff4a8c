//! Listening sockets that survive restarts, bursts and a lack of descriptors.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::sleep;

/// How many connections may wait to be accepted. A thousand clients that return at the same moment
/// overflow the usual 128 (measured), and each that is dropped comes back a second later at the
/// earliest. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: u32 = 4096;

/// How long to leave the listener alone when a connection could not be accepted for lack of
/// descriptors or memory: asking again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Binds a listener that can be bound again at once after a restart, with a deep backlog.
///
/// # Errors
/// When the address is in use or not one of this machine.
pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections, whatever happens to any of them.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
    /// Whether accepting fails now. It is logged once, and not ten times a second.
    failing: bool,
}

impl Listener {
    pub(crate) const fn new(listener: TcpListener) -> Self {
        Self {
            listener,
            failing: false,
        }
    }

    /// The next connection, and the address of its other end.
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
                        tracing::warn!(%error, "connections cannot be accepted; still trying");
                    }
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
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
