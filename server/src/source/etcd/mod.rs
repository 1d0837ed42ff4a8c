//! A real etcd as a source: list, then watch, for one served prefix.
//!
//! One watch at etcd however many clients there are. A lost connection costs no list: the watch
//! goes on after the last revision that was heard, once it is clear that etcd still tells the same
//! history. Only where etcd has compacted that away, or tells another history, the state is read
//! anew.
//!
//! Who owns it: the ingest task of the prefix, by [`Source`]. It spawns nothing (the client's
//! connection has tasks of its own, which end with it) and is the only user of etcd-client in the
//! crate. It must not keep a copy of the keyspace.

mod backoff;
mod connection;
mod earlier;
mod errand;
mod history;
mod list;
mod live;
mod transactions;
mod version;
mod watch;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use driftless_proto::{Epoch, KeyRange, Revision};
use tokio::time::Instant;

use self::backoff::Backoff;
use self::connection::{Bounds, Connection, Error};
use self::history::Memory;
use self::live::Live;
use super::{Source, SourceRequests, Update};
use crate::metrics::Metrics;
use crate::store::{History, State};

/// How an [`EtcdSource`] reaches etcd, and what it makes of it.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// Endpoints of one cluster, such as `http://127.0.0.1:2379`; the scheme may be left out. They
    /// are tried one after the other, beginning with the first.
    pub endpoints: Vec<String>,
    /// Part of the [`Epoch`]: a text that is the same on all servers, and that the operator changes
    /// when etcd was restored from a backup. Default: empty.
    pub generation: String,
    /// How often etcd is asked for a sign of life on an idle watch; after three such intervals
    /// without one it counts as lost. Default: 5 s.
    pub progress_interval: Duration,
    /// How long is waited at most before etcd is tried again; the first waits are shorter. Default: 5 s.
    pub retry_within: Duration,
    /// How many bytes of keys and values, the old ones included, are taken of what changed before the
    /// source's first state. etcd reads all of that into its memory before it sends any of it; where
    /// there is more, clients from then get a snapshot. Default: 512 MiB.
    pub earlier_bytes: usize,
}

/// [`EtcdConfig::progress_interval`] unless it is set: what a client's "age of the data" may
/// reasonably be off by, at a cost for etcd that cannot be measured.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// [`EtcdConfig::retry_within`] unless it is set: what a service may have to wait longer than etcd was
/// away.
const RETRY_WITHIN: Duration = Duration::from_secs(5);

/// [`EtcdConfig::earlier_bytes`] unless it is set: what etcd can have in memory besides its own.
const EARLIER_BYTES: usize = 512 * 1024 * 1024;

impl EtcdConfig {
    /// For these endpoints, with defaults for the rest.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            generation: String::new(),
            progress_interval: PROGRESS_INTERVAL,
            retry_within: RETRY_WITHIN,
            earlier_bytes: EARLIER_BYTES,
        }
    }

    fn check(&self) -> Result<(), EtcdConfigError> {
        if self.endpoints.is_empty() {
            return Err(EtcdConfigError::NoEndpoint);
        }
        if self.progress_interval.is_zero() {
            return Err(EtcdConfigError::NoInterval);
        }
        for endpoint in &self.endpoints {
            let refuse = |reason| EtcdConfigError::Endpoint {
                endpoint: endpoint.clone(),
                reason,
            };
            let uri: http::Uri = endpoint.parse().map_err(|_| refuse("it is no URL"))?;
            if uri
                .authority()
                .is_none_or(|authority| authority.host().is_empty())
            {
                return Err(refuse("it names no host"));
            }
            match uri.scheme_str() {
                None | Some("http") => {}
                Some("https") => return Err(refuse("TLS is not supported yet, use http")),
                Some(_) => return Err(refuse("its scheme is not http")),
            }
        }
        Ok(())
    }
}

/// Why there can be no source with this [`EtcdConfig`]. Trying again does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdConfigError {
    /// No endpoint was given.
    #[error("no etcd endpoint is given; name at least one, such as http://127.0.0.1:2379")]
    NoEndpoint,
    /// An endpoint cannot be used.
    #[error("etcd endpoint {endpoint:?} cannot be used: {reason}")]
    Endpoint {
        /// As it was given.
        endpoint: String,
        /// Why.
        reason: &'static str,
    },
    /// [`EtcdConfig::progress_interval`] is zero.
    #[error("the progress interval of etcd is zero; leave it at 5 s")]
    NoInterval,
}

