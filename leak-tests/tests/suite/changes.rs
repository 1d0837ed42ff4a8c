//! What the server does with a real etcd, and what it keeps: values that change, keys that come and
//! go, clients that do not read, and etcd's and the network's failures.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use driftless_client::{
    Client, Connecting, Endpoint, EntriesWatcher, Io, KeyRange, Revision, WatchState, Watcher,
};
use driftless_test_support::{Etcd, Proxy, eventually, in_time};
use leak_tests::{Outcome, Rounds, Stall};
use tokio::net::TcpStream;

use crate::scenario::{CLIENT, Pace, Scenario, WATCHER, prefix};
use crate::slow::Slow;
use crate::world::{
    FILL_GRAVES, Keys, LARGE, Padded, Real, Running, etcd_is_missed, etcds_watches, padded,
    settings,
};

/// Where values are that are as long as each other.
const PADDED_KEY: &str = "/c/padded";

/// A value that fills the change log, so that only the last one is in it, and more than a window, so
/// that it arrives in parts, in bytes.
const HUGE: usize = 700 * 1024;

/// In so many rounds one delta at least is computed in time, however busy the machine. A server waits
/// for 256 of them at a time at most: one that goes on waiting for those computes none any more.
const DELTA_WITHIN: u64 = 40;

/// More than a small first state takes, and a part of such a value, in bytes; and in how many places a
/// change to it is broken off.
const SMALL: usize = 16 * 1024;
const PLACES: usize = 24;

/// Where it is.
const HUGE_KEY: &str = "/c/huge";

/// What is put after trouble with etcd, in bytes: much, so that the change log is full soon, and less than
/// a stream of etcd's has room for from the start, or it has more after the one loss than after another.
const SEEN: usize = 7 * 1024;

/// Where it is.
const SEEN_KEY: &str = "/c/seen";

/// How many such values fill the change log, with some to spare.
const FILL_WITH_SEEN: u64 = 80;

/// How many large values are more than what is sent ahead to a client that does not read.
const MORE_THAN_A_WINDOW: u64 = 24;

/// After so many rounds of keys that come and go a watcher gets what changed one by one still, and need
/// not be waited for after each.
const NOT_FAR: u64 = 4;

/// How often a server compares its state with etcd's, at the most.
const AUDIT: Duration = Duration::from_millis(100);

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
        run: |rounds| Box::pin(rejected(rounds)),
    },
    Scenario {
        name: "a large value changes",
        about: "Some bytes of 64 KiB change: the server computes a delta.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(large(rounds)),
    },
    Scenario {
        name: "the server compares its state with etcd's",
        about: "In each round a value changes, and the server audits its state against etcd's.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(audited(rounds)),
    },
    Scenario {
        name: "a server takes another one's place",
        about: "A server dies or is shut down, and another one takes its place; it asks etcd \
                what a watcher missed, and sends that.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(successor(rounds)),
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
        run: |rounds| Box::pin(mid_change(rounds)),
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
        run: |rounds| Box::pin(does_not_read(rounds)),
    },
    Scenario {
        name: "the server leaves a client that does not read",
        about: "A client stalls and stays; the server closes its connection.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(is_left(rounds)),
    },
    Scenario {
        name: "the network is cut half-way",
        about: "Nothing is forwarded between client and server any more, and connections stay \
                open; the client is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(cut(rounds)),
    },
    Scenario {
        name: "the network to etcd is cut",
        about: "Connections between server and etcd are lost, or nothing is forwarded on them; \
                then the network heals.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(etcd_cut(rounds)),
    },
    Scenario {
        name: "etcd is killed",
        about: "etcd is killed and started again on its data.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(killed(rounds)),
    },
    Scenario {
        name: "etcd is stopped",
        about: "etcd is stopped for longer than the server waits for it, and continues.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(stopped(rounds)),
    },
    Scenario {
        name: "the server is shut down",
        about: "A server starts on a real etcd, clients watch, and it is shut down; half of \
                the clients are dropped during that, half afterwards.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(shut_down(rounds)),
    },
];

/// Waits until a watcher has moved to this revision.
async fn reaches(watcher: &mut Watcher<Padded>, revision: Revision) {
    let there = async { while watcher.changed().await.unwrap().revision < revision {} };
    in_time("a change arrives", there).await;
}

async fn entries_reach(watcher: &mut EntriesWatcher, revision: Revision) {
    let there = async { while watcher.changed().await.unwrap().revision < revision {} };
    in_time("a change arrives", there).await;
}

