//! A TCP proxy that a test can cut or stall, so that two ends that run lose each other.

use std::net::Ipv4Addr;
use std::pin::pin;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Forwards connections to one port until it is cut or stalled. Dropping it closes them all.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    mode: watch::Sender<Mode>,
    _accepting: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Open,
    Stalled,
    Cut,
}

impl Proxy {
    /// To a port on loopback.
    ///
    /// # Panics
    /// When there is no free port.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mode, modes) = watch::channel(Mode::Open);
        let accepting =
            AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((mut from, _)) = listener.accept().await {
                    // Those that ended are let go, or they pile up.
                    while connections.try_join_next().is_some() {}
                    let mut modes = modes.clone();
                    connections.spawn(async move {
                        let mut forwarding = pin!(async {
                            let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
                            // Nothing waits for an acknowledgement that is delayed.
                            from.set_nodelay(true)?;
                            to.set_nodelay(true)?;
                            copy_bidirectional(&mut from, &mut to).await
                        });
                        loop {
                            let now = *modes.borrow_and_update();
                            tokio::select! {
                                biased;
                                changed = modes.changed(), if now != Mode::Cut => {
                                    if changed.is_err() {
                                        return;
                                    }
                                }
                                _ = &mut forwarding, if now == Mode::Open => return,
                                else => return,
                            }
                        }
                    });
                }
            }));
        Self {
            port,
            mode,
            _accepting: accepting,
        }
    }

    /// Where to connect, as `http://127.0.0.1:7400`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes all connections, and new ones at once.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// Keeps connections open and forwards nothing.
    pub fn stall(&self) {
        self.mode.send_replace(Mode::Stalled);
    }

    /// Forwards again.
    pub fn heal(&self) {
        self.mode.send_replace(Mode::Open);
    }
}
