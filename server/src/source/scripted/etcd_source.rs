//! The source of a scripted etcd: returns what an etcd source would return.

use std::collections::VecDeque;
use std::time::Duration;

use driftless_proto::{KeyRange, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use super::etcd::{Link, Model, in_range};
use super::next_request;
use crate::source::{Proof, Source, SourceRequest, SourceRequests, Update};
use crate::store::{History, State};

/// How often idle sources ask etcd, as with a real one.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A source of a [`ScriptedEtcd`](super::ScriptedEtcd).
#[derive(Debug)]
pub struct ScriptedEtcdSource {
    link: Link,
    range: KeyRange,
    modified: watch::Receiver<u64>,
    requests: Option<SourceRequests>,
    /// The history, and the revision up to which it was reported; `None` before the first state.
    position: Option<(u64, Revision)>,
    lost: bool,
    /// The highest revision that a request was answered with.
    promised: Revision,
    /// Answers to requests that are not returned yet.
    answers: VecDeque<Update>,
    /// True once the state was requested.
    relist: bool,
    progress_due: Instant,
}

impl ScriptedEtcdSource {
    pub(super) fn new(link: Link, range: KeyRange, requests: SourceRequests) -> Self {
        Self {
            modified: link.subscribe(),
            link,
            range,
            requests: Some(requests),
            position: None,
            lost: false,
            promised: Revision::NONE,
            answers: VecDeque::new(),
            relist: false,
            progress_due: Instant::now() + PROGRESS_INTERVAL,
        }
    }

    /// An update that is due at once.
    fn ready(&mut self) -> Option<Update> {
        let model = self.link.etcd().model();
        let connected = self.link.is_connected(&model);
        // A restore disconnects, however short it was.
        let restored = self
            .position
            .is_some_and(|(history, _)| history != model.history);
        if !connected || restored {
            if !self.lost {
                self.lost = true;
                return Some(Update::Lost {
                    reason: "disconnected by the test".to_owned(),
                });
            }
            if !connected {
                return None;
            }
        }
        let found = std::mem::take(&mut self.lost);
        let Some((_, reported)) = self.position.filter(|_| !restored) else {
            return Some(Self::state(
                &mut self.position,
                &mut self.promised,
                &model,
                &self.range,
            ));
        };
        // Compaction does not affect a live watch, only one that has to read the past.
        let reads_past = found
            || model
                .changes_after(reported, &self.range)
                .is_some_and(|(at, _)| at <= model.compacted);
        if self.relist || reads_past && reported < model.compacted {
            return Some(Self::state(
                &mut self.position,
                &mut self.promised,
                &model,
                &self.range,
            ));
        }
        if found {
            return Some(proof(model.revision));
        }
        if let Some((revision, changes)) = model.changes_after(reported, &self.range) {
            self.position = Some((model.history, revision));
            return Some(Update::Changes { revision, changes });
        }
        (reported < self.promised).then(|| {
            self.position = Some((model.history, model.revision));
            Update::Progress {
                revision: model.revision,
            }
        })
    }

    fn state(
        position: &mut Option<(u64, Revision)>,
        promised: &mut Revision,
        model: &Model,
        range: &KeyRange,
    ) -> Update {
        let history = match position {
            Some((history, _)) if *history != model.history => History::Replaced,
            _ => History::Continues,
        };
        *position = Some((model.history, model.revision));
        *promised = Revision::NONE;
        Update::State(State {
            epoch: model.epoch.clone(),
            revision: model.revision,
            entries: in_range(&model.entries, range),
            history,
            asked_at: Some(Instant::now()),
        })
    }

    /// Answers a request; drops it while etcd is lost.
    fn answer(&mut self, request: SourceRequest) {
        let model = self.link.etcd().model();
        let current = self
            .position
            .is_some_and(|(history, _)| history == model.history);
        if !self.link.is_connected(&model) || !current {
            return;
        }
        match request {
            SourceRequest::Revision(answer) => {
                self.promised = model.revision;
                self.answers.push_back(proof(model.revision));
                let _ = answer.send(model.revision);
            }
            SourceRequest::Backfill(span) => {
                let events = model.backfill(span, &self.range).into_iter();
                self.answers.extend(events.map(Update::Backfill));
            }
            SourceRequest::Audit(revision) => {
                let state = model.state_at(revision);
                let known = state.filter(|_| revision >= model.compacted);
                let digest = known.map(|state| in_range(&state, &self.range).iter().collect());
                self.answers.push_back(Update::Audited { revision, digest });
            }
            SourceRequest::Relist => self.relist = true,
        }
    }
}

impl Source for ScriptedEtcdSource {
    async fn next(&mut self) -> Update {
        loop {
            self.modified.mark_unchanged();
            if let Some(update) = self.ready() {
                self.progress_due = Instant::now() + PROGRESS_INTERVAL;
                if matches!(update, Update::Lost { .. } | Update::State(_)) {
                    self.answers.clear();
                    self.relist = false;
                }
                return update;
            }
            if let Some(answer) = self.answers.pop_front() {
                return answer;
            }
            tokio::select! {
                biased;
                // Never an error: the sender is in the link.
                _ = self.modified.changed() => {}
                request = next_request(&mut self.requests) => {
                    if let Some(request) = request {
                        self.answer(request);
                    }
                }
                () = tokio::time::sleep_until(self.progress_due), if !self.lost => {
                    self.promised = self.link.etcd().revision();
                    self.progress_due = Instant::now() + PROGRESS_INTERVAL;
                    return proof(self.promised);
                }
            }
        }
    }
}

/// The model answers at once.
fn proof(revision: Revision) -> Update {
    let asked_at = Instant::now();
    Update::Proof(Proof { asked_at, revision })
}
