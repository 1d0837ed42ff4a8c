//! What ends a stream, how long the client waits, and what it requests next.

use std::time::Duration;

use driftless_client::{Client, RefusedReason, WatchError, WatchState, Watcher};
use driftless_proto::v1::{self, watch_response::Frame};
use tokio::time::Instant;
use tonic::Status;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, poll_times, soon};

async fn watching(client: &Client, server: &mut Server, etcd: &EtcdModel) -> (Watcher<u32>, Call) {
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(etcd).await;
        call
    });
    (watcher.unwrap(), call)
}

fn goodbye(reason: v1::goodbye::Reason, retry_after_ms: u32) -> Frame {
    Frame::Goodbye(v1::Goodbye {
        reason: reason.into(),
        retry_after_ms,
        purge: false,
    })
}

#[tokio::test(start_paused = true)]
async fn reconnect_resumes_from_the_state_held() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    call.send(etcd.progress()).await;
    drop(call);

    let call = server.next_call().await;
    let have = call.request.have.clone().unwrap();
    assert_eq!(have.revision, etcd.revision, "a bookmark counts");
    assert_eq!(
        (&have.epoch[..], &have.token[..]),
        (&b"epoch"[..], &b"token"[..])
    );
    assert_eq!(have.digest, etcd.digest());
    let outcome = call.request.outcome.clone().unwrap();
    assert_eq!((outcome.applied_revision, outcome.rejection), (11, None));
    call.send(EtcdModel::hello()).await;
    call.send(etcd.current()).await;
    call.send(etcd.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 2);
    assert_eq!(watcher.status().reconnects, 1);
    assert_eq!(server.dials(), 1, "the connection is kept");
}

#[tokio::test(start_paused = true)]
async fn equal_state_is_no_change() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    let mut entries = client.entries("/a").await.unwrap();
    drop(call);
    for answer in [etcd.current(), etcd.snapshot()] {
        let call = server.next_call().await;
        call.send(EtcdModel::hello()).await;
        call.send(answer).await;
        // Sent after the state, so that was applied.
        soon(async {
            while watcher.status().state != WatchState::Live {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(poll_times(watcher.changed(), 3).await.is_none());
        assert!(poll_times(entries.changed(), 3).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn clean_end_backs_off_too() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = watching(&client, &mut server, &etcd).await;
    drop(call);
    let start = Instant::now();
    let mut attempts = 0;
    while start.elapsed() < Duration::from_secs(600) {
        let call = server.next_call().await;
        call.send(EtcdModel::hello()).await;
        call.send(etcd.current()).await;
        drop(call);
        attempts += 1;
    }
    // The mean wait at the cap is 2.5 s: 240 attempts, and a few at the start.
    assert!(
        (180..320).contains(&attempts),
        "{attempts} attempts in ten minutes"
    );
    assert_eq!(server.dials(), 1);
}

#[tokio::test(start_paused = true)]
async fn gap_resumes_from_the_state_held() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    let _lost = etcd.put("/a", "2");
    let next = etcd.put("/a", "3");
    call.send(next).await;
    call.wait_until_ended().await;

    let call = server.next_call().await;
    assert_eq!(call.resume_revision(), Some(11));
    assert_eq!(watcher.status().diverged, 0);
    assert_eq!(*watcher.load(), 1, "nothing of it was published");
    call.send_state(&etcd).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 3);
}

#[tokio::test(start_paused = true)]
async fn diverged_state_is_fetched_again() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    let mut wrong = etcd.put("/a", "2");
    if let Frame::Diff(diff) = &mut wrong {
        diff.digest = EtcdModel::default().digest();
    }
    call.send(wrong).await;
    call.wait_until_ended().await;

    let call = server.next_call().await;
    assert_eq!(call.resume_revision(), None, "it starts over");
    let status = watcher.status();
    assert_eq!(status.diverged, 1);
    assert!(status.last_error.unwrap().contains("digest"));
    assert_eq!(*watcher.load(), 1, "and keeps the last value meanwhile");
    call.send_state(&etcd).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 2);
    drop(call);
    assert_eq!(server.next_call().await.resume_revision(), Some(12));
}

#[tokio::test(start_paused = true)]
async fn server_can_ask_for_a_pause() {
    let second = Duration::from_secs(1);
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, mut call) = watching(&client, &mut server, &etcd).await;

    let start = Instant::now();
    call.send(goodbye(v1::goodbye::Reason::Stalled, 20_000))
        .await;
    call = server.next_call().await;
    assert!(start.elapsed() >= 20 * second && start.elapsed() < 21 * second);

    let start = Instant::now();
    let mut status = Status::unavailable("not in sync");
    let pushback = "30000".parse().unwrap();
    status
        .metadata_mut()
        .insert("grpc-retry-pushback-ms", pushback);
    call.fail(status).await;
    call = server.next_call().await;
    assert!(start.elapsed() >= 30 * second && start.elapsed() < 31 * second);
    assert_eq!(server.dials(), 1, "there is no other server");

    call.send(EtcdModel::hello()).await;
    call.send(etcd.progress()).await;
    let start = Instant::now();
    call.send(goodbye(v1::goodbye::Reason::Drain, 0)).await;
    let _call = server.next_call().await;
    assert!(start.elapsed() < 6 * second);
    assert_eq!(server.dials(), 2, "a draining server is left");
}

