//! The events of a run and their times, all drawn from a seed.

use std::fmt;
use std::time::Duration;

use driftless_server::source::scripted::Op;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::checks::Pair;
use crate::clients::client_name;
use crate::model::document;
use crate::servers::server_name;

/// How long events happen, in simulated time.
const LENGTH: Duration = Duration::from_secs(120);

/// The longest time between two writes: so little that every fault has some in it.
const WRITE_EVERY: Duration = Duration::from_millis(2500);

/// The most transactions of people in one moment.
const BURST: usize = 6;

/// Those of a script in one moment: more than a server tells one by one to who was away.
const FLOOD: usize = 300;

/// The same between two faults.
const FAULT_EVERY: Duration = Duration::from_secs(8);

/// The longest fault. Twice what it takes to notice that a server is silent, so that there are some
/// which nobody notices and some to which everybody reacts.
const FAULT: Duration = Duration::from_secs(25);

/// Keys of all the ranges that are watched, and of none.
const KEYS: [&str; 7] = [
    "/c/a", "/c/a/x", "/c/a/y", "/c/ab", "/c/b", "/c/b/1", OUTSIDE,
];

/// A key that is not served. Writing it moves etcd's revision, and nobody's state.
pub(crate) const OUTSIDE: &str = "/elsewhere";

/// Which kinds of faults may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Networks fail, between clients and servers and between servers and etcd. Servers keep their
    /// logs, so that nobody who returns is sent everything.
    Windy,
    /// Servers die, etcd forgets and is restored, and clients begin anew, too.
    Stormy,
}

/// What becomes of the network between a client and a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing arrives, either way.
    Partition,
    /// Nothing arrives from the client: the server goes on sending.
    ToServer,
    /// Nothing arrives from the server: the client goes on believing.
    ToClient,
    /// Nothing arrives now; all of it does later.
    Hold,
}

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Transactions, one after the other within a moment.
    Write(Vec<Vec<Op>>),
    Network {
        client: usize,
        server: usize,
        fault: Fault,
    },
    Heal {
        client: usize,
        server: usize,
    },
    /// What is on its way is lost, and the network is well again at once.
    Blink {
        client: usize,
        server: usize,
    },
    Latency {
        client: usize,
        server: usize,
        millis: u64,
    },
    /// A server's process is killed, or its machine vanishes without a word.
    Crash {
        server: usize,
        silently: bool,
    },
    /// A server is told to stop.
    Stop {
        server: usize,
    },
    Start {
        server: usize,
    },
    /// One server loses etcd.
    Cut {
        server: usize,
    },
    Mend {
        server: usize,
    },
    /// All do.
    LoseEtcd,
    FindEtcd,
    Compact,
    /// Back by this many revisions at most, for all servers at once.
    Restore {
        by: i64,
    },
    /// Another cluster in its place.
    Replace,
    /// A client drops all that it has and begins anew.
    Reopen {
        client: usize,
    },
}

/// Everything that is decided before a run starts.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) weather: Weather,
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    /// True if the end of the run checks that nothing happens without a cause.
    pub(crate) calm: bool,
    /// For each client, in which order it names the servers, and the seed of its own chances.
    pub(crate) minds: Vec<(Vec<usize>, u64)>,
    /// In the order of time.
    pub(crate) events: Vec<(Duration, Event)>,
}

