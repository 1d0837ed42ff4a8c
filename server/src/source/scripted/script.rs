//! A source that returns the updates that a test sends.

use driftless_proto::Revision;
use tokio::sync::{mpsc, watch};

use super::next_request;
use crate::source::{Source, SourceRequest, SourceRequests, Update};
use crate::store::BackfillEvent;

/// How many updates of a script may wait. A test that sends more waits until they are taken.
const WAITING_UPDATES: usize = 16;
/// A source that returns the updates of its [`Script`].
#[derive(Debug)]
pub struct ScriptedSource {
    updates: mpsc::Receiver<Update>,
    answer: watch::Receiver<Option<Revision>>,
    requests: Option<SourceRequests>,
}

/// Sends updates to a [`ScriptedSource`]. Once it is dropped, the source returns nothing more.
#[derive(Debug)]
pub struct Script {
    updates: mpsc::Sender<Update>,
    answer: watch::Sender<Option<Revision>>,
}

impl ScriptedSource {
    /// A source, and the script for it.
    pub fn new(requests: SourceRequests) -> (Script, Self) {
        let (sender, updates) = mpsc::channel(WAITING_UPDATES);
        let (set_answer, answer) = watch::channel(None);
        let script = Script {
            updates: sender,
            answer: set_answer,
        };
        let source = Self {
            updates,
            answer,
            requests: Some(requests),
        };
        (script, source)
    }
}

impl Script {
    /// Sends an update. Returns `false` when the source was dropped.
    ///
    /// # Cancel safety
    /// Cancel-safe: the update is sent or not.
    pub async fn send(&self, update: Update) -> bool {
        self.updates.send(update).await.is_ok()
    }

    /// Sets the answer to requests for the revision; `None`, as at the start, for no answer.
    pub fn answer(&self, revision: Option<Revision>) {
        self.answer.send_replace(revision);
    }
}

impl Source for ScriptedSource {
    async fn next(&mut self) -> Update {
        loop {
            tokio::select! {
                biased;
                Some(update) = self.updates.recv() => return update,
                request = next_request(&mut self.requests) => match request {
                    Some(SourceRequest::Revision(answer)) => {
                        if let Some(revision) = *self.answer.borrow() {
                            let _ = answer.send(revision);
                        }
                    }
                    Some(SourceRequest::Audit(revision)) => {
                        return Update::Audited { revision, digest: None };
                    }
                    Some(SourceRequest::Relist) | None => {}
                    Some(SourceRequest::Backfill(_)) => {
                        let reason = "the script has no past".to_owned();
                        return Update::Backfill(BackfillEvent::Failed { reason });
                    }
                }
            }
        }
    }
}
