//! The scenarios: one for each line of the budgets.

use crate::contenders::Contender;
use crate::payload::Payload;
use crate::plan::Job;
use crate::seed::Filler;

/// A load, and the contenders that run it.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: String,
    pub(crate) job: Job,
    pub(crate) connections: usize,
    /// Subscribers on each connection.
    pub(crate) streams: usize,
    pub(crate) payload: Payload,
    pub(crate) filler: Filler,
    pub(crate) changes: usize,
    pub(crate) per_second: f64,
    pub(crate) contenders: Vec<Contender>,
    /// How often it is measured; the table shows medians.
    pub(crate) repeats: usize,
}

impl Scenario {
    pub(crate) const fn subscribers(&self) -> usize {
        self.connections * self.streams
    }

    /// Streams besides the subscribers, in which nothing happens.
    pub(crate) const fn unrelated(&self) -> usize {
        match self.job {
            Job::Follow { unrelated, .. } => unrelated,
            Job::Cold | Job::Return | Job::Read => 0,
        }
    }

    fn new(name: impl Into<String>, connections: usize) -> Self {
        Self {
            name: name.into(),
            job: FOLLOW,
            connections,
            streams: 1,
            payload: SMALL,
            filler: NOTHING,
            changes: 0,
            per_second: 0.0,
            contenders: vec![Contender::Driftless],
            repeats: REPEATS,
        }
    }

    fn changes(self, changes: usize, per_second: f64) -> Self {
        Self {
            changes,
            per_second,
            ..self
        }
    }

    fn by(self, contenders: &[Contender]) -> Self {
        let contenders = contenders.to_vec();
        Self { contenders, ..self }
    }

    fn repeated(self, repeats: usize) -> Self {
        Self { repeats, ..self }
    }
}

/// What is measured of all that there is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Selection {
    /// Within five minutes: fewer subscribers, changes and repeats
    #[arg(long)]
    quick: bool,

    /// Only the scenarios whose name starts with one of these
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,

    /// Only with so many subscribers
    #[arg(long, value_name = "NUMBER", num_args = 1..)]
    subscribers: Vec<usize>,

    /// Only these contenders
    #[arg(long, value_name = "NAME", num_args = 1..)]
    contender: Vec<String>,

    /// How often each row is measured
    #[arg(long, value_name = "NUMBER")]
    repeats: Option<usize>,
}

impl Selection {
    /// The scenarios to run, in order.
    pub(crate) fn scenarios(&self) -> Vec<Scenario> {
        let mut scenarios = if self.quick { quick() } else { full() };
        scenarios.retain(|scenario| {
            let named = |name: &String| scenario.name.starts_with(name.as_str());
            (self.only.is_empty() || self.only.iter().any(named))
                && (self.subscribers.is_empty()
                    || self.subscribers.contains(&scenario.subscribers()))
        });
        for scenario in &mut scenarios {
            scenario.contenders.retain(|contender| {
                self.contender.is_empty()
                    || self.contender.iter().any(|name| name == contender.name())
            });
            scenario.repeats = self.repeats.unwrap_or(scenario.repeats).max(1);
        }
        scenarios
    }
}

const EVERYBODY: [Contender; 4] = [
    Contender::Driftless,
    Contender::Etcd,
    Contender::GrpcProxy,
    Contender::Floor,
];

/// Those in which streams are more than sockets.
const STREAMING: [Contender; 3] = [Contender::Driftless, Contender::Etcd, Contender::GrpcProxy];

/// A median needs three runs. One run is enough without a comparison, or with thousands of changes.
const REPEATS: usize = 3;

const FOLLOW: Job = Job::Follow {
    stalled: 0,
    unrelated: 0,
};

/// What most keys hold: a number, a flag, a line.
const SMALL: Payload = Payload::Rewritten(128);

const DOCUMENT: Payload = Payload::EditedLine(64 * 1024);

