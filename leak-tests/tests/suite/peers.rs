//! Peers that do not do their part: clients that never finish a handshake, networks that lose one
//! direction, servers that take a right back. Against a server over a model of etcd, which soon has
//! enough of them, or against a server that says what the scenario wants.

use std::time::Duration;

use driftless_client::{Client, Closed, EntriesWatcher, Status, WatchError, WatchState};
use driftless_test_support::{eventually, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::Server;
use crate::one_way::{Lost, OneWay};
use crate::scenario::{CLIENT, Pace, Scenario, prefix};
use crate::scripted::{Says, Scripted};

/// The parts of a handshake: how HTTP/2 begins, the client's settings, and a call that it begins and
/// never ends.
const HANDSHAKE: [&[u8]; 3] = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0\0\0\x04\0\0\0\0\0",
    // Headers to be continued: nothing of them yet.
    b"\0\0\0\x01\0\0\0\0\x01",
];

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "clients never finish the handshake",
        about: "Connections that send nothing, or a part of the handshake, and stay open: the \
                server closes them.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(never_finished(rounds)),
    },
    Scenario {
        name: "the network loses one direction for ever",
        about: "What the server sends is lost, or what clients send, and connections stay \
                open; the client is dropped, and the server detects it.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(one_way(rounds)),
    },
    Scenario {
        name: "a client that stays hears nothing",
        about: "What the server sends is lost, and connections stay open; both ends detect it, \
                and the client reconnects.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(hears_nothing(rounds)),
    },
    Scenario {
        name: "a client is told to purge",
        about: "The server revokes the right to a range, at once or later: the watcher is \
                closed, and dropped afterwards.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(purged(rounds)),
    },
    Scenario {
        name: "a server speaks nonsense",
        about: "The server answers with an error, with frames out of order, or with a snapshot \
                that never ends; the client is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(nonsense(rounds)),
    },
    Scenario {
        name: "servers die",
        about: "Of two servers, the one dies that a watcher is connected to, and then the \
                other; the watcher is dropped while neither runs. Its token is read from a file.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(die(rounds)),
    },
];

async fn die(rounds: Rounds) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "who-we-are").unwrap();
    rounds
        .promised(CLIENT)
        .run(async |_| {
            let servers = (Server::start().await, Server::start().await);
            let client = Client::builder().endpoint(servers.0.url());
            let client = client.endpoint(servers.1.url()).token_file(&token);
            let client = client.build().unwrap();
            let watching = client.entries(prefix()).into_future();
            let mut watcher = in_time("the first state", watching).await.unwrap();
            let (first, second) = match servers.0.metrics.connections.get() {
                0 => (servers.1, servers.0),
                _ => servers,
            };
            drop(first);
            let other = watcher_is(&mut watcher, |status| {
                status.reconnects > 0 && status.state == WatchState::Live
            });
            in_time("the other server is reached", other).await;
            drop(second);
            let away = watcher_is(&mut watcher, |status| status.state == WatchState::Backoff);
            in_time("nobody is there", away).await;
            assert_eq!(watcher.load().len(), 2);
        })
        .await
}

/// Waits until that is so.
async fn watcher_is(watcher: &mut EntriesWatcher, so: impl Fn(&Status) -> bool) {
    while !so(&watcher.status()) {
        watcher.status_changed().await;
    }
}

async fn never_finished(rounds: Rounds) -> Outcome {
    let server = Server::impatient().await;
    rounds
        .and(&server.gauges())
        .run(async |_| {
            let mut strangers = Vec::new();
            for parts in 0..=HANDSHAKE.len() {
                let mut stranger = TcpStream::connect(server.address).await.unwrap();
                let said = HANDSHAKE[..parts].concat();
                stranger.write_all(&said).await.unwrap();
                strangers.push(stranger);
            }
            for mut stranger in strangers {
                let mut answer = Vec::new();
                let ended = stranger.read_to_end(&mut answer);
                let _ = in_time("the server hangs up", ended).await;
            }
        })
        .await
}

async fn one_way(rounds: Rounds) -> Outcome {
    let server = Server::impatient().await;
    let network = OneWay::to(server.address.port()).await;
    rounds
        .and(&server.gauges())
        .run(async |round| {
            network.lose(Lost::Nothing);
            let client = Client::connect(network.endpoint()).unwrap();
            let watcher = client.watch::<u32>("/c/a").await.unwrap();
            let lost = match round % 2 {
                0 => Lost::ToClients,
                _ => Lost::ToServer,
            };
            network.lose(lost);
            drop((client, watcher));
            let metrics = &server.metrics;
            eventually("the server finds out", async || {
                let held = [&metrics.connections, &metrics.streams, &metrics.scopes];
                held.iter().all(|gauge| gauge.get() == 0)
            })
            .await;
        })
        .await
}

async fn hears_nothing(rounds: Rounds) -> Outcome {
    let server = Server::impatient().await;
    let network = OneWay::to(server.address.port()).await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |_| {
            network.lose(Lost::Nothing);
            let client = Client::connect(network.endpoint()).unwrap();
            let mut watcher = client.entries(prefix()).await.unwrap();
            let reaches = async |watcher: &mut EntriesWatcher, live: bool| {
                while (watcher.status().state == WatchState::Live) != live {
                    watcher.status_changed().await;
                }
            };
            in_time("the client is there", reaches(&mut watcher, true)).await;
            network.lose(Lost::ToClients);
            in_time("the client finds out", reaches(&mut watcher, false)).await;
            network.lose(Lost::Nothing);
            in_time("the client is back", reaches(&mut watcher, true)).await;
        })
        .await
}

async fn purged(rounds: Rounds) -> Outcome {
    let server = Scripted::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let client = Client::connect(server.url()).unwrap();
            if round % 2 == 0 {
                server.says(Says::Purge);
                let refused = client.entries(prefix()).await.unwrap_err();
                assert!(matches!(refused, WatchError::Closed(_)), "{refused}");
                return;
            }
            server.says(Says::State);
            let mut watcher = client.entries(prefix()).await.unwrap();
            server.purges();
            let closed = async {
                loop {
                    match watcher.changed().await {
                        Ok(_) => {}
                        Err(closed) => return closed,
                    }
                }
            };
            assert_eq!(in_time("the right is gone", closed).await, Closed::Revoked);
        })
        .await
}

async fn nonsense(rounds: Rounds) -> Outcome {
    let server = Scripted::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let said = [
                Says::Error,
                Says::DiffFirst,
                Says::NothingButHello,
                Says::SnapshotWithoutEnd,
                Says::WrongDigest,
            ];
            server.says(said[usize::try_from(round).unwrap() % said.len()]);
            let client = Client::connect(server.url()).unwrap();
            let watching = client.entries(prefix()).into_future();
            let asked = server.asked();
            let asked = async {
                asked.await;
                tokio::time::sleep(Duration::from_millis(round % 4)).await;
            };
            tokio::select! {
                watched = watching => drop(watched),
                () = in_time("the client asks", asked) => {}
            }
        })
        .await
}