/// A watcher of `/c/padded`, of which the server keeps as much as it ever will.
async fn padded_watcher(world: &mut Real) -> Watcher<Padded> {
    world.keys.put(PADDED_KEY, padded("0")).await;
    let watching = world.client().watch::<Padded>(PADDED_KEY).into_future();
    let mut watcher = in_time("the first value", watching).await.unwrap();
    let reach = async |revision| reaches(&mut watcher, revision).await;
    world.fill_log(PADDED_KEY, reach).await;
    watcher
}

async fn value(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let mut watcher = padded_watcher(&mut world).await;
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    let conflated = world.metrics.conflated.get();
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let value = padded(&round.to_string());
            let revision = world.keys.put(PADDED_KEY, value).await;
            reaches(&mut watcher, revision).await;
            assert_eq!(watcher.load().number, round);
            // A log that miscounts itself drops everything.
            assert_eq!(world.metrics.conflated.get(), conflated);
        })
        .await
}

async fn rejected(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let mut watcher = padded_watcher(&mut world).await;
    let gauges = world.gauges();
    rounds
        .and(&gauges)
        .run(async |round| {
            let revision = world.keys.put(PADDED_KEY, padded("\"none\"")).await;
            let refused = async {
                loop {
                    let rejection = watcher.status().last_rejection;
                    if rejection.is_some_and(|rejected| rejected.revision == revision) {
                        return;
                    }
                    watcher.status_changed().await;
                }
            };
            in_time("a value is refused", refused).await;
            let value = padded(&round.to_string());
            let revision = world.keys.put(PADDED_KEY, value).await;
            reaches(&mut watcher, revision).await;
        })
        .await
}

async fn large(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let mut value = vec![b'x'; LARGE];
    let mut watcher = world.client().entries("/c/large").await.unwrap();
    // A scope remembers so many changes, however large.
    world
        .fill_log("/c/large", async |revision| {
            entries_reach(&mut watcher, revision).await
        })
        .await;
    world.keys.put("/c/large", value.clone()).await;
    let mut computed = world.metrics.deltas_computed.get();
    rounds
        .and(&world.gauges())
        .run(async |round| {
            let at = usize::try_from(round).unwrap() * 101 % (LARGE - 32);
            value[at..at + 20].copy_from_slice(format!("{round:020}").as_bytes());
            let revision = world.keys.put("/c/large", value.clone()).await;
            entries_reach(&mut watcher, revision).await;
            // There is always room for one more that waits for its delta.
            if round % DELTA_WITHIN == DELTA_WITHIN - 1 {
                let before = std::mem::replace(&mut computed, world.metrics.deltas_computed.get());
                assert!(computed > before, "no delta in {DELTA_WITHIN} rounds");
            }
        })
        .await
}

/// Those of each round have a number.
async fn keys(rounds: Rounds, number: fn(u64) -> u64) -> Outcome {
    let mut world = Real::start().await;
    let mut watcher = world.client().entries(prefix()).await.unwrap();
    // Trees from which the oldest are taken are less dense, and that takes its time to be the same
    // everywhere. It depends on the order as well: keys go on where these end.
    let filled = FILL_GRAVES * 3 / 2;
    for round in 0..filled {
        let revision = world.keys.pass(number(round)).await;
        // A watcher that is far behind gets a difference of states, and the server keeps the state for
        // a while, for others who are.
        if round % NOT_FAR == 0 {
            entries_reach(&mut watcher, revision).await;
        }
    }
    let gauges = world.gauges();
    rounds
        .and(&gauges)
        .run(async |round| {
            let revision = world.keys.pass(number(filled + round)).await;
            entries_reach(&mut watcher, revision).await;
        })
        .await
}

async fn mid_change(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let network = Slow {
        at_a_time: SMALL,
        rest: Duration::ZERO,
        most: SMALL,
    };
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            // Its first state is all of it, and far smaller than what may come.
            let heard = world.heard();
            world.keys.put(HUGE_KEY, "small").await;
            world.hears(heard + 1).await;
            let (client, brought) = network.counted(&world.url());
            let watching = client.entries(HUGE_KEY).into_future();
            let mut watcher = in_time("the first state", watching).await.unwrap();
            let byte = u8::try_from(round % 250).unwrap();
            let huge = world.keys.put(HUGE_KEY, vec![byte; HUGE]).await;
            let part = 1 + usize::try_from(round).unwrap() % PLACES;
            brought.allow(part * SMALL);
            tokio::select! {
                () = entries_reach(&mut watcher, huge) => panic!("the change is whole"),
                () = in_time("a part of it", brought.reaches(SMALL + part * SMALL)) => {}
            }
        })
        .await
}

