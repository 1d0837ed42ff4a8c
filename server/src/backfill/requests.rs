//! Requests of streams for a backfill.

use std::sync::Arc;

use driftless_proto::Revision;
use tokio::sync::watch;

/// The requests for a backfill of one prefix. Cheap to clone: streams request, the ingest task takes.
#[derive(Clone, Debug)]
pub struct Requests(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The earliest revision that was requested and not taken yet.
    requested: watch::Sender<Option<Revision>>,
    reachable: watch::Sender<Reachable>,
}

/// The revisions before the change log that a backfill may still reach: `from` and later, below `floor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reachable {
    /// Inclusive.
    pub from: Revision,
    /// Exclusive; where the change log begins.
    pub floor: Revision,
}

impl Reachable {
    /// No revision.
    pub const NONE: Self = Self {
        from: Revision::NONE,
        floor: Revision::NONE,
    };

    /// True if a backfill may still reach this revision.
    pub fn contains(&self, revision: Revision) -> bool {
        self.from <= revision && revision < self.floor
    }
}

impl Requests {
    /// None yet, and nothing is reachable.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            requested: watch::Sender::new(None),
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
        while reachable.borrow_and_update().contains(revision) {
            self.add(revision);
            // The sender lives in what `self` holds, so this cannot fail.
            if reachable.changed().await.is_err() {
                return;
            }
        }
    }

    fn add(&self, revision: Revision) {
        self.0.requested.send_if_modified(|requested| {
            let earlier = requested.is_none_or(|requested| revision < requested);
            if earlier {
                *requested = Some(revision);
            }
            earlier
        });
    }

    /// Waits for requests and takes them. Returns the earliest revision.
    ///
    /// # Cancel safety
    /// Cancel-safe: requests are taken only when it returns.
    pub async fn taken(&self) -> Revision {
        let mut requested = self.0.requested.subscribe();
        // The sender lives in what `self` holds, so this cannot fail.
        let _ = requested.wait_for(Option::is_some).await;
        match self.0.requested.send_replace(None) {
            Some(revision) => revision,
            None => std::future::pending().await,
        }
    }

    /// Sets what is reachable. If that changed, wakes the streams that wait; each of them requests its
    /// revision again if it is still reachable.
    pub fn set_reachable(&self, reachable: Reachable) {
        if *self.0.reachable.borrow() == reachable {
            return;
        }
        // An earlier request, which may be out of reach now, must not hide a later one.
        self.0.requested.send_if_modified(|requested| {
            *requested = None;
            false
        });
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
