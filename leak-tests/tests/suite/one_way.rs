//! A network that loses everything sent in one direction, for ever, and tells neither end.

use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// What gets lost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    Nothing,
    /// What the server sends.
    ToClients,
    /// What clients send.
    ToServer,
}

/// Forwards connections to one port. Once something gets lost, neither end learns any more that the
/// other one has left.
pub(crate) struct OneWay {
    port: u16,
    lost: watch::Sender<Lost>,
    _accepting: AbortOnDropHandle<()>,
}

impl OneWay {
    /// To a port on loopback.
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (lost, losses) = watch::channel(Lost::Nothing);
        let accept = async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                connections.spawn(forward(client, target, losses.clone()));
            }
        };
        let accepting = tokio::runtime::Handle::current().spawn(accept);
        Self {
            port,
            lost,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    /// Where to connect.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on, on all connections there are and will be.
    pub(crate) fn lose(&self, what: Lost) {
        self.lost.send_replace(what);
    }
}

async fn forward(client: TcpStream, target: u16, losses: watch::Receiver<Lost>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, target)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut up = std::pin::pin!(pass(
        &mut from_client,
        &mut to_server,
        &losses,
        Lost::ToServer
    ));
    let mut down = std::pin::pin!(pass(
        &mut from_server,
        &mut to_client,
        &losses,
        Lost::ToClients
    ));
    let client_left = tokio::select! {
        () = &mut up => true,
        () = &mut down => false,
    };
    // Nobody is told, so both have to leave.
    if *losses.borrow() != Lost::Nothing {
        if client_left {
            down.await;
        } else {
            up.await;
        }
    }
}

/// Until there comes no more.
async fn pass(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    losses: &watch::Receiver<Lost>,
    loss: Lost,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(read @ 1..) = from.read(&mut bytes).await {
        if *losses.borrow() != loss {
            // Whoever has left needs nothing.
            let _ = to.write_all(&bytes[..read]).await;
        }
    }
}
