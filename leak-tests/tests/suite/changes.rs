//! Changes in a real etcd on their way to clients: values that change, keys that come and go, and clients
//! that do not read.

use std::time::Duration;

use driftless_client::{Client, EntriesWatcher, KeyRange, Revision, Watcher};
use driftless_test_support::{Proxy, eventually, in_time};
use leak_tests::{Outcome, Rounds, Stall};

use crate::on_etcd::{ServerOnEtcd, wait_for_entries};
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER, prefix};
use crate::slow_network::SlowNetwork;
use crate::writer::{LARGE, Padded, ROUNDS_TO_FILL_TOMBSTONES, padded};

/// The key of values that are all equally long.
const PADDED_KEY: &str = "/c/padded";

/// A key with a value of [`HUGE`] bytes.
const HUGE_KEY: &str = "/c/huge";

/// The size of a value that fills the change log alone, and is larger than an HTTP/2 window, so that it
/// travels in parts, in bytes.
const HUGE: usize = 700 * 1024;

/// In this many rounds the server computes at least one delta, even on a busy machine. A server that leaks
/// places in its queue for deltas, of which it has 256, computes none after a while.
const ROUNDS_WITH_A_DELTA: u64 = 40;

/// The size of a part of a huge change, in bytes: larger than a small first state.
const PART: usize = 16 * 1024;

/// In how many places the transfer of a huge change is broken off.
const PLACES: usize = 24;

/// How many large values are more than the server sends ahead to a client that does not read.
const MORE_THAN_A_WINDOW: u64 = 24;

/// After this many rounds of keys that come and go, the watcher is waited for: it is then near enough to
/// get the changes one by one.
const WAIT_EVERY: u64 = 4;

/// How often the server compares its state with etcd's.
const AUDIT_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a value changes",
        about: "A key is put, and a watcher that stays sees it.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(value(rounds)),
    },
    Scenario {
        name: "a value is refused",
        about: "A value that does not decode is put, refused and reported, and a good one follows.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(rejected_value(rounds)),
    },
    Scenario {
        name: "a large value changes",
        about: "Some bytes of 64 KiB change: the server computes a delta.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(large_value(rounds)),
    },
    Scenario {
        name: "the server compares its state with etcd's",
        about: "In each round a value changes, and the server audits its state against etcd's.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(audit(rounds)),
    },
    Scenario {
        name: "keys come and go",
        about: "In each round 120 new keys are put and deleted, and a watcher that stays sees \
                it.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(keys(rounds, |round| round)),
    },
    Scenario {
        name: "the same keys come and go",
        about: "In each round the same 120 keys are put and deleted, and a watcher that stays \
                sees it.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(keys(rounds, |_| 0)),
    },
    Scenario {
        name: "a watcher is dropped mid-change",
        about: "A part of a change of 700 KiB has arrived, and the rest does not; the watcher \
                is dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_mid_change(rounds)),
    },
    Scenario {
        name: "the last watcher leaves etcd's watches alone",
        about: "Watchers come and go; the number of the server's own watches at etcd stays the \
                same.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(last_watcher(rounds)),
    },
    Scenario {
        name: "a client that does not read is dropped",
        about: "A client stalls, more than a window is written for it, and it is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(stalled_client_dropped(rounds)),
    },
    Scenario {
        name: "the server leaves a client that does not read",
        about: "A client stalls and stays; the server closes its connection.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(stalled_client_closed(rounds)),
    },
    Scenario {
        name: "the network is cut half-way",
        about: "Nothing is forwarded between client and server any more, and connections stay \
                open; the client is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(network_cut(rounds)),
    },
];

/// Waits until a watcher has received this revision.
async fn wait_for_value(watcher: &mut Watcher<Padded>, revision: Revision) {
    let received = async { while watcher.changed().await.unwrap().revision < revision {} };
    in_time("a change arrives", received).await;
}

/// Watches `/c/padded`, and fills the server's memory of its changes.
async fn watch_padded(server: &mut ServerOnEtcd) -> Watcher<Padded> {
    server.writer.put(PADDED_KEY, padded("0")).await;
    let watching = server.client().watch::<Padded>(PADDED_KEY).into_future();
    let mut watcher = in_time("the first value", watching).await.unwrap();
    let wait = async |revision| wait_for_value(&mut watcher, revision).await;
    server.fill_log(PADDED_KEY, wait).await;
    watcher
}

