//! The decoders of one subscription: its handles add and remove them, its task publishes states to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftless_proto::{KeyRange, Revision};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::decode::{Decoder, Outcome, VersionedState};
use crate::error::{Closed, NO_FOLDER, Rejection, is_folder};
use crate::value::{Entries, RejectedState};

/// The decoders of one subscription.
pub(super) struct Decoders {
    range: KeyRange,
    set: Mutex<Set>,
    added: Notify,
}

/// What is wrong, and since which revision: the one at which the value was last put, if it is about one key,
/// else the state's.
type Problem = (Rejection, Revision);

#[derive(Default)]
struct Set {
    next: u64,
    decoders: BTreeMap<u64, Arc<dyn Decoder>>,
    /// What is wrong with the last state, each problem once. These were logged.
    problems: Vec<Problem>,
    /// The last state had no key. That was logged where it is unusual.
    empty: bool,
    closed: Option<Closed>,
}

impl Decoders {
    pub(super) fn new(range: KeyRange) -> Self {
        Self {
            range,
            set: Mutex::default(),
            added: Notify::new(),
        }
    }

    /// Adds a decoder; the task publishes the current state to it. Dropping the guard removes it.
    pub(super) fn attach(self: &Arc<Self>, decoder: Arc<dyn Decoder>) -> DecoderGuard {
        let mut set = self.set.lock();
        let id = set.next;
        set.next += 1;
        set.decoders.insert(id, decoder);
        drop(set);
        self.added.notify_one();
        DecoderGuard {
            decoders: Arc::clone(self),
            id,
        }
    }

    /// Waits until a decoder was added.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(super) async fn added(&self) {
        self.added.notified().await;
    }

    /// Publishes a state to all of them, and returns the outcome with the oldest accepted revision. `None`
    /// without a decoder.
    pub(super) fn publish(&self, state: Option<VersionedState<'_>>) -> Option<Outcome> {
        // Not under the lock: user code runs in there, and it may well drop a watcher.
        let decoders: Vec<Arc<dyn Decoder>> = self.set.lock().decoders.values().cloned().collect();
        let mut least: Option<Outcome> = None;
        let mut problems: Vec<Problem> = Vec::new();
        for decoder in decoders {
            if let Some(state) = state {
                decoder.publish(state);
            }
            let outcome = decoder.outcome();
            if let (Some(state), Some(rejected)) = (state, &outcome.rejected) {
                let problem = problem(rejected, state.entries);
                if !problems.contains(&problem) {
                    problems.push(problem);
                }
            }
            if least
                .as_ref()
                .is_none_or(|least| outcome.accepted < least.accepted)
            {
                least = Some(outcome);
            }
        }
        if let Some(state) = state.filter(|_| least.is_some()) {
            self.log(problems, state.entries);
        }
        least
    }

    /// Logs new problems. One that stays is logged once, however many watchers have it, whatever else
    /// changes in the range meanwhile, and whether or not the connection holds.
    fn log(&self, problems: Vec<Problem>, state: &Entries) {
        let (before, was_empty) = {
            let mut set = self.set.lock();
            (
                std::mem::replace(&mut set.problems, problems.clone()),
                std::mem::replace(&mut set.empty, state.is_empty()),
            )
        };
        let (range, revision) = (&self.range, state.revision());
        if state.is_empty() && !was_empty {
            match range {
                KeyRange::Prefix(_) => tracing::info!(
                    %range,
                    %revision,
                    "there is no key under this prefix; only defaults can be in force"
                ),
                // Also where the type is an `Option`: keys that hold a value do not end in a slash.
                KeyRange::Key(key) if is_folder(key) => {
                    tracing::info!(%range, %revision, "{NO_FOLDER}");
                }
                KeyRange::Key(_) => {}
            }
        }
        for problem in problems.iter().filter(|problem| !before.contains(problem)) {
            tracing::warn!(
                %range,
                %revision,
                rejection = %problem.0,
                "a state was refused; the last good value stays"
            );
        }
    }

    /// No state will follow, for decoders that are added later too. The first reason stands.
    pub(super) fn close(&self, reason: Closed) {
        let mut set = self.set.lock();
        if set.closed.is_some() {
            return;
        }
        set.closed = Some(reason);
        let decoders: Vec<Arc<dyn Decoder>> = set.decoders.values().cloned().collect();
        drop(set);
        for decoder in decoders {
            decoder.close(reason);
        }
    }

    pub(super) fn closed(&self) -> Option<Closed> {
        self.set.lock().closed
    }
}

fn problem(rejected: &RejectedState, state: &Entries) -> Problem {
    let rejection = rejected.rejection.clone();
    let since = match rejection.key() {
        Some(key) => state
            .get(key.as_ref())
            .map_or(Revision::NONE, |entry| entry.mod_revision),
        None => rejected.revision,
    };
    (rejection, since)
}

/// Keeps a decoder attached.
pub(crate) struct DecoderGuard {
    decoders: Arc<Decoders>,
    id: u64,
}

impl Drop for DecoderGuard {
    fn drop(&mut self) {
        // The decoder is dropped after the lock: it holds values of user code.
        let decoder = self.decoders.set.lock().decoders.remove(&self.id);
        drop(decoder);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nothing;

    impl Decoder for Nothing {
        fn publish(&self, _: VersionedState<'_>) {}

        fn outcome(&self) -> Outcome {
            Outcome::default()
        }

        fn close(&self, _: Closed) {}
    }

    #[test]
    fn dropped_guard_drops_its_decoder_and_no_other() {
        let range = KeyRange::prefix("/c/").unwrap();
        let decoders = Arc::new(Decoders::new(range));
        let [stays, goes] = [(); 2].map(|()| Arc::new(Nothing));
        let attach = |decoder: &Arc<Nothing>| {
            let decoder: Arc<dyn Decoder> = decoder.clone();
            decoders.attach(decoder)
        };
        let _guard = attach(&stays);
        drop(attach(&goes));
        assert_eq!(
            (Arc::strong_count(&stays), Arc::strong_count(&goes)),
            (2, 1)
        );
    }
}
