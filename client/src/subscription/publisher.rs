//! Publishes the state that is held, and the status, to all handles of a subscription.

use std::sync::Arc;

use driftless_proto::Revision;
use tokio::sync::watch;
use tokio::time::Instant;

use super::state::Phase;
use crate::error::Refused;
use crate::value::{Entries, Proven, Status, WatchState};

/// Where all handles see the state that is held, and how the subscription is doing.
pub(super) struct Publisher {
    pub(super) entries: watch::Sender<Option<Entries>>,
    pub(super) status: watch::Sender<Status>,
    /// How old what they read may be.
    pub(super) proven: Arc<Proven>,
}

/// How the subscription is doing, as far as a status shows it.
#[derive(Clone, Copy)]
pub(super) struct Standing {
    pub(super) now: Instant,
    pub(super) phase: Phase,
    /// Of the state that is held.
    pub(super) revision: Option<Revision>,
    /// When the state was last etcd's.
    pub(super) proven: Option<Instant>,
}

impl Publisher {
    /// Publishes a state. Wakes nobody for a revision at which no entry changed.
    pub(super) fn publish_entries(&self, entries: Option<&Entries>, changed: bool) {
        let mut before = None;
        self.entries.send_if_modified(|published| {
            before = std::mem::replace(published, entries.cloned());
            changed
        });
        // May be large, so it is freed when readers no longer wait for the lock.
        drop(before);
    }

    /// Publishes the phase. Wakes nobody when only the revision moved.
    pub(super) fn publish_phase(&self, standing: Standing) {
        self.status
            .send_if_modified(|status| standing.apply(status));
    }

    /// Publishes that a stream to this endpoint has begun.
    pub(super) fn publish_connected(&self, endpoint: String, reconnects: u64, standing: Standing) {
        self.status.send_modify(|status| {
            status.endpoint = Some(endpoint);
            status.reconnects = reconnects;
            standing.apply(status);
        });
    }

    /// Publishes why a stream or an attempt ended.
    pub(super) fn publish_disconnect(
        &self,
        error: String,
        refused: Option<Refused>,
        diverged: u64,
        standing: Standing,
    ) {
        self.status.send_modify(|status| {
            status.last_error = Some(error);
            status.diverged = diverged;
            // A server that cannot be reached may still refuse: an older refusal stays.
            if refused.is_some() {
                status.refused = refused;
            }
            // Together with the reason: whoever is woken sees both.
            standing.apply(status);
        });
    }

    /// Publishes that the subscription has ended for good.
    pub(super) fn publish_closed(&self) {
        self.status.send_if_modified(|status| {
            let changed = status.state != WatchState::Closed;
            if changed {
                status.state = WatchState::Closed;
                status.since = Instant::now().into_std();
            }
            changed
        });
    }
}

impl Standing {
    /// Whether that changed more than the revision.
    fn apply(self, status: &mut Status) -> bool {
        let state = match self.phase {
            Phase::Connecting | Phase::Requested { .. } => WatchState::Connecting,
            Phase::Syncing { .. } => WatchState::Syncing,
            Phase::Live { .. } => WatchState::Live,
            Phase::Backoff { .. } => WatchState::Backoff,
            Phase::Refused { .. } => WatchState::Refused,
        };
        status.revision = self.revision.unwrap_or(status.revision);
        let mut changed = status.state != state;
        if changed {
            status.state = state;
            status.since = self.now.into_std();
        }
        if state == WatchState::Live {
            // Another server may have heard of etcd less recently.
            status.proven = self.proven.max(status.proven);
            // A server serves the range, so no refusal is in force.
            changed |= status.refused.take().is_some();
        }
        changed
    }
}