/// How long a watch must have been good for the next loss to be met without delay.
const STABLE: Duration = Duration::from_secs(10);

/// The state of one prefix in a real etcd. See the [module](self).
#[derive(Debug)]
pub struct EtcdSource {
    phase: Phase,
    core: Core,
}

/// Where a source is.
enum Phase {
    /// Asks the next endpoint who it is, and whether its history is the one that is known.
    Connecting,
    /// Reads the whole state, to watch from there.
    Listing(Box<Connection>),
    /// Watches: the only phase in which questions are answered.
    Watching(Box<Live>),
    /// Something broke: waits before it connects again.
    Backoff(Instant),
}

impl std::fmt::Debug for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connecting => "Connecting",
            Self::Listing(_) => "Listing",
            Self::Watching(_) => "Watching",
            Self::Backoff(_) => "Backoff",
        })
    }
}

/// What a source keeps from phase to phase.
#[derive(Debug)]
struct Core {
    range: KeyRange,
    bounds: Bounds,
    config: EtcdConfig,
    metrics: Metrics,
    questions: SourceRequests,
    /// What was said so far; `None` before the first state.
    said: Option<Said>,
    /// What is known of the history; `None` before the first contact and after a doubt.
    memory: Option<Memory>,
    /// How the next state relates to what was said.
    relation: History,
    /// [`Update::Lost`] was said, and nothing since.
    lost: bool,
    backoff: Backoff,
    /// The endpoint to try next, modulo their number.
    endpoint: usize,
    /// Updates to say, made from one answer of etcd, and so bounded by it.
    ready: VecDeque<Update>,
}

/// How far a source got.
#[derive(Clone, Copy, Debug)]
struct Said {
    /// Everything up to here was said.
    revision: Revision,
    /// How many keys the prefix has there, those that cannot be served included.
    keys: i64,
}

impl EtcdSource {
    /// For the keys in `range`. Connects when [`Source::next`] is called first.
    ///
    /// # Errors
    /// When the configuration cannot work.
    pub fn new(
        range: KeyRange,
        config: EtcdConfig,
        metrics: Metrics,
        questions: SourceRequests,
    ) -> Result<Self, EtcdConfigError> {
        config.check()?;
        Ok(Self {
            phase: Phase::Connecting,
            core: Core {
                bounds: Bounds::of(&range),
                range,
                backoff: Backoff::up_to(config.retry_within),
                config,
                metrics,
                questions,
                said: None,
                memory: None,
                relation: History::Continues,
                lost: false,
                endpoint: 0,
                ready: VecDeque::new(),
            },
        })
    }

