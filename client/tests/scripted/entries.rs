//! The untyped watcher, and `get`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use driftless_client::{
    Client, Entries, EntriesWatcher, EntryChange, GetError, KeyRange, RefusedReason, WatchError,
    WatchState,
};
use driftless_proto::v1::{self, watch_response::Frame};
use tonic::Status;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, poll_times, soon};

async fn watching(
    client: &Client,
    server: &mut Server,
    etcd: &EtcdModel,
) -> (EntriesWatcher, Call) {
    let watch = client.entries(KeyRange::prefix("/")).into_future();
    let (watcher, call) = tokio::join!(watch, async {
        let call = server.next_call().await;
        call.send_state(etcd).await;
        call
    });
    (watcher.unwrap(), call)
}

fn pairs(entries: &Entries) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    entries
        .iter()
        .map(|entry| (entry.key.to_string(), text(&entry.value)))
        .collect()
}

#[tokio::test]
async fn state_and_its_changes_are_read() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1"), ("/b", "2")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    let start = watcher.load();
    assert_eq!((start.len(), start.revision().get()), (2, 12));
    assert_eq!(&start.get(b"/a").unwrap().value[..], b"1");
    assert!(start.get(b"/c").is_none());

    let edits = [("/a", None), ("/b", Some("3")), ("/c", Some("4"))];
    call.send(etcd.edit(&edits)).await;
    let change = soon(watcher.changed()).await.unwrap();
    assert_eq!(change.revision.get(), 13);
    let told: Vec<_> = change
        .changes
        .iter()
        .map(|change| match change {
            EntryChange::Put { old, new } => {
                (new.key.to_string(), old.is_some(), new.mod_revision.get())
            }
            EntryChange::Delete { old, revision } => (old.key.to_string(), true, revision.get()),
            other => panic!("{other:?}"),
        })
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(key, old, at)| (&**key, *old, *at))
        .collect();
    assert_eq!(
        told,
        [("/a", true, 13), ("/b", true, 13), ("/c", false, 13)]
    );
    assert_eq!(
        pairs(&start).len(),
        2,
        "a state that was given does not change"
    );
}

