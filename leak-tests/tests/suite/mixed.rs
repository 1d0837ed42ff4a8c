//! Clients, writes, stray peers and faults at random and at the same time: finds what no scenario of one
//! thing alone does.
//!
//! The number of a round decides what happens in it, so that runs can be compared.

use std::time::Duration;

use driftless_client::{Client, EntriesWatcher, KeyRange, Revision, WatchError};
use driftless_test_support::{Etcd, Proxy, in_time};
use leak_tests::{Allocated, Outcome, Rounds, Stall, Witnesses, poll_times};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::common::InProcessServer;
use crate::on_etcd::{ServerOnEtcd, etcd_loss_detected, wait_for_entries};
use crate::scenario::{Pace, Scenario, prefix};
use crate::slow_network::SlowNetwork;
use crate::writer::{EtcdWriter, Padded, ROUNDS_TO_FILL_TOMBSTONES, padded};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "everything at once",
    about: "By chance and together: clients that connect, follow, stall, read slowly, are \
            refused, and are dropped at any moment; keys that are put and deleted; peers that are no \
            clients; connections that are lost; the network to the server and to etcd cut or stalled; \
            etcd stopped and killed.",
    takes_long: true,
    pace: Pace::Soaks,
    fault_for: &[],
    run: |rounds| Box::pin(everything(rounds)),
}];

/// How many clients act at the same time, at most.
const CLIENTS: u64 = 4;

/// After this many rounds, writes bring the server's memory of changes to a known state. In between its
/// size is random; only the known states can be compared.
const RESET_EVERY: u64 = 8;

/// The size of a value that pushes everything else out of the change log, in bytes.
const SWEEP_BYTES: usize = 600 * 1024;

/// The key of that value.
const SWEEP_KEY: &str = "/c/sweep";

/// The size of a value that travels in parts, in bytes.
const LARGE: usize = 64 * 1024;

/// How many keys have small values.
const VALUE_KEYS: u64 = 6;

/// One of those keys. Its name is as long as those of the keys that come and go, so that every deleted key
/// takes the same memory.
fn value_key(number: u64) -> String {
    format!("/c/value/{number:026}")
}

/// The number of the keys that come and go: always the same, so that memory does not depend on how many
/// different keys were deleted recently.
const PASSING_KEYS: u64 = 0;

/// How much the allocated bytes may grow by chance: it is random how many frames wait in a new connection to
/// etcd, and so how large its tables become. A leak of eight bytes a round is larger after thirty thousand
/// rounds.
const RANDOM_SLACK: i64 = 128 * 1024;

/// The longest of the short random waits, in milliseconds.
const SHORT_WAIT_MS: u64 = 8;

/// A network that delivers what a round writes in about the time that a round takes.
const SLOW: SlowNetwork = SlowNetwork {
    chunk: 1024,
    pause: Duration::from_millis(1),
    limit: usize::MAX,
};

/// The first bytes of an HTTP/2 connection: the preface, and a SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Random numbers, the same ones for the same seed.
struct Random(u64);

impl Random {
    /// The numbers for one actor in a round.
    fn new(round: u64, actor: u64) -> Self {
        let mut random = Self(round.wrapping_mul(64).wrapping_add(actor));
        random.below(1);
        random
    }

    /// A number from 0 on and below this one (splitmix64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    /// True once in this many calls, on average.
    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    async fn short_wait(&mut self) {
        sleep(Duration::from_millis(self.below(SHORT_WAIT_MS))).await;
    }
}

/// What the actors of a round use.
struct Round<'a> {
    number: u64,
    server: &'a InProcessServer,
    /// A client that exists in all rounds.
    long_lived: &'a Client,
    to_server: &'a Proxy,
    /// True when all has been written, and no fault is left.
    over: watch::Receiver<bool>,
}

