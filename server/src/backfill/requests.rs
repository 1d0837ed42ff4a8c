//! Requests of streams for a backfill.

use std::sync::Arc;

use driftless_proto::Revision;
use tokio::sync::watch;

use super::reach::{Reach, Reaches};

/// The requests for a backfill of one prefix. Cheap to clone: streams request, the ingest task takes.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What was requested and not taken yet.
    requested: watch::Sender<Reaches>,
    reachable: watch::Sender<Reachable>,
}

/// The revisions before the change log that a backfill may still reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Where the change log began at first.
    pub(super) origin: Revision,
    /// Where it begins now.
    pub(super) floor: Revision,
    /// How far from the origin it may be extended.
    pub(super) open: Reaches,
}

impl Reachable {
    /// No revision.
    pub const NONE: Self = Self {
        origin: Revision::NONE,
        floor: Revision::NONE,
        open: Reaches::NONE,
    };

    /// True if a backfill may still reach this revision.
    pub fn contains(&self, revision: Revision) -> bool {
        self.reach(revision).is_some()
    }

    /// How far back a backfill has to reach for this revision. `None` if it cannot, or need not.
    pub fn reach(&self, revision: Revision) -> Option<Reach> {
        let reach = Reach::back_to(revision, self.origin)?;
        (revision < self.floor && self.open.contains(reach)).then_some(reach)
    }
}

impl Requests {
    /// None yet, and nothing is reachable.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            requested: watch::Sender::new(Reaches::NONE),
            reachable: watch::Sender::new(Reachable::NONE),
        }))
    }

    /// Waits until the change log reaches back to `revision`, or it is clear that it cannot. Returns at
    /// once when that is clear already. Streams that wait at the same time share one backfill.
    ///
    /// # Cancel safety
    /// Cancel-safe: the backfill continues, for other streams.
    pub async fn request(&self, revision: Revision) {
        let mut reachable = self.0.reachable.subscribe();
        loop {
            let reach = reachable.borrow_and_update().reach(revision);
            let Some(reach) = reach else { return };
            self.add(reach);
            // The sender lives in what `self` holds, so this cannot fail.
            if reachable.changed().await.is_err() {
                return;
            }
        }
    }

    fn add(&self, reach: Reach) {
        self.0.requested.send_if_modified(|requested| {
            let is_new = !requested.contains(reach);
            requested.add(reach);
            is_new
        });
    }

    /// Waits for requests and takes them.
    ///
    /// # Cancel safety
    /// Cancel-safe: requests are taken only when it returns.
    pub async fn taken(&self) -> Reaches {
        let mut requested = self.0.requested.subscribe();
        // The sender lives in what `self` holds, so this cannot fail.
        let _ = requested.wait_for(|requested| !requested.is_empty()).await;
        self.0.requested.send_replace(Reaches::NONE)
    }

    /// Sets what is reachable. If that changed, wakes the streams that wait; each of them requests its
    /// revision again if it is still reachable.
    pub fn set_reachable(&self, reachable: Reachable) {
        self.0.reachable.send_if_modified(|current| {
            let changed = *current != reachable;
            *current = reachable;
            changed
        });
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}