async fn value(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let mut watcher = watch_padded(&mut server).await;
    let (gauges, watches) = (server.gauges(), server.etcd_watch_counts());
    let conflated = server.metrics.conflated.get();
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let value = padded(&round.to_string());
            let revision = server.writer.put(PADDED_KEY, value).await;
            wait_for_value(&mut watcher, revision).await;
            assert_eq!(watcher.load().number, round);
            // A change log that miscounts its size drops all changes, and the server conflates.
            assert_eq!(server.metrics.conflated.get(), conflated);
        })
        .await
}

async fn rejected_value(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let mut watcher = watch_padded(&mut server).await;
    let gauges = server.gauges();
    rounds
        .and(&gauges)
        .run(async |round| {
            let revision = server.writer.put(PADDED_KEY, padded("\"none\"")).await;
            let rejected = async {
                loop {
                    let rejection = watcher.status().last_rejection;
                    if rejection.is_some_and(|rejection| rejection.revision == revision) {
                        return;
                    }
                    watcher.status_changed().await;
                }
            };
            in_time("a value is rejected", rejected).await;
            let value = padded(&round.to_string());
            let revision = server.writer.put(PADDED_KEY, value).await;
            wait_for_value(&mut watcher, revision).await;
        })
        .await
}

async fn large_value(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let mut value = vec![b'x'; LARGE];
    let mut watcher = server.client().entries("/c/large").await.unwrap();
    // A scope remembers a fixed number of changes, however large they are.
    server
        .fill_log("/c/large", async |revision| {
            wait_for_entries(&mut watcher, revision).await
        })
        .await;
    server.writer.put("/c/large", value.clone()).await;
    let mut computed = server.metrics.deltas_computed.get();
    rounds
        .and(&server.gauges())
        .run(async |round| {
            let at = usize::try_from(round).unwrap() * 101 % (LARGE - 32);
            value[at..at + 20].copy_from_slice(format!("{round:020}").as_bytes());
            let revision = server.writer.put("/c/large", value.clone()).await;
            wait_for_entries(&mut watcher, revision).await;
            if round % ROUNDS_WITH_A_DELTA == ROUNDS_WITH_A_DELTA - 1 {
                let before = std::mem::replace(&mut computed, server.metrics.deltas_computed.get());
                assert!(
                    computed > before,
                    "no delta in {ROUNDS_WITH_A_DELTA} rounds"
                );
            }
        })
        .await
}

async fn audit(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::with_audits(AUDIT_INTERVAL).await;
    let mut watcher = watch_padded(&mut server).await;
    let (gauges, watches) = (server.gauges(), server.etcd_watch_counts());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let audits = server.metrics.audits.get();
            let value = padded(&round.to_string());
            let revision = server.writer.put(PADDED_KEY, value).await;
            wait_for_value(&mut watcher, revision).await;
            eventually("an audit", async || server.metrics.audits.get() > audits).await;
            assert_eq!(server.metrics.audit_differences.get(), 0);
        })
        .await
}

/// `number` tells which keys a round puts and deletes.
async fn keys(rounds: Rounds, number: fn(u64) -> u64) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let mut watcher = server.client().entries(prefix()).await.unwrap();
    // Trees from which the oldest keys are removed become less dense, and it takes a while until they are
    // equally dense everywhere. It depends on the order of the keys too, so the rounds continue the
    // numbers.
    let filled = ROUNDS_TO_FILL_TOMBSTONES * 3 / 2;
    for round in 0..filled {
        let revision = server.writer.put_and_delete(number(round)).await;
        // A watcher that is far behind gets the difference between two states, and the server keeps the
        // state for a while, for other watchers that are far behind.
        if round % WAIT_EVERY == 0 {
            wait_for_entries(&mut watcher, revision).await;
        }
    }
    let gauges = server.gauges();
    rounds
        .and(&gauges)
        .run(async |round| {
            let revision = server.writer.put_and_delete(number(filled + round)).await;
            wait_for_entries(&mut watcher, revision).await;
        })
        .await
}