impl Schedule {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weather = match rng.random_ratio(2, 5) {
            true => Weather::Windy,
            false => Weather::Stormy,
        };
        let servers = rng.random_range(2..=3);
        // Two mostly: what clients have to do with each other is little, and each costs time.
        let clients = if rng.random_ratio(1, 4) { 3 } else { 2 };
        let calm = rng.random_ratio(1, 4);
        let minds = (0..clients)
            .map(|_| {
                let mut order: Vec<usize> = (0..servers).collect();
                rand::seq::SliceRandom::shuffle(&mut order[..], &mut rng);
                (order, rng.random())
            })
            .collect();
        let mut schedule = Self {
            weather,
            servers,
            clients,
            calm,
            minds,
            events: Vec::new(),
        };
        schedule.write(&mut rng);
        schedule.fail(&mut rng);
        schedule.events.sort_by_key(|(at, _)| *at);
        schedule
    }

    fn write(&mut self, rng: &mut StdRng) {
        let (mut at, mut number) = (Duration::ZERO, 0);
        loop {
            at += pause(rng, WRITE_EVERY);
            if at > LENGTH {
                return;
            }
            let count = match rng.random_ratio(1, 8) {
                true => rng.random_range(2..=BURST),
                false => 1,
            };
            let txns = (0..count).map(|_| txn(rng, self.weather, &mut number));
            let txns = txns.collect();
            self.events.push((at, Event::Write(txns)));
        }
    }

    fn fail(&mut self, rng: &mut StdRng) {
        let mut at = Duration::ZERO;
        loop {
            at += pause(rng, FAULT_EVERY);
            if at > LENGTH {
                return;
            }
            let client = rng.random_range(0..self.clients);
            let server = rng.random_range(0..self.servers);
            let until = at + pause(rng, FAULT);
            let kinds = match self.weather {
                Weather::Windy => 60,
                Weather::Stormy => 100,
            };
            let faults = [
                Fault::Partition,
                Fault::ToServer,
                Fault::ToClient,
                Fault::Hold,
            ];
            let fault = *faults.choose(rng).unwrap_or(&Fault::Partition);
            let network = |server| {
                let network = Event::Network {
                    client,
                    server,
                    fault,
                };
                [(at, network), (until, Event::Heal { client, server })]
            };
            let servers = 0..self.servers;
            let happens = match rng.random_range(0..kinds) {
                0..22 => network(server).to_vec(),
                // The client reaches nobody.
                22..32 => servers.flat_map(network).collect(),
                32..40 => vec![(at, Event::Blink { client, server })],
                40..42 => {
                    let put = |number: usize| {
                        vec![Op::put(KEYS[number % KEYS.len()], number.to_string())]
                    };
                    vec![(at, Event::Write((0..FLOOD).map(put).collect()))]
                }
                42..48 => {
                    let millis = *[0, 30, 150, 700].choose(rng).unwrap_or(&0);
                    let latency = Event::Latency {
                        client,
                        server,
                        millis,
                    };
                    vec![(at, latency)]
                }
                48..55 => vec![(at, Event::Cut { server }), (until, Event::Mend { server })],
                55..60 => vec![(at, Event::LoseEtcd), (until, Event::FindEtcd)],
                60..70 => {
                    let silently = rng.random();
                    let crash = Event::Crash { server, silently };
                    vec![(at, crash), (until, Event::Start { server })]
                }
                70..75 => vec![
                    (at, Event::Stop { server }),
                    (until, Event::Start { server }),
                ],
                // All of them, and back at the same time.
                75..78 => servers
                    .flat_map(|server| {
                        let crash = Event::Crash {
                            server,
                            silently: false,
                        };
                        [(at, crash), (until, Event::Start { server })]
                    })
                    .collect(),
                78..82 => vec![(at, Event::Compact)],
                // So that the server is told the whole, and not what changed.
                82..86 => vec![
                    (at, Event::Cut { server }),
                    (at + (until - at).mul_f64(0.9), Event::Compact),
                    (until, Event::Mend { server }),
                ],
                86..89 => {
                    let by = rng.random_range(1..40);
                    vec![(at, Event::Restore { by })]
                }
                // While the client is away, so little that revisions may well have passed what it
                // holds when it comes back.
                89..92 => {
                    let by = rng.random_range(1..6);
                    let restore = (at + (until - at) / 4, Event::Restore { by });
                    servers.flat_map(network).chain([restore]).collect()
                }
                92..94 => vec![(at, Event::Replace)],
                _ => vec![(at, Event::Reopen { client })],
            };
            self.events.extend(happens);
        }
    }
}