#[tokio::test]
async fn changed_skips_what_load_returned() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    call.send(etcd.put("/a", "2")).await;
    soon(async {
        while watcher.load().revision().get() != 12 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(poll_times(watcher.changed(), 3).await.is_none());
    call.send(etcd.put("/b", "3")).await;
    let change = soon(watcher.changed()).await.unwrap();
    assert_eq!(change.changes.len(), 1);
    assert_eq!(change.changes[0].key().to_string(), "/b");
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl std::task::Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn empty_range_is_in_sync() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    assert!(watcher.load().is_empty());
    assert_eq!(watcher.load().revision().get(), 10);
    let statuses = watcher.watch_status();
    let wakes = Arc::new(Wakes::default());
    let waker = std::task::Waker::from(Arc::clone(&wakes));
    {
        let mut changed = std::pin::pin!(watcher.changed());
        let mut cx = std::task::Context::from_waker(&waker);
        assert!(changed.as_mut().poll(&mut cx).is_pending());
        call.send(etcd.progress()).await;
        // A state appears in the status after it does in the entries.
        soon(async {
            while statuses.status().revision.get() != 11 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(watcher.load().revision().get(), 11);
    assert_eq!(
        wakes.0.load(Ordering::Relaxed),
        0,
        "nobody is woken for nothing"
    );
    assert!(
        poll_times(watcher.changed(), 3).await.is_none(),
        "a bookmark is no change"
    );
    assert_eq!(watcher.status().revision.get(), 11);
}

#[tokio::test(start_paused = true)]
async fn change_and_its_reversal_are_skipped() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1"), ("/b", "2")]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    drop(call);
    let _ = etcd.put("/c", "3");
    let _ = etcd.delete("/c");
    let _ = etcd.delete("/b");
    let call = server.next_call().await;
    call.send_state(&etcd).await;
    let change = soon(watcher.changed()).await.unwrap();
    let keys: Vec<_> = change
        .changes
        .iter()
        .map(|change| change.key().to_string())
        .collect();
    assert_eq!(keys, ["/b"]);
}

#[tokio::test(start_paused = true)]
async fn status_changes_are_reported() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let (mut watcher, call) = watching(&client, &mut server, &etcd).await;
    assert_eq!(watcher.status().state, WatchState::Live);
    call.send(etcd.progress()).await;
    drop(call);
    let mut seen = Vec::new();
    let script = async {
        let call = server.next_call().await;
        call.send(EtcdModel::hello()).await;
        call.send(etcd.current()).await;
        call
    };
    let mut statuses = watcher.watch_status();
    let watch = async {
        while seen.len() < 2 || seen.last() != Some(&WatchState::Live) {
            seen.push(statuses.changed().await.state);
        }
    };
    let (_call, ()) = soon(async { tokio::join!(script, watch) }).await;
    assert!(seen.contains(&WatchState::Backoff), "{seen:?}");
    assert_eq!(
        watcher.status_changed().await.state,
        WatchState::Live,
        "the latest"
    );
    assert!(poll_times(watcher.status_changed(), 3).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn first_state_can_have_a_limit() {
    let mut server = Server::start();
    let client = server.client();
    let watch = client
        .entries("/a")
        .first_state_within(Duration::from_secs(3));
    let (watcher, call) = tokio::join!(watch.into_future(), server.next_call());
    assert!(matches!(watcher, Err(WatchError::NoFirstValue { .. })));
    call.wait_until_ended().await;
    server.wait_until_idle().await;
}

#[tokio::test]
async fn get_reads_once_and_leaves_nothing_behind() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1"), ("/b", "2")]);
    let client = server.client();
    let Frame::Snapshot(whole) = etcd.snapshot() else {
        unreachable!()
    };
    let (one, two) = whole.entries.split_at(1);
    let chunk = |entries: &[v1::Entry], more| v1::GetResponse {
        snapshot: Some(v1::Snapshot {
            entries: entries.to_vec(),
            more,
            digest: if more {
                Default::default()
            } else {
                whole.digest.clone()
            },
            ..whole.clone()
        }),
    };
    let get = client.get(KeyRange::prefix("/")).into_future();
    let (entries, _call) = tokio::join!(get, async {
        let call = server.next_get_call().await;
        call.responses.send(Ok(chunk(one, true))).await.unwrap();
        call.responses.send(Ok(chunk(two, false))).await.unwrap();
        call
    });
    let entries = entries.unwrap();
    assert_eq!(entries.revision().get(), 12);
    let expected = [("/a", "1"), ("/b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(pairs(&entries), expected);
    server.wait_until_idle().await;
}

#[tokio::test(start_paused = true)]
async fn get_errors_are_told_apart() {
    let mut server = Server::start();
    let client = server.client();
    let (answer, ()) = tokio::join!(client.get("/a").into_future(), async {
        let call = server.next_get_call().await;
        let status = Status::not_found("served: /config/");
        call.responses.send(Err(status)).await.unwrap();
    });
    let Err(GetError::Refused(refused)) = answer else {
        panic!("{answer:?}");
    };
    assert_eq!(refused.reason, RefusedReason::NotServed);
    assert!(refused.to_string().contains("served: /config/"));

    let (answer, _call) = tokio::join!(client.get("/a").into_future(), server.next_get_call());
    let after = Duration::from_secs(10);
    let error = answer.unwrap_err();
    assert!(error.is_retryable());
    assert_eq!(
        error.to_string(),
        format!("no answer within {after:?} for /a from http://scripted:7400")
    );

    let (answer, ()) = tokio::join!(client.get("/a").into_future(), async {
        drop(server.next_get_call().await);
    });
    let error = answer.unwrap_err();
    assert!(error.is_retryable(), "a retry may succeed: {error}");
    assert!(
        error.to_string().contains("http://scripted:7400"),
        "{error}"
    );

    let (answer, ()) = tokio::join!(client.get("/a").into_future(), async {
        let call = server.next_get_call().await;
        let status = Status::unavailable("not in sync");
        call.responses.send(Err(status)).await.unwrap();
    });
    let error = answer.unwrap_err();
    assert!(error.is_retryable() && error.to_string().contains("not in sync"));

    let error = client.get("").await.unwrap_err();
    assert!(matches!(error, GetError::Range(_)));
    server.wait_until_idle().await;
}
