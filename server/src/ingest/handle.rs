//! Requests of streams to the ingest task.

use driftless_proto::Revision;

use crate::backfill;
use crate::source::SourceHandle;

/// Lets streams send requests to the ingest task of a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(super) source: SourceHandle,
    pub(super) backfill: backfill::Requests,
}

impl Handle {
    /// For the prefix whose source receives the requests of `source`.
    pub(crate) fn new(source: SourceHandle) -> Self {
        Self {
            source,
            backfill: backfill::Requests::new(),
        }
    }

    /// etcd's revision now, by a linearizable read. The published revision reaches it soon after.
    /// `None` when etcd did not answer within [`REQUEST_TIMEOUT`](super::REQUEST_TIMEOUT), or when too many requests wait.
    ///
    /// # Cancel safety
    /// Cancel-safe: the answer is dropped.
    pub(crate) async fn revision(&self) -> Option<Revision> {
        self.source.revision().await
    }

    /// Waits until the change log reaches back to `revision`, or it is clear that it cannot.
    ///
    /// # Cancel safety
    /// Cancel-safe: the backfill continues, for other streams.
    pub(crate) async fn backfill(&self, revision: Revision) {
        self.backfill.request(revision).await;
    }
}
