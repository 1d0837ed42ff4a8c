//! The writes of one transaction become visible together.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use driftless_test_support::wait_until;

use super::direct::Op;
use super::world::{World, entries, in_time, prefix};

const TRANSACTIONS: u64 = 200;

/// Two fields that always agree, and one that moves from key to key.
#[derive(serde::Deserialize)]
struct Pair {
    left: u64,
    right: u64,
    owner: HashMap<String, u64>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_becomes_visible_at_once() {
    let mut world = World::start().await;
    let write = |n: u64| {
        // It goes from one to the other: for a reader there is always one.
        let owners = ["/c/pair/owner/odd", "/c/pair/owner/even"];
        let [from, to] = if n.is_multiple_of(2) {
            owners
        } else {
            [owners[1], owners[0]]
        };
        [
            Op::put("/c/pair/left", n.to_string()),
            Op::delete(from),
            Op::put("/c/pair/right", n.to_string()),
            Op::put(to, n.to_string()),
        ]
    };
    world.write(write(0)).await;
    let client = world.client();
    let watch = client.watch::<Pair>(prefix("/c/pair/")).into_future();
    let typed = Arc::new(in_time("the first value", watch).await.unwrap());
    let raw = Arc::new(entries(&client, &prefix("/c/pair/")).await);

    let done = Arc::new(AtomicBool::new(false));
    let reader = std::thread::spawn({
        let (typed, raw, done) = (Arc::clone(&typed), Arc::clone(&raw), Arc::clone(&done));
        move || {
            let (mut highest, mut seen) = (0, 0);
            while !done.load(Ordering::Relaxed) {
                let now = typed.load();
                assert_eq!(now.left, now.right);
                let owners: Vec<u64> = now.owner.values().copied().collect();
                assert_eq!(owners, [now.left]);
                assert!(now.left >= highest, "{} after {highest}", now.left);
                seen += u64::from(now.left > highest);
                highest = now.left;
                drop(now);

                let held = raw.load();
                assert_eq!(held.len(), 3);
                let first = held.iter().next().unwrap().mod_revision;
                assert!(held.iter().all(|entry| entry.mod_revision == first));
                assert!(held.revision() >= first);
                std::thread::yield_now();
            }
            (highest, seen)
        }
    });
    for n in 1..=TRANSACTIONS {
        world.direct.txn(write(n)).await;
    }
    wait_until("the last one arrives", || {
        typed.load().left == TRANSACTIONS
            && raw.load().get(b"/c/pair/left").unwrap().value == TRANSACTIONS.to_string()
    });
    // Checks the last state before it is stopped.
    done.store(true, Ordering::Relaxed);
    let (highest, seen) = reader.join().unwrap();
    assert!(seen > 1, "it looked while something changed: {seen}");
    assert!(highest <= TRANSACTIONS);
    assert_eq!(typed.status().diverged, 0);
}
