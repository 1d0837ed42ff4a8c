//! What the two ends of a prefix share.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::{KeyRange, Revision, v1};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::change_log::ChangeLog;
use super::handle::Fanout;
use super::pending::PendingDeltas;
use super::publisher::Publisher;
use super::scope::Scope;
use super::scopes::Scopes;
use crate::encode::{ChunkCache, PinnedOfPrefix, PinnedStates};
use crate::metrics::Metrics;
use crate::store::Snapshot;

/// Bytes of encoded snapshots and conflated diffs that are kept for later readers, in one prefix:
/// enough for a crowd that starts with nothing, and affordable for a server.
const CHUNK_CACHE: usize = 32 * 1024 * 1024;

/// Limits of one prefix.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes that the change log may hold.
    pub log_bytes: usize,
    /// How often streams get a progress message.
    pub progress_interval: Duration,
    /// The budget for states that are pinned, which all prefixes share.
    pub pinned: PinnedStates,
}

/// Why all streams of a prefix have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server shuts down.
    Drain,
    /// etcd's history went back or was replaced.
    History,
}

impl Ending {
    /// What to tell the client.
    pub fn goodbye(self) -> v1::Goodbye {
        let (reason, retry_after_ms) = match self {
            Self::Drain => (v1::goodbye::Reason::Drain, 0),
            Self::History => (v1::goodbye::Reason::History, 0),
        };
        v1::Goodbye {
            reason: reason.into(),
            retry_after_ms,
            purge: false,
        }
    }
}

/// What all readers of a prefix share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) prefix: KeyRange,
    pub(super) metrics: Metrics,
    pub(super) chunk_cache: Arc<ChunkCache>,
    pub(super) pinned: PinnedOfPrefix,
    pub(super) published: Mutex<Published>,
    /// The published revision, for those who wait for one. 0 before the first state.
    pub(super) revision: watch::Sender<Revision>,
    origin: Instant,
}

#[derive(Debug)]
pub(super) struct Published {
    /// `None` before the first state.
    pub(super) state: Option<PublishedState>,
    /// Why what is published is not in sync with etcd, while that is so.
    pub(super) trouble: Option<String>,
    pub(super) scopes: Scopes,
    /// Scopes that have changes held back by their pace.
    pub(super) paced: Vec<Arc<Scope>>,
    /// Batches whose deltas scopes wait for.
    pub(super) pending: PendingDeltas,
    pub(super) draining: bool,
}

impl Published {
    /// Ends all scopes and returns them, to be woken and dropped outside the lock. A scope is ended
    /// before it can be missed here.
    pub(super) fn end(&mut self, ending: Ending) -> Vec<Arc<Scope>> {
        let mut ended = self.scopes.take();
        ended.iter().for_each(|scope| scope.end(ending));
        ended.append(&mut self.paced);
        ended
    }
}

/// A snapshot and the log that led to it.
#[derive(Debug)]
pub(super) struct PublishedState {
    pub(super) snapshot: Snapshot,
    pub(super) log: ChangeLog,
    /// When the snapshot was last known to be etcd's, on the server's clock; 0 if that is not known.
    pub(super) contact_ms: u64,
}

impl Shared {
    /// The server's clock, in milliseconds.
    pub(super) fn clock_ms(&self) -> u64 {
        self.clock_at(Instant::now())
    }

    /// The server's clock at this time, in milliseconds. It starts at 1: on the wire, 0 is no time.
    pub(super) fn clock_at(&self, time: Instant) -> u64 {
        let since = time.saturating_duration_since(self.origin).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX).saturating_add(1)
    }
}

/// Both ends of one served prefix, with nothing published yet. `origin` is the origin of the server's
/// clock.
pub fn fanout(
    prefix: KeyRange,
    limits: Limits,
    metrics: Metrics,
    origin: Instant,
) -> (Publisher, Fanout) {
    let published = Published {
        state: None,
        trouble: None,
        scopes: Scopes::default(),
        paced: Vec::new(),
        pending: PendingDeltas::default(),
        draining: false,
    };
    let shared = Arc::new(Shared {
        prefix,
        metrics,
        chunk_cache: Arc::new(ChunkCache::new(CHUNK_CACHE)),
        pinned: limits.pinned.add_prefix(),
        published: Mutex::new(published),
        revision: watch::Sender::new(Revision::NONE),
        origin,
    });
    let publisher = Publisher::new(Arc::clone(&shared), &limits);
    (publisher, Fanout::new(shared))
}
