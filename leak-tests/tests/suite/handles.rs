//! The client's handles beside others that stay, and ends that leave them in somebody's hands.

use std::cell::RefCell;
use std::time::Duration;

use driftless_client::{
    Client, Closed, Connecting, Endpoint, GetError, KeyRange, WatchError, WatchState, Watcher,
};
use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds, Stall};
use tokio::task::JoinSet;

use crate::client::silent;
use crate::common::Server;
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER};

/// How long a shutdown may take on a slow machine: less than an attempt to connect, which ends by itself.
const ENDED_WITHIN: Duration = Duration::from_secs(4);

/// Long enough to be on the way, and short beside what it waits for.
const A_MOMENT: Duration = Duration::from_millis(3);

/// How long a long name is, in bytes: nearly as long as one may be.
const LONG: usize = 4_000;

/// So many streams at a time are more than a round has, and HTTP/2 remembers.
const ROOM: usize = 200;

/// How many are read at a time.
const LONG_READS: usize = 6;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "handles beside a watcher that stays",
        about: "Beside a watcher that stays, on its range: another watcher, a reader, a part, \
                a stream, a callback, and another client's watcher; and on its connection another \
                range, and reads of ranges with long names.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(beside(rounds)),
    },
    Scenario {
        name: "a client is shut down",
        about: "A client is shut down while one of its watchers is live and kept, and while a \
                read waits for a connection, for the server's preface, or for a response.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(shut_down(rounds)),
    },
    Scenario {
        name: "a read takes too long",
        about: "Reads are given up: of a peer that never sends anything, and of a server that \
                is cut off.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(too_long(rounds)),
    },
    Scenario {
        name: "a watcher outlives its runtime",
        about: "A watcher's runtime ends; a waiter in another runtime is told.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(outlives(rounds)),
    },
];

/// Opens more streams on a client's connection than a round does: HTTP/2 remembers for a while those that
/// were broken off, so the tables at both ends would double at some time later.
pub(crate) async fn make_room(client: &Client) {
    let mut many = JoinSet::new();
    for number in 0..ROOM {
        let key = format!("/c/room/{number}");
        many.spawn(client.entries(key.as_str()).into_future());
    }
    let many = in_time("many streams", many.join_all()).await;
    assert!(many.iter().all(Result::is_ok));
}

async fn beside(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let stays = client.watch::<u32>("/c/a").await.unwrap();
    make_room(&client).await;
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |_| {
            let watcher = client.watch::<u32>("/c/a").await.unwrap();
            let mut reader = watcher.reader();
            let part = watcher.map(|value| value);
            let calls = watcher.on_change(|_| ());
            let updates = watcher.into_stream();
            let other = client.watch::<u32>("/c/b").await.unwrap();
            let read = client.get("/c/b").await.unwrap();
            assert_eq!((*reader.load(), *part.load(), *other.load()), (1, 1, 2));
            // Those of a server's other clients, of the same range.
            let others = server.client().watch::<u32>("/c/a").await.unwrap();
            let mut reading = JoinSet::new();
            for number in 0..LONG_READS {
                reading.spawn(client.get(long_name(number)).into_future());
            }
            let reads = reading.join_all().await.into_iter();
            assert!(reads.map(Result::unwrap).all(|read| read.is_empty()));
            drop((reader, part, calls, updates, other, others, read));
            assert_eq!(*stays.load(), 1);
        })
        .await
}

/// As long as a key may be, so that a few hundred requests are more than what one connection may ask
/// for at a time.
fn long_name(number: usize) -> String {
    format!("/c/long/{number}/{}", "x".repeat(LONG))
}

async fn shut_down(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let (silent, _silent) = silent("http").await;
    // In somebody's hands until the next round: all else is gone.
    let kept = RefCell::new(None::<Watcher<u32>>);
    let rounds = rounds.and(&server.gauges());
    rounds
        .run(async |round| {
            let stall = Stall::never();
            let client = match round % 4 {
                0 => server.client(),
                1 => Client::connect(&silent).unwrap(),
                2 => unconnected(),
                _ => server.stalling_client(&stall),
            };
            match round % 4 {
                0 => {
                    let watcher = client.watch::<u32>("/c/a").await.unwrap();
                    *kept.borrow_mut() = Some(watcher);
                    ended(&client).await;
                }
                state => {
                    if state == 3 {
                        // A connection there is, and nothing comes through it any more.
                        let watcher = client.watch::<u32>("/c/a").await.unwrap();
                        stall.begin();
                        *kept.borrow_mut() = Some(watcher);
                    }
                    let read = client.get("/c/a").into_future();
                    let (read, ()) = tokio::join!(in_time("a read ends", read), async {
                        tokio::time::sleep(A_MOMENT).await;
                        ended(&client).await;
                    });
                    let closed = matches!(read, Err(GetError::Closed(Closed::Shutdown)));
                    assert!(closed, "{read:?}");
                }
            }
            let late = client.watch::<u32>("/c/a").await;
            assert!(matches!(late, Err(WatchError::Closed(_))), "{late:?}");
        })
        .await
}

async fn too_long(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let (silent, _silent) = silent("http").await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |round| {
            let stall = Stall::never();
            let (client, _watcher) = match round % 2 {
                0 => (Client::connect(&silent).unwrap(), None),
                _ => {
                    let client = server.stalling_client(&stall);
                    let watcher = client.watch::<u32>("/c/a").await.unwrap();
                    stall.begin();
                    (client, Some(watcher))
                }
            };
            let read = client.get("/c/a").timeout(A_MOMENT).into_future();
            let read = in_time("a read is given up", read).await;
            assert!(matches!(read, Err(GetError::TimedOut { .. })), "{read:?}");
        })
        .await
}

/// Shuts it down; nothing is left that could not be ended at once.
async fn ended(client: &Client) {
    let done = client.shutdown().within(ENDED_WITHIN).await;
    assert_eq!(done, Ok(()));
    assert!(client.resources().is_empty());
}

/// A client whose attempts to connect come to nothing, and do not fail.
fn unconnected() -> Client {
    let builder = Client::builder().endpoint("http://127.0.0.1:1");
    let connector = |_: &Endpoint| -> Connecting { Box::pin(std::future::pending()) };
    builder.connector(connector).build().unwrap()
}

async fn outlives(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |round| {
            let client = server.client();
            let elsewhere = std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                let all = KeyRange::prefix("/c/");
                runtime.block_on(async {
                    let value = client.watch::<u32>("/c/a").into_future();
                    let (value, all) = tokio::join!(value, client.entries(all));
                    (value.unwrap(), all.unwrap())
                })
            });
            let (mut value, mut all) = elsewhere.join().unwrap();
            let end = in_time("a watcher is told", value.changed()).await;
            assert_eq!(end.unwrap_err(), Closed::Ended);
            let end = in_time("a watcher is told", all.changed()).await;
            assert_eq!(end.unwrap_err(), Closed::Ended);
            assert_eq!(
                (*value.load(), all.load().len()),
                (1, 2),
                "in round {round}"
            );
            assert_eq!(value.status().state, WatchState::Closed);
        })
        .await
}