async fn last_watcher(rounds: Rounds) -> Outcome {
    let world = Real::start().await;
    let client = world.client();
    let nobody = world.etcds_watches().baseline().await.unwrap();
    rounds
        .and(&world.gauges())
        .at_the_end(world.etcds_watches())
        .promised(WATCHER)
        .run(async |round| {
            let one = client.watch::<u32>("/c/a").await.unwrap();
            let range = KeyRange::prefix(format!("/c/{}", round % 7)).unwrap();
            let other = client.entries(range).await.unwrap();
            if round == 0 {
                let more = "etcd is watched for each watcher";
                nobody.returned().await.expect(more);
            }
            drop((one, other));
        })
        .await
}

/// A client that holds its first state and reads no more, and what keeps it there.
async fn stalled(world: &Real) -> (Stall, EntriesWatcher) {
    let stall = Stall::never();
    let client = world.stalling_client(&stall);
    let watcher = in_time("the first state", client.entries(prefix()).into_future());
    let watcher = watcher.await.unwrap();
    stall.begin();
    (stall, watcher)
}

async fn does_not_read(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let heard = world.heard();
            let (stall, watcher) = stalled(&world).await;
            world.keys.put_much(round, MORE_THAN_A_WINDOW).await;
            in_time("it stalls", stall.happened()).await;
            drop(watcher);
            world.hears(heard + MORE_THAN_A_WINDOW).await;
        })
        .await
}

async fn is_left(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    rounds
        .and(&world.gauges())
        .run(async |round| {
            let (heard, left) = (world.heard(), world.metrics.slow_consumers_closed.get());
            let (_stall, _watcher) = stalled(&world).await;
            world.keys.put_much(round, MORE_THAN_A_WINDOW).await;
            world.hears(heard + MORE_THAN_A_WINDOW).await;
            let metrics = &world.metrics;
            eventually("the server leaves it", async || {
                let held = [&metrics.connections, &metrics.streams, &metrics.scopes];
                held.iter().all(|gauge| gauge.get() == 0)
            })
            .await;
            // And not because it does not answer, for which the server waits longer.
            assert!(
                metrics.slow_consumers_closed.get() > left,
                "it was not left as stalled"
            );
        })
        .await
}

async fn cut(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    let proxy = Proxy::to(world.address.port()).await;
    let client = Client::connect(proxy.url()).unwrap();
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let heard = world.heard();
            let watcher = client.watch::<u32>("/c/a").await.unwrap();
            proxy.stall();
            let byte = u8::try_from(round % 250).unwrap();
            world.keys.put(HUGE_KEY, vec![byte; HUGE]).await;
            let waiting = client.entries(prefix()).into_future();
            let waited = tokio::time::timeout(Duration::from_millis(2), waiting);
            // Too late, or it had come through before.
            drop(waited.await);
            drop(watcher);
            // The other end learns of it when the network is there again.
            proxy.heal();
            world.hears(heard + 1).await;
        })
        .await
}

/// A watcher of what is put after trouble with etcd.
async fn seen_watcher(world: &Real) -> EntriesWatcher {
    let watching = world.client().entries(SEEN_KEY).into_future();
    in_time("the first state", watching).await.unwrap()
}

/// The server keeps as many such values as it ever will.
async fn fill_with_seen(world: &mut Real) {
    let mut watcher = seen_watcher(world).await;
    for round in 0..FILL_WITH_SEEN {
        let revision = world.keys.put(SEEN_KEY, seen(round)).await;
        entries_reach(&mut watcher, revision).await;
    }
}

fn seen(round: u64) -> Vec<u8> {
    vec![u8::try_from(round % 250).unwrap(); SEEN]
}

/// A value after trouble with etcd, and the watcher that was there before sees it.
async fn seen_after(world: &mut Real, mut watcher: EntriesWatcher, round: u64) {
    let put = async {
        // The client of etcd, too, has to find out that all is well again.
        loop {
            if let Ok(revision) = world.keys.try_put(SEEN_KEY, seen(round)).await {
                return revision;
            }
            tokio::task::yield_now().await;
        }
    };
    let revision = in_time("etcd takes a put", put).await;
    entries_reach(&mut watcher, revision).await;
    // And another: what a new connection has room for is there when it has been read from.
    let revision = world.keys.put(SEEN_KEY, seen(round + 1)).await;
    entries_reach(&mut watcher, revision).await;
}

