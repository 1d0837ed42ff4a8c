//! Clients that read slowly: a large first state, or many changes.

use std::time::Duration;

use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds};

use crate::on_etcd::ServerOnEtcd;
use crate::scenario::{CLIENT, Pace, Scenario, prefix};
use crate::slow_network::SlowNetwork;
use crate::writer::LARGE;

/// How many large values the large state has: 4 MiB in all.
const VALUES_IN_STATE: u64 = 64;

/// How many large values a round writes.
const VALUES_WRITTEN: u64 = 6;

/// In how many places the transfer of a state is broken off. All are in its first half, because reading
/// what arrives takes time.
const PLACES: usize = 40;

/// How far these places are apart, in bytes: not a whole number of values.
const PLACES_APART: usize = 31 * 1024;

/// How much a slow client reads before the writes, in bytes: more than a small value takes.
const READ_FIRST: usize = 16 * 1024;

/// How much it reads in each step after that, in bytes.
const READ_STEP: usize = 4 * 1024;

/// How many steps there are. In all the client reads much less than is written.
const READ_STEPS: usize = 8;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a watch is dropped mid-snapshot",
        about: "A part of a first state of 4 MiB has arrived, and the rest does not; the watch \
                is dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(watch_dropped(rounds)),
    },
    Scenario {
        name: "a read is dropped mid-snapshot",
        about: "A part of a read of 4 MiB has arrived, and the rest does not; the read is \
                dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(read_dropped(rounds)),
    },
    Scenario {
        name: "a client that reads slowly is dropped",
        about: "A client reads more slowly than keys are written, and is dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(slow_reader_dropped(rounds)),
    },
];

/// A network that delivers the beginning of the state, up to a place that depends on the round.
fn partial(round: u64) -> SlowNetwork {
    let place = 1 + usize::try_from(round).unwrap() % PLACES;
    SlowNetwork {
        chunk: LARGE,
        pause: Duration::ZERO,
        limit: place * PLACES_APART,
    }
}

async fn with_large_state() -> ServerOnEtcd {
    let mut server = ServerOnEtcd::start().await;
    server.load_large_values(VALUES_IN_STATE).await;
    server
}

async fn watch_dropped(rounds: Rounds) -> Outcome {
    let server = with_large_state().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let network = partial(round);
            let (client, delivered) = network.client_with_count(&server.url());
            let watching = client.entries(prefix()).into_future();
            tokio::select! {
                _ = watching => panic!("the whole state arrived"),
                () = in_time("a part", delivered.wait_for(network.limit)) => {}
            }
        })
        .await
}

async fn read_dropped(rounds: Rounds) -> Outcome {
    let server = with_large_state().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let network = partial(round);
            let (client, delivered) = network.client_with_count(&server.url());
            let reading = client.get(prefix()).into_future();
            tokio::select! {
                _ = reading => panic!("the whole state arrived"),
                () = in_time("a part", delivered.wait_for(network.limit)) => {}
            }
        })
        .await
}

async fn slow_reader_dropped(rounds: Rounds) -> Outcome {
    let mut server = ServerOnEtcd::start().await;
    server.load_large_values(VALUES_WRITTEN).await;
    let network = SlowNetwork {
        chunk: READ_STEP,
        pause: Duration::ZERO,
        limit: READ_FIRST,
    };
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let (client, delivered) = network.client_with_count(&server.url());
            let received = server.changes_received();
            // A watcher of a small value.
            let _watcher = in_time("a value", client.entries("/c/a").into_future()).await;
            let reading = client.entries(prefix()).into_future();
            let writing = async {
                in_time("a part", delivered.wait_for(READ_FIRST)).await;
                server.writer.put_large_values(round, VALUES_WRITTEN).await;
                for step in 1..=READ_STEPS {
                    delivered.allow(READ_STEP);
                    let read = delivered.wait_for(READ_FIRST + step * READ_STEP);
                    in_time("the client reads on", read).await;
                }
            };
            tokio::select! {
                _ = reading => panic!("the client read everything"),
                () = writing => {}
            }
            server.wait_for_changes(received + VALUES_WRITTEN).await;
        })
        .await
}
