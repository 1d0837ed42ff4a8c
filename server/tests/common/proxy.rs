//! A TCP proxy that a test can cut, so that a source loses an etcd that runs.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::net::Ipv4Addr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// Forwards connections to one port until it is cut. Ends when it is dropped.
pub(crate) struct Proxy {
    port: u16,
    open: watch::Sender<bool>,
    _accepting: AbortOnDropHandle<()>,
}

impl Proxy {
    /// To a port on loopback.
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, is_open) = watch::channel(true);
        let accepting =
            AbortOnDropHandle::new(tokio::runtime::Handle::current().spawn(async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((mut from, _)) = listener.accept().await {
                    let mut is_open = is_open.clone();
                    connections.spawn(async move {
                        let forwarding = async {
                            let mut to = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await?;
                            copy_bidirectional(&mut from, &mut to).await
                        };
                        tokio::select! {
                            biased;
                            _ = is_open.wait_for(|open| !open) => {}
                            _ = forwarding => {}
                        }
                    });
                }
            }));
        Self {
            port,
            open,
            _accepting: accepting,
        }
    }

    /// Where to connect.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Closes all connections, and new ones at once.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Forwards again.
    pub(crate) fn heal(&self) {
        self.open.send_replace(true);
    }
}