async fn dropped_mid_change(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let network = SlowNetwork {
        chunk: PART,
        pause: Duration::ZERO,
        limit: PART,
    };
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            // The first state arrives whole: it is far smaller than the network's limit.
            let received = server.changes_received();
            server.writer.put(HUGE_KEY, "small").await;
            server.wait_for_changes(received + 1).await;
            let (client, delivered) = network.client_with_count(&server.url());
            let watching = client.entries(HUGE_KEY).into_future();
            let mut watcher = in_time("the first state", watching).await.unwrap();
            let byte = u8::try_from(round % 250).unwrap();
            let huge = server.writer.put(HUGE_KEY, vec![byte; HUGE]).await;
            let parts = 1 + usize::try_from(round).unwrap() % PLACES;
            delivered.allow(parts * PART);
            tokio::select! {
                () = wait_for_entries(&mut watcher, huge) => panic!("the whole change arrived"),
                () = in_time("a part of it", delivered.wait_for(PART + parts * PART)) => {}
            }
        })
        .await
}

async fn last_watcher(rounds: Rounds) -> Outcome {
    let server = ServerOnEtcd::start().await;
    let client = server.client();
    let unwatched = server.etcd_watch_counts().baseline().await.unwrap();
    rounds
        .and(&server.gauges())
        .at_the_end(server.etcd_watch_counts())
        .promised(WATCHER)
        .run(async |round| {
            let one = client.watch::<u32>("/c/a").await.unwrap();
            let range = KeyRange::prefix(format!("/c/{}", round % 7)).unwrap();
            let other = client.entries(range).await.unwrap();
            if round == 0 {
                let wrong = "the server opened a watch at etcd for a watcher";
                unwatched.returned().await.expect(wrong);
            }
            drop((one, other));
        })
        .await
}

/// A client that has received its first state and reads no more.
async fn stalled_client(server: &ServerOnEtcd) -> (Stall, EntriesWatcher) {
    let stall = Stall::never();
    let client = server.stalling_client(&stall);
    let watcher = in_time("the first state", client.entries(prefix()).into_future());
    let watcher = watcher.await.unwrap();
    stall.begin();
    (stall, watcher)
}

async fn stalled_client_dropped(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let received = server.changes_received();
            let (stall, watcher) = stalled_client(&server).await;
            server
                .writer
                .put_large_values(round, MORE_THAN_A_WINDOW)
                .await;
            in_time("the client stalls", stall.happened()).await;
            drop(watcher);
            server.wait_for_changes(received + MORE_THAN_A_WINDOW).await;
        })
        .await
}

async fn stalled_client_closed(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    rounds
        .and(&server.gauges())
        .run(async |round| {
            let received = server.changes_received();
            let closed = server.metrics.slow_consumers_closed.get();
            let (_stall, _watcher) = stalled_client(&server).await;
            server
                .writer
                .put_large_values(round, MORE_THAN_A_WINDOW)
                .await;
            server.wait_for_changes(received + MORE_THAN_A_WINDOW).await;
            let metrics = &server.metrics;
            eventually("the server closes the connection", async || {
                let held = [&metrics.connections, &metrics.streams, &metrics.scopes];
                held.iter().all(|gauge| gauge.get() == 0)
            })
            .await;
            // The other reason to close it, unanswered pings, takes longer.
            assert!(
                metrics.slow_consumers_closed.get() > closed,
                "the server closed the connection, but not as that of a slow consumer"
            );
        })
        .await
}

async fn network_cut(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    let proxy = Proxy::to(server.address.port()).await;
    let client = Client::connect(proxy.url()).unwrap();
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let received = server.changes_received();
            let watcher = client.watch::<u32>("/c/a").await.unwrap();
            proxy.stall();
            let byte = u8::try_from(round % 250).unwrap();
            server.writer.put(HUGE_KEY, vec![byte; HUGE]).await;
            let watching = client.entries(prefix()).into_future();
            let watched = tokio::time::timeout(Duration::from_millis(2), watching);
            // It times out, unless the state arrived before the network stalled.
            drop(watched.await);
            drop(watcher);
            // The server learns of the drop when the network is back.
            proxy.heal();
            server.wait_for_changes(received + 1).await;
        })
        .await
}
