//! The whole path over a scripted etcd, in-memory connections and a paused clock. After any writes,
//! restarts, cuts and compactions, every client's state is etcd's at the client's revision.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod model;

use std::collections::{HashMap, HashSet};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use driftless_client::{Client, Connect, Connecting, Endpoint, EntriesWatcher, Io, KeyRange};
use driftless_proto::Revision;
use driftless_server::metrics::Metrics;
use driftless_server::source::SourceHandle;
use driftless_server::source::scripted::{Op, ScriptedEtcd};
use driftless_server::{Engine, Settings};
use model::{PREFIX, Record, document};
use proptest::prelude::*;
use tokio::io::{copy_bidirectional, duplex};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What clients watch: nested ranges, and keys that are prefixes of each other.
fn ranges() -> Vec<KeyRange> {
    let prefix = |text| KeyRange::prefix(text).unwrap();
    let key = |text| KeyRange::key(text).unwrap();
    vec![
        prefix("/c/"),
        prefix("/c/a"),
        prefix("/c/a/"),
        key("/c/a"),
        key("/c/a/x"),
        key("/c/none"),
    ]
}

const KEYS: [&str; 6] = ["/c/a", "/c/a/x", "/c/a/y", "/c/ab", "/c/b", "/elsewhere"];

/// How often servers compare themselves with etcd.
const AUDIT: Duration = Duration::from_secs(2);

/// The limit of every wait, by the paused clock.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the server waits for a slow consumer: less than it takes to notice a dead network.
const STALL: Duration = Duration::from_secs(10);

/// A network with one server, which may be down.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    engine: Option<Engine>,
    /// The metrics of the server that runs, or ran last.
    metrics: Metrics,
    /// The connections of each client, by the port that it dials. Each is a task; aborting it cuts the
    /// connection.
    wires: HashMap<u16, JoinSet<io::Result<(u64, u64)>>>,
    /// Clients that cannot connect for a while.
    away: HashSet<u16>,
    /// While true, existing connections carry nothing.
    stalled: watch::Sender<bool>,
}

impl Connect for Network {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let mut inside = self.0.lock().unwrap();
        let Inside {
            engine,
            wires,
            away,
            stalled,
            ..
        } = &mut *inside;
        let port = endpoint.port();
        let Some(engine) = engine.as_ref().filter(|_| !away.contains(&port)) else {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        };
        let (client, mut near) = duplex(64 * 1024);
        let (mut far, server) = duplex(64 * 1024);
        engine.serve(server);
        let mut stalled = stalled.subscribe();
        let wire = async move {
            let mut copying = pin!(copy_bidirectional(&mut near, &mut far));
            loop {
                let now = *stalled.borrow_and_update();
                tokio::select! {
                    biased;
                    changed = stalled.changed() => changed.map_err(io::Error::other)?,
                    copied = &mut copying, if !now => return copied,
                }
            }
        };
        wires.entry(port).or_default().spawn(wire);
        Box::pin(async { Ok(Box::new(client) as Box<dyn Io>) })
    }
}

impl Network {
    fn start(&self, etcd: &ScriptedEtcd) {
        let prefix = KeyRange::prefix(PREFIX).unwrap();
        let settings = Settings::builder()
            .etcd("http://127.0.0.1:2379")
            .prefix(PREFIX)
            .log_bytes(1024 * 1024)
            .audit_interval(Some(AUDIT))
            .stall_timeout(STALL);
        let (handle, requests) = SourceHandle::channel();
        let source = etcd.source(prefix.clone(), requests);
        let metrics = Metrics::new();
        let engine = Engine::start(
            &settings.build().unwrap(),
            metrics.clone(),
            [(prefix, source, handle)],
        );
        let mut inside = self.0.lock().unwrap();
        inside.engine = Some(engine);
        inside.metrics = metrics;
    }

    fn metrics(&self) -> Metrics {
        self.0.lock().unwrap().metrics.clone()
    }

    async fn stop(&self) {
        let engine = self.0.lock().unwrap().engine.take();
        if let Some(engine) = engine {
            engine.shut_down(Duration::from_secs(5)).await;
        }
    }

    fn cut(&self, client: u16) {
        if let Some(wires) = self.0.lock().unwrap().wires.get_mut(&client) {
            wires.abort_all();
        }
    }

    fn set_stalled(&self, stalled: bool) {
        self.0.lock().unwrap().stalled.send_replace(stalled);
    }

    fn set_away(&self, client: u16, away: bool) {
        let set = &mut self.0.lock().unwrap().away;
        if away {
            set.insert(client)
        } else {
            set.remove(&client)
        };
    }
}

