//! The client's handles: dropped beside others that stay, and kept after their client or runtime has ended.

use std::cell::RefCell;
use std::time::Duration;

use driftless_client::{
    Client, Closed, Connecting, Endpoint, GetError, KeyRange, WatchError, WatchState, Watcher,
};
use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds, Stall};
use tokio::task::JoinSet;

use crate::client::silent_server;
use crate::common::Server;
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER};

/// How long a shutdown may take on a slow machine: less than an attempt to connect, which times out by
/// itself.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(4);

/// Long enough for a read to begin, and much shorter than the timeout that would end it.
const SHORT_WAIT: Duration = Duration::from_millis(3);

/// The length of a long key, in bytes: nearly the longest that the server accepts.
const LONG_KEY_BYTES: usize = 4_000;

/// More streams at a time than a round opens and HTTP/2 still remembers.
const MANY_STREAMS: usize = 200;

/// How many long keys a round reads at the same time.
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
        run: |rounds| Box::pin(beside_others(rounds)),
    },
    Scenario {
        name: "a client is shut down",
        about: "A client is shut down while one of its watchers is live and kept, and while a \
                read waits for a connection, for the server's preface, or for a response.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(client_shut_down(rounds)),
    },
    Scenario {
        name: "a read takes too long",
        about: "Reads are given up: of a peer that never sends anything, and of a server that \
                is cut off.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(read_times_out(rounds)),
    },
    Scenario {
        name: "a watcher outlives its runtime",
        about: "A watcher's runtime ends; a waiter in another runtime is told.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(outlives_runtime(rounds)),
    },
];

/// Opens more streams on a client's connection than a round does. HTTP/2 remembers reset streams for a
/// while, so without this its tables at both ends would double in some later round.
async fn grow_stream_tables(client: &Client) {
    let mut many = JoinSet::new();
    for number in 0..MANY_STREAMS {
        let key = format!("/c/room/{number}");
        many.spawn(client.entries(key.as_str()).into_future());
    }
    let many = in_time("many streams", many.join_all()).await;
    assert!(many.iter().all(Result::is_ok));
}

async fn beside_others(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let stays = client.watch::<u32>("/c/a").await.unwrap();
    grow_stream_tables(&client).await;
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
            // A watcher of another client, on the same range.
            let foreign = server.client().watch::<u32>("/c/a").await.unwrap();
            let mut reading = JoinSet::new();
            for number in 0..LONG_READS {
                reading.spawn(client.get(long_key(number)).into_future());
            }
            let reads = reading.join_all().await.into_iter();
            assert!(reads.map(Result::unwrap).all(|read| read.is_empty()));
            drop((reader, part, calls, updates, other, foreign, read));
            assert_eq!(*stays.load(), 1);
        })
        .await
}

/// A key so long that a few hundred requests exceed what a connection may hold at a time. A leak of requests
/// would block the connection.
fn long_key(number: usize) -> String {
    format!("/c/long/{number}/{}", "x".repeat(LONG_KEY_BYTES))
}

async fn client_shut_down(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let (silent, _serving) = silent_server("http").await;
    // A watcher that outlives its client until the next round. Everything else is dropped.
    let kept = RefCell::new(None::<Watcher<u32>>);
    let rounds = rounds.and(&server.gauges());
    rounds
        .run(async |round| {
            let stall = Stall::never();
            let client = match round % 4 {
                0 => server.client(),
                1 => Client::connect(&silent).unwrap(),
                2 => never_connecting(),
                _ => server.stalling_client(&stall),
            };
            match round % 4 {
                0 => {
                    let watcher = client.watch::<u32>("/c/a").await.unwrap();
                    *kept.borrow_mut() = Some(watcher);
                    shut_down(&client).await;
                }
                state => {
                    if state == 3 {
                        // There is a connection, and nothing comes through it any more.
                        let watcher = client.watch::<u32>("/c/a").await.unwrap();
                        stall.begin();
                        *kept.borrow_mut() = Some(watcher);
                    }
                    let read = client.get("/c/a").into_future();
                    let (read, ()) = tokio::join!(in_time("a read ends", read), async {
                        tokio::time::sleep(SHORT_WAIT).await;
                        shut_down(&client).await;
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

async fn read_times_out(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let (silent, _serving) = silent_server("http").await;
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
            let read = client.get("/c/a").timeout(SHORT_WAIT).into_future();
            let read = in_time("a read times out", read).await;
            assert!(matches!(read, Err(GetError::TimedOut { .. })), "{read:?}");
        })
        .await
}

/// Shuts a client down, and checks that it holds nothing any more.
async fn shut_down(client: &Client) {
    let done = client.shutdown().within(SHUTDOWN_WITHIN).await;
    assert_eq!(done, Ok(()));
    assert!(client.resources().is_empty());
}

/// A client whose attempts to connect neither succeed nor fail.
fn never_connecting() -> Client {
    let builder = Client::builder().endpoint("http://127.0.0.1:1");
    let connector = |_: &Endpoint| -> Connecting { Box::pin(std::future::pending()) };
    builder.connector(connector).build().unwrap()
}

async fn outlives_runtime(rounds: Rounds) -> Outcome {
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
            let end = in_time("a watcher ends", value.changed()).await;
            assert_eq!(end.unwrap_err(), Closed::Ended);
            let end = in_time("a watcher ends", all.changed()).await;
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
