//! The default connector.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use driftless_client::{Client, WatchState};

use crate::server::{Server, soon};
use crate::world::World;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn tcp_connection_is_dialled_and_closed() {
    let (mut server, address) = Server::listen(ANY);
    let mut world = World::of(&[("/a", "1")]);
    let client = Client::connect(format!("http://{address}")).unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    let mut watcher = watcher.unwrap();
    call.send(world.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 2);
    drop(watcher);
    call.ended().await;
    server.idle().await;
}

#[tokio::test]
async fn lost_server_is_found_again() {
    let (mut server, address) = Server::listen(ANY);
    let world = World::of(&[("/a", "1")]);
    let client = Client::connect(format!("http://{address}")).unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    let watcher = watcher.unwrap();
    // The process is gone: its sockets are closed and nothing listens.
    drop((server, call));
    soon(async {
        while watcher.status().state != WatchState::Backoff {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(*watcher.load(), 1);
    let (mut server, _) = Server::listen(address);
    let call = server.call().await;
    assert_eq!(call.have(), Some(11));
    assert_eq!(watcher.status().reconnects, 0, "not before it answers");
}
