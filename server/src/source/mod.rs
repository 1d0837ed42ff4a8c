//! Reads the state of a served prefix: from etcd, or from a script in tests.
//!
//! A source is a state machine that never ends and never fails. It connects, lists and watches. When
//! anything breaks, it reports that ([`Update::Lost`]), backs off and starts again. It returns a
//! sequence of [`Update`]s, which ingest applies one after the other. It holds no
//! copy of the keyspace: the store computes the difference of two states.
//!
//! The ingest task of the prefix owns it. It must not know about streams, scopes or gRPC.

pub mod etcd;
#[cfg(any(test, feature = "test-util"))]
pub mod scripted;

use std::future::Future;
use std::time::Duration;

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use tokio::sync::{mpsc, oneshot};

pub use crate::store::{BackfillEvent, History, PastChange, PastTransaction, Proof, Span, State};

/// What a source reports about its prefix, in order.
#[derive(Clone, Debug)]
pub enum Update {
    /// The whole state at one revision: the first state, and one whenever the source cannot read the
    /// changes since its last update one by one (compaction, a long absence, another history).
    State(State),
    /// All that one etcd transaction changed under the prefix. Its revision is higher than that of
    /// any update before it, except a [`State`] of another history.
    Changes {
        /// The transaction's revision.
        revision: Revision,
        /// Each key at most once; never empty.
        changes: Vec<Edit>,
    },
    /// Nothing under the prefix changed up to this revision.
    Progress {
        /// The revision, at least that of the update before it.
        revision: Revision,
    },
    /// etcd answered a linearizable read. The updates may reach the proof's revision later; until then
    /// it says that they are behind. After an [`Update::Lost`] it is the first sign of life.
    ///
    /// No other update says how old the state is, except [`State::asked_at`].
    Proof(Proof),
    /// etcd cannot be reached or does not answer. The updates so far stay valid. An unfinished answer
    /// to [`SourceRequest::Backfill`] ends here. May be repeated, when the reason changes.
    Lost {
        /// What happened, for people. Never a value.
        reason: String,
    },
    /// A part of the answer to [`SourceRequest::Backfill`].
    Backfill(BackfillEvent),
    /// The answer to [`SourceRequest::Audit`].
    Audited {
        /// The requested revision.
        revision: Revision,
        /// Of all entries of the prefix then that can be served; `None` when it cannot be read.
        digest: Option<Digest>,
    },
}

/// The state of one served prefix, as a sequence of updates.
pub trait Source: Send + 'static {
    /// The next update. Waits for as long as there is none.
    ///
    /// # Cancel safety
    /// Not cancel-safe: an update may be lost with the future. Its owner drops it together with the
    /// source, at shutdown.
    fn next(&mut self) -> impl Future<Output = Update> + Send;
}

/// How many requests may wait for a source. They are answered together, so the queue only holds those
/// that arrive during one read.
const WAITING_REQUESTS: usize = 64;

/// How long a request may take. A client waits no longer for a slower etcd: it is told to come back.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// A request to a source.
#[derive(Debug)]
pub enum SourceRequest {
    /// Read etcd's revision with a linearizable read. The source's updates reach that revision soon
    /// after. A source that cannot answer drops the sender.
    Revision(oneshot::Sender<Revision>),
    /// Read what changed in this span. The answer is a sequence of [`Update::Backfill`] between other
    /// updates. It ends early when the source reports [`Update::Lost`] or [`Update::State`]. A new
    /// request replaces the one before.
    Backfill(Span),
    /// Read the digest of the prefix at this revision, which the source reported. The answer is an
    /// [`Update::Audited`]. There is none when the source reports [`Update::Lost`] or
    /// [`Update::State`] first.
    Audit(Revision),
    /// Read the whole state again and report it as [`Update::State`]: an update was wrong.
    Relist,
}

/// Sends requests to a source. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SourceHandle(mpsc::Sender<SourceRequest>);

/// The source's end of [`SourceHandle`].
pub type SourceRequests = mpsc::Receiver<SourceRequest>;

impl SourceHandle {
    /// A pair for one source.
    pub fn channel() -> (Self, SourceRequests) {
        let (sender, requests) = mpsc::channel(WAITING_REQUESTS);
        (Self(sender), requests)
    }

    /// etcd's revision now, by a linearizable read. The source's own updates reach it soon after.
    /// `None` when etcd did not answer within [`REQUEST_TIMEOUT`], or when too many requests wait.
    ///
    /// # Cancel safety
    /// Cancel-safe: the answer is dropped.
    pub async fn revision(&self) -> Option<Revision> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(SourceRequest::Revision(answer)).ok()?;
        tokio::time::timeout(REQUEST_TIMEOUT, answered)
            .await
            .ok()?
            .ok()
    }

    /// Requests what changed in this span. Returns `false` when too many requests wait.
    pub fn backfill(&self, span: Span) -> bool {
        self.0.try_send(SourceRequest::Backfill(span)).is_ok()
    }

    /// Requests the digest at this revision. Returns `false` when too many requests wait.
    pub fn audit(&self, revision: Revision) -> bool {
        self.0.try_send(SourceRequest::Audit(revision)).is_ok()
    }

    /// Requests the whole state. Returns `false` when too many requests wait.
    pub fn relist(&self) -> bool {
        self.0.try_send(SourceRequest::Relist).is_ok()
    }
}
