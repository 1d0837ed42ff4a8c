//! The whole path over a scripted etcd, in-memory connections and a paused clock: whatever is
//! written, restarted, cut or compacted, every client's state is etcd's at the client's revision.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use driftless_client::{
    Client, Connect, Connecting, Endpoint, Entries, EntriesWatcher, Io, KeyRange,
};
use driftless_proto::{Entry, Revision};
use driftless_server::metrics::Metrics;
use driftless_server::source::CatchUp;
use driftless_server::source::scripted::{Op, ScriptedEtcd};
use driftless_server::{Engine, Settings};
use proptest::prelude::*;
use tokio::io::{copy_bidirectional, duplex};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// What the server serves.
const PREFIX: &str = "/c/";

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

/// A network with one server on it, which may be down.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    engine: Option<Engine>,
    /// The cables of each client, by the port that it dials: one task a connection, and aborting it
    /// cuts the connection.
    wires: HashMap<u16, JoinSet<io::Result<(u64, u64)>>>,
    /// Clients that reach nobody for a while.
    away: HashSet<u16>,
}

impl Connect for Network {
    fn connect(&self, endpoint: &Endpoint) -> Connecting {
        let mut inside = self.0.lock().unwrap();
        let Inside {
            engine,
            wires,
            away,
        } = &mut *inside;
        let port = endpoint.port();
        let Some(engine) = engine.as_ref().filter(|_| !away.contains(&port)) else {
            return Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) });
        };
        let (client, mut near) = duplex(64 * 1024);
        let (mut far, server) = duplex(64 * 1024);
        engine.serve(server);
        let wire = async move { copy_bidirectional(&mut near, &mut far).await };
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
            .log_bytes(1024 * 1024);
        let (catch_up, questions) = CatchUp::channel();
        let source = etcd.source(prefix.clone(), questions);
        let engine = Engine::start(
            &settings.build().unwrap(),
            Metrics::new(),
            [(prefix, source, catch_up)],
        );
        self.0.lock().unwrap().engine = Some(engine);
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

/// Every state that etcd has had, by revision; several where its history went back.
#[derive(Default)]
struct Record(HashMap<Revision, Vec<Vec<Entry>>>);

impl Record {
    fn note(&mut self, etcd: &ScriptedEtcd) {
        let all = KeyRange::prefix(PREFIX).unwrap();
        let state = etcd.state(&all);
        let states = self.0.entry(etcd.revision()).or_default();
        if !states.contains(&state) {
            states.push(state);
        }
    }

    fn knows(&self, range: &KeyRange, seen: &Entries) -> bool {
        let seen_entries: Vec<&Entry> = seen.iter().collect();
        let same = |state: &Vec<Entry>| {
            let expected: Vec<&Entry> = state
                .iter()
                .filter(|entry| range.contains(entry.key.as_ref()))
                .collect();
            expected == seen_entries
        };
        self.0
            .get(&seen.revision())
            .is_some_and(|states| states.iter().any(same))
    }
}

#[derive(Clone, Debug)]
enum Event {
    Txn(Vec<(usize, Option<u8>)>),
    Burst(u16),
    Compact,
    LoseEtcd,
    FindEtcd,
    /// Back by this many revisions at most.
    Restore(i64),
    Cut(u16),
    /// The client's connection is cut, and it gets no other before it is back.
    Away(u16),
    Back(u16),
    RestartServer,
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let edit = (0..KEYS.len(), proptest::option::weighted(0.7, any::<u8>()));
    let event = prop_oneof![
        12 => proptest::collection::vec(edit, 1..5).prop_map(Event::Txn),
        1 => (1u16..600).prop_map(Event::Burst),
        1 => Just(Event::Compact),
        1 => Just(Event::LoseEtcd),
        2 => Just(Event::FindEtcd),
        1 => (1i64..40).prop_map(Event::Restore),
        2 => CLIENTS.prop_map(Event::Cut),
        3 => CLIENTS.prop_map(Event::Away),
        3 => CLIENTS.prop_map(Event::Back),
        1 => Just(Event::RestartServer),
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

    fn diverged(&self) -> u64 {
        self.watchers
            .iter()
            .map(|(_, watcher)| watcher.status().diverged)
            .sum()
    }
}

async fn happen(event: Event, etcd: &ScriptedEtcd, network: &Network, record: &mut Record) {
    match event {
        Event::Txn(edits) => {
            etcd.txn(edits.into_iter().map(|(key, value)| match value {
                // Some are large: the log holds few of those, and they travel in pieces of their own.
                Some(value) if value % 8 == 0 => Op::put(KEYS[key], vec![value; 100_000]),
                Some(value) => Op::put(KEYS[key], [value]),
                None => Op::delete(KEYS[key]),
            }));
        }
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
        Event::RestartServer => {
            network.stop().await;
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
    let converge = async {
        while !watching.converged(&etcd) {
            sleep(Duration::from_millis(10)).await;
            watching.check(&record);
        }
    };
    timeout(Duration::from_secs(120), converge)
        .await
        .expect("every client comes to hold what etcd holds");
    assert_eq!(
        watching.diverged(),
        0,
        "no client ever found a digest that was not its own"
    );
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_state_that_a_client_shows_is_one_that_etcd_had(events in events()) {
        run(scenario(events));
    }
}
