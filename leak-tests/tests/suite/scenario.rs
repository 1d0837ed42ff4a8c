//! What a scenario is.

use std::pin::Pin;
use std::time::Duration;

use driftless_client::KeyRange;
use leak_tests::{Outcome, Rounds};

/// Within this a dropped watcher's stream, tasks and socket are gone, by promise.
pub(crate) const WATCHER: Duration = Duration::from_millis(100);

/// Within this all of a dropped client is gone, by promise.
pub(crate) const CLIENT: Duration = Duration::from_secs(1);

/// Something that is done many times over in a process of its own.
pub(crate) struct Scenario {
    /// A few words; names the process, the plot and the verdict.
    pub(crate) name: &'static str,
    /// The same in a sentence.
    pub(crate) about: &'static str,
    /// It takes long to set up, and is left out where only few rounds are asked for.
    pub(crate) takes_long: bool,
    /// How it goes on beside others.
    pub(crate) pace: Pace,
    /// The witnesses that must notice the fault of a control; empty where nothing should leak.
    pub(crate) fault_for: &'static [&'static str],
    /// Does it.
    pub(crate) run: fn(Rounds) -> Run,
}

/// What a scenario needs most of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The processor: so many go on at a time as there are jobs.
    Works,
    /// Time: a round waits for somebody to have enough, and others work meanwhile.
    Waits,
    /// It has much to choose from. In a soak it gets nearly all the time there is, else it works.
    Soaks,
}

pub(crate) type Run = Pin<Box<dyn Future<Output = Outcome>>>;

/// What the servers here serve.
pub(crate) fn prefix() -> KeyRange {
    KeyRange::prefix("/c/").unwrap()
}
