//! List, then watch: the state machine of an etcd source.

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use driftless_proto::{Epoch, KeyRange, Revision};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::config::{EtcdConfig, EtcdConfigError};
use super::connection::{Bounds, Connection, Error};
use super::history::{KnownHistory, Observation};
use super::live::Live;
use super::{LOG_TARGET, list};
use crate::metrics::Metrics;
use crate::source::{Proof, Source, SourceRequests, Update};
use crate::store::{self, History};

/// How long a watch must have been open for the next backoff to start at its shortest wait.
const STABLE: Duration = Duration::from_secs(10);

/// How many reasons of a loss are remembered, so that each is logged once. There are a few for each
/// endpoint, unless a text holds something that varies.
const LOGGED_REASONS: usize = 64;

/// The state of one prefix in a real etcd. See the [module](super).
#[derive(Debug)]
pub struct EtcdSource {
    state: State,
    core: Core,
}

/// What a source does at the moment.
pub(super) enum State {
    /// Connects to the next endpoint and compares its history with the known one. Requests are
    /// dropped.
    Connecting,
    /// Reads the whole state, and then opens a watch at its revision. Requests wait.
    Listing(Box<Connection>),
    /// Watches, and answers requests.
    Watching(Box<Live>),
    /// Waits until this moment before it connects again. Requests are dropped.
    BackingOff(Instant),
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connecting => "Connecting",
            Self::Listing(_) => "Listing",
            Self::Watching(_) => "Watching",
            Self::BackingOff(_) => "BackingOff",
        })
    }
}

/// What a source keeps in all its states.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) range: KeyRange,
    pub(super) bounds: Bounds,
    pub(super) config: EtcdConfig,
    pub(super) metrics: Metrics,
    pub(super) requests: SourceRequests,
    /// What was reported so far; `None` before the first state and when the history was replaced.
    pub(super) position: Option<Position>,
    /// `None` before the first contact.
    pub(super) known_history: Option<KnownHistory>,
    /// How the next state relates to the updates before it.
    next_history: History,
    /// The reason of the latest [`Update::Lost`], until etcd is found again.
    lost: Option<String>,
    /// The reasons that were logged, until etcd is found again: several may alternate.
    logged: BTreeSet<String>,
    backoff: Backoff,
    /// The endpoint to try next, modulo their number.
    endpoint: usize,
    /// Updates to return next. They come from one answer of etcd, which bounds them.
    pub(super) ready: VecDeque<Update>,
}

/// How far a source has reported its prefix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    /// Every change up to this revision was reported.
    pub(super) revision: Revision,
    /// How many keys the prefix has at this revision, including those that cannot be served.
    pub(super) keys: i64,
}

impl EtcdSource {
    /// For the keys in `range`. Connects on the first call of [`Source::next`].
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(
        range: KeyRange,
        config: EtcdConfig,
        metrics: Metrics,
        requests: SourceRequests,
    ) -> Result<Self, EtcdConfigError> {
        config.check()?;
        Ok(Self {
            state: State::Connecting,
            core: Core {
                bounds: Bounds::of(&range),
                range,
                backoff: Backoff::up_to(config.retry_within),
                config,
                metrics,
                requests,
                position: None,
                known_history: None,
                next_history: History::Continues,
                lost: None,
                logged: BTreeSet::new(),
                endpoint: 0,
                ready: VecDeque::new(),
            },
        })
    }

    /// The one step function: does what the state says, up to the next update or the next state.
    async fn step(&mut self) {
        let core = &mut self.core;
        let next = match &mut self.state {
            State::Connecting => core.connect().await,
            State::Listing(connection) => core.list(connection).await,
            State::Watching(live) => match live.step(core).await {
                Ok(None) => return,
                Ok(Some(next)) => Ok(next),
                // The watch cannot deliver the changes since the position.
                Err(Error::Compacted { .. } | Error::TooLarge) => {
                    Ok(State::Listing(Box::new(live.connection().clone())))
                }
                Err(error) => {
                    if live.age() >= STABLE {
                        core.backoff.reset();
                    }
                    Err(error)
                }
            },
            State::BackingOff(until) => {
                let until = *until;
                core.dropping_requests(tokio::time::sleep_until(until))
                    .await;
                Ok(State::Connecting)
            }
        };
        self.state = next.unwrap_or_else(|error| self.core.disconnected(&error));
    }
}

impl Source for EtcdSource {
    async fn next(&mut self) -> Update {
        loop {
            if let Some(update) = self.core.ready.pop_front() {
                return update;
            }
            self.step().await;
        }
    }
}

