//! Where the state of a served prefix comes from: etcd, or a script in tests.
//!
//! A source is a state machine that ends never and fails never: it connects, lists, watches, and
//! when anything breaks it says so ([`Update::Lost`]), backs off and starts again. What it says is a
//! sequence of [`Update`]s that [ingest](crate::ingest) takes one after the other. It holds no copy
//! of the keyspace: the difference of two states is the store's business.
//!
//! Who owns it: the ingest task of the prefix. It must not know about streams, scopes or gRPC.

pub mod etcd;
#[cfg(any(test, feature = "test-util"))]
pub mod scripted;

use std::future::Future;
use std::time::Duration;

use driftless_proto::apply::Edit;
use driftless_proto::{Entry, Epoch, Revision};
use tokio::sync::{mpsc, oneshot};

/// What a source says about its prefix, in order.
#[derive(Clone, Debug)]
pub enum Update {
    /// The whole state at one revision: at the start, and whenever the changes since the last
    /// update cannot be had one by one (compaction, a long absence, a doubt about the history).
    State(State),
    /// All that one etcd transaction changed under the prefix. Its revision is higher than that of
    /// any update before it, a [`State`] of another history excepted.
    Changes {
        /// The transaction's revision.
        revision: Revision,
        /// Each key at most once; never empty.
        changes: Vec<Edit>,
    },
    /// Nothing under the prefix changed up to this revision, and etcd is there.
    Progress {
        /// The revision, at least that of the update before it.
        revision: Revision,
    },
    /// etcd is there; nothing is known about its revision.
    Contact,
    /// etcd cannot be reached or does not answer. What was said so far stays good.
    Lost {
        /// What happened, for people. Never a value.
        reason: String,
    },
}

/// The whole state of a prefix at one revision.
#[derive(Clone, Debug)]
pub struct State {
    /// The history that the revision belongs to.
    pub epoch: Epoch,
    /// The revision of all of it.
    pub revision: Revision,
    /// In ascending order of keys, each key once.
    pub entries: Vec<Entry>,
    /// How it relates to what was said before.
    pub history: History,
}

/// How a state relates to what its source said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// A later state of the same history, or the first.
    Continues,
    /// etcd went back, was replaced or restored: revisions before this one mean nothing any more.
    Replaced,
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

/// Questions that may wait for a source at a time. They are answered together, so this only has to
/// cover those that arrive during one read.
const QUESTIONS: usize = 64;

/// How long a question may take: a read that etcd has not answered by then is not worth a client's
/// wait, which is told to come back instead.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// Makes a source catch up with etcd. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CatchUp(mpsc::Sender<oneshot::Sender<Revision>>);

/// The source's end of [`CatchUp`]: each question wants etcd's revision by a linearizable read, and
/// that the source's updates reach it soon after, by whatever way can be trusted.
pub type Questions = mpsc::Receiver<oneshot::Sender<Revision>>;

impl CatchUp {
    /// A pair for one source.
    pub fn channel() -> (Self, Questions) {
        let (ask, questions) = mpsc::channel(QUESTIONS);
        (Self(ask), questions)
    }

    /// etcd's revision now, as a linearizable read gives it; the source's own updates reach it soon
    /// after. `None` when etcd did not answer within [`ANSWER_WITHIN`], or too many wait already.
    ///
    /// # Cancel safety
    /// Cancel-safe: the question is answered into the void.
    pub async fn revision(&self) -> Option<Revision> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(answer).ok()?;
        tokio::time::timeout(ANSWER_WITHIN, answered)
            .await
            .ok()?
            .ok()
    }
}
