//! What a scenario is.

use std::pin::Pin;
use std::time::Duration;

use driftless_client::KeyRange;
use leak_tests::{Outcome, Rounds};

/// How long a dropped watcher's stream, tasks and socket may take to go, by promise.
pub(crate) const WATCHER: Duration = Duration::from_millis(100);

/// How long everything of a dropped client may take to go, by promise.
pub(crate) const CLIENT: Duration = Duration::from_secs(1);

/// Something that runs many times, in a process of its own.
pub(crate) struct Scenario {
    /// A few words; names the process, the plot and the verdict.
    pub(crate) name: &'static str,
    /// What it does, in a sentence.
    pub(crate) about: &'static str,
    /// It takes long to set up, so a run with few rounds leaves it out.
    pub(crate) takes_long: bool,
    /// What it needs most while others run.
    pub(crate) pace: Pace,
    /// The witnesses that must notice the fault of a control; empty where nothing should leak.
    pub(crate) fault_for: &'static [&'static str],
    /// Runs it.
    pub(crate) run: fn(Rounds) -> Run,
}

/// What a scenario needs most of.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// The processor: as many run at a time as there are jobs.
    Works,
    /// Time: a round waits for a timeout, and others work meanwhile.
    Waits,
    /// Its rounds differ by chance. In a soak it gets nearly all the time; otherwise as [`Self::Works`].
    Soaks,
}

pub(crate) type Run = Pin<Box<dyn Future<Output = Outcome>>>;

/// What the servers here serve.
pub(crate) fn prefix() -> KeyRange {
    KeyRange::prefix("/c/").unwrap()
}
