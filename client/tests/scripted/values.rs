//! Typed watchers: first value, changes, refused values, missing keys.

use std::time::Duration;

use driftless_client::{
    Client, Closed, Key, KeyRange, NoValue, RefusedReason, Rejection, RejectionKind, Revision,
    ValueChange, WatchError, WatchState, Watcher,
};
use driftless_proto::v1::{self, watch_response::Frame};
use serde::Deserialize;
use tonic::Status;

use crate::etcd_model::EtcdModel;
use crate::server::{Call, Server, soon};

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
struct Limits {
    rps: u32,
}

/// A watcher of `/a`, and the server's side of it.
async fn watching<T>(client: &Client, server: &mut Server, etcd: &EtcdModel) -> (Watcher<T>, Call)
where
    T: serde::de::DeserializeOwned + Send + Sync + 'static,
{
    let (watcher, call) = tokio::join!(client.watch::<T>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(etcd).await;
        call
    });
    (watcher.unwrap(), call)
}

#[tokio::test]
async fn value_and_its_changes_are_read() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", r#"{"rps": 1}"#)]);
    let client = server.client();
    let (mut watcher, call) = watching::<Limits>(&client, &mut server, &etcd).await;
    assert_eq!(
        call.request.range,
        Some((&KeyRange::key("/a").unwrap()).into())
    );
    assert_eq!(call.request.have, None);
    assert_eq!(call.request.features, [v1::Feature::ValueDeltas as i32]);
    let info = call.request.client.clone().unwrap();
    assert_eq!(info.instance.len(), 32);
    assert!(info.library.starts_with("driftless-rust/"));

    assert_eq!(
        (watcher.load().rps, watcher.load().revision()),
        (1, Revision::new(11))
    );
    call.send(etcd.put("/a", r#"{"rps": 2}"#)).await;
    let ValueChange { revision, .. } = soon(watcher.changed()).await.unwrap();
    assert_eq!(revision, Revision::new(12));
    assert_eq!(*watcher.load(), Limits { rps: 2 });

    let status = watcher.status();
    assert_eq!((status.state, status.reconnects), (WatchState::Live, 0));
    assert_eq!(status.endpoint.as_deref(), Some("http://scripted:7400"));
    assert_eq!(status.revision, Revision::new(12));
}

#[tokio::test]
async fn prefix_becomes_one_value() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Shop {
        name: String,
        limits: Limits,
    }
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/shop/name", "x"), ("/shop/limits/rps", "7")]);
    let client = server.client();
    let (watcher, call) = tokio::join!(
        client
            .watch::<Shop>(KeyRange::prefix("/shop/"))
            .into_future(),
        async {
            let call = server.next_call().await;
            call.send_state(&etcd).await;
            call
        }
    );
    let mut watcher = watcher.unwrap();
    assert_eq!(watcher.load().limits.rps, 7);
    let both = [("/shop/name", Some("y")), ("/shop/limits/rps", Some("8"))];
    call.send(etcd.edit(&both)).await;
    soon(watcher.changed()).await.unwrap();
    let expected = Shop {
        name: "y".to_owned(),
        limits: Limits { rps: 8 },
    };
    assert_eq!(*watcher.load(), expected, "one transaction, one change");
}

