//! A drop ends everything at once, in every state. The witnesses are tokio's count of tasks and the server's side
//! of the call; under the paused clock no time passes while they are checked.

use std::pin::Pin;
use std::time::Duration;

use driftless_client::{Client, Connecting, Io, KeyRange, WatchState, Watcher};
use driftless_proto::v1::watch_response::Frame;
use tonic::Status;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, builder, poll_times, soon};

async fn watching(client: &Client, server: &mut Server, etcd: &EtcdModel) -> (Watcher<u32>, Call) {
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(etcd).await;
        call
    });
    (watcher.unwrap(), call)
}

#[tokio::test]
async fn watchers_of_one_range_share_one_stream() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (one, call) = watching(&client, &mut server, &etcd).await;
    let mut two = client.watch::<u32>("/a").await.unwrap();
    let text = client.watch::<String>("/a").await.unwrap();
    let entries = client.entries("/a").await.unwrap();
    assert_eq!(
        (*two.load(), &**text.load(), entries.load().len()),
        (1, "1", 1)
    );
    assert!(server.no_call());

    drop((client, one, text, entries));
    call.send(etcd.put("/a", "2")).await;
    soon(two.changed()).await.unwrap();
    assert_eq!(
        *two.load(),
        2,
        "a watcher needs neither the client nor the others"
    );
    drop(two);
    call.wait_until_ended().await;
    server.wait_until_idle().await;
}

#[tokio::test]
async fn ranges_share_and_release_one_connection() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (one, call) = watching(&client, &mut server, &etcd).await;
    let watch = client.entries(KeyRange::prefix("/")).into_future();
    let (two, other) = tokio::join!(watch, async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let two = two.unwrap();
    assert_eq!(server.dials(), 1);
    drop(one);
    call.wait_until_ended().await;
    assert!(!other.is_ended());
    drop(two);
    other.wait_until_ended().await;
    server.wait_until_idle().await;

    let (_again, _call) = watching(&client, &mut server, &etcd).await;
    assert_eq!(server.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn drop_before_the_first_value() {
    // How many frames the server sends before the watch is dropped.
    for frames in 0..=3 {
        let mut server = Server::start();
        let client = server.client();
        let mut watch = client.watch::<u32>("/a").into_future();
        let call = tokio::select! {
            call = server.next_call() => call,
            _ = &mut watch => panic!("there is no value"),
        };
        let Frame::Snapshot(mut part) = EtcdModel::with(&[("/a", "1")]).snapshot() else {
            unreachable!()
        };
        part.more = true;
        let script = [
            EtcdModel::hello(),
            Frame::Snapshot(part.clone()),
            Frame::Snapshot(part),
        ];
        for frame in script.into_iter().take(frames) {
            call.send(frame).await;
        }
        assert!(poll_times(&mut watch, 1).await.is_none());
        let before = tokio::time::Instant::now();
        drop(watch);
        call.wait_until_ended().await;
        server.wait_until_idle().await;
        assert_eq!(before.elapsed(), Duration::ZERO, "after {frames} frames");
    }
}

#[tokio::test(start_paused = true)]
async fn drop_while_connecting() {
    type Connector = fn() -> Connecting;
    let connectors: [Connector; 3] = [
        // The dial never finishes.
        || Box::pin(std::future::pending()),
        // Connected, but the other end never reads.
        || {
            Box::pin(async {
                let (client, server) = tokio::io::duplex(1);
                // Keeps it open for as long as the client's half.
                Ok(Box::new(tokio::io::join(client, server)) as Box<dyn Io>)
            })
        },
        // Always in backoff.
        || Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) }),
    ];
    for connector in connectors {
        let server = Server::start();
        let client = builder(move |_| connector()).build().unwrap();
        for polls in 0..4 {
            let watch = client.watch::<u32>("/a").into_future();
            assert!(poll_times(watch, polls).await.is_none());
            let before = tokio::time::Instant::now();
            server.wait_until_idle().await;
            assert_eq!(before.elapsed(), Duration::ZERO);

            // Let it run for a while.
            let watch = client.entries("/a").into_future();
            let long = Duration::from_secs(polls as u64);
            assert!(tokio::time::timeout(long, watch).await.is_err());
            server.wait_until_idle().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn drop_while_live_in_backoff_or_refused() {
    for state in [WatchState::Live, WatchState::Backoff, WatchState::Refused] {
        let mut server = Server::start();
        let etcd = EtcdModel::with(&[("/a", "1")]);
        let client = server.client();
        let (watcher, call) = watching(&client, &mut server, &etcd).await;
        let held = match state {
            WatchState::Live => Some(call),
            WatchState::Backoff => {
                call.fail(Status::unavailable("")).await;
                None
            }
            _ => {
                call.fail(Status::not_found("")).await;
                None
            }
        };
        soon(async {
            while watcher.status().state != state {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let before = tokio::time::Instant::now();
        drop(watcher);
        if let Some(call) = held {
            call.wait_until_ended().await;
        }
        server.wait_until_idle().await;
        assert_eq!(before.elapsed(), Duration::ZERO, "{state:?}");
    }
}

/// A call of the public API, as a future that resolves with its success.
type Begin = fn(&Client) -> Pin<Box<dyn Future<Output = bool>>>;

#[tokio::test]
async fn every_future_can_be_dropped_at_every_poll() {
    let futures: [(&str, Begin); 3] = [
        ("watch", |client| {
            let watch = client.watch::<u32>("/a").into_future();
            Box::pin(async { watch.await.is_ok() })
        }),
        ("entries", |client| {
            let watch = client.entries("/a").into_future();
            Box::pin(async { watch.await.is_ok() })
        }),
        ("get", |client| {
            let get = client.get("/a").into_future();
            Box::pin(async { get.await.is_ok() })
        }),
    ];
    for (name, begin) in futures {
        let mut polls = 0;
        while !dropped_after(begin, polls).await {
            polls += 1;
            assert!(polls < 200, "{name} never resolves");
        }
        assert!(polls > 2, "{name} has nothing to wait for");
    }
}

/// Polls the future this many times while a server answers it, and drops it. Returns whether it resolved.
async fn dropped_after(begin: Begin, polls: usize) -> bool {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let done = tokio::select! {
        biased;
        done = poll_times(begin(&client), polls) => done,
        () = server.serve_all(&etcd) => None,
    };
    assert!(done != Some(false));
    // The dropped future took nothing away from the next.
    server.wait_until_idle().await;
    while !server.no_call() {}
    let (watcher, call) = soon(watching(&client, &mut server, &etcd)).await;
    assert_eq!(*watcher.load(), 1);
    drop(watcher);
    call.wait_until_ended().await;
    server.wait_until_idle().await;
    done.is_some()
}

#[tokio::test]
async fn idle_client_holds_nothing() {
    let server = Server::start();
    let client = server.client();
    let _unused = client.watch::<u32>("/a");
    drop(client.entries("/a").into_future());
    drop(client.get("/a").into_future());
    server.wait_until_idle().await;
    assert_eq!(server.dials(), 0);
}