/// The clients, by the port that they dial. They share nothing but the server.
const CLIENTS: std::ops::Range<u16> = 1..4;

/// Keys, each with the seed of its new value, or `None` for a delete.
type Txn = Vec<(usize, Option<u8>)>;

fn txns() -> impl Strategy<Value = Txn> {
    let edit = (0..KEYS.len(), proptest::option::weighted(0.7, any::<u8>()));
    proptest::collection::vec(edit, 1..5)
}

#[derive(Clone, Debug)]
enum Event {
    Txn(Txn),
    Burst(u16),
    Compact,
    LoseEtcd,
    FindEtcd,
    /// Back by this many revisions at most.
    Restore(i64),
    Cut(u16),
    /// The client's connection is cut, and it gets no other until [`Event::Back`].
    Away(u16),
    Back(u16),
    /// These transactions happen while the server is down.
    RestartServer(Vec<Txn>),
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        12 => txns().prop_map(Event::Txn),
        1 => (1u16..600).prop_map(Event::Burst),
        1 => Just(Event::Compact),
        1 => Just(Event::LoseEtcd),
        2 => Just(Event::FindEtcd),
        1 => (1i64..40).prop_map(Event::Restore),
        2 => CLIENTS.prop_map(Event::Cut),
        3 => CLIENTS.prop_map(Event::Away),
        3 => CLIENTS.prop_map(Event::Back),
        1 => proptest::collection::vec(txns(), 0..4).prop_map(Event::RestartServer),
        5 => (1u64..15_000).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 1..60)
}

/// A watcher for every client and range.
struct Watching {
    watchers: Vec<(KeyRange, EntriesWatcher)>,
}

impl Watching {
    async fn start(network: &Network) -> Self {
        let mut watchers = Vec::new();
        for client in CLIENTS {
            let client = Client::builder()
                .endpoint(format!("http://server.test:{client}"))
                .connector(network.clone());
            let client = client.build().unwrap();
            for range in ranges() {
                watchers.push((range.clone(), client.entries(range).await.unwrap()));
            }
        }
        Self { watchers }
    }

    fn check(&self, record: &Record) {
        for (range, watcher) in &self.watchers {
            let seen = watcher.load();
            assert!(
                record.knows(range, &seen),
                "{range}: {seen:?} is no state that etcd had at that revision"
            );
        }
    }

    fn converged(&self, etcd: &ScriptedEtcd) -> bool {
        self.watchers
            .iter()
            .all(|(range, watcher)| watcher.load().iter().eq(etcd.state(range).iter()))
    }

    async fn converge(&self, etcd: &ScriptedEtcd, record: &Record) {
        let converge = async {
            while !self.converged(etcd) {
                sleep(Duration::from_millis(10)).await;
                self.check(record);
            }
        };
        timeout(PATIENCE, converge)
            .await
            .expect("every client comes to hold what etcd holds");
    }

    fn diverged(&self) -> u64 {
        self.watchers
            .iter()
            .map(|(_, watcher)| watcher.status().diverged)
            .sum()
    }
}

fn txn(etcd: &ScriptedEtcd, edits: Txn) {
    etcd.txn(ops(edits));
}

fn ops(edits: Txn) -> impl Iterator<Item = Op> {
    edits.into_iter().map(|(key, value)| match value {
        // Some values are large: few of them fit in the log, and they travel in pieces.
        Some(value) if value % 8 == 0 => Op::put(KEYS[key], vec![value; 100_000]),
        // Some values differ by a line, and travel as patches.
        Some(value) if value % 3 == 0 => Op::put(KEYS[key], document(value)),
        Some(value) => Op::put(KEYS[key], [value]),
        None => Op::delete(KEYS[key]),
    })
}

async fn happen(event: Event, etcd: &ScriptedEtcd, network: &Network, record: &mut Record) {
    match event {
        Event::Txn(edits) => txn(etcd, edits),
        Event::Burst(puts) => {
            for n in 0..puts {
                etcd.put(KEYS[usize::from(n) % KEYS.len()], n.to_be_bytes());
                record.note(etcd);
            }
        }
        Event::Compact => etcd.compact(etcd.revision()),
        Event::LoseEtcd => etcd.disconnect(),
        Event::FindEtcd => etcd.connect(),
        Event::Restore(by) => {
            let to = (etcd.revision().get() - by).max(1);
            etcd.restore(Revision::new(to));
        }
        Event::Cut(client) => network.cut(client),
        Event::Away(client) => {
            network.set_away(client, true);
            network.cut(client);
        }
        Event::Back(client) => network.set_away(client, false),
        Event::RestartServer(meanwhile) => {
            network.stop().await;
            assert_eq!(network.metrics().audit_differences.get(), 0);
            for edits in meanwhile {
                txn(etcd, edits);
                record.note(etcd);
            }
            network.start(etcd);
        }
        Event::Wait(millis) => sleep(Duration::from_millis(millis)).await,
    }
    record.note(etcd);
}