#[tokio::test]
async fn change_lists_its_keys() {
    type Values = std::collections::BTreeMap<String, u32>;
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/p/a", "1"), ("/p/b", "1"), ("/p/c", "1")]);
    let client = server.client();
    let range = || KeyRange::prefix("/p/");
    let (watcher, call) = tokio::join!(client.watch::<Values>(range()).into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();
    let keys =
        |changed: &ValueChange| -> Vec<String> { changed.keys().map(Key::to_string).collect() };

    let edit = [("/p/a", Some("2")), ("/p/b", None), ("/p/d", Some("1"))];
    call.send(etcd.edit(&edit)).await;
    let changed = soon(watcher.changed()).await.unwrap();
    assert_eq!(keys(&changed), ["/p/a", "/p/b", "/p/d"]);
    assert_eq!(
        format!("{changed:?}"),
        "ValueChange { revision: 14, keys: [/p/a, /p/b, /p/d] }"
    );

    // The keys of a refused state are reported with those of the next good one, and so are several changes that
    // nobody waited for.
    call.send(etcd.put("/p/a", "x")).await;
    call.send(etcd.put("/p/c", "2")).await;
    call.send(etcd.put("/p/a", "3")).await;
    call.send(etcd.put("/p/d", "2")).await;
    soon(async {
        while watcher.load().get("d") != Some(&2) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let changed = soon(watcher.changed()).await.unwrap();
    assert_eq!(keys(&changed), ["/p/a", "/p/c", "/p/d"]);
    assert_eq!(changed.revision.get(), etcd.revision);

    // Each watcher compares with what it saw itself.
    let mut late = client.watch::<Values>(range()).await.unwrap();
    call.send(etcd.put("/p/c", "4")).await;
    for watcher in [&mut watcher, &mut late] {
        let changed = soon(watcher.changed()).await.unwrap();
        assert_eq!(keys(&changed), ["/p/c"]);
    }
}

#[tokio::test]
async fn first_state_after_a_default_changes_all_keys() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let watch = client.watch::<u32>("/a").default_value(0);
    let watch = watch.first_value_within(Duration::from_millis(1));
    let mut watcher = watch.await.unwrap();
    let call = server.next_call().await;
    call.send_state(&etcd).await;
    let changed = soon(watcher.changed()).await.unwrap();
    assert_eq!(changed.keys().count(), 1);
}

#[tokio::test]
async fn last_good_value_wins() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", r#"{"rps": 1}"#)]);
    let client = server.client();
    let (mut watcher, call) = watching::<Limits>(&client, &mut server, &etcd).await;
    call.send(etcd.put("/a", r#"{"rps": "CANARY"}"#)).await;
    soon(async {
        while watcher.status().last_rejection.is_none() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let status = watcher.status();
    let rejected = status.last_rejection.clone().unwrap();
    assert_eq!(rejected.revision, Revision::new(12));
    assert_eq!(rejected.rejection.kind(), RejectionKind::Type);
    assert_eq!(rejected.rejection.path(), "rps");
    assert!(!format!("{status:?} {} {watcher:?}", rejected.rejection).contains("CANARY"));
    assert_eq!(
        (watcher.load().rps, watcher.load().revision()),
        (1, Revision::new(11))
    );

    call.send(etcd.put("/a", r#"{"rps": 3}"#)).await;
    let changed = soon(watcher.changed()).await.unwrap();
    assert_eq!(
        changed.revision,
        Revision::new(13),
        "the refused one is no change"
    );
    assert_eq!(watcher.load().rps, 3);
    assert!(watcher.status().last_rejection.is_none());
}

#[tokio::test]
async fn validators_refuse_and_may_panic() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let watch = client.watch::<u32>("/a").validate(|value| match value {
        0 => panic!("the validator's bug"),
        1..10 => Ok(()),
        _ => Err(format!("CANARY {value}")),
    });
    let (watcher, call) = tokio::join!(watch.into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();
    for (value, kind) in [("10", RejectionKind::Invalid), ("0", RejectionKind::Panic)] {
        call.send(etcd.put("/a", value)).await;
        let found = soon(async {
            loop {
                match watcher.status().last_rejection {
                    Some(found) if found.revision.get() == etcd.revision => break found,
                    _ => tokio::task::yield_now().await,
                }
            }
        })
        .await;
        assert_eq!(found.rejection.kind(), kind);
        assert!(!format!("{found:?}").contains("CANARY"));
    }
    call.send(etcd.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert_eq!(*watcher.load(), 2);
}

#[tokio::test]
async fn static_reason_of_a_validator_is_kept() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let reason = "it must be below 10";
    let watch = client.watch::<u32>("/a").validate(move |value| {
        let small = *value < 10;
        small.then_some(()).ok_or(reason)
    });
    let (watcher, call) = tokio::join!(watch.into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();
    call.send(etcd.put("/a", "10")).await;
    let refused = refusal(&mut watcher).await;
    assert_eq!(
        refused.to_string(),
        "the service's validation refused it: it must be below 10"
    );
}

/// Waits for changes of the status until a state is refused.
async fn refusal<T>(watcher: &mut Watcher<T>) -> Rejection {
    soon(async {
        loop {
            if let Some(found) = watcher.status_changed().await.last_rejection {
                break found.rejection;
            }
        }
    })
    .await
}

#[tokio::test]
async fn refusal_and_its_end_change_the_status() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching::<u32>(&client, &mut server, &etcd).await;
    let mut statuses = watcher.watch_status();
    call.send(etcd.put("/a", "x")).await;
    assert_eq!(refusal(&mut watcher).await.kind(), RejectionKind::Type);
    let mut told = soon(statuses.changed()).await;
    while told.last_rejection.is_none() {
        told = soon(statuses.changed()).await;
    }
    assert_eq!(told.last_rejection.unwrap().revision, Revision::new(12));
    assert_eq!(
        format!("{} {statuses:?}", told.state),
        "live StatusWatcher(Live)"
    );
    // Good states wake nobody.
    call.send(etcd.put("/a", "2")).await;
    soon(watcher.changed()).await.unwrap();
    assert!(soon(statuses.changed()).await.last_rejection.is_none());
    call.send(etcd.put("/a", "3")).await;
    soon(watcher.changed()).await.unwrap();
    let more = crate::server::poll_times(statuses.changed(), 3).await;
    assert!(more.is_none(), "{more:?}");
    // A key that is deleted, and one that closes.
    call.send(etcd.delete("/a")).await;
    assert!(soon(statuses.changed()).await.missing);
    call.send(Frame::Goodbye(v1::Goodbye {
        purge: true,
        ..Default::default()
    }))
    .await;
    assert_eq!(soon(statuses.changed()).await.state, WatchState::Closed);
    drop(watcher);
    assert!(
        crate::server::poll_times(statuses.changed(), 3)
            .await
            .is_none()
    );
    assert!(statuses.status().missing, "the last status stays");
}

#[tokio::test]
async fn refusal_of_the_first_state_changes_the_status() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "x")]);
    let client = server.client();
    let watch = client.watch::<u32>("/a");
    let (watcher, _call) = tokio::join!(watch.into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call.send(etcd.put("/a", "1")).await;
        call.send(etcd.put("/a", "y")).await;
        call
    });
    let refused = refusal(&mut watcher.unwrap()).await;
    assert_eq!(refused.kind(), RejectionKind::Type);
}

#[tokio::test]
async fn deleted_key_keeps_or_loses_its_value() {
    for (default, expected) in [(None, 1), (Some(9), 9)] {
        let mut server = Server::start();
        let mut etcd = EtcdModel::with(&[("/a", "1")]);
        let client = server.client();
        let mut watch = client.watch::<u32>("/a");
        if let Some(default) = default {
            watch = watch.default_value(default);
        }
        let (watcher, call) = tokio::join!(watch.into_future(), async {
            let call = server.next_call().await;
            call.send_state(&etcd).await;
            call
        });
        let mut watcher = watcher.unwrap();
        assert!(!watcher.status().missing);
        call.send(etcd.delete("/a")).await;
        soon(async {
            while !watcher.status().missing {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(*watcher.load(), expected);
        call.send(etcd.put("/a", "2")).await;
        soon(async {
            while *watcher.load() != 2 {
                watcher.changed().await.unwrap();
            }
        })
        .await;
        assert!(!watcher.status().missing);
    }
}

#[tokio::test]
async fn option_follows_the_key_s_existence() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let (mut watcher, call) = watching::<Option<u32>>(&client, &mut server, &etcd).await;
    assert_eq!(*watcher.load(), None);
    for (frame, expected) in [(etcd.put("/a", "1"), Some(1)), (etcd.delete("/a"), None)] {
        call.send(frame).await;
        soon(watcher.changed()).await.unwrap();
        assert_eq!(*watcher.load(), expected);
    }
}

#[tokio::test]
async fn watch_waits_for_a_missing_key() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[]);
    let client = server.client();
    let (watcher, _call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call.send(etcd.put("/a", "5")).await;
        call
    });
    assert_eq!(*watcher.unwrap().load(), 5);
}

#[tokio::test(start_paused = true)]
async fn error_says_why_there_is_no_first_value() {
    for (value, is_expected) in [
        (
            None,
            (|why| *why == NoValue::Missing) as fn(&NoValue) -> bool,
        ),
        (Some("x"), |why| matches!(why, NoValue::Rejected(_))),
    ] {
        let mut server = Server::start();
        let etcd = EtcdModel::with(value.map(|value| ("/a", value)).as_slice());
        let client = server.client();
        let start = tokio::time::Instant::now();
        let (watcher, _call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
            let call = server.next_call().await;
            call.send_state(&etcd).await;
            call
        });
        let error = watcher.unwrap_err();
        assert!(error.is_retryable());
        let shown = error.to_string();
        assert!(
            shown.starts_with("no value for /a within 30s: the "),
            "{shown}"
        );
        let WatchError::NoFirstValue { within, why, .. } = error else {
            panic!("{shown}");
        };
        assert!(is_expected(&why), "{why}");
        assert_eq!(within, Duration::from_secs(30));
        // The timer's wheel has a resolution of a millisecond.
        assert!(start.elapsed() - within <= Duration::from_millis(1));
    }
}

