//! Clients that take their time: in the middle of a large state, or of much that is written.

use std::time::Duration;

use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds};

use crate::scenario::{CLIENT, Pace, Scenario, prefix};
use crate::slow::Slow;
use crate::world::{LARGE, Real};

/// How many large values are a large state: 4 MiB.
const STATE: u64 = 64;

/// How many of them are written in a round.
const WRITTEN: u64 = 6;

/// In how many places a state is broken off, all of them in its first half: what arrives has to be read.
const PLACES: usize = 40;

/// How far they are from each other, in bytes: no whole number of values.
const APART: usize = 31 * 1024;

/// How much a slow client reads at first, at a time and how often, in bytes: more than a small value
/// takes, and in all far less than is written.
const FIRST: usize = 16 * 1024;
const LITTLE: usize = 4 * 1024;
const STEPS: usize = 8;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a watch is dropped mid-snapshot",
        about: "A part of a first state of 4 MiB has arrived, and the rest does not; the watch \
                is dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(mid_snapshot(rounds)),
    },
    Scenario {
        name: "a read is dropped mid-snapshot",
        about: "A part of a read of 4 MiB has arrived, and the rest does not; the read is \
                dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(mid_read(rounds)),
    },
    Scenario {
        name: "a client that reads slowly is dropped",
        about: "A client reads more slowly than keys are written, and is dropped.",
        takes_long: true,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(slowly(rounds)),
    },
];

/// A network that brings a part of the state, another one in each round: from the first of it on.
fn a_part(round: u64) -> Slow {
    let place = 1 + usize::try_from(round).unwrap() % PLACES;
    Slow {
        at_a_time: LARGE,
        rest: Duration::ZERO,
        most: place * APART,
    }
}

async fn large_world() -> Real {
    let mut world = Real::start().await;
    world.hold_much(STATE).await;
    world
}

async fn mid_snapshot(rounds: Rounds) -> Outcome {
    let world = large_world().await;
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let network = a_part(round);
            let (client, brought) = network.counted(&world.url());
            let watching = client.entries(prefix()).into_future();
            tokio::select! {
                _ = watching => panic!("the state is whole"),
                () = in_time("a part", brought.reaches(network.most)) => {}
            }
        })
        .await
}

async fn mid_read(rounds: Rounds) -> Outcome {
    let world = large_world().await;
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let network = a_part(round);
            let (client, brought) = network.counted(&world.url());
            let reading = client.get(prefix()).into_future();
            tokio::select! {
                _ = reading => panic!("the state is whole"),
                () = in_time("a part", brought.reaches(network.most)) => {}
            }
        })
        .await
}

async fn slowly(rounds: Rounds) -> Outcome {
    let mut world = Real::start().await;
    world.hold_much(WRITTEN).await;
    let network = Slow {
        at_a_time: LITTLE,
        rest: Duration::ZERO,
        most: FIRST,
    };
    rounds
        .and(&world.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let (client, brought) = network.counted(&world.url());
            let heard = world.heard();
            // Nothing that is large.
            let _watcher = in_time("a value", client.entries("/c/a").into_future()).await;
            let reading = client.entries(prefix()).into_future();
            let writing = async {
                in_time("a part", brought.reaches(FIRST)).await;
                world.keys.put_much(round, WRITTEN).await;
                for more in 1..=STEPS {
                    brought.allow(LITTLE);
                    let read_on = brought.reaches(FIRST + more * LITTLE);
                    in_time("it reads on", read_on).await;
                }
            };
            tokio::select! {
                _ = reading => panic!("it reads all, and there is more"),
                () = writing => {}
            }
            world.hears(heard + WRITTEN).await;
        })
        .await
}
