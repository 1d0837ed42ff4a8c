//! Random writes, cuts, kills and compactions: every state that a client shows is the one that etcd had
//! at that revision, and in the end all clients have etcd's state.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};
use std::time::Duration;

use driftless_client::{Client, EntriesWatcher, Entry, Key, KeyRange, Revision};
use driftless_test_support::Proxy;
use driftless_test_support::{Etcd, ServerProcess, wait_until};
use rand::rngs::StdRng;
use rand::seq::{IndexedMutRandom, IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rustix::process::Signal;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::direct::{Direct, Event, Op};
use super::world::{PREFIX, entries, in_time, is_live, key, prefix, settle};
use crate::DRIFTLESS;

/// How long the random events go on.
const CHAOS: Duration = Duration::from_secs(15);

/// The number of concurrent writers.
const WRITERS: u64 = 4;

/// Clients that are there from the start.
const CLIENTS: usize = 3;

/// The most clients that start later.
const LATE_CLIENTS: usize = 4;

/// How often to look for a revision that moved without a change.
const LOOK: Duration = Duration::from_millis(50);

fn ranges() -> Vec<KeyRange> {
    vec![
        prefix(PREFIX),
        prefix("/c/a"),
        prefix("/c/a/"),
        key("/c/a"),
        prefix("/c/b/1"),
    ]
}

/// Keys of all the ranges, and of none.
fn keys() -> Vec<String> {
    let fixed = ["/c/a", "/c/a/x", "/c/a/y", "/c/ab", "/elsewhere"];
    let numbered = (0..20).map(|n| format!("/c/b/{n}"));
    fixed
        .into_iter()
        .map(str::to_owned)
        .chain(numbered)
        .collect()
}

/// A value of many lines, of which two differ from time to time: it travels as a patch.
fn document(random: &mut StdRng) -> String {
    let line = |n: usize| format!("setting.{n} = {}\n", n * n);
    let mut lines: Vec<String> = (0..100).map(line).collect();
    for _ in 0..2 {
        let at = random.random_range(0..lines.len());
        lines[at] = format!("edit = {}\n", random.random::<u32>());
    }
    lines.concat()
}

/// Writes until it is told to stop.
async fn write(url: String, mut random: StdRng, stop: CancellationToken) -> u64 {
    let mut direct = Direct::connect(&url).await;
    let mut keys = keys();
    let mut written = 0;
    while !stop.is_cancelled() {
        // Now and then a script, mostly people.
        let burst = if random.random_bool(0.01) { 200 } else { 1 };
        for _ in 0..burst {
            let count = if random.random_bool(0.3) {
                random.random_range(2..6)
            } else {
                1
            };
            keys.shuffle(&mut random);
            let ops: Vec<Op> = keys[..count]
                .iter()
                .map(|key| match random.random_range(0..100) {
                    0..30 => Op::delete(key.clone()),
                    30..32 => Op::put(key.clone(), vec![random.random(); 20_000]),
                    32..50 => Op::put(key.clone(), document(&mut random)),
                    _ => Op::put(key.clone(), random.random::<u64>().to_string()),
                })
                .collect();
            written += u64::from(direct.try_txn(ops).await.is_some());
        }
        sleep(Duration::from_millis(random.random_range(0..30))).await;
    }
    written
}

/// A state that a client showed.
struct Seen {
    who: usize,
    range: KeyRange,
    revision: Revision,
    hash: u64,
}

/// A hash of a whole state, kept instead of the many states.
fn hash<'a>(entries: impl Iterator<Item = &'a Entry>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for entry in entries {
        entry.key.hash(&mut hasher);
        entry.value.hash(&mut hasher);
        let revisions = (entry.create_revision, entry.mod_revision);
        (revisions, entry.version).hash(&mut hasher);
    }
    hasher.finish()
}

/// Records everything that a watcher shows, until it is stopped.
async fn observe(
    who: usize,
    range: KeyRange,
    mut watcher: EntriesWatcher,
    stop: CancellationToken,
) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    loop {
        let held = watcher.load();
        let last = seen.last().map_or(Revision::NONE, |seen| seen.revision);
        let revision = held.revision();
        assert!(
            revision >= last,
            "client {who}, {range}: {revision} after {last}"
        );
        seen.push(Seen {
            who,
            range: range.clone(),
            revision,
            hash: hash(held.iter()),
        });
        loop {
            tokio::select! {
                () = stop.cancelled() => return seen,
                changed = watcher.changed() => {
                    changed.expect("it goes on");
                    break;
                }
                () = sleep(LOOK) => if watcher.load().revision() != revision {
                    break;
                },
            }
        }
    }
}