#[tokio::test(start_paused = true)]
async fn default_is_used_without_a_server() {
    let refused = |_: &_| {
        Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
            as driftless_client::Connecting
    };
    let client = crate::server::builder(refused).build().unwrap();
    let limit = Duration::from_secs(2);
    let error = client.watch::<u32>("/a").first_value_within(limit).await;
    let error = error.unwrap_err();
    let said = "no value for /a within 2s: no server has sent the whole state: http://scripted:7400: \
                connection refused";
    assert_eq!(error.to_string(), said);
    assert_eq!(format!("{error:?}"), format!("NoFirstValue: {said}"));

    let watch = client.watch::<u32>("/a").first_value_within(limit);
    let watcher = watch.default_value(3).await.unwrap();
    assert_eq!(
        (*watcher.load(), watcher.load().revision()),
        (3, Revision::NONE)
    );
    let status = watcher.status();
    assert!(matches!(
        status.state,
        WatchState::Backoff | WatchState::Connecting
    ));
    assert!(
        status
            .last_error
            .clone()
            .unwrap()
            .contains("connection refused")
    );
    assert_eq!(status.age(), None);
}

#[tokio::test]
async fn refusal_fails_the_first_watch() {
    for (status, reason) in [
        (Status::not_found("not here"), RefusedReason::NotServed),
        (Status::permission_denied("not here"), RefusedReason::Denied),
    ] {
        let mut server = Server::start();
        let client = server.client();
        let (watcher, ()) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
            server.next_call().await.fail(status).await;
        });
        let error = watcher.unwrap_err();
        assert!(!error.is_retryable());
        let WatchError::Refused(refused) = error else {
            panic!("{error}");
        };
        assert_eq!((refused.reason, &*refused.message), (reason, "not here"));
        assert_eq!(refused.endpoint, "http://scripted:7400");
        assert!(refused.to_string().contains("not here"), "{refused}");
        server.wait_until_idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_of_a_live_watch_is_status_and_is_retried() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching::<u32>(&client, &mut server, &etcd).await;
    call.fail(Status::permission_denied("no more")).await;
    soon(async {
        while watcher.status().state != WatchState::Refused {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let refused = watcher.status().refused.unwrap();
    assert_eq!(refused.reason, RefusedReason::Denied);
    assert_eq!(*watcher.load(), 1);
    let late = client.watch::<u32>("/a").await.unwrap();
    assert_eq!(
        *late.load(),
        1,
        "there is a value, so there is something to begin with"
    );

    let call = server.next_call().await;
    call.send(EtcdModel::hello()).await;
    let change = etcd.put("/a", "2");
    call.send(change).await;
    soon(watcher.changed()).await.unwrap();
    assert!(watcher.status().refused.is_none());
}

#[tokio::test]
async fn revoked_right_closes_the_watcher() {
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.client();
    let (mut watcher, call) = watching::<u32>(&client, &mut server, &etcd).await;
    let mut entries = client.entries("/a").await.unwrap();
    call.send(Frame::Goodbye(v1::Goodbye {
        reason: v1::goodbye::Reason::Revoked.into(),
        purge: true,
        ..Default::default()
    }))
    .await;
    for _ in 0..2 {
        let closed = soon(watcher.changed()).await.unwrap_err();
        assert_eq!(closed, Closed::Revoked);
    }
    assert_eq!(soon(entries.changed()).await, Err(Closed::Revoked));
    assert_eq!(watcher.status().state, WatchState::Closed);
    assert_eq!(
        soon(entries.status_changed()).await.state,
        WatchState::Closed
    );
    assert_eq!(*watcher.load(), 1, "the service keeps its value");

    let (again, _call) = watching::<u32>(&client, &mut server, &etcd).await;
    assert_eq!(
        again.status().state,
        WatchState::Live,
        "a new watch is a new subscription"
    );
}

#[tokio::test]
async fn changed_can_be_dropped_at_any_point() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "0")]);
    let client = server.client();
    let (mut watcher, call) = watching::<u32>(&client, &mut server, &etcd).await;
    for round in 1..=20 {
        let polls = round % 3;
        assert!(
            crate::server::poll_times(watcher.changed(), polls)
                .await
                .is_none()
        );
        call.send(etcd.put("/a", &round.to_string())).await;
        soon(async {
            while *watcher.load() != round as u32 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        // The change is there; a future that is dropped before its first poll takes nothing away.
        drop(watcher.changed());
        let changed = soon(watcher.changed()).await.unwrap();
        assert_eq!(changed.revision.get(), etcd.revision);
    }
}

#[tokio::test]
async fn unread_changes_are_merged() {
    let mut server = Server::start();
    let mut etcd = EtcdModel::with(&[("/a", "0")]);
    let client = server.client();
    let (mut watcher, call) = watching::<u32>(&client, &mut server, &etcd).await;
    let mut entries = client.entries("/a").await.unwrap();
    for n in 1..=10_000 {
        call.send(etcd.put("/a", &n.to_string())).await;
    }
    soon(async {
        while *watcher.load() != 10_000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let revision = Revision::new(etcd.revision);
    assert_eq!(soon(watcher.changed()).await.unwrap().revision, revision);
    assert!(
        crate::server::poll_times(watcher.changed(), 3)
            .await
            .is_none()
    );
    let change = soon(entries.changed()).await.unwrap();
    assert_eq!((change.revision, change.changes.len()), (revision, 1));
    assert!(
        crate::server::poll_times(entries.changed(), 3)
            .await
            .is_none()
    );
    assert_eq!(watcher.status().reconnects, 0);
}

#[test]
fn watchers_can_be_shared_and_sent() {
    fn shared<T: Send + Sync>() {}
    shared::<Client>();
    shared::<Watcher<u32>>();
    shared::<driftless_client::EntriesWatcher>();
}