#[tokio::test(start_paused = true)]
async fn draining_server_is_left_despite_other_users() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = watching(&client, &mut server, &etcd).await;
    let (other, other_call) =
        tokio::join!(client.watch::<Option<u32>>("/b").into_future(), async {
            let call = server.next_call().await;
            call.send_state(&EtcdModel::with(&[])).await;
            call
        });
    let other = other.unwrap();
    call.send(goodbye(v1::goodbye::Reason::Drain, 0)).await;
    let call = server.next_call().await;
    call.send(EtcdModel::hello()).await;
    call.send(etcd.progress()).await;
    assert_eq!(server.dials(), 2);
    assert!(!other_call.is_ended(), "calls in progress go on");
    assert_eq!(other.status().state, WatchState::Live);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_stream_and_leaves_the_connection() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (watcher, call) = watching(&client, &mut server, &etcd).await;
    // Frames in time keep it alive.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(25)).await;
        call.send(etcd.progress()).await;
    }
    let start = Instant::now();
    let next = server.next_call().await;
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(30) && waited < Duration::from_secs(31));
    assert!(call.is_ended());
    assert!(
        watcher
            .status()
            .last_error
            .unwrap()
            .contains("sent nothing")
    );
    assert_eq!(server.dials(), 2);

    // No answer: ten seconds for the first frame.
    let start = Instant::now();
    let _third = server.next_call().await;
    assert!(
        start.elapsed() >= Duration::from_secs(10) && start.elapsed() < Duration::from_secs(11)
    );
    assert!(next.is_ended());
}

#[tokio::test]
async fn protocol_violation_is_refused() {
    for frames in [
        vec![EtcdModel::with(&[]).snapshot()],
        vec![EtcdModel::hello(), EtcdModel::hello()],
    ] {
        let mut server = Server::start();
        let client = server.client();
        let watch = client.watch::<Option<u32>>("/a").into_future();
        let script = async {
            let call = server.next_call().await;
            for frame in frames {
                call.send(frame).await;
            }
            call.wait_until_ended().await;
            let call = server.next_call().await;
            call.send_state(&EtcdModel::with(&[])).await;
            call
        };
        let (watcher, _call) = soon(async { tokio::join!(watch, script) }).await;
        let error = watcher.unwrap().status().last_error.unwrap();
        assert!(error.contains("broke the contract"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_frame_is_ignored() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    call.send_unknown().await;
    call.send(etcd.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(watcher.status().reconnects, 0);
}

#[tokio::test(start_paused = true)]
async fn too_large_range_is_refused() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", &"x".repeat(2000))]);
    let client = server.builder().range_limit(1000).build().unwrap();
    let (watcher, _call) = tokio::join!(client.watch::<String>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let Err(WatchError::Refused(refused)) = watcher else {
        panic!("{watcher:?}");
    };
    assert_eq!(refused.reason, RefusedReason::TooLarge);
    let shown = refused.to_string();
    for named in ["/a", "1000 bytes", "range_limit"] {
        assert!(shown.contains(named), "{shown}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_endpoint_is_tried() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    for _ in 0..10 {
        let client = server.builder_with_dead_endpoint().build().unwrap();
        let (watcher, _call) = watching(&client, &mut server, &etcd).await;
        let endpoint = watcher.status().endpoint;
        assert_eq!(endpoint.as_deref(), Some("http://scripted:7400"));
    }
}

#[tokio::test(start_paused = true)]
async fn server_that_is_behind_does_not_move_the_state_back() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let behind = etcd.clone();
    let _ = etcd.put("/a", "2");
    let client = server.builder().endpoint("http://other:7400");
    let client = client.build().unwrap();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    let first = watcher.status().endpoint;
    call.send(goodbye(v1::goodbye::Reason::Drain, 0)).await;
    // The other server sends what it has, and again when the client starts over.
    for _ in 0..2 {
        let call = server.next_call().await;
        call.send_state(&behind).await;
        call.wait_until_ended().await;
        let status = watcher.status();
        assert_ne!(status.endpoint, first);
        assert_eq!((*watcher.load(), status.revision.get()), (2, 12));
        let error = status.last_error.unwrap();
        assert!(error.contains("older than the client's 12"), "{error}");
    }
    assert_eq!(server.dials(), 2);
    // Until it has caught up.
    let _ = etcd.put("/a", "3");
    let call = server.next_call().await;
    call.send_state(&etcd).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 3);
}

#[tokio::test(start_paused = true)]
async fn failed_dial_is_shared_by_all_waiters() {
    let start = Instant::now();
    let client = crate::server::builder(|_| Box::pin(std::future::pending()))
        .build()
        .unwrap();
    let gets = (0..50).map(|n| {
        let get = client.get(format!("/{n}")).timeout(Duration::from_secs(60));
        get.into_future()
    });
    let mut gets: tokio::task::JoinSet<_> = gets.collect();
    while let Some(answer) = gets.join_next().await {
        assert!(answer.unwrap().unwrap_err().is_retryable());
    }
    assert!(
        start.elapsed() < Duration::from_secs(6),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn age_is_the_time_since_the_last_proof() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (watcher, _call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        let Frame::Hello(mut hello) = EtcdModel::hello() else {
            unreachable!()
        };
        hello.clock_ms = 5_000_000;
        call.send(Frame::Hello(hello)).await;
        let Frame::Snapshot(mut snapshot) = etcd.snapshot() else {
            unreachable!()
        };
        snapshot.contact_ms = 5_000_000 - 7000;
        call.send(Frame::Snapshot(snapshot)).await;
        call
    });
    let age = watcher.unwrap().status().age().unwrap();
    assert!(
        age >= Duration::from_secs(7) && age < Duration::from_secs(12),
        "{age:?}"
    );
}
