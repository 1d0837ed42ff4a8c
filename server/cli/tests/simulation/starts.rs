//! Starts in the wrong order: a client before its server, a server before its etcd.

use std::time::Duration;

use driftless_client::{Client, KeyRange, NoValue, WatchError, WatchState};
use tokio::time::timeout;

use crate::checks::Pair;
use crate::clients::client;
use crate::model::PREFIX;
use crate::plant::Plant;
use crate::servers::url;
use crate::world::World;

/// How long a client waits before it says what is missing: longer than it dials one server.
const WITHIN: Duration = Duration::from_secs(8);

/// How long it may take to go live once nothing is missing: a backoff, and a server's pause.
const LIVE_WITHIN: Duration = Duration::from_secs(10);

/// How long a test may take.
const OVER_WITHIN: Duration = Duration::from_secs(120);

/// Checks the client's error while something is missing, which contains `why`, and that the client goes
/// live once `appear` makes it appear.
fn starts(mut world: World, why: &'static str, appear: impl FnOnce(&mut World)) {
    world.shared.etcd.txn([
        driftless_server::source::scripted::Op::put(Pair::LEFT, "7"),
        driftless_server::source::scripted::Op::put(Pair::RIGHT, "7"),
    ]);
    let (told, mut is_told) = tokio::sync::watch::channel(false);
    let client: Client = client("early", &[url(0)], 1, &world.shared.journal);
    world.add_test("early", async move {
        let range = || KeyRange::prefix(Pair::PREFIX);
        // Whoever waits for as long as it takes, without a limit or with a default.
        let entries = {
            let client = client.clone();
            async move { client.entries(KeyRange::prefix(PREFIX)).await }
        };
        let mut waiting = tokio::task::JoinSet::new();
        waiting.spawn(entries);

        let failed = client
            .watch::<Pair>(range())
            .first_value_within(WITHIN)
            .await;
        let error = failed.expect_err("there is nobody to say a value");
        assert!(error.is_retryable(), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        let last = match error {
            WatchError::NoFirstValue {
                why: NoValue::NotConnected { last_error },
                ..
            } => last_error,
            other => panic!("{other}"),
        };
        assert!(last.is_some_and(|last| last.contains(why)));

        let mut watcher = client
            .watch::<Pair>(range())
            .first_value_within(WITHIN)
            .default_value(Pair::default())
            .await
            .expect("there is a default");
        assert_eq!(*watcher.load(), Pair::default());
        let status = watcher.status();
        assert_ne!(status.state, WatchState::Live);
        assert_eq!(status.age(), None, "nothing was proven yet");
        assert!(status.last_error.is_some_and(|last| last.contains(why)));
        assert!(waiting.try_join_next().is_none(), "it waits");

        told.send_replace(true);
        let live = timeout(LIVE_WITHIN, watcher.changed()).await;
        live.expect("in time").expect("it goes on");
        assert_eq!(*watcher.load(), Pair { left: 7, right: 7 });
        assert_eq!(watcher.status().state, WatchState::Live);
        let entries = timeout(LIVE_WITHIN, waiting.join_next()).await;
        let entries = entries.expect("in time").expect("one waits");
        let entries = entries.expect("no panic").expect("it is served");
        assert_eq!(entries.load().len(), 2);
    });
    let mut appear = Some(appear);
    let over = world.wait(OVER_WITHIN, |world| {
        if *is_told.borrow_and_update()
            && let Some(appear) = appear.take()
        {
            appear(world);
        }
        world.step()
    });
    assert!(over, "it takes too long");
}

#[test]
fn early_client_goes_live_when_its_server_starts() {
    for silently in [false, true] {
        let mut world = World::new(1, Plant::None);
        world.add_server();
        world.crash(0, silently);
        starts(world, "server-a:7400", |world| world.start(0));
    }
}

#[test]
fn client_goes_live_when_etcd_appears() {
    let mut world = World::new(1, Plant::None);
    world.shared.etcd.disconnect();
    world.add_server();
    starts(world, "etcd", |world| world.shared.etcd.connect());
}