/// etcd's own history.
struct Record {
    direct: Direct,
    events: Vec<Event>,
    to: Revision,
}

impl Record {
    /// Reads the history up to now.
    async fn catch_up(&mut self) {
        // Something that is known to have happened, to read up to.
        let mark = async {
            loop {
                match self.direct.try_txn([Op::put("/mark", "")]).await {
                    Some(revision) => return revision,
                    None => sleep(LOOK).await,
                }
            }
        };
        let to = in_time("a mark in the history", mark).await;
        self.events
            .extend(self.direct.history("/", self.to, to).await);
        self.to = to;
    }

    /// Compacts the history that has been read.
    async fn compact(&mut self) {
        self.catch_up().await;
        self.direct.compact(self.to).await;
    }

    /// Compares each of these states with what etcd had at its revision.
    fn check(&self, mut seen: Vec<Seen>) {
        seen.sort_by_key(|seen| seen.revision);
        let mut state: BTreeMap<Key, Entry> = BTreeMap::new();
        let mut events = self.events.iter().peekable();
        // Of one revision and range, which many have seen.
        let mut expected: HashMap<KeyRange, u64> = HashMap::new();
        for Seen {
            who,
            range,
            revision,
            hash: found,
        } in seen
        {
            assert!(
                revision <= self.to,
                "{revision} is after the end: {}",
                self.to
            );
            while let Some(event) = events.next_if(|event| event.revision <= revision) {
                expected.clear();
                match &event.entry {
                    Some(entry) => state.insert(event.key.clone(), entry.clone()),
                    None => state.remove(&event.key),
                };
            }
            let within = || {
                state
                    .values()
                    .filter(|entry| range.contains(entry.key.as_ref()))
            };
            let expected = *expected
                .entry(range.clone())
                .or_insert_with(|| hash(within()));
            assert!(
                found == expected,
                "client {who}, {range}: at {revision} etcd had {:?}, which is not what it showed",
                within().collect::<Vec<_>>()
            );
        }
    }
}

/// One of two servers, each with its own connection to etcd, so one may know more than the other.
struct Server {
    process: ServerProcess,
    to_etcd: Proxy,
    port: u16,
}

impl Server {
    /// More often than they need to, so that revisions move without a change too.
    const FLAGS: [&str; 2] = ["--progress-interval", "200ms"];

    async fn start(etcd: &Etcd) -> Self {
        let to_etcd = Proxy::to(etcd.addr().port()).await;
        let process = DRIFTLESS.serve_at(&to_etcd.url(), &[PREFIX], 0, &Self::FLAGS);
        process.wait_ready();
        Self {
            port: process.addr().port(),
            process,
            to_etcd,
        }
    }

    /// Ends it in this way.
    fn end(&mut self, signal: Signal) {
        self.process.process.signal(signal);
        let status = self.process.process.wait();
        assert_eq!(status.success(), signal == Signal::TERM, "{status}");
    }

    fn start_again(&mut self) {
        let etcd = self.to_etcd.url();
        self.process = DRIFTLESS.serve_at(&etcd, &[PREFIX], self.port, &Self::FLAGS);
    }
}

/// A client with ways of its own to the servers.
struct Subscriber {
    roads: Vec<Proxy>,
    client: Client,
    /// Shared with those that are observed: two watchers of one range are one stream.
    watchers: Vec<(KeyRange, EntriesWatcher)>,
}

struct World {
    random: StdRng,
    record: Record,
    subscribers: Vec<Subscriber>,
    observing: JoinSet<Vec<Seen>>,
    observed: CancellationToken,
    /// How often what happened.
    happened: BTreeMap<&'static str, u32>,
    servers: Vec<Server>,
    etcd: Etcd,
}

impl World {
    async fn start(random: StdRng) -> Self {
        let etcd = Etcd::started_blocking();
        let servers = vec![Server::start(&etcd).await, Server::start(&etcd).await];
        let record = Record {
            direct: Direct::connect(&etcd.url()).await,
            events: Vec::new(),
            to: Revision::NONE,
        };
        Self {
            random,
            record,
            subscribers: Vec::new(),
            observing: JoinSet::new(),
            observed: CancellationToken::new(),
            happened: BTreeMap::new(),
            servers,
            etcd,
        }
    }

