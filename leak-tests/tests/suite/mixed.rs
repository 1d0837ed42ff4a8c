//! Clients, writes, strangers and failures, several at a time, by chance: what no scenario of one
//! thing alone comes upon.
//!
//! What is done in a round is decided by its number, so that runs can be compared.

use std::time::Duration;

use driftless_client::{Client, EntriesWatcher, KeyRange, Revision, WatchError};
use driftless_test_support::{Etcd, Proxy, in_time};
use leak_tests::{Allocated, Outcome, Rounds, Stall, Witnesses, poll_times};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::common::Serving;
use crate::scenario::{Pace, Scenario, prefix};
use crate::slow::Slow;
use crate::world::{FILL_GRAVES, Keys, Padded, Real, etcd_is_missed, padded};

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

/// How many clients do something at a time, at most.
const CLIENTS: u64 = 4;

/// After so many rounds what the server remembers of changes is as little as ever: what it may hold in
/// between depends on chance, and this is what can be compared.
const TIDY_EVERY: u64 = 8;

/// More than the change log takes, so that nothing is in it afterwards, in bytes.
const SWEEP: usize = 600 * 1024;

/// Where that is.
const SWEEP_KEY: &str = "/c/sweep";

/// A value that travels in parts, in bytes.
const LARGE: usize = 64 * 1024;

/// How many keys have values of their own.
const KEYS: u64 = 6;

/// One of those. Its name is as long as those of keys that come and go: a deleted key takes as much
/// memory as another then.
fn value_key(number: u64) -> String {
    format!("/c/value/{number:026}")
}

/// The keys that come and go are the same each time, so that nothing depends on how many others were
/// deleted of late.
const SAME: u64 = 0;

/// How much more may be allocated, in bytes, than was once: how many frames wait in a connection to etcd
/// that was lost and is new, and so how much room its tables have, is a matter of chance. A leak of eight
/// bytes a round is more after thirty thousand.
const BY_CHANCE: i64 = 128 * 1024;

/// The longest that something waits for what may never come.
const A_MOMENT: u64 = 8;

/// A network that brings what is written in a round in about as long as that takes.
const SLOW: Slow = Slow {
    at_a_time: 1024,
    rest: Duration::from_millis(1),
    most: usize::MAX,
};

/// How an HTTP/2 connection begins, and a first frame of it.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Numbers by chance, the same ones for the same seed.
struct Dice(u64);

impl Dice {
    /// Of a round, for one of those who do something in it.
    fn of(round: u64, who: u64) -> Self {
        let mut dice = Self(round.wrapping_mul(64).wrapping_add(who));
        dice.roll(1);
        dice
    }

    /// One of so many, from 0 (splitmix64).
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    fn in_one_of(&mut self, many: u64) -> bool {
        self.roll(many) == 0
    }

    async fn moment(&mut self) {
        sleep(Duration::from_millis(self.roll(A_MOMENT))).await;
    }
}

/// What a round's clients need to know.
struct Round<'a> {
    number: u64,
    serving: &'a Serving,
    /// One that stays, and has watched before.
    regular: &'a Client,
    to_server: &'a Proxy,
    /// True when all has been written, and all is well again.
    over: watch::Receiver<bool>,
}

