//! Keys are bytes: text of any script, no text at all, and prefixes of each other.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use driftless_client::KeyRange;
use driftless_test_support::wait_until;

use super::world::{World, change, entries, in_time, key, prefix, settle};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_be_any_bytes() {
    let mut world = World::start().await;
    let names = [
        "ключ",
        "設定",
        "🔑/🗝",
        "with space",
        // Two different keys that look the same.
        "caf\u{e9}",
        "cafe\u{301}",
        "\u{202e}right to left",
    ];
    let client = world.client();
    let live = entries(&client, &prefix("/c/")).await;
    for name in names {
        world.etcd.put(&format!("/c/{name}"), name);
    }
    wait_until("all arrive", || live.load().len() == names.len());
    let typed = client.watch::<HashMap<String, String>>(prefix("/c/"));
    let typed = in_time("the first value", typed.into_future())
        .await
        .unwrap();
    assert_eq!(typed.load().len(), names.len());
    for name in names {
        assert_eq!(typed.load()[name], name);
        let key = format!("/c/{name}");
        let one = in_time("one", client.get(&key).into_future())
            .await
            .unwrap();
        assert_eq!(one.len(), 1, "{name}");
    }

    // Not text; a range may begin in the middle of a character.
    let bytes: &[u8] = b"/c/\xd0\xff";
    let arguments = [OsStr::new("put"), OsStr::from_bytes(bytes), OsStr::new("x")];
    world.etcd.ctl(arguments);
    let half = KeyRange::prefix(b"/c/\xd0").unwrap();
    let halves = entries(&client, &half).await;
    wait_until("it arrives", || live.load().get(bytes).is_some());
    assert_eq!(halves.load().len(), 2, "ключ and the one that is no text");
    settle(
        &mut world.direct,
        [(&prefix("/c/"), &live), (&half, &halves)],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_may_be_prefixes_of_each_other() {
    let mut world = World::start().await;
    let keys = ["/c/a", "/c/a/", "/c/a/b", "/c/ab"];
    let ranges = [
        key("/c/a"),
        key("/c/a/"),
        key("/c/a/b"),
        prefix("/c/a"),
        prefix("/c/a/"),
        prefix("/c/ab"),
    ];
    let client = world.client();
    let mut watchers = Vec::new();
    for range in &ranges {
        watchers.push(entries(&client, range).await);
    }
    for touch in ["put", "put again", "delete"] {
        for name in keys {
            let revision = if touch == "delete" {
                world.direct.delete(name).await
            } else {
                world.direct.put(name, touch).await
            };
            for (range, watcher) in ranges.iter().zip(&mut watchers) {
                if range.contains(name.as_bytes()) {
                    // The next that it hears of, so it heard of nothing else before.
                    let told = change(watcher).await;
                    assert_eq!(told.revision, revision, "{range}: {touch} {name}");
                    assert_eq!(told.changes.len(), 1);
                    assert_eq!(told.changes[0].key().as_ref(), name.as_bytes());
                }
            }
        }
    }
    settle(&mut world.direct, ranges.iter().zip(&watchers)).await;
}