/// Up to `most`, and never nothing.
fn pause(rng: &mut StdRng, most: Duration) -> Duration {
    most.mul_f64(1.0 - rng.random::<f64>())
}

/// A transaction. `number` is that of the last pair that was written.
fn txn(rng: &mut StdRng, weather: Weather, number: &mut u64) -> Vec<Op> {
    match rng.random_range(0..100) {
        // Both fields or none, with something else now and then.
        0..30 => {
            *number += 1;
            let value = number.to_string();
            let mut ops = vec![Op::put(Pair::LEFT, &value), Op::put(Pair::RIGHT, &value)];
            if rng.random_ratio(1, 3) {
                ops.push(edit(rng, weather));
            }
            ops
        }
        30..35 => vec![Op::delete(Pair::LEFT), Op::delete(Pair::RIGHT)],
        35..75 => vec![edit(rng, weather)],
        _ => {
            let count = rng.random_range(2..6);
            (0..count).map(|_| edit(rng, weather)).collect()
        }
    }
}

fn edit(rng: &mut StdRng, weather: Weather) -> Op {
    let key = *KEYS.choose(rng).unwrap_or(&OUTSIDE);
    match rng.random_range(0..100) {
        0..30 => Op::delete(key),
        // Differ by a line, and travel as patches.
        30..36 => Op::put(key, document(rng.random())),
        // Travel in pieces; the log holds few of them.
        36 if weather == Weather::Stormy => Op::put(key, vec![rng.random(); 200_000]),
        _ => Op::put(key, rng.random::<u64>().to_string()),
    }
}

impl fmt::Display for Event {
    /// For the journal: with names, and without values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (c, s) = (client_name, server_name);
        match self {
            Self::Write(txns) => {
                let op = |op: &Op| match op {
                    Op::Put { key, .. } => format!("put {key}"),
                    Op::Delete { key } => format!("delete {key}"),
                };
                let txn = |ops: &Vec<Op>| ops.iter().map(op).collect::<Vec<_>>().join(" ");
                let said: Vec<String> = txns.iter().take(BURST).map(txn).collect();
                write!(f, "etcd: {}", said.join(", then "))?;
                match txns.len().saturating_sub(said.len()) {
                    0 => Ok(()),
                    more => write!(f, ", and {more} more"),
                }
            }
            Self::Network {
                client,
                server,
                fault,
            } => write!(f, "network {} – {}: {fault:?}", c(*client), s(*server)),
            Self::Heal { client, server } => {
                write!(f, "network {} – {}: well", c(*client), s(*server))
            }
            Self::Blink { client, server } => write!(
                f,
                "network {} – {}: what is under way is lost",
                c(*client),
                s(*server)
            ),
            Self::Latency {
                client,
                server,
                millis,
            } => write!(f, "network {} – {}: {millis} ms", c(*client), s(*server)),
            Self::Crash { server, silently } => {
                let how = if *silently { "vanishes" } else { "is killed" };
                write!(f, "{} {how}", s(*server))
            }
            Self::Stop { server } => write!(f, "{} is stopped", s(*server)),
            Self::Start { server } => write!(f, "{} starts", s(*server)),
            Self::Cut { server } => write!(f, "{} loses etcd", s(*server)),
            Self::Mend { server } => write!(f, "{} finds etcd", s(*server)),
            Self::LoseEtcd => f.write_str("etcd: lost"),
            Self::FindEtcd => f.write_str("etcd: found"),
            Self::Compact => f.write_str("etcd: compacted"),
            Self::Restore { by } => write!(f, "etcd: restored, {by} revisions back"),
            Self::Replace => f.write_str("etcd: replaced by another"),
            Self::Reopen { client } => write!(f, "{} begins anew", c(*client)),
        }
    }
}