async fn everything(rounds: Rounds) -> Outcome {
    let etcd = Etcd::started().await;
    let to_etcd = Proxy::to(etcd.port()).await;
    let mut world = Real::watchful_over(etcd, &to_etcd.url()).await;
    for _ in 0..FILL_GRAVES {
        world.keys.pass(SAME).await;
    }
    let to_server = Proxy::to(world.address.port()).await;
    let regular = Client::connect(to_server.url()).unwrap();
    let (gauges, watches) = (world.gauges(), world.etcds_watches());
    let mut attempts = world.metrics.etcd_attempts.get();
    let allocated = Allocated::by_jemalloc().unwrap().with_slack(BY_CHANCE);
    rounds
        .without_bytes()
        .and(&Witnesses::new().and(allocated))
        .and(&gauges)
        .at_the_end(watches)
        .run(async |number| {
            let Real {
                etcd,
                keys,
                serving,
            } = &mut world;
            let (end, over) = watch::channel(false);
            let round = Round {
                number,
                serving,
                regular: &regular,
                to_server: &to_server,
                over,
            };
            let trouble = async {
                let mut dice = Dice::of(number, CLIENTS + 1);
                tokio::join!(
                    writes(keys, number),
                    stranger(&round),
                    fails(&round, &to_etcd, etcd, &mut dice)
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
            tokio::join!(trouble, clients);
            is_well(serving, keys, number).await;
            let mut tidy = number % TIDY_EVERY == TIDY_EVERY - 1;
            // A connection that is new has as much room as the one before had.
            if world.metrics.etcd_attempts.get() != attempts {
                tidy = true;
                world.falls_behind().await;
                attempts = world.metrics.etcd_attempts.get();
            }
            if tidy {
                let Real { keys, serving, .. } = &mut world;
                tidies(serving, keys, number).await;
            }
        })
        .await
}

/// Some keys are put, some deleted. etcd may be away, and says so then.
async fn writes(keys: &mut Keys, number: u64) {
    let mut dice = Dice::of(number, CLIENTS);
    for _ in 0..dice.roll(6) {
        let key = value_key(dice.roll(KEYS));
        let _ = match dice.roll(8) {
            0 => keys.try_delete(&key).await,
            1 => keys.try_put(&key, "{").await.map(drop),
            2 => {
                let byte = u8::try_from(dice.roll(200)).unwrap();
                keys.try_put("/c/large", vec![byte; LARGE]).await.map(drop)
            }
            _ => {
                let value = padded(&number.to_string());
                keys.try_put(&key, value).await.map(drop)
            }
        };
    }
    if dice.in_one_of(8) {
        let _ = keys.try_pass(SAME).await;
    }
}

/// Somebody who says the beginning of something, and leaves.
async fn stranger(round: &Round<'_>) {
    let mut dice = Dice::of(round.number, CLIENTS + 2);
    if !dice.in_one_of(3) {
        return;
    }
    let mut stranger = TcpStream::connect(round.serving.address).await.unwrap();
    let part = usize::try_from(dice.roll(PREFACE.len() as u64 + 1)).unwrap();
    stranger.write_all(&PREFACE[..part]).await.unwrap();
    if dice.in_one_of(2) {
        let _ = stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
    }
    dice.moment().await;
}

/// Something fails, and is whole again in the end.
async fn fails(round: &Round<'_>, to_etcd: &Proxy, etcd: &mut Etcd, dice: &mut Dice) {
    dice.moment().await;
    match dice.roll(800) {
        0..40 => round.serving.lose_connections(),
        40..120 => {
            round.to_server.stall();
            dice.moment().await;
            round.to_server.heal();
        }
        120..200 => {
            round.to_server.cut();
            dice.moment().await;
            round.to_server.heal();
        }
        // These take long, and come seldom.
        200 => {
            to_etcd.cut();
            dice.moment().await;
            to_etcd.heal();
        }
        201 => {
            let missed = etcd_is_missed(round.serving);
            to_etcd.stall();
            missed.await;
            to_etcd.heal();
        }
        202 => {
            let missed = etcd_is_missed(round.serving);
            etcd.pause();
            missed.await;
            etcd.resume();
        }
        203 => {
            etcd.kill();
            dice.moment().await;
            etcd.start().await;
        }
        _ => {}
    }
}

/// One client does one thing, and is gone.
async fn client(round: &Round<'_>, who: u64) {
    let mut dice = Dice::of(round.number, who);
    if dice.in_one_of(3) {
        return;
    }
    let url = if dice.in_one_of(2) {
        round.to_server.url()
    } else {
        round.serving.url()
    };
    let client = match dice.roll(4) {
        0 => round.regular.clone(),
        _ => Client::connect(&url).unwrap(),
    };
    let limit = Duration::from_millis(1 + dice.roll(4 * A_MOMENT));
    let mut over = round.over.clone();
    let over = over.wait_for(|over| *over);
    match dice.roll(10) {
        0 => {
            let polls = usize::try_from(dice.roll(16)).unwrap();
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
            // Nobody ever watched these.
            let number = round.number * CLIENTS + who;
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
            let stall = Stall::after(dice.roll(64));
            let client = round.serving.stalling_client(&stall);
            let watching = client.entries(prefix()).into_future();
            let following = async { follows(watching.await).await };
            tokio::select! {
                () = stall.happened() => {}
                () = following => {}
                _ = over => {}
            }
        }
        6 => {
            let slow = SLOW.client(&url);
            let watching = slow.entries(prefix()).into_future();
            tokio::select! {
                () = async { follows(watching.await).await } => {}
                _ = over => {}
            }
        }
        7 => {
            let watching = client.entries(prefix()).into_future();
            tokio::select! {
                () = async { follows(watching.await).await } => {}
                _ = over => {}
            }
        }
        8 => {
            // Ends in whatever state it is.
            let client = Client::connect(&url).unwrap();
            let watching = client.watch::<Padded>(value_key(1)).into_future();
            let watched = timeout(limit, watching).await;
            in_time("a client ends", client.shutdown().into_future())
                .await
                .unwrap();
            drop(watched);
        }
        _ => {
            // Holds its state, and reads no more.
            let stall = Stall::never();
            let client = round.serving.stalling_client(&stall);
            let watching = client.entries(prefix()).into_future();
            let watched = timeout(limit, watching).await;
            stall.begin();
            let _ = over.await;
            drop(watched);
        }
    }
}

/// Sees whatever changes, until somebody ends it.
async fn follows(watched: Result<EntriesWatcher, WatchError>) {
    if let Ok(mut watcher) = watched {
        while watcher.changed().await.is_ok() {}
    }
}

/// A value reaches a new client, whatever there was.
async fn is_well(serving: &Serving, keys: &mut Keys, number: u64) {
    reaches(serving, keys, "/c/well", vec![nth(number)]).await;
}

/// What the server remembers is as little as ever.
async fn tidies(serving: &Serving, keys: &mut Keys, number: u64) {
    for key in 0..KEYS {
        puts(keys, &value_key(key), padded("0").into_bytes()).await;
    }
    puts(keys, "/c/large", vec![b'x'; LARGE]).await;
    reaches(serving, keys, SWEEP_KEY, vec![nth(number); SWEEP]).await;
}

/// Another byte in each round.
fn nth(number: u64) -> u8 {
    u8::try_from(number % 250).unwrap()
}

async fn reaches(serving: &Serving, keys: &mut Keys, key: &str, value: Vec<u8>) {
    let client = serving.client();
    let watching = client.entries(key).into_future();
    let mut watcher = in_time("the first state", watching).await.unwrap();
    let revision = puts(keys, key, value).await;
    let there = async { while watcher.changed().await.unwrap().revision < revision {} };
    in_time("a change arrives", there).await;
}

/// Puts as soon as etcd is there: its client, too, has to find that out.
async fn puts(keys: &mut Keys, key: &str, value: Vec<u8>) -> Revision {
    let put = async {
        loop {
            match keys.try_put(key, value.clone()).await {
                Ok(revision) => return revision,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
    };
    in_time("etcd takes a put", put).await
}
