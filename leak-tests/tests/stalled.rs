//! A client whose network stops at its j-th operation, for every j: when all its handles are dropped,
//! nothing is left of it, and other clients are not affected.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod common;

use std::pin::Pin;

use common::{Server, alone};
use driftless_client::{Client, KeyRange};
use driftless_test_support::in_time;
use leak_tests::{Stall, at_every_operation};

/// Something that a service does with a client, to its end.
type Scenario = for<'a> fn(&'a Server, &'a Client) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Adding one takes its name and what it does.
const SCENARIOS: &[(&str, Scenario)] = &[
    ("a value is watched", |_, client| {
        Box::pin(async { drop(client.watch::<u32>("/c/a").await.unwrap()) })
    }),
    ("a value is followed", |server, client| {
        Box::pin(async {
            let mut watcher = client.watch::<u32>("/c/a").await.unwrap();
            server.etcd.put("/c/a", "7");
            let changed = watcher.changed().await.unwrap();
            assert!(changed.keys().next().is_some());
        })
    }),
    ("entries are followed", |server, client| {
        Box::pin(async {
            let all = client.entries(KeyRange::prefix("/c/")).await;
            let mut all = all.unwrap();
            server.etcd.put("/c/b", "8");
            all.changed().await.unwrap();
        })
    }),
    ("a range is read once", |_, client| {
        Box::pin(async { drop(client.get("/c/a").await.unwrap()) })
    }),
    ("ranges share a connection", |server, client| {
        Box::pin(async {
            let one = client.watch::<u32>("/c/a").into_future();
            let all = client.entries(KeyRange::prefix("/c/")).into_future();
            let (one, all) = tokio::join!(one, all);
            let (one, mut all) = (one.unwrap(), all.unwrap());
            drop(one);
            server.etcd.put("/c/b", "9");
            all.changed().await.unwrap();
            drop(client.get("/c/b").await.unwrap());
        })
    }),
    ("a range is refused", |_, client| {
        Box::pin(async {
            client.watch::<u32>("/elsewhere").await.unwrap_err();
        })
    }),
    ("a connection is lost", |server, client| {
        Box::pin(async {
            let mut watcher = client.watch::<u32>("/c/a").await.unwrap();
            server.break_connections();
            server.etcd.put("/c/a", "10");
            watcher.changed().await.unwrap();
        })
    }),
];

#[test]
fn drop_after_any_stalled_operation_leaves_nothing() {
    alone(async {
        for (name, scenario) in SCENARIOS {
            let server = Server::start().await;
            let before = server.baseline().await;
            let operations = at_every_operation(async |stall: Stall| {
                let client = Client::builder()
                    .endpoint(server.url())
                    .connector(stall.over_tcp())
                    .build()
                    .unwrap();
                tokio::select! {
                    biased;
                    () = stall.happened() => {}
                    () = in_time(name, scenario(&server, &client)) => {}
                }
                drop(client);
                if let Err(leaked) = before.returned().await {
                    panic!(
                        "{name}, stalled after {} operations: {leaked}",
                        stall.operations()
                    );
                }
                // Nobody else was held up, and nothing was lost.
                let watcher = server.client().watch::<u32>("/c/a").await.unwrap();
                drop(watcher);
                before.returned().await.unwrap();
            })
            .await;
            // A connect, a write, and a read at the least.
            assert!(operations > 3, "{name} has nothing to stall");
        }
    });
}
