//! What a scenario is.

use std::pin::Pin;

use leak_tests::{Outcome, Rounds};

/// Something that is done many times over in a process of its own.
pub(crate) struct Scenario {
    /// A few words; names the process, the plot and the verdict.
    pub(crate) name: &'static str,
    /// The same in a sentence.
    pub(crate) about: &'static str,
    /// It takes long to set up, and is left out where only few rounds are asked for.
    pub(crate) takes_long: bool,
    /// It has much to choose from, and gets all the time there is where many rounds are asked for.
    pub(crate) takes_the_time: bool,
    /// The witnesses that have to notice the leak that is planted here; empty where nothing should
    /// leak.
    pub(crate) planted_for: &'static [&'static str],
    /// Does it.
    pub(crate) run: fn(Rounds) -> Run,
}

pub(crate) type Run = Pin<Box<dyn Future<Output = Outcome>>>;