async fn everything(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let to_etcd = Proxy::to(etcd.port()).await;
    let mut setup = ServerOnEtcd::with_short_etcd_timeouts_at(etcd, &to_etcd.url()).await;
    for _ in 0..ROUNDS_TO_FILL_TOMBSTONES {
        setup.writer.put_and_delete(PASSING_KEYS).await;
    }
    let to_server = Proxy::to(setup.address.port()).await;
    let long_lived = Client::connect(to_server.url()).unwrap();
    let (gauges, watches) = (setup.gauges(), setup.etcd_watch_counts());
    let mut attempts = setup.metrics.etcd_attempts.get();
    let allocated = Allocated::by_jemalloc().unwrap().with_slack(RANDOM_SLACK);
    rounds
        .without_bytes()
        .and(&Witnesses::new().and(allocated))
        .and(&gauges)
        .at_the_end(watches)
        .run(async |number| {
            let ServerOnEtcd {
                etcd,
                writer,
                server,
            } = &mut setup;
            let (end, over) = watch::channel(false);
            let round = Round {
                number,
                server,
                long_lived: &long_lived,
                to_server: &to_server,
                over,
            };
            let writes_and_faults = async {
                let mut random = Random::new(number, CLIENTS + 1);
                tokio::join!(
                    write(writer, number),
                    stray_peer(&round),
                    inject_fault(&round, &to_etcd, etcd, &mut random)
                );
                end.send_replace(true);
            };
            let clients = async {
                tokio::join!(
                    client(&round, 0),
                    client(&round, 1),
                    client(&round, 2),
                    client(&round, 3)
                )
            };
            tokio::join!(writes_and_faults, clients);
            check_delivery(server, writer, number).await;
            let mut reset = number % RESET_EVERY == RESET_EVERY - 1;
            // Give a new connection to etcd as large a table as the one before had.
            if setup.metrics.etcd_attempts.get() != attempts {
                reset = true;
                setup.grow_frame_table().await;
                attempts = setup.metrics.etcd_attempts.get();
            }
            if reset {
                let ServerOnEtcd { writer, server, .. } = &mut setup;
                reset_change_memory(server, writer, number).await;
            }
        })
        .await
}

/// Puts some keys and deletes some. Writes fail while etcd is away.
async fn write(writer: &mut EtcdWriter, number: u64) {
    let mut random = Random::new(number, CLIENTS);
    for _ in 0..random.below(6) {
        let key = value_key(random.below(VALUE_KEYS));
        let _ = match random.below(8) {
            0 => writer.try_delete(&key).await,
            1 => writer.try_put(&key, "{").await.map(drop),
            2 => {
                let byte = u8::try_from(random.below(200)).unwrap();
                writer
                    .try_put("/c/large", vec![byte; LARGE])
                    .await
                    .map(drop)
            }
            _ => {
                let value = padded(&number.to_string());
                writer.try_put(&key, value).await.map(drop)
            }
        };
    }
    if random.one_in(8) {
        let _ = writer.try_put_and_delete(PASSING_KEYS).await;
    }
}

/// A peer that sends the beginning of a connection, and leaves.
async fn stray_peer(round: &Round<'_>) {
    let mut random = Random::new(round.number, CLIENTS + 2);
    if !random.one_in(3) {
        return;
    }
    let mut peer = TcpStream::connect(round.server.address).await.unwrap();
    let part = usize::try_from(random.below(PREFACE.len() as u64 + 1)).unwrap();
    peer.write_all(&PREFACE[..part]).await.unwrap();
    if random.one_in(2) {
        let _ = peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    }
    random.short_wait().await;
}

/// Injects a fault in some rounds, and ends it.
async fn inject_fault(round: &Round<'_>, to_etcd: &Proxy, etcd: &mut Etcd, random: &mut Random) {
    random.short_wait().await;
    match random.below(800) {
        0..40 => round.server.break_connections(),
        40..120 => {
            round.to_server.stall();
            random.short_wait().await;
            round.to_server.heal();
        }
        120..200 => {
            round.to_server.cut();
            random.short_wait().await;
            round.to_server.heal();
        }
        // The faults from here on take long, so they are rare.
        200 => {
            to_etcd.cut();
            random.short_wait().await;
            to_etcd.heal();
        }
        201 => {
            let detected = etcd_loss_detected(round.server);
            to_etcd.stall();
            detected.await;
            to_etcd.heal();
        }
        202 => {
            let detected = etcd_loss_detected(round.server);
            etcd.pause();
            detected.await;
            etcd.resume();
        }
        203 => {
            etcd.kill();
            random.short_wait().await;
            etcd.start().await;
        }
        _ => {}
    }
}