async fn etcd_cut(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let proxy = Proxy::to(etcd.port()).await;
    let mut world = Real::watchful_over(etcd, &proxy.url()).await;
    fill_with_seen(&mut world).await;
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = seen_watcher(&world).await;
            let missed = etcd_is_missed(&world);
            if round % 2 == 0 {
                proxy.cut();
            } else {
                proxy.stall();
            }
            missed.await;
            proxy.heal();
            seen_after(&mut world, watcher, round).await;
        })
        .await
}

async fn killed(rounds: Rounds) -> Outcome {
    let mut world = Real::watchful().await;
    fill_with_seen(&mut world).await;
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = seen_watcher(&world).await;
            world.etcd.kill();
            world.etcd.start().await;
            seen_after(&mut world, watcher, round).await;
        })
        .await
}

async fn stopped(rounds: Rounds) -> Outcome {
    let mut world = Real::watchful().await;
    fill_with_seen(&mut world).await;
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let watcher = seen_watcher(&world).await;
            let missed = etcd_is_missed(&world);
            world.etcd.pause();
            missed.await;
            world.etcd.resume();
            seen_after(&mut world, watcher, round).await;
        })
        .await
}

async fn audited(rounds: Rounds) -> Outcome {
    let mut world = Real::audited(AUDIT).await;
    let mut watcher = padded_watcher(&mut world).await;
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    rounds
        .and(&gauges)
        .at_the_end(watches)
        .run(async |round| {
            let audits = world.metrics.audits.get();
            let value = padded(&round.to_string());
            let revision = world.keys.put(PADDED_KEY, value).await;
            reaches(&mut watcher, revision).await;
            eventually("an audit", async || world.metrics.audits.get() > audits).await;
            assert_eq!(world.metrics.audit_differences.get(), 0);
        })
        .await
}

async fn successor(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let mut keys = Keys::of(&etcd).await;
    rounds
        .at_the_end(etcds_watches(&etcd))
        .promised(CLIENT)
        .run(async |round| {
            let server = Running::start(settings(&etcd.url())).await;
            // A name for whoever serves: a port that was left may be somebody else's by now.
            let place = Arc::new(Mutex::new(server.address));
            let who = Arc::clone(&place);
            let connector = move |_: &Endpoint| -> Connecting {
                let address = *who.lock().unwrap();
                Box::pin(async move {
                    let stream = TcpStream::connect(address).await?;
                    Ok(Box::new(stream) as Box<dyn Io>)
                })
            };
            let client = Client::builder().endpoint("http://whoever:7400");
            let client = client.connector(connector).build().unwrap();
            let watching = client.entries(prefix()).into_future();
            let mut watcher = in_time("the first state", watching).await.unwrap();
            let before = keys.put("/c/a", round.to_string()).await;
            entries_reach(&mut watcher, before).await;
            match round % 2 {
                0 => drop(server),
                _ => server.stop().await,
            }
            let alone = async {
                while watcher.status().state == WatchState::Live {
                    watcher.status_changed().await;
                }
            };
            in_time("the watcher loses its server", alone).await;
            // Nobody hears of it, and the next one does not remember a time before it.
            keys.put("/c/b", round.to_string()).await;
            let server = Running::start(settings(&etcd.url())).await;
            *place.lock().unwrap() = server.address;
            let after = keys.put("/c/a", "after").await;
            entries_reach(&mut watcher, after).await;
            let page = server.metrics().await;
            let asked = page.contains("driftless_etcd_backfill_watches_total 1");
            assert!(asked, "etcd was not asked what came before");
            server.stop().await;
        })
        .await
}

async fn shut_down(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let settings = settings(&etcd.url());
    rounds
        .at_the_end(etcds_watches(&etcd))
        .run(async |_| {
            let server = Running::start(settings.clone()).await;
            let url = server.url();
            let client = Client::connect(&url).unwrap();
            let stays = client.entries(prefix()).await.unwrap();
            let leaves = Client::connect(&url).unwrap().entries(prefix()).await;
            let mut leaves = leaves.unwrap();
            let leaving = async {
                while leaves.status().state == WatchState::Live {
                    leaves.status_changed().await;
                }
                drop(leaves);
            };
            tokio::join!(server.stop(), in_time("a goodbye", leaving));
            drop(stays);
        })
        .await
}
