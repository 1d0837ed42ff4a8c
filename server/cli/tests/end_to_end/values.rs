//! Values that are put, changed, deleted and put again.

use std::collections::HashMap;

use driftless_client::{EntryChange, Revision};
use driftless_test_support::wait_until;
use tokio::task::JoinSet;

use super::counters::Counters;
use super::direct::Op;
use super::world::{World, change, entries, in_time, key, prefix};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_is_put_deleted_and_created_again() {
    let mut world = World::start().await;
    world.write([Op::put("/c/a", "1")]).await;
    let client = world.client();
    let watch = client.watch::<Option<u32>>("/c/a");
    let number = in_time("the first value", watch.into_future())
        .await
        .unwrap();
    let mut all = entries(&client, &prefix("/c/")).await;
    assert_eq!(*number.load(), Some(1));
    let first = all.load().get(b"/c/a").unwrap().clone();
    assert_eq!(first.create_revision, first.mod_revision);

    world.etcd.put("/c/a", "2");
    wait_until("the new value arrives", || *number.load() == Some(2));
    let changed = change(&mut all).await;
    let [EntryChange::Put { old, new }] = &changed.changes[..] else {
        panic!("{changed:?}");
    };
    assert_eq!(old.as_ref(), Some(&first));
    assert_eq!(new.create_revision, first.create_revision);
    assert_eq!((new.mod_revision, new.version), (changed.revision, 2));

    world.etcd.delete("/c/a");
    wait_until("the value goes", || number.load().is_none());
    let gone = change(&mut all).await;
    assert!(
        matches!(&gone.changes[..], [EntryChange::Delete { old, revision }]
            if old == new && *revision == gone.revision),
        "{gone:?}"
    );
    assert!(all.load().is_empty());

    world.etcd.put("/c/a", "3");
    wait_until("the value is back", || *number.load() == Some(3));
    let again = change(&mut all).await;
    let now = all.load();
    let now = now.get(b"/c/a").unwrap();
    assert_eq!(now.create_revision, again.revision, "it is another key");
    assert!(again.revision > gone.revision);
    assert_eq!((now.mod_revision, now.version), (again.revision, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefix_and_its_key_are_watched_together() {
    let mut world = World::start().await;
    world.write([Op::put("/c/shop/limits", "1")]).await;
    let client = world.client();
    let mut whole = entries(&client, &prefix("/c/shop/")).await;
    let mut one = entries(&client, &key("/c/shop/limits")).await;
    let mut elsewhere = entries(&world.client(), &key("/c/shop/limits")).await;

    let both = [
        Op::put("/c/shop/limits", "2"),
        Op::put("/c/shop/name", "shop"),
    ];
    let revision = world.direct.txn(both).await;
    let told = change(&mut whole).await;
    let keys: Vec<String> = told.changes.iter().map(|c| c.key().to_string()).collect();
    assert_eq!(
        (told.revision, keys),
        (
            revision,
            vec!["/c/shop/limits".to_owned(), "/c/shop/name".to_owned()]
        )
    );
    for watcher in [&mut one, &mut elsewhere] {
        let told = change(watcher).await;
        assert_eq!(told.revision, revision);
        assert_eq!(told.changes.len(), 1, "{told:?}");
        assert_eq!(
            watcher.load().get(b"/c/shop/limits").unwrap().value,
            &b"2"[..]
        );
    }

    // The watch of the key does not see changes of other keys: next it sees its deletion.
    world.etcd.put("/c/shop/name", "another");
    world.etcd.delete("/c/shop/limits");
    let told = change(&mut one).await;
    assert!(matches!(&told.changes[..], [EntryChange::Delete { .. }]));
    wait_until("the prefix has both", || {
        let held = whole.load();
        held.len() == 1
            && held
                .get(b"/c/shop/name")
                .is_some_and(|e| e.value == "another")
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_keys_arrive_at_the_start() {
    let mut world = World::start().await;
    let put = |n: usize| Op::put(format!("/c/keys/{n:04}"), format!("value {n}"));
    for start in (0..1000).step_by(100) {
        world.write((start..start + 100).map(put)).await;
    }
    let watch = world
        .client()
        .watch::<HashMap<String, String>>(prefix("/c/keys/"));
    let typed = in_time("the first value", watch.into_future())
        .await
        .unwrap();
    let raw = entries(&world.client(), &prefix("/c/keys/")).await;

    assert_eq!(typed.load().len(), 1000);
    assert!((0..1000).all(|n| typed.load()[&format!("{n:04}")] == format!("value {n}")));
    let (revision, listed) = world.direct.list(&prefix("/c/keys/")).await;
    assert!(raw.load().iter().eq(listed.iter()));
    assert_eq!(raw.load().revision(), revision);

    world.etcd.put("/c/keys/0500", "changed");
    wait_until("one of them changes", || typed.load()["0500"] == "changed");
    assert_eq!(Counters::of(&world.server).get("syncs_snapshot"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_lease_vanish_together() {
    let mut world = World::start().await;
    let granted = world.etcd.ctl(["lease", "grant", "1"]);
    let lease = granted.split(' ').nth(1).expect("its id").to_owned();
    for name in ["one", "two"] {
        let lease = format!("--lease={lease}");
        let key = format!("/c/leased/{name}");
        world.etcd.ctl(["put", &lease, &key, "here for now"]);
    }
    world.write([Op::put("/c/leased/stays", "here")]).await;
    let mut watcher = entries(&world.client(), &prefix("/c/leased/")).await;
    assert_eq!(watcher.load().len(), 3);

    let expired = change(&mut watcher).await;
    assert_eq!(expired.changes.len(), 2, "{expired:?}");
    let held = watcher.load();
    assert_eq!(held.len(), 1);
    assert!(held.get(b"/c/leased/stays").is_some());
}

/// Through the snapshot, through the stream, and through a single read: the same bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_may_be_any_bytes_of_any_size() {
    let world = World::start().await;
    let pattern = |len: usize| -> Vec<u8> {
        // No period that a chunk's size could hide in.
        (0..len).map(|n| (n % 251 + n / 251 % 7) as u8).collect()
    };
    let values: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("binary", (0..=255).collect()),
        ("invalid-utf-8", b"\xff\xfe\x00caf\xe9\n".to_vec()),
        ("mebibyte", pattern(1024 * 1024)),
        ("one-more", pattern(1024 * 1024 + 1)),
        // etcd takes requests of 1.5 MiB.
        ("largest", pattern(1_468_006)),
        ("zeros", vec![0; 100_000]),
    ];
    let client = world.client();
    let live = entries(&client, &prefix("/c/bytes/")).await;
    for (name, value) in &values {
        let key = format!("/c/bytes/{name}");
        if value.is_empty() {
            world.etcd.put(&key, "");
        } else {
            world.etcd.ctl_with(["put", "--", &key], value);
        }
    }
    wait_until("all arrive", || live.load().len() == values.len());
    let late = entries(&world.client(), &prefix("/c/bytes/")).await;
    let read = in_time("a read", client.get(prefix("/c/bytes/")).into_future());
    let read = read.await.unwrap();
    for held in [live.load(), late.load(), read] {
        assert_eq!(held.len(), values.len());
        for (name, value) in &values {
            let entry = held.get(format!("/c/bytes/{name}").as_bytes()).unwrap();
            // Not `assert_eq`: nobody reads a megabyte of numbers.
            assert!(entry.value == value[..], "{name}: {entry:?}");
        }
    }

    // From large to small and back, the same key.
    for (name, value) in values.iter().rev() {
        if !value.is_empty() {
            world.etcd.ctl_with(["put", "--", "/c/bytes/zeros"], value);
            wait_until(name, || {
                live.load().get(b"/c/bytes/zeros").unwrap().value == value[..]
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_waits_for_a_key_that_does_not_exist() {
    let world = World::start().await;
    let client = world.client();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { client.watch::<u32>("/c/later").await });
    wait_until("it asks", || {
        Counters::of(&world.server).get("streams") == 1
    });
    assert!(waiting.try_join_next().is_none());
    world.etcd.put("/c/later", "7");
    let watcher = in_time("the value", waiting.join_next()).await;
    let watcher = watcher.unwrap().unwrap().unwrap();
    assert_eq!(*watcher.load(), 7);
    assert!(watcher.load().revision() > Revision::NONE);
}
