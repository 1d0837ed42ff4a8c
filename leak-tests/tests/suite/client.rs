//! Clients and watchers that end in each state, against a server on a scripted etcd.

use std::time::Duration;

use driftless_client::{Client, KeyRange, WatchError, WatchState};
use driftless_test_support::in_time;
use leak_tests::{Outcome, Rounds, Stall, poll_times};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::common::Server;
use crate::scenario::{CLIENT, Pace, Scenario, WATCHER, prefix};

/// How many polls of a watch's future give its first value, with some to spare.
const POLLS_TO_FIRST_VALUE: u64 = 12;

/// How many network operations two first values take, with some to spare.
const OPERATIONS_TO_FIRST_VALUES: u64 = 64;

/// How many clients are in a crowd.
const CROWD: usize = 8;

/// Long enough for a watch to begin its work, and much shorter than the timeout that would end it.
const SHORT_WAIT: Duration = Duration::from_millis(3);

/// The first bytes of an HTTP/2 connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "a watcher is dropped",
        about: "A client watches a value and drops the watcher; the client stays.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(watcher_dropped(rounds)),
    },
    Scenario {
        name: "a client is dropped",
        about: "A new client watches a value and a prefix; then everything is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(client_dropped(rounds)),
    },
    Scenario {
        name: "a range is read once",
        about: "A client that watches nothing reads a prefix.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(read_once(rounds)),
    },
    Scenario {
        name: "a watch is dropped at each poll",
        about: "Watches that are dropped after 0, 1, 2, … polls of their future.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_at_each_poll(rounds)),
    },
    Scenario {
        name: "a client is dropped at each operation",
        about: "The client's network stops for ever at its 1st, 2nd, 3rd, … operation, and the \
                client is dropped: while it dials, shakes hands, waits for the first state, receives \
                it, or is idle.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_at_each_operation(rounds)),
    },
    Scenario {
        name: "a watch is dropped after a while",
        about: "Watches are dropped after up to 12 ms, in whatever state they are by then.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_after_a_while(rounds)),
    },
    Scenario {
        name: "a watch is dropped in its backoff",
        about: "Nobody listens at the client's endpoint; the watch is dropped between two \
                attempts.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_in_backoff(rounds)),
    },
    Scenario {
        name: "a watch is dropped in its handshake",
        about: "The client is connected to a peer that never sends anything.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_in_handshake(rounds)),
    },
    Scenario {
        name: "ranges come and go",
        about: "In each round a client watches a range that nobody watched before.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(new_ranges(rounds)),
    },
    Scenario {
        name: "a subscription is refused",
        about: "In each round a client asks for another range that is not served.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(range_refused(rounds)),
    },
    Scenario {
        name: "a crowd comes and goes",
        about: "Eight clients at a time, half of them on one range, connect and are dropped \
                together.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(crowd_dropped(rounds)),
    },
    Scenario {
        name: "a crowd loses its server",
        about: "Eight clients lose their connections at once, reconnect, and are dropped.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(crowd_reconnects(rounds)),
    },
    Scenario {
        name: "strangers connect",
        about: "Peers connect to the server and leave in the middle of the handshake, or after \
                bytes that are not HTTP/2.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(stray_peers(rounds)),
    },
    Scenario {
        name: "a watcher is dropped on another thread",
        about: "Watchers are dropped on a thread that belongs to no runtime.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(dropped_on_another_thread(rounds)),
    },
];

async fn watcher_dropped(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let watch = async || {
        let watcher = client.watch::<u32>("/c/a").await.unwrap();
        assert_eq!(*watcher.load(), 1);
    };
    // If the first watch left something behind, later rounds would count it as their baseline.
    let before = server.baseline().await;
    watch().await;
    before.returned().await.unwrap();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds.run(async |_| watch().await).await
}

async fn client_dropped(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |_| {
            let client = server.client();
            let value = client.watch::<u32>("/c/a").into_future();
            let all = client.entries(prefix()).into_future();
            let (value, all) = tokio::join!(value, all);
            assert_eq!((*value.unwrap().load(), all.unwrap().load().len()), (1, 2));
        })
        .await
}

async fn read_once(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |_| assert_eq!(client.get(prefix()).await.unwrap().len(), 2))
        .await
}

async fn dropped_at_each_poll(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let polls = usize::try_from(round % POLLS_TO_FIRST_VALUE).unwrap();
            let watch = client.watch::<u32>("/c/a").into_future();
            let watcher = poll_times(polls, watch).await;
            assert!(watcher.is_none_or(|watcher| *watcher.unwrap().load() == 1));
        })
        .await
}

