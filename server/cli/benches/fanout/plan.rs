//! The messages to and from the load generator, each one line of JSON.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::payload::Payload;

/// The hidden first argument that makes this program the load generator.
pub(crate) const LOAD_COMMAND: &str = "__load";

/// The prefix that is served; all keys are below it.
pub(crate) const PREFIX: &str = "/bench/";

/// The key that changes.
pub(crate) const HOT: &str = "/bench/hot";

/// What the generator needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) speaks: Speaks,
    /// Where subscribers connect.
    pub(crate) subscribe: SocketAddr,
    /// Where changes are put.
    pub(crate) put: Put,
    pub(crate) job: Job,
    pub(crate) connections: usize,
    /// Subscribers of the changing key on each connection.
    pub(crate) streams: usize,
    pub(crate) payload: Payload,
    pub(crate) changes: usize,
    /// Between two changes.
    pub(crate) period_us: u64,
}

impl Plan {
    pub(crate) const fn subscribers(&self) -> usize {
        self.connections * self.streams
    }
}

/// The protocol of subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Speaks {
    /// `driftless.v1.Config/Watch`.
    Driftless,
    /// `etcdserverpb.Watch/Watch`.
    Etcd,
    /// A length and a value.
    Floor,
    /// The driftless client library itself.
    Library,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Put {
    /// Into the etcd at this URL.
    Etcd(String),
    /// To the floor's source.
    Floor(SocketAddr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// Subscribe, then see every change arrive.
    Follow {
        /// So many connections read nothing while changes are made.
        stalled: usize,
        /// Streams of ranges in which nothing changes, apart from the subscribers.
        unrelated: usize,
    },
    /// Clients with nothing fetch everything below the prefix.
    Cold,
    /// Clients that have everything below the prefix come back.
    Return,
    /// Threads read a typed value.
    Read,
}

/// The generator's messages.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// Everybody is subscribed and idle.
    Ready,
    /// The load is over; every subscriber that is not stalled holds the final state.
    Done(Outcome),
    /// Every subscriber holds the final state.
    Verified(usize),
    Failed(String),
}

/// The message to the generator after its plan: continue.
pub(crate) const GO: &str = "go";

/// What arrived.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    /// Changes that arrived, summed over subscribers.
    pub(crate) delivered: u64,
    /// TCP payload that arrived.
    pub(crate) bytes: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// From the first change to the last arrival.
    pub(crate) wall_ms: f64,
    /// User and system time of the generator meanwhile.
    pub(crate) generator_cpu_ms: f64,
    /// What else is worth a column, by name.
    pub(crate) more: Vec<(String, f64)>,
}