async fn scenario(events: Vec<Event>) {
    let (etcd, network, mut record) = (
        ScriptedEtcd::default(),
        Network::default(),
        Record::default(),
    );
    record.note(&etcd);
    etcd.put("/c/a/x", "first");
    record.note(&etcd);
    network.start(&etcd);
    let watching = Watching::start(&network).await;
    for event in events {
        happen(event, &etcd, &network, &mut record).await;
        watching.check(&record);
    }
    etcd.connect();
    CLIENTS.for_each(|client| network.set_away(client, false));
    watching.converge(&etcd, &record).await;
    assert_eq!(network.metrics().audit_differences.get(), 0);
    assert_eq!(
        watching.diverged(),
        0,
        "no client ever found a digest that was not its own"
    );
    network.stop().await;
}

/// One life of a server, and the time until the next.
#[derive(Clone, Debug)]
struct Life {
    up: Vec<Txn>,
    /// The clients that are cut off then.
    away: Vec<u16>,
    without_them: Vec<Txn>,
    down: Vec<Txn>,
}

fn lives() -> impl Strategy<Value = Vec<Life>> {
    let some = || proptest::collection::vec(txns(), 0..8);
    let away = proptest::collection::vec(CLIENTS, 0..3);
    let life = (some(), away, some(), some()).prop_map(|(up, away, without_them, down)| Life {
        up,
        away,
        without_them,
        down,
    });
    proptest::collection::vec(life, 1..4)
}

