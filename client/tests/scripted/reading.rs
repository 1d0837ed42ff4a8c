//! The ways to read a value besides `load` and `changed`: readers, parts, streams, callbacks; and the age of values.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Waker};
use std::time::Duration;

use driftless_client::{
    Client, Closed, Key, KeyRange, Revision, ValueSource, ValueUpdate, ValueUpdates, WatchState,
    Watcher,
};
use driftless_proto::v1::watch_response::Frame;
use futures_core::Stream;
use serde::Deserialize;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, poll_times, soon};

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Limits {
    rps: u32,
    burst: u32,
}

fn limits(rps: u32, burst: u32) -> String {
    format!(r#"{{"rps": {rps}, "burst": {burst}}}"#)
}

struct Setting {
    _server: Server,
    client: Client,
    etcd: EtcdModel,
    call: Call,
}

impl Setting {
    async fn new() -> (Self, Watcher<Limits>) {
        let mut server = Server::start();
        let etcd = EtcdModel::with(&[("/a", &limits(1, 2))]);
        let client = server.client();
        let (watcher, call) = tokio::join!(client.watch::<Limits>("/a").into_future(), async {
            let call = server.next_call().await;
            call.send_state(&etcd).await;
            call
        });
        let setting = Self {
            _server: server,
            client,
            etcd,
            call,
        };
        (setting, watcher.unwrap())
    }

    async fn put(&mut self, value: &str) {
        let frame = self.etcd.put("/a", value);
        self.call.send(frame).await;
    }
}

async fn next<T: Send + Sync + 'static>(
    updates: &mut ValueUpdates<T>,
) -> Result<ValueUpdate<T>, Closed> {
    soon(poll_fn(|cx| Pin::new(&mut *updates).poll_next(cx)))
        .await
        .expect("not the end")
}

#[tokio::test]
async fn reader_sees_the_newest_value_and_keeps_the_watch_alive() {
    let (mut setting, mut watcher) = Setting::new().await;
    let mut reader = watcher.reader();
    assert_eq!(
        (reader.load().rps, reader.revision()),
        (1, Revision::new(11))
    );
    setting.put(&limits(3, 4)).await;
    soon(watcher.changed()).await.unwrap();
    let mut other = reader.clone();
    drop(watcher);
    assert_eq!((reader.load().rps, other.load().rps), (3, 3));
    assert_eq!(reader.revision(), Revision::new(12));

    // From a thread without a runtime.
    setting.put(&limits(5, 6)).await;
    let seen = tokio::task::spawn_blocking(move || {
        while reader.load().rps != 5 {
            std::thread::yield_now();
        }
        reader
    });
    let reader = soon(seen).await.unwrap();
    drop((reader, other));
    setting.call.wait_until_ended().await;
}

#[tokio::test]
async fn part_reports_only_its_own_changes() {
    let (mut setting, mut watcher) = Setting::new().await;
    let mut burst = watcher.map(|limits| &limits.burst);
    assert_eq!(*burst.load(), 2);
    assert_eq!(burst.load().whole().rps, 1);
    setting.put(&limits(7, 2)).await;
    soon(watcher.changed()).await.unwrap();
    assert!(
        poll_times(burst.changed(), 3).await.is_none(),
        "not its part"
    );
    assert_eq!(
        burst.load().whole().rps,
        7,
        "the whole is the newest all the same"
    );
    setting.put(&limits(7, 8)).await;
    assert_eq!(soon(burst.changed()).await, Ok(Revision::new(13)));
    assert_eq!(*burst.load(), 8);

    // A change is not lost if nobody waits for it, or if the waiting future is dropped.
    setting.put(&limits(7, 9)).await;
    soon(watcher.changed()).await.unwrap();
    soon(watcher.changed()).await.unwrap();
    assert_eq!(soon(burst.changed()).await, Ok(Revision::new(14)));
    drop(watcher);
    setting.put(&limits(7, 10)).await;
    assert_eq!(soon(burst.changed()).await, Ok(Revision::new(15)));
    drop(burst);
    setting.call.wait_until_ended().await;
}

#[tokio::test(start_paused = true)]
async fn part_that_is_unequal_to_itself_is_no_change() {
    let server = Server::start();
    let client = server.client();
    let watch = client.watch::<f64>("/a").default_value(f64::NAN);
    let watcher = watch.first_value_within(Duration::ZERO).await.unwrap();
    let mut part = watcher.map(|value| value);
    assert!(poll_times(part.changed(), 3).await.is_none());
}