    /// One more client.
    async fn join(&mut self) {
        let mut roads = Vec::new();
        let mut client = Client::builder();
        for server in &self.servers {
            let road = Proxy::to(server.port).await;
            client = client.endpoint(road.url());
            roads.push(road);
        }
        let client = client.build().unwrap();
        let mut watchers = Vec::new();
        for range in ranges() {
            let watcher = entries(&client, &range).await;
            let who = self.subscribers.len();
            let stop = self.observed.clone();
            self.observing
                .spawn(observe(who, range.clone(), watcher, stop));
            watchers.push((range.clone(), entries(&client, &range).await));
        }
        self.subscribers.push(Subscriber {
            roads,
            client,
            watchers,
        });
    }

    /// Causes a fault and repairs it after a while.
    async fn happen(&mut self) {
        let a_while = Duration::from_millis(self.random.random_range(0..400));
        let what = *[
            "client cut off",
            "client cut off",
            "client stalled",
            "etcd cut off",
            "etcd killed",
            "etcd compacted",
            "server killed",
            "server stopped",
            "client new",
        ]
        .choose(&mut self.random)
        .unwrap();
        *self.happened.entry(what).or_default() += 1;
        match what {
            "client cut off" | "client stalled" => {
                let roads = &self.subscribers.choose(&mut self.random).unwrap().roads;
                for road in roads {
                    if what == "client stalled" {
                        road.stall();
                    } else {
                        road.cut();
                    }
                }
                sleep(a_while).await;
                roads.iter().for_each(Proxy::heal);
            }
            "etcd cut off" => {
                let server = self.servers.choose(&mut self.random).unwrap();
                server.to_etcd.cut();
                sleep(a_while).await;
                server.to_etcd.heal();
            }
            "etcd killed" => {
                self.etcd.kill();
                sleep(a_while).await;
                self.etcd.start_blocking();
            }
            "etcd compacted" => self.record.compact().await,
            "server killed" | "server stopped" => {
                let server = self.servers.choose_mut(&mut self.random).unwrap();
                server.end(match what {
                    "server stopped" => Signal::TERM,
                    _ => Signal::KILL,
                });
                sleep(a_while).await;
                server.start_again();
            }
            "client new" if self.subscribers.len() < CLIENTS + LATE_CLIENTS => self.join().await,
            _ => {}
        }
        let a_while = Duration::from_millis(self.random.random_range(0..500));
        sleep(a_while).await;
    }

    fn watchers(&self) -> impl Iterator<Item = &(KeyRange, EntriesWatcher)> {
        self.subscribers
            .iter()
            .flat_map(|subscriber| &subscriber.watchers)
    }
}

// The seed is how a failure is told from its like.
#[allow(clippy::print_stderr)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_only_states_that_etcd_had() {
    let seed = match std::env::var("SEED") {
        Ok(seed) => seed.parse().expect("a number"),
        Err(_) => RandomState::new().hash_one(()),
    };
    eprintln!("SEED={seed}");
    let random = |stream| StdRng::seed_from_u64(seed.wrapping_add(stream));
    let mut world = World::start(random(0)).await;
    for _ in 0..CLIENTS {
        world.join().await;
    }
    let written = CancellationToken::new();
    let mut writing = JoinSet::new();
    for writer in 1..=WRITERS {
        writing.spawn(write(world.etcd.url(), random(writer), written.clone()));
    }
    let start = Instant::now();
    while start.elapsed() < CHAOS {
        world.happen().await;
    }
    written.cancel();
    let transactions: u64 = writing.join_all().await.iter().sum();

    world.record.catch_up().await;
    let watchers = world.watchers().map(|(range, watcher)| (range, watcher));
    settle(&mut Direct::connect(&world.etcd.url()).await, watchers).await;
    wait_until("all are live", || {
        world.watchers().all(|(_, watcher)| is_live(watcher))
    });
    for subscriber in &world.subscribers {
        let read = subscriber.client.get(prefix(PREFIX)).into_future();
        let read = in_time("a read", read).await.unwrap();
        let (_, held) = &subscriber.watchers[0];
        assert!(read.iter().eq(held.load().iter()));
    }
    world.observed.cancel();
    let seen: Vec<Seen> = std::mem::take(&mut world.observing)
        .join_all()
        .await
        .into_iter()
        .flatten()
        .collect();
    let diverged: u64 = world.watchers().map(|(_, w)| w.status().diverged).sum();
    eprintln!(
        "{transactions} transactions, {} states seen, {:?}",
        seen.len(),
        world.happened
    );
    world.record.check(seen);
    assert_eq!(diverged, 0, "no digest was ever found to be another");
}