impl Core {
    /// Connects to the next endpoint, verifies its history, and resumes the watch if there was one.
    async fn connect(&mut self) -> Result<State, Error> {
        let endpoint = self.endpoint().to_owned();
        let bounds = self.bounds.clone();
        let known = self.known_history.as_ref();
        let probes = known.map_or_else(Vec::new, KnownHistory::probes);
        self.metrics.etcd_attempts.inc();
        let opening = Connection::open(&endpoint, &bounds, probes);
        let (mut connection, observation) = self.dropping_requests(opening).await?;
        let (Some(known), Some(position)) = (&mut self.known_history, self.position) else {
            self.known_history = Some(KnownHistory::new(&observation));
            return Ok(State::Listing(Box::new(connection)));
        };
        if let Err(mismatch) = known.verify(position.revision, &observation) {
            tracing::warn!(target: LOG_TARGET, prefix = %self.range, %endpoint, %mismatch, "etcd has another history; listing the prefix again");
            self.history_replaced();
            self.known_history = Some(KnownHistory::new(&observation));
            return Ok(State::Listing(Box::new(connection)));
        }
        known.confirm(&observation);
        match Live::open(self, &mut connection, position).await {
            Ok(mut live) => {
                self.connected();
                let (asked_at, revision) = (observation.asked_at, observation.revision);
                self.ready
                    .push_back(Update::Proof(Proof { asked_at, revision }));
                let next = live.observed(self, revision)?;
                Ok(next.unwrap_or_else(|| State::Watching(Box::new(live))))
            }
            Err(Error::Compacted { .. } | Error::TooLarge) => {
                Ok(State::Listing(Box::new(connection)))
            }
            Err(error) => Err(error),
        }
    }

    /// Reads the whole state, and opens a watch at its revision.
    async fn list(&mut self, connection: &mut Connection) -> Result<State, Error> {
        let listed = list::list(connection, &self.bounds).await?;
        self.metrics.etcd_lists.inc();
        let known = self.known_history.get_or_insert_with(|| {
            KnownHistory::new(&Observation {
                asked_at: listed.asked_at,
                cluster: connection.cluster,
                revision: listed.revision,
                applied: 0,
                entries: Vec::new(),
            })
        });
        if listed.revision < known.reached() {
            return Err(Error::WentBack);
        }
        known.record_state(listed.revision, &listed.entries);
        let position = Position {
            revision: listed.revision,
            keys: listed.keys,
        };
        self.position = Some(position);
        self.connected();
        tracing::debug!(target: LOG_TARGET, prefix = %self.range, keys = position.keys, revision = %position.revision, "listed");
        self.ready.push_back(Update::State(store::State {
            epoch: Epoch::of_cluster(connection.cluster, &self.config.generation),
            revision: listed.revision,
            entries: listed.entries,
            history: std::mem::replace(&mut self.next_history, History::Continues),
            asked_at: Some(listed.asked_at),
        }));
        let live = Live::open(self, connection, position).await?;
        Ok(State::Watching(Box::new(live)))
    }

    /// etcd has another history: the updates so far mean nothing to it.
    fn history_replaced(&mut self) {
        self.metrics.etcd_history_replaced.inc();
        self.next_history = History::Replaced;
        self.position = None;
    }

    /// The connection failed: reports why, and selects the next endpoint. Each reason, which names the
    /// endpoint, is logged once.
    fn disconnected(&mut self, error: &Error) -> State {
        let wait = self.backoff.next();
        let reason = format!("{}: {error}", self.endpoint());
        if self.logged.len() == LOGGED_REASONS {
            self.logged.clear();
        }
        if self.logged.insert(reason.clone()) {
            tracing::warn!(target: LOG_TARGET, prefix = %self.range, %reason, "etcd cannot be reached; retrying");
        }
        let told = self.lost.replace(reason.clone());
        if told.is_none() {
            self.metrics.etcd_lost.inc();
        }
        if told.as_ref() != Some(&reason) {
            self.ready.push_back(Update::Lost { reason });
        }
        self.endpoint = self.endpoint.wrapping_add(1);
        State::BackingOff(Instant::now() + wait)
    }

    /// The connection works: logs that once.
    fn connected(&mut self) {
        self.logged.clear();
        if self.lost.take().is_some() {
            let endpoint = self.endpoint();
            tracing::info!(target: LOG_TARGET, prefix = %self.range, %endpoint, "connected to etcd");
        }
    }

    fn endpoint(&self) -> &str {
        &self.config.endpoints[self.endpoint % self.config.endpoints.len()]
    }

    /// Waits for `future` and drops the requests that arrive meanwhile: etcd cannot answer them.
    async fn dropping_requests<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        loop {
            tokio::select! {
                biased;
                done = &mut future => return done,
                Some(request) = self.requests.recv() => drop(request),
            }
        }
    }
}