#[tokio::test]
async fn stream_yields_old_and_new() {
    let (mut setting, watcher) = Setting::new().await;
    let mut updates = watcher.into_stream();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut updates).poll_next(&mut cx).is_pending());

    setting.put(&limits(3, 4)).await;
    let update = next(&mut updates).await.unwrap();
    assert_eq!((update.previous().rps, update.current().rps), (1, 3));
    assert_eq!(update.revision(), Revision::new(12));
    let keys: Vec<String> = update.keys().map(Key::to_string).collect();
    assert_eq!(keys, ["/a"]);
    assert_eq!(format!("{update:?}"), "ValueUpdate { revision: 12, .. }");

    // A refused state makes no value; of several states only the latest counts.
    setting.put("CANARY").await;
    setting.put(&limits(5, 6)).await;
    let update = next(&mut updates).await.unwrap();
    assert_eq!((update.previous().rps, update.current().rps), (3, 5));

    setting.client.shutdown().await.unwrap();
    assert_eq!(next(&mut updates).await.unwrap_err(), Closed::Shutdown);
    let end = poll_fn(|cx| Pin::new(&mut updates).poll_next(cx)).await;
    assert!(end.is_none(), "it is reported once");
}

#[tokio::test]
async fn stream_that_keeps_up_yields_every_change() {
    let (mut setting, watcher) = Setting::new().await;
    let mut updates = watcher.into_stream();
    for n in 2..200 {
        setting.put(&limits(n, n)).await;
        let update = next(&mut updates).await.unwrap();
        assert_eq!((update.previous().rps, update.current().rps), (n - 1, n));
    }
}

