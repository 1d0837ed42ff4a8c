//! The command line: how many rounds, how long, and which scenarios.

use std::path::PathBuf;
use std::time::Duration;

use crate::scenario::{Pace, Scenario};

/// Rounds of a run without arguments: the fewest that show growth.
const FEW_ROUNDS: u64 = 100;

/// From this many rounds on, scenarios that take long to set up are run.
const MANY_ROUNDS: u64 = 500;

/// The scenarios of a short run: the ways out on which most leaks were found, and a control of each kind
/// of witness.
const SHORT: [&str; 15] = [
    "control: a forgotten watcher",
    "control: a detached task",
    "control: a watch at etcd that is only half-closed",
    "control: a map entry left behind",
    "a watcher is dropped",
    "a client is dropped",
    "a client is dropped at each operation",
    "ranges come and go",
    "a client is shut down",
    "a value changes",
    "a client comes and goes over TLS",
    "the network is cut half-way",
    "etcd is killed",
    "the server is shut down while a client does not read",
    "everything at once",
];

/// How long each scenario may take by default.
const FEW_SECONDS: Duration = Duration::from_secs(1);

/// The most scenarios at a time, even with more processors: each has servers and an etcd of its own.
const MOST_JOBS: usize = 8;

/// Set to make short tests long: without arguments, all scenarios are run.
const LONG: &str = "DRIFTLESS_LONG";

/// Arguments that only this suite knows, unlike those that cargo passes to every test program.
const OURS: [&str; 8] = [
    "--short",
    "--rounds",
    "--minutes",
    "--milliseconds-each",
    "--jobs",
    "--report",
    "--soak",
    "--here",
];

/// How to run.
pub(crate) struct Options {
    /// Of each scenario.
    pub(crate) rounds: u64,
    /// For all of them together.
    pub(crate) budget: Budget,
    /// Scenarios at a time.
    pub(crate) jobs: usize,
    /// Those whose name contains one of these; all when empty.
    pub(crate) filters: Vec<String>,
    /// Those whose name is one of these.
    pub(crate) exact: bool,
    /// But not those whose name contains one of these.
    skips: Vec<String>,
    /// Where the report goes; none is written without.
    pub(crate) report: Option<PathBuf>,
    /// Only the scenarios of [`SHORT`].
    short: bool,
    /// Scenarios of [`Pace::Soaks`] get nearly all of the time, and the others share the rest.
    pub(crate) soak: bool,
    /// The names and nothing else.
    pub(crate) list: bool,
    /// This one only, in this process.
    pub(crate) only_here: Option<String>,
    /// That process is ended when its standard input ends.
    pub(crate) until_stdin_ends: bool,
    /// One of [`OURS`] was given.
    pub(crate) for_this_suite: bool,
}

/// How long it may take.
#[derive(Clone, Copy)]
pub(crate) enum Budget {
    /// Each scenario.
    Each(Duration),
    /// All of them.
    All(Duration),
}

