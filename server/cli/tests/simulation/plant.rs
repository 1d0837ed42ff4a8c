//! Planted faults of the program, which the simulation must find.

use driftless_proto::apply::Edit;
use driftless_server::source::scripted::ScriptedEtcdSource;
use driftless_server::source::{Source, Update};

use crate::checks::Pair;

/// A fault of the program or of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plant {
    /// Nothing.
    None,
    /// The servers miss every change of one key.
    Swallow,
    /// The servers move the second half of a transaction into the next one.
    Split,
    /// The servers never receive progress from etcd.
    Silence,
    /// The clients keep a watcher that they should drop.
    Keep,
    /// A client forgets its state without a reason.
    Forget,
    /// The record lacks a key.
    WrongRecord,
}

/// The key that is swallowed, or not recorded.
pub(crate) const VICTIM: &str = "/c/a/x";

/// A source with a fault.
pub(crate) struct Planted {
    source: ScriptedEtcdSource,
    plant: Plant,
    /// Of a transaction that was split.
    rest: Vec<Edit>,
}

impl Planted {
    pub(crate) fn new(source: ScriptedEtcdSource, plant: Plant) -> Self {
        Self {
            source,
            plant,
            rest: Vec::new(),
        }
    }
}

impl Source for Planted {
    async fn next(&mut self) -> Update {
        loop {
            let update = self.source.next().await;
            match (self.plant, update) {
                (
                    Plant::Swallow,
                    Update::Changes {
                        revision,
                        mut changes,
                    },
                ) => {
                    changes.retain(|edit| edit.key().as_ref() != VICTIM.as_bytes());
                    return match changes.is_empty() {
                        true => Update::Progress { revision },
                        false => Update::Changes { revision, changes },
                    };
                }
                (
                    Plant::Split,
                    Update::Changes {
                        revision,
                        changes: now,
                    },
                ) => {
                    let mut changes = std::mem::take(&mut self.rest);
                    let (right, now): (Vec<Edit>, Vec<Edit>) = now
                        .into_iter()
                        .partition(|edit| edit.key().as_ref() == Pair::RIGHT.as_bytes());
                    self.rest = right;
                    changes.extend(now);
                    if !changes.is_empty() {
                        return Update::Changes { revision, changes };
                    }
                }
                (Plant::Silence, Update::Progress { .. }) => {}
                (_, update) => return update,
            }
        }
    }
}