async fn dropped_at_each_operation(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |round| {
            let stall = Stall::after(round % OPERATIONS_TO_FIRST_VALUES);
            let client = server.stalling_client(&stall);
            let watch = async {
                let one = client.watch::<u32>("/c/a").into_future();
                let all = client.entries(prefix()).into_future();
                let (one, all) = tokio::join!(one, all);
                (one.unwrap(), all.unwrap())
            };
            tokio::select! {
                () = stall.happened() => {}
                watchers = in_time("two watchers", watch) => drop(watchers),
            }
        })
        .await
}

async fn dropped_after_a_while(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            // The watch of a missing key waits for it.
            let key = if round % 2 == 0 { "/c/a" } else { "/c/none" };
            let watch = client.watch::<u32>(key).into_future();
            let _ = timeout(Duration::from_millis(round % 13), watch).await;
        })
        .await
}

async fn dropped_in_backoff(rounds: Rounds) -> Outcome {
    // Nothing listens on port 1.
    let client = Client::connect("http://127.0.0.1:1").unwrap();
    rounds
        .promised(WATCHER)
        .run(async |_| {
            let watch = client.watch::<u32>("/c/a").into_future();
            assert!(timeout(SHORT_WAIT, watch).await.is_err());
        })
        .await
}

/// A server that accepts connections and never sends anything: its URL, and its task.
pub(crate) async fn silent_server(scheme: &str) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            connections.spawn(async move {
                let mut ignored = [0; 1024];
                while stream.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
            });
        }
    });
    (url, serving)
}

async fn dropped_in_handshake(rounds: Rounds) -> Outcome {
    let (url, _serving) = silent_server("http").await;
    let client = Client::connect(url).unwrap();
    rounds
        .promised(WATCHER)
        .run(async |_| {
            let watch = client.watch::<u32>("/c/a").into_future();
            assert!(timeout(SHORT_WAIT, watch).await.is_err());
        })
        .await
}

async fn new_ranges(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let range = KeyRange::prefix(format!("/c/{round:012}/")).unwrap();
            assert!(client.entries(range).await.unwrap().load().is_empty());
        })
        .await
}

async fn range_refused(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let range = format!("/elsewhere/{round:012}");
            let refused = if round % 2 == 0 {
                let watch = client.watch::<u32>(range.as_str()).into_future();
                in_time("a refusal", watch).await.map(drop)
            } else {
                let watch = client.entries(range.as_str()).into_future();
                in_time("a refusal", watch).await.map(drop)
            };
            assert!(
                matches!(refused, Err(WatchError::Refused(_))),
                "{refused:?}"
            );
        })
        .await
}

/// A watcher of each client of a crowd.
async fn watchers(server: &Server) -> Vec<driftless_client::EntriesWatcher> {
    let mut starting = JoinSet::new();
    for number in 0..CROWD {
        let client = server.client();
        let range = match number % 2 {
            0 => prefix(),
            _ => KeyRange::prefix(format!("/c/{number}/")).unwrap(),
        };
        starting.spawn(async move { client.entries(range).await.unwrap() });
    }
    in_time("a crowd", starting.join_all()).await
}

async fn crowd_dropped(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |_| assert_eq!(watchers(&server).await.len(), CROWD))
        .await
}

async fn crowd_reconnects(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(CLIENT);
    rounds
        .run(async |_| {
            let mut crowd = watchers(&server).await;
            server.break_connections();
            for watcher in &mut crowd {
                let reconnected = async {
                    loop {
                        let status = watcher.status();
                        if status.reconnects > 0 && status.state == WatchState::Live {
                            return;
                        }
                        watcher.status_changed().await;
                    }
                };
                in_time("a watcher reconnects", reconnected).await;
            }
        })
        .await
}

async fn stray_peers(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let rounds = rounds.and(&server.gauges()).promised(WATCHER);
    rounds
        .run(async |round| {
            let mut peer = TcpStream::connect(server.address).await.unwrap();
            let parts = PREFACE.len() as u64 + 1;
            let part = usize::try_from(round % parts).unwrap();
            peer.write_all(&PREFACE[..part]).await.unwrap();
            if round % 3 == 0 {
                peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
                // The server closes the connection, with or without a response.
                let mut response = Vec::new();
                let ended = peer.read_to_end(&mut response);
                let _ = in_time("the server closes the connection", ended).await;
            }
        })
        .await
}

async fn dropped_on_another_thread(rounds: Rounds) -> Outcome {
    let server = Server::start().await;
    let client = server.client();
    let (send, received) = std::sync::mpsc::sync_channel::<driftless_client::Watcher<u32>>(1);
    let thread = std::thread::spawn(move || received.into_iter().for_each(drop));
    let outcome = rounds
        .and(&server.gauges())
        .promised(WATCHER)
        .run(async |_| {
            let watcher = client.watch::<u32>("/c/a").await.unwrap();
            send.send(watcher).unwrap();
        })
        .await;
    drop(send);
    thread.join().unwrap();
    outcome
}
