//! Misbehaving peers: clients that never finish a handshake, networks that lose one direction, servers that
//! revoke a right, send invalid frames, or die. The server has a scripted etcd and short client timeouts, or
//! is scripted itself.

use std::time::Duration;

use driftless_client::{Client, Closed, EntriesWatcher, Status, WatchError, WatchState};
use driftless_test_support::{eventually, in_time};
use leak_tests::{Outcome, Rounds};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::Server;
use crate::one_way::{Lost, OneWay};
use crate::scenario::{CLIENT, Pace, Scenario, prefix};
use crate::scripted::{Reply, ScriptedServer};

/// The parts of a handshake: the HTTP/2 preface, the client's settings, and the headers of a call, which
/// never end.
const HANDSHAKE_PARTS: [&[u8]; 3] = [
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\0\0\0\x04\0\0\0\0\0",
    // A HEADERS frame without END_HEADERS: more is to follow.
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
        run: |rounds| Box::pin(unfinished_handshakes(rounds)),
    },
    Scenario {
        name: "the network loses one direction for ever",
        about: "What the server sends is lost, or what clients send, and connections stay \
                open; the client is dropped, and the server detects it.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(one_direction_lost(rounds)),
    },
    Scenario {
        name: "a client that stays hears nothing",
        about: "What the server sends is lost, and connections stay open; both ends detect it, \
                and the client reconnects.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(client_receives_nothing(rounds)),
    },
    Scenario {
        name: "a client is told to purge",
        about: "The server revokes the right to a range, at once or later: the watcher is \
                closed, and dropped afterwards.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(right_revoked(rounds)),
    },
    Scenario {
        name: "a server speaks nonsense",
        about: "The server answers with an error, with frames out of order, or with a snapshot \
                that never ends; the client is dropped.",
        takes_long: false,
        pace: Pace::Works,
        fault_for: &[],
        run: |rounds| Box::pin(invalid_responses(rounds)),
    },
    Scenario {
        name: "servers die",
        about: "Of two servers, the one dies that a watcher is connected to, and then the \
                other; the watcher is dropped while neither runs. Its token is read from a file.",
        takes_long: false,
        pace: Pace::Waits,
        fault_for: &[],
        run: |rounds| Box::pin(servers_die(rounds)),
    },
];

async fn servers_die(rounds: Rounds) -> Outcome {
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
            let reconnected = wait_for_status(&mut watcher, |status| {
                status.reconnects > 0 && status.state == WatchState::Live
            });
            in_time("the client reaches the other server", reconnected).await;
            drop(second);
            let in_backoff =
                wait_for_status(&mut watcher, |status| status.state == WatchState::Backoff);
            in_time("no server is left", in_backoff).await;
            assert_eq!(watcher.load().len(), 2);
        })
        .await
}

/// Waits until the watcher's status matches.
async fn wait_for_status(watcher: &mut EntriesWatcher, matches: impl Fn(&Status) -> bool) {
    while !matches(&watcher.status()) {
        watcher.status_changed().await;
    }
}

async fn unfinished_handshakes(rounds: Rounds) -> Outcome {
    let server = Server::with_short_client_timeouts().await;
    rounds
        .and(&server.gauges())
        .run(async |_| {
            let mut peers = Vec::new();
            for parts in 0..=HANDSHAKE_PARTS.len() {
                let mut peer = TcpStream::connect(server.address).await.unwrap();
                let sent = HANDSHAKE_PARTS[..parts].concat();
                peer.write_all(&sent).await.unwrap();
                peers.push(peer);
            }
            for mut peer in peers {
                let mut response = Vec::new();
                let ended = peer.read_to_end(&mut response);
                let _ = in_time("the server closes the connection", ended).await;
            }
        })
        .await
}

async fn one_direction_lost(rounds: Rounds) -> Outcome {
    let server = Server::with_short_client_timeouts().await;
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
            eventually("the server detects the loss", async || {
                let held = [&metrics.connections, &metrics.streams, &metrics.scopes];
                held.iter().all(|gauge| gauge.get() == 0)
            })
            .await;
        })
        .await
}

async fn client_receives_nothing(rounds: Rounds) -> Outcome {
    let server = Server::with_short_client_timeouts().await;
    let network = OneWay::to(server.address.port()).await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |_| {
            network.lose(Lost::Nothing);
            let client = Client::connect(network.endpoint()).unwrap();
            let mut watcher = client.entries(prefix()).await.unwrap();
            let wait_until = async |watcher: &mut EntriesWatcher, live: bool| {
                while (watcher.status().state == WatchState::Live) != live {
                    watcher.status_changed().await;
                }
            };
            in_time("the client is live", wait_until(&mut watcher, true)).await;
            network.lose(Lost::ToClients);
            in_time(
                "the client detects the loss",
                wait_until(&mut watcher, false),
            )
            .await;
            network.lose(Lost::Nothing);
            in_time("the client is live again", wait_until(&mut watcher, true)).await;
        })
        .await
}

async fn right_revoked(rounds: Rounds) -> Outcome {
    let server = ScriptedServer::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let client = Client::connect(server.url()).unwrap();
            if round % 2 == 0 {
                server.set_reply(Reply::Purge);
                let refused = client.entries(prefix()).await.unwrap_err();
                assert!(matches!(refused, WatchError::Closed(_)), "{refused}");
                return;
            }
            server.set_reply(Reply::State);
            let mut watcher = client.entries(prefix()).await.unwrap();
            server.send_purge();
            let closed = async {
                loop {
                    match watcher.changed().await {
                        Ok(_) => {}
                        Err(closed) => return closed,
                    }
                }
            };
            assert_eq!(
                in_time("the watcher is closed", closed).await,
                Closed::Revoked
            );
        })
        .await
}

async fn invalid_responses(rounds: Rounds) -> Outcome {
    let server = ScriptedServer::start().await;
    rounds
        .and(&server.gauges())
        .promised(CLIENT)
        .run(async |round| {
            let replies = [
                Reply::Error,
                Reply::DiffFirst,
                Reply::HelloOnly,
                Reply::SnapshotWithoutEnd,
                Reply::WrongDigest,
            ];
            server.set_reply(replies[usize::try_from(round).unwrap() % replies.len()]);
            let client = Client::connect(server.url()).unwrap();
            let watching = client.entries(prefix()).into_future();
            let called = server.next_call();
            let called = async {
                called.await;
                tokio::time::sleep(Duration::from_millis(round % 4)).await;
            };
            tokio::select! {
                watched = watching => drop(watched),
                () = in_time("the client calls", called) => {}
            }
        })
        .await
}
