//! The network of a run: servers and clients on their own hosts, and an etcd outside of the network.
//!
//! Everything is driven from outside, tick by tick. Hosts and links are changed between two ticks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use driftless_client::{Entries, KeyRange};
use driftless_proto::{Epoch, Revision};
use driftless_server::source::scripted::ScriptedEtcd;
use tokio::sync::watch;
use turmoil::Sim;

use crate::checks::Pair;
use crate::clients::{Member, Wanted, client_name, ranges};
use crate::journal::Journal;
use crate::model::Record;
use crate::plant::{Plant, VICTIM};
use crate::schedule::{Event, Fault};
use crate::servers::{Server, server_name, url};

/// How much time passes at a time; messages arrive between two ticks. As coarse as the latencies
/// allow, because each costs a turn of every host.
const TICK: Duration = Duration::from_millis(100);

/// What a message takes where the schedule does not say.
const LATENCY: Duration = Duration::from_millis(10);

/// What all hosts of a run share; it lies outside of the simulated network.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) journal: Journal,
    pub(crate) etcd: ScriptedEtcd,
    record: Arc<Mutex<Record>>,
    board: Arc<Mutex<Board>>,
    pub(crate) plant: Plant,
}

/// What every watcher shows now, by its client's number and its own.
type Board = BTreeMap<(usize, usize), Shown>;

#[derive(Clone)]
pub(crate) enum Shown {
    Entries(KeyRange, Entries),
    Pair(Pair),
}

impl Shared {
    pub(crate) fn new(plant: Plant) -> Self {
        let shared = Self {
            journal: Journal::default(),
            etcd: ScriptedEtcd::default(),
            record: Arc::default(),
            board: Arc::default(),
            plant,
        };
        shared.note();
        shared
    }

    /// To be called after everything that happens to etcd.
    pub(crate) fn note(&self) {
        let mut record = self.record();
        record.note(&self.etcd);
        if self.plant == Plant::WrongRecord {
            record.forget(VICTIM);
        }
    }

