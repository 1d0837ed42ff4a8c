//! The default connector.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use driftless_client::{Client, WatchState};

use crate::etcd_model::EtcdModel;
use crate::server::{Server, soon};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn tcp_connection_is_dialled_and_closed() {
    let (mut server, address) = Server::listen(ANY);
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = Client::connect(format!("http://{address}")).unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();
    call.send(etcd.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 2);
    drop(watcher);
    call.wait_until_ended().await;
    server.wait_until_idle().await;
}

#[tokio::test]
async fn lost_server_is_found_again() {
    let (mut server, address) = Server::listen(ANY);
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = Client::connect(format!("http://{address}")).unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
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
    let call = server.next_call().await;
    assert_eq!(call.resume_revision(), Some(11));
    assert_eq!(watcher.status().reconnects, 0, "not before it answers");
}
