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
use driftless_proto::digest::Digest;
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
    /// etcd cannot be reached or does not answer. What was said so far stays good. An answer to
    /// [`Question::Earlier`] that has not ended is not continued.
    Lost {
        /// What happened, for people. Never a value.
        reason: String,
    },
    /// A part of the answer to [`Question::Earlier`].
    Earlier(Earlier),
    /// The answer to [`Question::Audit`].
    Audited {
        /// The revision that was asked about.
        revision: Revision,
        /// Of all that can be served of the prefix then; `None` when it cannot be had.
        digest: Option<Digest>,
    },
}

/// What changed before the state that a source said, part by part.
#[derive(Clone, Debug)]
pub enum Earlier {
    /// All that changed after this revision follows; what this answer said before does not count.
    Begin {
        /// What was asked for, or where etcd's memory begins.
        after: Revision,
    },
    /// Whole transactions, each later than those before.
    Transactions(Vec<EarlierTransaction>),
    /// Everything was said, up to the revision that was asked for.
    End,
    /// It cannot be had.
    Failed {
        /// Why, for people. Never a value.
        reason: String,
    },
}

/// All that one etcd transaction changed under the prefix, with what was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierTransaction {
    /// The transaction's revision.
    pub revision: Revision,
    /// In ascending order of keys, each key once.
    pub changes: Vec<EarlierChange>,
}

/// What became of a key, and what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EarlierChange {
    /// What became of it.
    pub edit: Edit,
    /// What was there before; `None` for nothing that can be served.
    pub previous: Option<Entry>,
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

/// What a source can be asked.
#[derive(Debug)]
pub enum Question {
    /// etcd's revision by a linearizable read; the source's updates have to reach it soon after, by
    /// whatever way can be trusted. One that cannot be answered is dropped.
    Revision(oneshot::Sender<Revision>),
    /// What changed in this span. The answer is a sequence of [`Update::Earlier`], beside whatever
    /// else there is to say; it ends without an end when the source says [`Update::Lost`] or
    /// [`Update::State`]. A new question replaces the one before.
    Earlier(Span),
    /// What etcd held at this revision, which was said: its digest, by an [`Update::Audited`] in
    /// time; it is not said when the source says [`Update::Lost`] or [`Update::State`] before.
    Audit(Revision),
    /// What was said cannot be right: an [`Update::State`] is wanted.
    Relist,
}

/// A stretch of the history that lies before the changes that a source said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Exclusive; at least 1.
    pub after: Revision,
    /// Inclusive; a revision whose state, or a change after it, was said.
    pub up_to: Revision,
    /// When the key that was put last, of those that are there at `up_to`, was put. `None` when that
    /// is not known, but something in the prefix is known to have changed after `up_to`.
    pub last_put: Option<Revision>,
}

/// Asks a source. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CatchUp(mpsc::Sender<Question>);

/// The source's end of [`CatchUp`].
pub type Questions = mpsc::Receiver<Question>;

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
        self.0.try_send(Question::Revision(answer)).ok()?;
        tokio::time::timeout(ANSWER_WITHIN, answered)
            .await
            .ok()?
            .ok()
    }

    /// Asks what changed in this span. `false` when too many wait already.
    pub fn earlier(&self, span: Span) -> bool {
        self.0.try_send(Question::Earlier(span)).is_ok()
    }

    /// Asks what the digest was at this revision. `false` when too many wait already.
    pub fn audit(&self, revision: Revision) -> bool {
        self.0.try_send(Question::Audit(revision)).is_ok()
    }

    /// Asks for the whole state. `false` when too many wait already.
    pub fn relist(&self) -> bool {
        self.0.try_send(Question::Relist).is_ok()
    }
}
