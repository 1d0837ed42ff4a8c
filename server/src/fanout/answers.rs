//! The snapshots and conflated diffs of a scope that streams read, so that a crowd that comes for
//! the same reads the same.
//!
//! One that was begun at an earlier revision serves as well, as long as what changed since can be
//! replayed: so a crowd shares one although keys change while it arrives.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

use crate::encode::{SyncKind, SyncResponse};

/// How long an answer that nobody asks for is kept for those who may yet come.
pub(super) const IDLE_FOR: Duration = Duration::from_secs(10);

/// How often those that nobody will be handed any more are looked for: an answer, and the state and
/// the room on the shelf that it takes, go so much later at most.
pub const TIDY_EVERY: Duration = Duration::from_secs(5);

/// How long new readers are handed an answer that was begun earlier, however many come: with time the
/// root, which it pins, has less and less in common with what is published.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(120);

/// How many answers a scope shares: the snapshot, and diffs since the revisions that most clients
/// are at. Those beyond it are read by one stream each.
const SHARED: usize = 8;

#[derive(Debug, Default)]
pub(super) struct Answers(Vec<Shared>);

#[derive(Debug)]
struct Shared {
    answer: Arc<SyncResponse>,
    begun: Instant,
    /// When it was handed out last.
    used: Instant,
}

impl Answers {
    /// One of this kind that may still be handed out, at a revision that is `usable`.
    pub(super) fn find(
        &mut self,
        kind: SyncKind,
        now: Instant,
        usable: impl Fn(Revision) -> bool,
    ) -> Option<Arc<SyncResponse>> {
        let found = self.0.iter_mut().find(|shared| {
            let answer = &shared.answer;
            shared.is_fresh(now) && answer.kind() == kind && usable(answer.revision())
        })?;
        found.used = now;
        Some(Arc::clone(&found.answer))
    }

    /// Adds one, if there is room. What it replaces is returned, to be let go of outside any lock.
    pub(super) fn add(
        &mut self,
        answer: &Arc<SyncResponse>,
        now: Instant,
    ) -> Vec<Arc<SyncResponse>> {
        let mut gone = self.expire(now);
        let same = self
            .0
            .iter()
            .position(|shared| shared.answer.kind() == answer.kind());
        if let Some(same) = same {
            gone.push(self.0.swap_remove(same).answer);
        }
        if self.0.len() < SHARED {
            self.0.push(Shared {
                answer: Arc::clone(answer),
                begun: now,
                used: now,
            });
        }
        gone
    }

    /// Takes out those that nobody will be handed any more; their readers hold them.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Arc<SyncResponse>> {
        self.0
            .extract_if(.., |shared| !shared.is_fresh(now))
            .map(|shared| shared.answer)
            .collect()
    }
}

impl Shared {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.used) < IDLE_FOR
            && now.saturating_duration_since(self.begun) < SHARED_FOR
    }
}
