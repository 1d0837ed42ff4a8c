//! What the client tells the server of what it made of the states.

use std::time::Duration;

use driftless_client::Client;
use tokio::time::Instant;

use crate::server::{Call, Server};
use crate::world::World;

async fn watching(
    client: &Client,
    server: &mut Server,
    world: &World,
    range: &str,
) -> (driftless_client::Watcher<u32>, Call) {
    let (watcher, call) = tokio::join!(client.watch::<u32>(range).into_future(), async {
        let call = server.call().await;
        call.serve(world).await;
        call
    });
    (watcher.unwrap(), call)
}

#[tokio::test(start_paused = true)]
async fn news_are_reported_once_an_interval_and_nothing_else_is() {
    let mut server = Server::start();
    let mut world = World::of(&[("/a", "1")]);
    let client = server.builder().label("service", "shop").build().unwrap();
    let (_watcher, call) = watching(&client, &mut server, &world, "/a").await;
    let other = World::of(&[("/b", "1")]);
    let (_other, _other_call) = watching(&client, &mut server, &other, "/b").await;
    let start = Instant::now();
    let report = server.reports.recv().await.unwrap();
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(13));
    let info = report.client.unwrap();
    assert_eq!(info.labels["service"], "shop");
    assert_eq!(report.watches.len(), 2, "one call for all watches");
    let watch = &report.watches[0];
    assert_eq!(watch.watch_id, &b"0123456789abcdef"[..]);
    assert_eq!(watch.outcome.as_ref().unwrap().applied_revision, 11);

    // Idle, but alive: a bookmark is no news.
    for _ in 0..4 {
        call.send(world.progress()).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(server.reports.try_recv().is_err());

    call.send(world.put("/a", "2")).await;
    call.send(world.put("/a", "CANARY")).await;
    let mut report = server.reports.recv().await.unwrap();
    assert!(!format!("{report:?}").contains("CANARY"));
    assert_eq!(report.watches.len(), 1);
    let watch = report.watches.remove(0);
    assert!(watch.sequence > 1);
    let outcome = watch.outcome.unwrap();
    assert_eq!(outcome.applied_revision, world.revision - 1);
    let rejection = outcome.rejection.unwrap();
    assert_eq!(
        (rejection.revision, &*rejection.kind),
        (world.revision, "type")
    );
    assert_eq!(rejection.key, &b"/a"[..]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_watcher_of_entries_reports_once() {
    let mut server = Server::start();
    let mut world = World::of(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = tokio::join!(client.entries("/a").into_future(), async {
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    let report = server.reports.recv().await.unwrap();
    let outcome = report.watches[0].outcome.clone().unwrap();
    assert_eq!(outcome.applied_revision, 11);
    for _ in 0..4 {
        call.send(world.progress()).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert!(server.reports.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_travels_with_the_next_request() {
    let mut server = Server::start();
    let mut world = World::of(&[("/a", "1")]);
    let client = server.client();
    let (_watcher, call) = watching(&client, &mut server, &world, "/a").await;
    call.send(world.put("/a", "x")).await;
    drop(call);
    let call = server.call().await;
    assert_eq!(
        call.have(),
        Some(12),
        "the range is held, whoever refuses it"
    );
    let outcome = call.request.outcome.unwrap();
    assert_eq!(outcome.applied_revision, 11);
    assert_eq!(outcome.rejection.unwrap().revision, 12);
}