impl Options {
    /// Of the command line.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let jobs = std::thread::available_parallelism().map_or(1, usize::from);
        let mut options = Self {
            rounds: FEW_ROUNDS,
            budget: Budget::Each(FEW_SECONDS),
            jobs: jobs.min(MOST_JOBS),
            filters: Vec::new(),
            exact: false,
            skips: Vec::new(),
            report: None,
            short: false,
            soak: false,
            list: false,
            only_here: None,
            until_stdin_ends: false,
            for_this_suite: false,
        };
        while let Some(argument) = arguments.next() {
            let (argument, mut given) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => {
                    (name.to_owned(), Some(value.to_owned()))
                }
                _ => (argument, None),
            };
            let mut value = || {
                let value = given.take().or_else(|| arguments.next());
                value.ok_or_else(|| format!("{argument} needs a value"))
            };
            options.for_this_suite |= OURS.contains(&argument.as_str());
            match argument.as_str() {
                "--rounds" => options.rounds = number(&argument, &value()?)?,
                "--minutes" => {
                    let minutes: u64 = number(&argument, &value()?)?;
                    options.budget = Budget::All(Duration::from_secs(60 * minutes));
                }
                "--milliseconds-each" => {
                    let milliseconds = number(&argument, &value()?)?;
                    options.budget = Budget::Each(Duration::from_millis(milliseconds));
                }
                "--jobs" => options.jobs = number(&argument, &value()?)?,
                "--report" => options.report = Some(value()?.into()),
                "--here" => options.only_here = Some(value()?),
                "--short" => options.short = true,
                "--soak" => options.soak = true,
                "--list" => options.list = true,
                "--exact" => options.exact = true,
                "--skip" => options.skips.push(value()?),
                "--until-stdin-ends" => options.until_stdin_ends = true,
                // What cargo and its tools say to every test program, and what does not apply.
                "--nocapture" | "--no-capture" | "--quiet" | "-q" | "--ignored"
                | "--include-ignored" | "--show-output" => {}
                "--test-threads" => options.jobs = number(&argument, &value()?)?,
                "--format" | "--color" | "--logfile" | "-Z" => drop(value()?),
                _ if argument.starts_with('-') => {
                    return Err(format!(
                        "{argument} is not known; there are --short, --rounds N, --minutes N, \
                         --milliseconds-each N, --jobs N, --report FOLDER, --soak, --list, --exact, \
                         --skip PART, and parts of scenarios' names"
                    ));
                }
                _ => options.filters.push(argument),
            }
        }
        options.jobs = options.jobs.clamp(1, MOST_JOBS);
        Ok(options)
    }

    /// Its pace in this run.
    pub(crate) fn pace(&self, scenario: &Scenario) -> Pace {
        match (scenario.pace, self.budget) {
            (Pace::Soaks, _) if !self.soak || self.jobs == 1 => Pace::Works,
            // All have the same time.
            (Pace::Waits, Budget::Each(_)) => Pace::Works,
            (pace, _) => pace,
        }
    }

    /// How long a scenario may take that runs beside the others.
    pub(crate) fn whole(&self) -> Duration {
        match self.budget {
            Budget::Each(each) => each,
            Budget::All(all) => all * 9 / 10,
        }
    }

    /// How long the next one may take, when so many are left for so many jobs after so long.
    pub(crate) fn next(&self, left: usize, jobs: usize, after: Duration) -> Duration {
        match self.budget {
            Budget::Each(each) => each,
            Budget::All(all) => {
                let waves = u32::try_from(left.div_ceil(jobs).max(1)).unwrap_or(u32::MAX);
                // Setting up takes a part of the time, and what grew is done again.
                let each = all.saturating_sub(after) * 3 / 5 / waves;
                each.max(FEW_SECONDS)
            }
        }
    }

    /// Whether a scenario is wanted. Without arguments, as in `cargo test`, those of a short run are.
    pub(crate) fn wants(&self, scenario: &Scenario) -> bool {
        let mut filters = self.filters.iter();
        let named = filters.any(|part| match self.exact {
            true => scenario.name == part,
            false => scenario.name.contains(part.as_str()),
        });
        let is_long = self.for_this_suite || std::env::var_os(LONG).is_some();
        let in_this_run = match self.short || !is_long {
            true => SHORT.contains(&scenario.name),
            // A short list may have scenarios that take long, so a long run has them too.
            false => {
                std::env::var_os(LONG).is_some()
                    || self.rounds >= MANY_ROUNDS
                    || !scenario.takes_long
            }
        };
        let mut skips = self.skips.iter();
        let skipped = skips.any(|part| scenario.name.contains(part.as_str()));
        !skipped && (named || (self.filters.is_empty() && in_this_run))
    }

    /// The scenarios of a short run that there are not, by a wrong name.
    pub(crate) fn unknown(
        scenarios: impl Iterator<Item = &'static Scenario>,
    ) -> impl Iterator<Item = &'static str> {
        let known: Vec<&str> = scenarios.map(|scenario| scenario.name).collect();
        SHORT.into_iter().filter(move |name| !known.contains(name))
    }
}

fn number<N: std::str::FromStr>(of: &str, text: &str) -> Result<N, String> {
    text.parse()
        .map_err(|_| format!("{of} takes a number, and \"{text}\" is none"))
}