/// A client does one thing, and is dropped.
async fn client(round: &Round<'_>, actor: u64) {
    let mut random = Random::new(round.number, actor);
    if random.one_in(3) {
        return;
    }
    let url = if random.one_in(2) {
        round.to_server.url()
    } else {
        round.server.url()
    };
    let client = match random.below(4) {
        0 => round.long_lived.clone(),
        _ => Client::connect(&url).unwrap(),
    };
    let limit = Duration::from_millis(1 + random.below(4 * SHORT_WAIT_MS));
    let mut over = round.over.clone();
    let over = over.wait_for(|over| *over);
    match random.below(10) {
        0 => {
            let polls = usize::try_from(random.below(16)).unwrap();
            let watching = client.watch::<Padded>(value_key(0)).into_future();
            let _ = timeout(limit, poll_times(polls, watching)).await;
        }
        1 => {
            let one = client.watch::<u32>("/c/a").into_future();
            let all = client.entries(prefix()).into_future();
            let both = async { tokio::join!(one, all) };
            let _ = timeout(limit, both).await;
        }
        2 => {
            // A range that nobody watched before.
            let number = round.number * CLIENTS + actor;
            let range = KeyRange::prefix(format!("/c/{number:020}/")).unwrap();
            let _ = timeout(limit, client.entries(range).into_future()).await;
        }
        3 => {
            let range = format!("/elsewhere/{:020}", round.number);
            let watching = client.watch::<u32>(range.as_str()).into_future();
            if let Ok(watched) = timeout(limit, watching).await {
                watched.unwrap_err();
            }
        }
        4 => {
            let _ = timeout(limit, client.get(prefix()).into_future()).await;
        }
        5 => {
            let stall = Stall::after(random.below(64));
            let client = round.server.stalling_client(&stall);
            let watching = client.entries(prefix()).into_future();
            let reading = async { read_changes(watching.await).await };
            tokio::select! {
                () = stall.happened() => {}
                () = reading => {}
                _ = over => {}
            }
        }
        6 => {
            let slow = SLOW.client(&url);
            let watching = slow.entries(prefix()).into_future();
            tokio::select! {
                () = async { read_changes(watching.await).await } => {}
                _ = over => {}
            }
        }
        7 => {
            let watching = client.entries(prefix()).into_future();
            tokio::select! {
                () = async { read_changes(watching.await).await } => {}
                _ = over => {}
            }
        }
        8 => {
            // Shut down, in whatever state it is.
            let client = Client::connect(&url).unwrap();
            let watching = client.watch::<Padded>(value_key(1)).into_future();
            let watched = timeout(limit, watching).await;
            in_time("a client ends", client.shutdown().into_future())
                .await
                .unwrap();
            drop(watched);
        }
        _ => {
            // Keeps its state, and reads no more.
            let stall = Stall::never();
            let client = round.server.stalling_client(&stall);
            let watching = client.entries(prefix()).into_future();
            let watched = timeout(limit, watching).await;
            stall.begin();
            let _ = over.await;
            drop(watched);
        }
    }
}

/// Reads changes until it is dropped, or the watch ends.
async fn read_changes(watched: Result<EntriesWatcher, WatchError>) {
    if let Ok(mut watcher) = watched {
        while watcher.changed().await.is_ok() {}
    }
}

/// Checks that a new client receives a change, whatever happened before.
async fn check_delivery(server: &InProcessServer, writer: &mut EtcdWriter, number: u64) {
    put_and_receive(server, writer, "/c/well", vec![round_byte(number)]).await;
}

/// Brings the server's memory of changes to a known state.
async fn reset_change_memory(server: &InProcessServer, writer: &mut EtcdWriter, number: u64) {
    for key in 0..VALUE_KEYS {
        put_when_possible(writer, &value_key(key), padded("0").into_bytes()).await;
    }
    put_when_possible(writer, "/c/large", vec![b'x'; LARGE]).await;
    put_and_receive(
        server,
        writer,
        SWEEP_KEY,
        vec![round_byte(number); SWEEP_BYTES],
    )
    .await;
}

/// A byte that is different in the next round.
fn round_byte(number: u64) -> u8 {
    u8::try_from(number % 250).unwrap()
}

/// Puts a value, and waits until a new client has received it.
async fn put_and_receive(
    server: &InProcessServer,
    writer: &mut EtcdWriter,
    key: &str,
    value: Vec<u8>,
) {
    let client = server.client();
    let watching = client.entries(key).into_future();
    let mut watcher = in_time("the first state", watching).await.unwrap();
    let revision = put_when_possible(writer, key, value).await;
    wait_for_entries(&mut watcher, revision).await;
}

/// Puts a value as soon as the writer has detected that etcd is back.
async fn put_when_possible(writer: &mut EtcdWriter, key: &str, value: Vec<u8>) -> Revision {
    let put = async {
        loop {
            match writer.try_put(key, value.clone()).await {
                Ok(revision) => return revision,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    in_time("etcd takes a put", put).await
}