/// Servers restart. As long as etcd has the history, no client that was there before gets a snapshot.
async fn restarts(lives: Vec<Life>) {
    let (etcd, network, mut record) = (
        ScriptedEtcd::default(),
        Network::default(),
        Record::default(),
    );
    record.note(&etcd);
    network.start(&etcd);
    let watching = Watching::start(&network).await;
    let write = |txns: Vec<Txn>, record: &mut Record| {
        for mut edits in txns {
            // No value is large: all changes fit in the log.
            let values = edits.iter_mut().filter_map(|(_, value)| value.as_mut());
            values.for_each(|value| *value |= 1);
            txn(&etcd, edits);
            record.note(&etcd);
        }
    };
    for life in lives {
        write(life.up, &mut record);
        watching.converge(&etcd, &record).await;
        for client in &life.away {
            network.set_away(*client, true);
            network.cut(*client);
        }
        write(life.without_them, &mut record);
        network.stop().await;
        write(life.down, &mut record);
        network.start(&etcd);
        CLIENTS.for_each(|client| network.set_away(client, false));
        watching.converge(&etcd, &record).await;
        let metrics = network.metrics();
        let answered = || {
            let counters = [
                &metrics.syncs_current,
                &metrics.syncs_replay,
                &metrics.syncs_diff,
            ];
            counters.iter().map(|counter| counter.get()).sum::<u64>()
        };
        let all = watching.watchers.len() as u64;
        let back = async {
            while answered() < all {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, back).await.expect("all come back");
        assert_eq!(metrics.syncs_snapshot.get(), 0);
        assert_eq!(metrics.backfills_rejected.get(), 0);
    }
    watching.converge(&etcd, &record).await;
    assert_eq!(watching.diverged(), 0);
    network.stop().await;
}

/// A change that the server never receives, as if there were a bug.
#[derive(Clone, Debug)]
struct Missed {
    before: Vec<Txn>,
    txn: Txn,
    after: Vec<Txn>,
}

fn missed() -> impl Strategy<Value = Vec<Missed>> {
    let some = || proptest::collection::vec(txns(), 0..4);
    let missed =
        (some(), txns(), some()).prop_map(|(before, txn, after)| Missed { before, txn, after });
    proptest::collection::vec(missed, 1..4)
}

/// An audit finds whatever the server misses, and its clients reach etcd's state.
async fn audited(all: Vec<Missed>) {
    let (etcd, network) = (ScriptedEtcd::default(), Network::default());
    let prefix = KeyRange::prefix(PREFIX).unwrap();
    network.start(&etcd);
    let watching = Watching::start(&network).await;
    for missed in all {
        let metrics = network.metrics();
        let (before, passed) = (metrics.audit_differences.get(), metrics.audits.get());
        missed
            .before
            .into_iter()
            .for_each(|edits| txn(&etcd, edits));
        let held = etcd.state(&prefix);
        etcd.txn_unreported(ops(missed.txn));
        let differs = held != etcd.state(&prefix);
        let others = missed.after.is_empty();
        missed.after.into_iter().for_each(|edits| txn(&etcd, edits));
        let settled = async {
            while !watching.converged(&etcd) || metrics.audits.get() == passed {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, settled)
            .await
            .expect("an audit passes, and every client holds what etcd holds");
        // Later changes may have repaired it.
        if differs && others {
            assert_eq!(metrics.audit_differences.get(), before + 1);
        }
    }
    assert_eq!(watching.diverged(), 0);
    network.stop().await;
}

fn run(scenario: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(scenario);
}

/// The server disconnects a client whose network stalls. The client notices when the network is back, and
/// receives what it missed in one diff.
#[tokio::test(start_paused = true)]
async fn stalled_client_resumes_after_disconnect() {
    let (etcd, network) = (ScriptedEtcd::default(), Network::default());
    etcd.txn([Op::put("/c/a", "1"), Op::put("/c/b", "1")]);
    network.start(&etcd);
    let metrics = network.metrics();
    let watching = Watching::start(&network).await;
    let mut record = Record::default();
    record.note(&etcd);
    watching.converge(&etcd, &record).await;
    let snapshots = metrics.syncs_snapshot.get();

    network.set_stalled(true);
    // More than the connections buffer, and less than fits in the log.
    for value in 0..8_u8 {
        etcd.put("/c/a", vec![value; 60_000]);
        record.note(&etcd);
        sleep(Duration::from_millis(100)).await;
    }
    let clients = CLIENTS.count() as u64;
    let closed = async {
        while metrics.slow_consumers_closed.get() < clients {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(STALL * 2, closed).await.expect("they are let go");
    network.set_stalled(false);
    watching.converge(&etcd, &record).await;
    assert_eq!(metrics.slow_consumers_closed.get(), clients);
    assert_eq!(
        metrics.syncs_snapshot.get(),
        snapshots,
        "nobody started anew"
    );
    assert_eq!(watching.diverged(), 0);
    network.stop().await;
}

/// How many random schedules each test tries. `make long-tests` tries more.
fn cases() -> u32 {
    if std::env::var_os("DRIFTLESS_LONG").is_some() {
        512
    } else {
        32
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients_show_only_states_that_etcd_had(events in events()) {
        run(scenario(events));
    }

    #[test]
    fn clients_receive_what_they_missed_after_restart(lives in lives()) {
        run(restarts(lives));
    }

    #[test]
    fn audit_repairs_a_missed_change(missed in missed()) {
        run(audited(missed));
    }
}

/// Every client and range receives the line that changed, not the value.
#[test]
fn changed_line_of_a_large_value_travels_as_a_patch() {
    const EDITS: u64 = 20;
    // A progress frame may add to it.
    const MOST: u64 = 300 + 256;
    let value = |edit: u64| {
        let line = |n: u64| format!("  \"limit_{n}\": {{ \"rate\": {n}, \"burst\": 10 }},\n");
        let mut lines: Vec<String> = (0..1800).map(line).collect();
        lines.insert(900, format!("  \"limit\": {edit},\n"));
        lines.concat()
    };
    assert!(value(0).len() > 64 * 1024);
    run(async {
        let (etcd, network) = (ScriptedEtcd::default(), Network::default());
        let mut record = Record::default();
        etcd.put("/c/a", value(0));
        record.note(&etcd);
        network.start(&etcd);
        let watching = Watching::start(&network).await;
        watching.converge(&etcd, &record).await;
        let metrics = network.metrics();
        let before = metrics.sent_bytes.get();
        for edit in 1..=EDITS {
            etcd.put("/c/a", value(edit));
            record.note(&etcd);
            watching.converge(&etcd, &record).await;
        }
        let touched = ranges()
            .iter()
            .filter(|range| range.contains(b"/c/a"))
            .count();
        let streams = touched as u64 * CLIENTS.count() as u64;
        let each = (metrics.sent_bytes.get() - before) / (EDITS * streams);
        assert!(each <= MOST, "{each} bytes");
        assert_eq!(metrics.deltas_computed.get(), EDITS, "once for all");
        assert_eq!(metrics.changes_encoded.get(), EDITS, "and none whole");
        assert_eq!(watching.diverged(), 0);
        network.stop().await;
    });
}