    pub(crate) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client's host.
pub(crate) struct ClientHost {
    name: &'static str,
    wanted: watch::Sender<Wanted>,
}

/// The network.
pub(crate) struct World {
    sim: Sim<'static>,
    pub(crate) shared: Shared,
    pub(crate) servers: Vec<Server>,
    pub(crate) clients: Vec<ClientHost>,
    /// How many clusters etcd has been.
    clusters: u64,
}

impl World {
    pub(crate) fn new(seed: u64, plant: Plant) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(24 * 3600))
            // One value and no spread: which message draws which delay is nothing that a seed holds
            // fast.
            .min_message_latency(LATENCY)
            .max_message_latency(LATENCY)
            .tcp_capacity(1024);
        Self {
            sim: builder.build(),
            shared: Shared::new(plant),
            servers: Vec::new(),
            clients: Vec::new(),
            clusters: 1,
        }
    }

    /// Adds a server, which runs.
    pub(crate) fn add_server(&mut self) {
        let name = server_name(self.servers.len());
        let server = Server::new(name, self.shared.etcd.link());
        self.sim.host(name, server.software(self.shared.plant));
        self.servers.push(server);
    }

    /// Adds a client that names the servers in this order.
    pub(crate) fn add_client(&mut self, order: &[usize], seed: u64) {
        let number = self.clients.len();
        let (wanted, wants) = watch::channel(Wanted::Watch(0));
        let host = ClientHost {
            name: client_name(number),
            wanted,
        };
        let member = Member {
            number,
            endpoints: order.iter().copied().map(url).collect(),
            seed,
            shared: self.shared.clone(),
        };
        self.sim.client(host.name, member.run(wants));
        self.clients.push(host);
    }

    /// Runs something on a host of its own until it ends, for a test of one thing.
    pub(crate) fn add_test(
        &mut self,
        name: &'static str,
        test: impl Future<Output = ()> + 'static,
    ) {
        self.sim.client(name, async move {
            test.await;
            Ok(())
        });
    }

    /// A tick. Returns whether all clients have ended.
    ///
    /// # Panics
    /// When a host does.
    pub(crate) fn step(&mut self) -> bool {
        let over = self.sim.step().unwrap_or_else(|error| panic!("{error}"));
        self.shared.journal.set_now(self.sim.elapsed());
        over
    }

    pub(crate) fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Ticks until it is so, for this long at most. Returns whether it is.
    pub(crate) fn wait(
        &mut self,
        within: Duration,
        mut is_so: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let until = self.now() + within;
        while self.now() < until {
            if self.shared.journal.is_broken() || is_so(self) {
                return true;
            }
            self.step();
        }
        false
    }

    /// How many watchers there should be.
    pub(crate) fn watchers(&self) -> usize {
        self.clients.len() * (ranges().len() + 1)
    }

    pub(crate) fn start(&mut self, server: usize) {
        let server = &mut self.servers[server];
        if server.start() {
            self.sim.bounce(server.name);
        }
    }

    /// Its connections end, and who dials it is told that nobody listens; or, silently, nobody is told
    /// anything.
    pub(crate) fn crash(&mut self, server: usize, silently: bool) {
        let host = &mut self.servers[server];
        let name = host.name;
        if !host.kill() {
            return;
        }
        if !silently {
            self.sim.bounce(name);
            return;
        }
        // Its last words get lost. What is sent to a host that is not there, turmoil delivers once it
        // is there again.
        for client in 0..self.clients.len() {
            self.heal(client, server);
            self.sim.partition(self.clients[client].name, name);
        }
        self.sim.crash(name);
        (0..self.clients.len()).for_each(|client| self.heal(client, server));
    }

    fn pair(&self, client: usize, server: usize) -> (&'static str, &'static str) {
        (self.clients[client].name, self.servers[server].name)
    }

    /// What was held arrives; what was lost stays lost.
    pub(crate) fn heal(&mut self, client: usize, server: usize) {
        let (client, server) = self.pair(client, server);
        self.sim.release(client, server);
    }

    pub(crate) fn set_latency(&mut self, client: usize, server: usize, latency: Duration) {
        let (client, server) = self.pair(client, server);
        self.sim.set_link_latency(client, server, latency);
    }

    /// Repairs everything.
    pub(crate) fn heal_all(&mut self) {
        for server in 0..self.servers.len() {
            self.start(server);
            self.servers[server].etcd.mend();
            for client in 0..self.clients.len() {
                self.heal(client, server);
                self.set_latency(client, server, LATENCY);
            }
        }
        self.shared.etcd.connect();
    }

    pub(crate) fn reopen(&mut self, client: usize) {
        self.shared
            .board()
            .retain(|(number, _), _| *number != client);
        self.clients[client].wanted.send_modify(|wanted| {
            if let Wanted::Watch(number) = wanted {
                *number += 1;
            }
        });
    }

    /// All clients drop everything.
    pub(crate) fn leave(&mut self) {
        for client in &self.clients {
            client.wanted.send_replace(Wanted::Leave);
        }
    }

    /// Makes it happen.
    pub(crate) fn happen(&mut self, event: &Event) {
        let etcd = self.shared.etcd.clone();
        match event {
            Event::Write(txns) => {
                for ops in txns {
                    etcd.txn(ops.iter().cloned());
                    self.shared.note();
                }
            }
            Event::Network {
                client,
                server,
                fault,
            } => {
                self.heal(*client, *server);
                let (client, server) = self.pair(*client, *server);
                match fault {
                    Fault::Partition => self.sim.partition(client, server),
                    Fault::ToServer => self.sim.partition_oneway(client, server),
                    Fault::ToClient => self.sim.partition_oneway(server, client),
                    Fault::Hold => self.sim.hold(client, server),
                }
            }
            Event::Heal { client, server } => self.heal(*client, *server),
            Event::Blink { client, server } => {
                let pair = self.pair(*client, *server);
                self.sim.partition(pair.0, pair.1);
                self.heal(*client, *server);
            }
            Event::Latency {
                client,
                server,
                millis,
            } => self.set_latency(*client, *server, Duration::from_millis(*millis)),
            Event::Crash { server, silently } => self.crash(*server, *silently),
            Event::Stop { server } => self.servers[*server].stop(),
            Event::Start { server } => self.start(*server),
            Event::Cut { server } => self.servers[*server].etcd.cut(),
            Event::Mend { server } => self.servers[*server].etcd.mend(),
            Event::LoseEtcd => etcd.disconnect(),
            Event::FindEtcd => etcd.connect(),
            Event::Compact => etcd.compact(etcd.revision()),
            Event::Restore { by } => {
                self.all_hear();
                let to = (etcd.revision().get() - by).max(1);
                etcd.restore(Revision::new(to));
            }
            Event::Replace => {
                self.all_hear();
                self.clusters += 1;
                etcd.replace(Epoch::of_cluster(self.clusters, ""));
            }
            Event::Reopen { client } => self.reopen(*client),
        }
        self.shared.note();
    }

    /// All servers are there when a history is replaced; see [`limits`](crate::limits).
    fn all_hear(&mut self) {
        self.shared.etcd.connect();
        self.servers.iter().for_each(|server| server.etcd.mend());
    }
}