#[tokio::test]
async fn callback_runs_until_its_guard_is_dropped() {
    let (mut setting, watcher) = Setting::new().await;
    let (seen, heard) = mpsc::channel();
    let calls = watcher.on_change(move |update| {
        seen.send((update.previous().rps, update.current().rps))
            .unwrap();
        assert_ne!(update.current().rps, 3, "the callback panics");
    });
    drop(watcher);
    let resources = setting.client.resources();
    assert!(
        resources
            .active()
            .iter()
            .any(|held| held.to_string() == "a callback for /a")
    );
    for (old, new) in [(1, 2), (2, 3), (3, 4)] {
        setting.put(&limits(new, 9)).await;
        let called = async {
            loop {
                match heard.try_recv() {
                    Ok(called) => return called,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        assert_eq!(soon(called).await, (old, new));
    }
    drop(calls);
    setting.call.wait_until_ended().await;
    assert_eq!(
        resources.released_within(Duration::from_secs(5)).await,
        Ok(())
    );
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn callback_can_begin_outside_of_a_runtime() {
    let (mut setting, watcher) = Setting::new().await;
    let (seen, heard) = mpsc::channel();
    let calls = std::thread::spawn(move || {
        watcher.on_change(move |update| seen.send(update.current().rps).unwrap())
    });
    let calls = calls.join().unwrap();
    setting.put(&limits(2, 2)).await;
    let heard = tokio::task::spawn_blocking(move || heard.recv_timeout(Duration::from_secs(5)));
    assert_eq!(heard.await.unwrap(), Ok(2));
    drop(calls);
    setting.call.wait_until_ended().await;
}

#[tokio::test]
async fn clone_reports_changes_independently() {
    let (mut setting, mut watcher) = Setting::new().await;
    let mut clone = watcher.clone();
    setting.put(&limits(3, 4)).await;
    assert_eq!(
        soon(watcher.changed()).await.unwrap().revision,
        Revision::new(12)
    );
    let mut behind = watcher.clone();
    assert_eq!(
        soon(clone.changed()).await.unwrap().revision,
        Revision::new(12)
    );
    assert!(
        poll_times(behind.changed(), 3).await.is_none(),
        "it was told already"
    );
    drop((watcher, clone));
    setting.put(&limits(5, 6)).await;
    assert_eq!(
        soon(behind.changed()).await.unwrap().revision,
        Revision::new(13)
    );
    drop(behind);
    setting.call.wait_until_ended().await;
}

/// A server that sends its time: it last knew its state to be etcd's `before` the hello.
async fn serve_with_clock(call: &Call, etcd: &EtcdModel, clock_ms: u64, before: u64) {
    let Frame::Hello(mut hello) = EtcdModel::hello() else {
        unreachable!()
    };
    hello.clock_ms = clock_ms;
    call.send(Frame::Hello(hello)).await;
    call.send(told_at(etcd.snapshot(), clock_ms - before)).await;
}

fn told_at(mut frame: Frame, contact_ms: u64) -> Frame {
    match &mut frame {
        Frame::Snapshot(snapshot) => snapshot.contact_ms = contact_ms,
        Frame::Diff(diff) => diff.contact_ms = contact_ms,
        Frame::Progress(progress) => progress.contact_ms = contact_ms,
        _ => unreachable!(),
    }
    frame
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[tokio::test(start_paused = true)]
async fn value_is_as_old_as_its_last_confirmation() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let watch = client.watch::<u32>("/a").max_age(secs(30));
    let (watcher, call) = tokio::join!(watch.into_future(), async {
        let call = server.next_call().await;
        serve_with_clock(&call, &etcd, 1_000_000, 7000).await;
        call
    });
    let mut watcher = watcher.unwrap();
    let age = |watcher: &Watcher<u32>| watcher.load().age().unwrap().as_secs();
    assert_eq!(age(&watcher), 7);
    assert_eq!(watcher.load().source(), ValueSource::Server);
    assert!(!watcher.load().is_stale());
    assert!(watcher.load_fresh().is_ok());

    // A progress frame counts from the contact with etcd, not from its arrival.
    tokio::time::advance(secs(9)).await;
    call.send(told_at(etcd.progress(), 1_000_000 + 4000)).await;
    let revision = etcd.revision;
    while watcher.status().revision.get() < revision {
        tokio::task::yield_now().await;
    }
    assert_eq!(age(&watcher), 5);

    // A newer state is refused: the value was etcd's until then, and is not any more.
    call.send(told_at(etcd.put("/a", "CANARY"), 1_000_000 + 9000))
        .await;
    while watcher.status().last_rejection.is_none() {
        watcher.status_changed().await;
    }
    tokio::time::advance(secs(10)).await;
    call.send(told_at(etcd.progress(), 1_000_000 + 19_000))
        .await;
    let revision = etcd.revision;
    while watcher.status().revision.get() < revision {
        tokio::task::yield_now().await;
    }
    assert_eq!(age(&watcher), 15);
    assert!(
        watcher.status().age().unwrap() < secs(2),
        "the state is known"
    );

    // A loaded value does not get younger when a newer one comes.
    let mut reader = watcher.reader();
    assert_eq!(reader.load(), &1);
    let held = watcher.clone();
    call.send(told_at(etcd.put("/a", "2"), 1_000_000 + 19_000))
        .await;
    {
        let old = held.load();
        while watcher.load().revision().get() < etcd.revision {
            tokio::task::yield_now().await;
        }
        assert_eq!((*old, old.age().unwrap().as_secs()), (1, 15));
    }
    assert_eq!(
        (age(&watcher), *reader.load(), reader.age()),
        (0, 2, watcher.load().age())
    );

    // With the server gone it grows old, and can be refused.
    drop(call);
    drop(server);
    tokio::time::advance(secs(31)).await;
    assert!(watcher.load().is_stale() && reader.is_stale());
    assert_eq!(*watcher.load(), 2, "load still succeeds");
    let stale = watcher.load_fresh().unwrap_err();
    assert_eq!(
        stale.to_string(),
        "the value of /a was last proven 31.0s ago, and at most 30s is allowed; the watcher's status \
         says why"
    );
}

#[tokio::test(start_paused = true)]
async fn default_has_an_age_only_when_a_state_came() {
    let mut server = Server::start();
    let client = server.client();
    let watch = client
        .watch::<u32>("/a")
        .default_value(9)
        .first_value_within(secs(2))
        .max_age(secs(60));
    let (watcher, call) = tokio::join!(watch.into_future(), async { server.next_call().await });
    let mut watcher = watcher.unwrap();
    assert_eq!(
        (*watcher.load(), watcher.load().source()),
        (9, ValueSource::Default)
    );
    assert_eq!(watcher.load().age(), None);
    assert!(watcher.load().is_stale(), "its age is unknown");
    let stale = watcher.load_fresh().unwrap_err();
    assert!(
        stale
            .to_string()
            .starts_with("the age of the value of /a is not known")
    );

    serve_with_clock(&call, &EtcdModel::with(&[]), 1_000_000, 1000).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(
        (*watcher.load(), watcher.load().source()),
        (9, ValueSource::Default)
    );
    // The request was sent two seconds before the hello came; the server read its clock at some time in between.
    assert_eq!(watcher.load().age(), Some(secs(3)));
    assert!(watcher.load_fresh().is_ok());
}

#[tokio::test]
async fn shutdown_ends_everything_and_waits_for_it() {
    let (setting, mut watcher) = Setting::new().await;
    let client = setting.client.clone();
    let mut reader = watcher.reader();
    let mut part = watcher.map(|limits| &limits.rps);
    let _calls = watcher.on_change(|_| {});
    let mut status = watcher.watch_status();
    let mut waiting = Box::pin(client.watch::<u32>("/none").into_future());
    assert!(poll_times(&mut waiting, 2).await.is_none());
    assert!(!client.resources().is_empty());

    soon(client.shutdown().into_future()).await.unwrap();
    assert_eq!(client.resources().active(), []);
    setting.call.wait_until_ended().await;
    // The last value can still be read, and waiters get the error.
    assert_eq!(
        (watcher.load().rps, reader.load().rps, *part.load()),
        (1, 1, 1)
    );
    assert_eq!(soon(watcher.changed()).await.unwrap_err(), Closed::Shutdown);
    assert_eq!(soon(part.changed()).await.unwrap_err(), Closed::Shutdown);
    assert_eq!(soon(status.changed()).await.state, WatchState::Closed);
    let error = soon(waiting).await.unwrap_err();
    assert_eq!(error.to_string(), "the client was shut down");
    for error in [
        client.watch::<u32>("/a").await.unwrap_err(),
        client.entries(KeyRange::prefix("/")).await.unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "the client was shut down");
    }
    let error = client.get("/a").await.unwrap_err();
    assert_eq!(error.to_string(), "the client was shut down");
    assert!(!error.is_retryable());
    // Once more, from another handle.
    soon(setting.client.shutdown().into_future()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_names_what_is_still_active() {
    let (mut setting, watcher) = Setting::new().await;
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let calls = watcher.on_change(move |_| {
        enter.send(()).unwrap();
        let _ = left.recv();
    });
    setting.put(&limits(2, 2)).await;
    let entered = tokio::task::spawn_blocking(move || entered.recv_timeout(Duration::from_secs(5)));
    entered.await.unwrap().unwrap();
    // A `get` that is polled once.
    let mut get = Box::pin(setting.client.get("/a").into_future());
    assert!(poll_times(&mut get, 1).await.is_none());

    let shutdown = setting.client.shutdown().within(Duration::from_millis(50));
    let left = shutdown.await.unwrap_err();
    let text = left.to_string();
    assert!(text.starts_with("still active after 50ms: "), "{text}");
    for held in ["a callback for /a", "a read of /a"] {
        assert!(text.contains(held), "{text}");
    }
    assert!(!text.contains("subscription"), "{text}");
    drop(get);
    leave.send(()).unwrap();
    setting.client.shutdown().await.unwrap();
    drop((calls, watcher));
}

#[tokio::test]
async fn dropped_shutdown_ends_everything() {
    for polls in 0..4 {
        let (setting, watcher) = Setting::new().await;
        let resources = setting.client.resources();
        let done = poll_times(setting.client.shutdown().into_future(), polls).await;
        if polls == 0 {
            assert_eq!(done, None);
            drop(watcher);
        }
        assert_eq!(
            resources.released_within(Duration::from_secs(5)).await,
            Ok(())
        );
        setting.call.wait_until_ended().await;
    }
}

#[tokio::test]
async fn resources_are_released_by_dropping() {
    let (setting, watcher) = Setting::new().await;
    let resources = setting.client.resources();
    let left = resources.released_within(Duration::ZERO).await.unwrap_err();
    assert!(
        left.to_string().contains("the subscription to /a"),
        "{left}"
    );
    drop(watcher);
    soon(resources.released()).await;
    let Setting { client, call, .. } = setting;
    drop(client);
    assert!(resources.is_empty());
    call.wait_until_ended().await;
}

#[tokio::test]
async fn dropped_future_of_an_update_stream_loses_nothing() {
    let (mut setting, watcher) = Setting::new().await;
    let mut updates = watcher.into_stream();
    for polls in 0..4 {
        let rps = 10 + polls as u32;
        let waiting = poll_fn(|cx| Pin::new(&mut updates).poll_next(cx));
        assert!(
            poll_times(waiting, polls).await.is_none(),
            "nothing came yet"
        );
        setting.put(&limits(rps, 1)).await;
        assert_eq!(next(&mut updates).await.unwrap().current().rps, rps);
    }
}