/// More than fits into the buffers of a connection that nobody reads, after a few changes.
const STALLING: Payload = Payload::Rewritten(16 * 1024);

const NOTHING: Filler = Filler { keys: 0, bytes: 0 };

/// A range of 1 MiB.
const THOUSAND_KEYS: Filler = Filler {
    keys: 1000,
    bytes: 1024,
};

/// Changes a second if one subscriber follows and the cost of a change is measured. Many, because CPU time has
/// a resolution of 10 ms.
const FAST: f64 = 200.0;

fn small(subscribers: usize, changes: usize, per_second: f64) -> Scenario {
    Scenario::new("small", subscribers)
        .changes(changes, per_second)
        .by(&EVERYBODY)
}

fn document(changes: usize) -> Scenario {
    Scenario {
        payload: DOCUMENT,
        ..Scenario::new("64k", 500)
            .changes(changes, 4.0)
            .by(&EVERYBODY)
    }
}

fn multiplexed(changes: usize) -> Scenario {
    Scenario {
        streams: 10,
        ..Scenario::new("multiplexed", 100)
            .changes(changes, 20.0)
            .by(&STREAMING)
    }
}

fn cold(clients: usize) -> Scenario {
    Scenario {
        job: Job::Cold,
        filler: THOUSAND_KEYS,
        ..Scenario::new("cold", clients)
    }
}

fn restart(clients: usize) -> Scenario {
    Scenario {
        job: Job::Return,
        filler: THOUSAND_KEYS,
        ..Scenario::new("restart", clients)
    }
}

fn stalled(changes: usize) -> Scenario {
    Scenario {
        job: Job::Follow {
            stalled: 1,
            unrelated: 0,
        },
        payload: STALLING,
        ..Scenario::new("stalled", 500)
            .changes(changes, 10.0)
            .by(&STREAMING)
    }
}

fn keys(keys: usize, changes: usize) -> Scenario {
    Scenario {
        filler: Filler { keys, bytes: 64 },
        ..Scenario::new(format!("keys-{keys}"), 1).changes(changes, FAST)
    }
}

fn scopes(unrelated: usize, changes: usize) -> Scenario {
    Scenario {
        job: Job::Follow {
            stalled: 0,
            unrelated,
        },
        ..Scenario::new(format!("scopes-{unrelated}"), 1).changes(changes, FAST)
    }
}

fn read() -> Scenario {
    Scenario {
        job: Job::Read,
        ..Scenario::new("read", 1)
    }
}

fn library(changes: usize) -> Scenario {
    small(1000, changes, 20.0).by(&[Contender::Library])
}

/// Everything, within 45 minutes.
fn full() -> Vec<Scenario> {
    vec![
        small(100, 200, 20.0).repeated(1),
        small(1000, 200, 20.0),
        small(4000, 100, 4.0),
        document(80),
        multiplexed(200).repeated(1),
        cold(5000),
        restart(5000),
        stalled(150).repeated(1),
        keys(1_000, 2000).repeated(1),
        keys(10_000, 2000).repeated(1),
        keys(100_000, 2000).repeated(1),
        keys(1_000_000, 2000).repeated(1),
        scopes(1, 2000).repeated(1),
        scopes(100, 2000).repeated(1),
        scopes(1_000, 2000).repeated(1),
        scopes(10_000, 2000).repeated(1),
        read(),
        library(200).repeated(1),
    ]
}

/// The main rows, within five minutes.
fn quick() -> Vec<Scenario> {
    let scenarios = vec![
        small(1000, 100, 20.0),
        document(40),
        multiplexed(100).by(&[Contender::Driftless]),
        cold(1000),
        restart(1000),
        stalled(50).by(&[Contender::Driftless]),
        keys(1_000, 1000),
        keys(100_000, 1000),
        scopes(1, 1000),
        scopes(10_000, 1000),
        read(),
    ];
    scenarios
        .into_iter()
        .map(|scenario| scenario.repeated(1))
        .collect()
}
