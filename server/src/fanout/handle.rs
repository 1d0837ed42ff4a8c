//! The subscribing end of a prefix.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision};
use tokio::task::yield_now;

use super::change_log::ChangeLog;
use super::publisher::SLICE;
use super::scope::Scope;
use super::shared::{Ending, Published, Shared};
use super::subscriber::Subscriber;
use crate::metrics::Metrics;
use crate::store::Snapshot;

/// A range's state at one moment.
#[derive(Debug)]
pub struct RangeView {
    /// The prefix's keyspace.
    pub root: Snapshot,
    /// What changed lately in the prefix.
    pub log: ChangeLog,
    /// The range's digest at the root's revision.
    pub digest: Digest,
    /// When the root was last known to be etcd's, on the server's clock; 0 if that is not known.
    pub contact_ms: u64,
}

/// Why a range cannot be subscribed to just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Nothing has come from etcd yet.
    NotSynced,
    /// The server shuts down.
    Draining,
}

/// The subscribing end of a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fanout(pub(super) Arc<Shared>);

impl Fanout {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The served prefix.
    pub fn prefix(&self) -> &KeyRange {
        &self.0.prefix
    }

    /// The server's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The published revision; [`Revision::NONE`] before the first state.
    pub fn revision(&self) -> Revision {
        *self.0.revision.borrow()
    }

    /// Whether there is a state. An empty etcd has revision 1, so any state has a revision.
    pub fn is_synced(&self) -> bool {
        self.revision() > Revision::NONE
    }

    /// Waits until there is a state.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn synced(&self) {
        self.reached(Revision::new(1)).await;
    }

    /// Waits until `revision` is published.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives in what `self` holds, so this cannot fail.
        let _ = self
            .0
            .revision
            .subscribe()
            .wait_for(|published| *published >= revision)
            .await;
    }

    /// Why what is published is not in sync with etcd, the latest reason; `None` while it is.
    pub fn trouble(&self) -> Option<String> {
        self.0.published.lock().trouble.clone()
    }

    /// For how long at most what is published may have differed from etcd. `None` if that is not known.
    pub fn age(&self) -> Option<Duration> {
        let contact_ms = self.0.published.lock().state.as_ref()?.contact_ms;
        let age = self.0.clock_ms().saturating_sub(contact_ms);
        (contact_ms != 0).then_some(Duration::from_millis(age))
    }

    /// Subscribes to a range within the prefix. The first subscriber of a range makes its scope.
    ///
    /// # Errors
    /// If there is no state yet, or the server shuts down.
    pub fn subscribe(&self, range: KeyRange) -> Result<Subscriber, Unavailable> {
        let mut published = self.0.published.lock();
        if published.draining {
            return Err(Unavailable::Draining);
        }
        let Published {
            state: Some(state),
            scopes,
            ..
        } = &mut *published
        else {
            return Err(Unavailable::NotSynced);
        };
        let scope = scopes.join(range, |range| {
            Scope::new(range, state.snapshot.clone(), &self.0.metrics)
        });
        drop(published);
        Ok(Subscriber::new(Arc::clone(&self.0), scope))
    }

    /// Keeps encoded chunks for later readers, or drops those that are kept and keeps none from now on.
    /// Those that read them hold them until they are done.
    ///
    /// # Cancel safety
    /// Some may be dropped then and some not; calling it again is harmless.
    pub async fn keep_chunks(&self, keep: bool) {
        self.0.chunk_cache.set_closed(!keep);
        if keep {
            return;
        }
        let mut cursor = self.0.published.lock().scopes.cursor();
        while !cursor.is_over() {
            let some = self.0.published.lock().scopes.next_of(&mut cursor, SLICE);
            some.iter().for_each(|scope| scope.evict_all());
            yield_now().await;
        }
    }

    /// Ends every stream with a goodbye and refuses new ones.
    pub fn drain(&self) {
        let mut published = self.0.published.lock();
        published.draining = true;
        let ended = published.end(Ending::Drain);
        drop(published);
        ended.iter().for_each(|scope| scope.wake());
    }
}