    /// Goes on from the phase it is in until there is something to say or to do next.
    async fn step(&mut self) {
        let core = &mut self.core;
        let next = match &mut self.phase {
            Phase::Connecting => core.connect().await,
            Phase::Listing(connection) => core.list(connection).await,
            Phase::Watching(live) => match live.step(core).await {
                Ok(None) => return,
                Ok(Some(next)) => Ok(next),
                // Too far behind to go on change by change.
                Err(Error::Compacted { .. } | Error::TooLarge) => {
                    Ok(Phase::Listing(Box::new(live.connection().clone())))
                }
                Err(error) => {
                    if live.age() >= STABLE {
                        core.backoff.reset();
                    }
                    Err(error)
                }
            },
            Phase::Backoff(until) => {
                let until = *until;
                core.refusing(tokio::time::sleep_until(until)).await;
                Ok(Phase::Connecting)
            }
        };
        self.phase = next.unwrap_or_else(|error| self.core.lose(&error));
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
    /// Connects to the next endpoint, compares histories, and resumes the watch if there was one.
    async fn connect(&mut self) -> Result<Phase, Error> {
        let endpoint = self.config.endpoints[self.endpoint % self.config.endpoints.len()].clone();
        let bounds = self.bounds.clone();
        let probes = self.memory.as_ref().map_or_else(Vec::new, Memory::probes);
        self.metrics.etcd_attempts.inc();
        let opening = Connection::open(&endpoint, &bounds, probes);
        let (mut connection, sighting) = self.refusing(opening).await?;
        match (&mut self.memory, self.said) {
            (Some(memory), Some(said)) => match memory.judge(said.revision, &sighting) {
                Ok(()) => {
                    memory.confirm(&sighting);
                    let live = Live::open(self, &mut connection, said).await;
                    return match live {
                        Ok(live) => {
                            self.found();
                            self.ready.push_back(Update::Contact);
                            Ok(Phase::Watching(Box::new(live)))
                        }
                        Err(Error::Compacted { .. } | Error::TooLarge) => {
                            Ok(Phase::Listing(Box::new(connection)))
                        }
                        Err(error) => Err(error),
                    };
                }
                Err(doubt) => {
                    tracing::warn!(prefix = %self.range, %endpoint, %doubt, "the history of etcd is another one");
                    self.replaced();
                    self.memory = Some(Memory::new(&sighting));
                }
            },
            _ => self.memory = Some(Memory::new(&sighting)),
        }
        Ok(Phase::Listing(Box::new(connection)))
    }

    /// Reads the state, and watches from there.
    async fn list(&mut self, connection: &mut Connection) -> Result<Phase, Error> {
        let listed = list::list(connection, &self.bounds).await?;
        self.metrics.etcd_lists.inc();
        let memory = self.memory.get_or_insert_with(|| {
            Memory::new(&history::Sighting {
                cluster: connection.cluster,
                revision: listed.revision,
                applied: 0,
                entries: Vec::new(),
            })
        });
        if listed.revision < memory.reached() {
            return Err(Error::WentBack);
        }
        memory.read(listed.revision, &listed.entries);
        let said = Said {
            revision: listed.revision,
            keys: listed.keys,
        };
        self.said = Some(said);
        self.found();
        tracing::debug!(prefix = %self.range, keys = said.keys, revision = %said.revision, "listed");
        self.ready.push_back(Update::State(State {
            epoch: Epoch::of_cluster(connection.cluster, &self.config.generation),
            revision: listed.revision,
            entries: listed.entries,
            history: std::mem::replace(&mut self.relation, History::Continues),
        }));
        let live = Live::open(self, connection, said).await?;
        Ok(Phase::Watching(Box::new(live)))
    }

    /// Another history from here on: what was said means nothing to it.
    fn replaced(&mut self) {
        self.metrics.etcd_history_replaced.inc();
        self.relation = History::Replaced;
        self.said = None;
    }

    /// Something broke. Says so once, and goes to the next endpoint after a while.
    fn lose(&mut self, error: &Error) -> Phase {
        let wait = self.backoff.next();
        if !self.lost {
            self.lost = true;
            self.metrics.etcd_lost.inc();
            let endpoint = &self.config.endpoints[self.endpoint % self.config.endpoints.len()];
            let reason = format!("{endpoint}: {error}");
            tracing::warn!(prefix = %self.range, %reason, "etcd is lost; trying again until it is found");
            self.ready.push_back(Update::Lost { reason });
        }
        self.endpoint = self.endpoint.wrapping_add(1);
        Phase::Backoff(Instant::now() + wait)
    }

    /// All is well. Says so once.
    fn found(&mut self) {
        if std::mem::take(&mut self.lost) {
            let endpoint = &self.config.endpoints[self.endpoint % self.config.endpoints.len()];
            tracing::info!(prefix = %self.range, %endpoint, "etcd is found");
        }
    }

    /// Does something while etcd is not there: whoever asks meanwhile gets no answer.
    async fn refusing<T>(&mut self, doing: impl Future<Output = T>) -> T {
        let mut doing = pin!(doing);
        loop {
            tokio::select! {
                biased;
                done = &mut doing => return done,
                Some(question) = self.questions.recv() => drop(question),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(endpoints: &[&str]) -> Result<(), EtcdConfigError> {
        EtcdConfig::new(endpoints.iter().copied()).check()
    }

    #[test]
    fn what_cannot_work_is_refused() {
        assert_eq!(check(&[]), Err(EtcdConfigError::NoEndpoint));
        for good in [
            "http://127.0.0.1:2379",
            "http://[::1]:2379/",
            "etcd-0.example:2379",
            "etcd",
        ] {
            assert_eq!(check(&[good]), Ok(()), "{good}");
        }
        for bad in [
            "",
            "https://etcd:2379",
            "ftp://etcd",
            "/etcd",
            "http://",
            "a b",
            "http://:1",
        ] {
            let refused = check(&["http://good:1", bad]);
            assert!(
                matches!(refused, Err(EtcdConfigError::Endpoint { .. })),
                "{bad}"
            );
        }
        let mut config = EtcdConfig::new(["etcd"]);
        config.progress_interval = Duration::ZERO;
        assert_eq!(config.check(), Err(EtcdConfigError::NoInterval));
    }
}
