//! The sync responses that streams of a scope share, so that many streams that need the same state
//! read the same chunks.
//!
//! A response of an earlier revision serves as well, as long as what changed since can be replayed. So
//! a crowd shares one, although keys change while it arrives.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

use crate::encode::{SyncKind, SyncResponse};

/// How long an unused response is kept for readers that may come later.
pub(super) const IDLE_FOR: Duration = Duration::from_secs(10);

/// How long a response is handed to new readers, however many there are. It pins its root, which over
/// time shares less and less with what is published.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(120);

/// How many responses a scope shares: the snapshot, and diffs since the revisions that most clients
/// are at. Those beyond it are read by one stream each.
const SHARED: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Responses(Vec<SharedResponse>);

#[derive(Debug)]
struct SharedResponse {
    response: Arc<SyncResponse>,
    begun: Instant,
    /// When it was handed out last.
    used: Instant,
}

impl Responses {
    /// A response of this kind that may still be handed out, at a revision that is `usable`.
    pub(super) fn find(
        &mut self,
        kind: SyncKind,
        now: Instant,
        usable: impl Fn(Revision) -> bool,
    ) -> Option<Arc<SyncResponse>> {
        let found = self.0.iter_mut().find(|shared| {
            let response = &shared.response;
            shared.is_fresh(now)
                && response.kind() == kind
                && !response.is_revoked()
                && usable(response.revision())
        })?;
        found.used = now;
        Some(Arc::clone(&found.response))
    }

    /// Adds a response, if there is room. What it replaces is returned, to be dropped outside any
    /// lock.
    pub(super) fn add(
        &mut self,
        response: &Arc<SyncResponse>,
        now: Instant,
    ) -> Vec<Arc<SyncResponse>> {
        let mut dropped = self.take_expired(now);
        let same = self
            .0
            .iter()
            .position(|shared| shared.response.kind() == response.kind());
        if let Some(same) = same {
            dropped.push(self.0.swap_remove(same).response);
        }
        if self.0.len() < SHARED {
            self.0.push(SharedResponse {
                response: Arc::clone(response),
                begun: now,
                used: now,
            });
        }
        dropped
    }

    /// Takes out the responses that are handed to no new readers. Their readers still hold them.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<Arc<SyncResponse>> {
        self.0
            .extract_if(.., |shared| !shared.is_fresh(now))
            .map(|shared| shared.response)
            .collect()
    }
}

impl SharedResponse {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < IDLE_FOR
            && now.saturating_duration_since(self.begun) < SHARED_FOR
    }
}
