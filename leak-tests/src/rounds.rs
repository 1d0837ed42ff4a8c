//! Runs one thing many times, and finds what it keeps and what grows.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::baseline::{Baseline, Leaked, RETURN_WITHIN};
use crate::curve::Curve;
use crate::heap::Heap;
use crate::witness::{Rule, Unreadable, Witnesses};
use crate::{Allocated, Threads};

/// Rounds before anything is counted: allocators, runtimes and tables set themselves up in the first
/// ones.
const WARM_UP: u64 = 50;

/// Of a budget, the warm-up takes this part at most.
const WARM_UP_PART: u32 = 4;

/// The fewest rounds that have fifths.
const FEWEST: u64 = 5;

/// The fewest rounds for a verdict on growth: in fewer, bounded buffers are still filling up, such as a
/// connection's table of headers.
pub(crate) const FEWEST_FOR_GROWTH: u64 = 100;

/// How many times as many rounds follow when something grew: a table that doubled once does so outside
/// of the compared fifths then, but a leak keeps growing.
const AGAIN: u64 = 4;

/// How long that may take, where there is a budget: as long as the budget, or so long where that is
/// shorter, since a table that doubles soon after the start of few rounds may do so again in as few.
const AGAIN_WITHIN: Duration = Duration::from_secs(60);

/// How many more threads are no leak: a runtime's blocking pool starts and ends threads by itself.
const POOL: i64 = 8;

/// How many rounds' times are kept at least, spread over all of them, and half of those that are kept
/// at most.
const TIMES: usize = 200;

/// How long a round may take, so that a round that hangs fails with its number. Generous on purpose.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// This many rounds of something that should leave nothing behind; [`Rounds::run`] takes what to do.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let outcome = leak_tests::rounds(100)
///     .without_bytes() // or `leak_tests::use_jemalloc!();` in the root of the test
///     .run(async |_| {
///         let task = tokio::spawn(std::future::pending::<()>());
///         task.abort();
///     })
///     .await;
/// outcome.assert_no_leak();
/// # }
/// ```
pub fn rounds(count: u64) -> Rounds {
    Rounds {
        name: "rounds".to_owned(),
        count: count.max(FEWEST),
        warm_up: WARM_UP,
        budget: None,
        patience: RETURN_WITHIN,
        only: None,
        without_bytes: false,
        more: Witnesses::new(),
        at_the_end: Witnesses::new(),
        promised: None,
    }
}

/// How rounds run and which witnesses count; see [`rounds`].
#[derive(Clone, Debug)]
#[must_use = "nothing is done before `run`"]
pub struct Rounds {
    name: String,
    count: u64,
    warm_up: u64,
    budget: Option<Duration>,
    patience: Duration,
    only: Option<Witnesses>,
    without_bytes: bool,
    more: Witnesses,
    at_the_end: Witnesses,
    promised: Option<Duration>,
}

impl Rounds {
    /// The name in messages and reports. Default: "rounds".
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How many rounds run before anything is counted: fewer when they take a quarter of the time that
    /// [`within`](Self::within) gives. Default: 50.
    pub const fn warm_up(mut self, rounds: u64) -> Self {
        self.warm_up = rounds;
        self
    }

    /// Does no more rounds than this, and at least five.
    pub fn at_most(mut self, rounds: u64) -> Self {
        self.count = self.count.min(rounds).max(FEWEST);
        self
    }

    /// Stops after this time, counted from the start of [`run`](Self::run), but not before five rounds.
    /// When something grew, the rounds that follow may take as long again, or a minute if that is longer,
    /// and are at least a hundred. Default: no limit.
    pub const fn within(mut self, budget: Duration) -> Self {
        self.budget = Some(budget);
        self
    }

    /// How long a count may take to return. Default: [`RETURN_WITHIN`].
    pub const fn patience(mut self, limit: Duration) -> Self {
        self.patience = limit;
        self
    }

    /// Does not count allocated bytes. Without this, a program that lacks
    /// [`use_jemalloc!`](crate::use_jemalloc) fails, because it could not see a leak.
    pub const fn without_bytes(mut self) -> Self {
        self.without_bytes = true;
        self
    }

    /// Reads these witnesses after each round instead of the default ones: the tasks of this runtime, and
    /// this process's descriptors, threads and allocated bytes.
    pub fn only(mut self, witnesses: Witnesses) -> Self {
        self.only = Some(witnesses);
        self
    }

    /// Reads these witnesses as well after each round.
    pub fn and(mut self, witnesses: &Witnesses) -> Self {
        self.more = self.more.and_those_of(witnesses);
        self
    }

    /// Reads these witnesses before the first round and after the last one: those that are too slow for
    /// each. Replaces those that were given before.
    pub fn at_the_end(mut self, witnesses: Witnesses) -> Self {
        self.at_the_end = witnesses;
        self
    }

    /// How soon after a round the counts should return, by promise. It is reported beside the measured
    /// median and fails nothing: times depend on the machine.
    pub const fn promised(mut self, within: Duration) -> Self {
        self.promised = Some(within);
        self
    }

    /// Runs the rounds: calls `round` with 0, 1, 2, …, and waits after each for the counts to return.
    ///
    /// A count that [returns](Rule::Returns) must do so after each round in
    /// [time](Self::patience); the first round after which it does not ends the run.
    /// From a hundred rounds on, a count that [may not grow](Rule::MayNotGrow) is judged by its minima in
    /// the second and in the last fifth of the rounds. If it grew, four times as many rounds follow, or as
    /// many as there is [time](Self::within) for, and count instead.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it ends the round at hand.
    pub async fn run(self, mut round: impl AsyncFnMut(u64)) -> Outcome {
        let Self {
            name,
            count,
            warm_up,
            budget,
            patience,
            only,
            without_bytes,
            more,
            at_the_end,
            promised,
        } = self;
        let mut blind = None;
        let witnesses = only.unwrap_or_else(|| {
            let witnesses = all_but_bytes();
            match Allocated::by_jemalloc() {
                _ if without_bytes => witnesses,
                Ok(allocated) => witnesses.and(allocated),
                Err(unreadable) => {
                    blind = Some(unreadable);
                    witnesses
                }
            }
        });
        let witnesses = witnesses.and_those_of(&more);
        let mut outcome = Outcome {
            name,
            rounds: 0,
            repeated: false,
            curves: Vec::new(),
            ends: Vec::new(),
            median: None,
            promised,
            leaks: blind.map(Leak::Unreadable).into_iter().collect(),
            stacks: Vec::new(),
        };
        let mut steps = 0;
        let mut next = async || {
            let step = steps;
            steps += 1;
            let done = timeout(ROUND_WITHIN, round(step)).await;
            done.map_err(|_| Leak::Hangs { round: step })
        };
        let plan = Plan {
            witnesses,
            at_the_end,
            warm_up,
            budget,
            patience,
        };
        if let Err(leak) = plan.measure(count, &mut outcome, &mut next).await {
            outcome.leaks.push(leak);
        }
        outcome
    }
}

/// The default witnesses, and those that come with them.
fn all_but_bytes() -> Witnesses {
    Witnesses::of_the_process()
        .and(Threads::but_the_runtimes())
        .and(Threads::all().with_slack(POOL))
}

/// The witnesses, and what comes before the rounds.
struct Plan {
    witnesses: Witnesses,
    at_the_end: Witnesses,
    warm_up: u64,
    budget: Option<Duration>,
    patience: Duration,
}

impl Plan {
    /// Warms up, and runs the rounds once or twice.
    async fn measure(
        &self,
        asked: u64,
        outcome: &mut Outcome,
        next: &mut impl AsyncFnMut() -> Result<(), Leak>,
    ) -> Result<(), Leak> {
        let start = Instant::now();
        for _ in 0..self.warm_up {
            next().await?;
            let takes_long = |budget| start.elapsed() >= budget / WARM_UP_PART;
            if self.budget.is_some_and(takes_long) {
                break;
            }
        }
        let end = self.at_the_end.baseline().await?;
        let returning = self.witnesses.that(|rule| rule == Rule::Returns);
        let before = returning.baseline().await?;
        let deadline = self.budget.map(|budget| start + budget);
        let mut heap = Heap::now();
        let rounds = FEWEST..=asked;
        self.series(outcome, rounds, deadline, &before, next)
            .await?;
        if !outcome.growth().is_empty() {
            outcome.repeated = true;
            // In fewer, what grew would pass for what cannot be told.
            let rounds = FEWEST_FOR_GROWTH..=outcome.rounds.saturating_mul(AGAIN);
            let now = Instant::now();
            let deadline = self.budget.map(|budget| now + budget.max(AGAIN_WITHIN));
            heap = Heap::now();
            self.series(outcome, rounds, deadline, &before, next)
                .await?;
        }
        // Also where there were too few rounds for a verdict: somebody asked.
        if let Some((before, after)) = heap.zip(Heap::now()) {
            outcome.stacks = after.grown_since(&before);
        }
        let growth = outcome.growth();
        outcome.leaks.extend(growth);
        let back = end.returned_within(self.patience).await;
        for (witness, before) in self.at_the_end.iter().zip(end.counts()) {
            let ends = (witness.name().to_owned(), before, witness.read().await?);
            outcome.ends.push(ends);
        }
        back.map_err(|leaked| Leak::Kept {
            round: outcome.rounds,
            leaked,
        })?;
        Ok(())
    }

    /// Runs at most the greatest of these numbers of rounds, or as many as there is time for, and at least
    /// the smallest. What it keeps is allocated before the first of them.
    async fn series(
        &self,
        outcome: &mut Outcome,
        rounds: RangeInclusive<u64>,
        deadline: Option<Instant>,
        before: &Baseline,
        next: &mut impl AsyncFnMut() -> Result<(), Leak>,
    ) -> Result<(), Leak> {
        let witnesses = &self.witnesses;
        let curves = witnesses
            .iter()
            .map(|witness| Curve::new(witness.name(), witness.rule()));
        outcome.curves = curves.collect();
        outcome.rounds = 0;
        let mut times = Times::new();
        while outcome.rounds < *rounds.end() {
            let round = outcome.rounds;
            let is_over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if is_over && round >= *rounds.start() {
                break;
            }
            next().await?;
            let back = before.returned_within(self.patience).await;
            for (witness, curve) in witnesses.iter().zip(&mut outcome.curves) {
                curve.add(round, witness.read().await?);
            }
            outcome.rounds += 1;
            times.add(round, back.map_err(|leaked| Leak::Kept { round, leaked })?);
        }
        for curve in &mut outcome.curves {
            curve.compare(outcome.rounds);
        }
        outcome.median = times.median();
        Ok(())
    }
}

/// How long the counts of some rounds took to return, in bounded memory.
struct Times {
    kept: Vec<Duration>,
    /// Every n-th time is kept; this is n.
    every: u64,
}

impl Times {
    fn new() -> Self {
        Self {
            kept: Vec::with_capacity(2 * TIMES),
            every: 1,
        }
    }

    fn add(&mut self, round: u64, took: Duration) {
        if !round.is_multiple_of(self.every) {
            return;
        }
        if self.kept.len() == 2 * TIMES {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
        self.kept.push(took);
    }

    fn median(mut self) -> Option<Duration> {
        self.kept.sort_unstable();
        self.kept.get(self.kept.len() / 2).copied()
    }
}

/// The result of the rounds.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "a verdict that nobody looks at finds nothing: `assert_no_leak`"]
pub struct Outcome {
    /// The name of the scenario.
    pub name: String,
    /// How many rounds the verdict is about.
    pub rounds: u64,
    /// Whether something had grown, so that the rounds ran again, up to four times as many.
    pub repeated: bool,
    /// The counts of each witness after the rounds, for plots.
    pub curves: Vec<Curve>,
    /// The counts read only before the first round and after the last: the witness, and both counts.
    pub ends: Vec<(String, i64, i64)>,
    /// How long the counts took to return after a round: the median of at least 200 rounds, spread over
    /// all of them, or of all if there are fewer. `None` when the rounds did not end.
    pub median: Option<Duration>,
    /// How long that may take by promise.
    pub promised: Option<Duration>,
    /// What leaked.
    pub leaks: Vec<Leak>,
    /// Where the memory was allocated that the rounds added, the largest part first; empty unless the
    /// program was started with [`HEAP_PROFILE`](crate::HEAP_PROFILE).
    pub stacks: Vec<String>,
}

impl Outcome {
    /// Asserts that nothing leaked.
    ///
    /// # Panics
    /// When something leaked; the message says what, and where it was allocated if that was
    /// [recorded](crate::HEAP_PROFILE).
    #[track_caller]
    pub fn assert_no_leak(&self) {
        let stacks: String = self.stacks.iter().map(|it| format!("\n{it}")).collect();
        assert!(self.leaks.is_empty(), "{self}{stacks}");
    }

    /// The names of the witnesses that noticed a leak.
    pub fn noticed_by(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for leak in &self.leaks {
            match leak {
                Leak::Grew { witness, .. } => names.push(witness.as_str()),
                Leak::Kept {
                    leaked: leaked @ Leaked::Kept { .. },
                    ..
                } => names.extend(leaked.witnesses()),
                // Who cannot count notices nothing.
                Leak::Kept { .. } | Leak::Unreadable(_) | Leak::Hangs { .. } => {}
            }
        }
        names
    }

    /// Whether there were enough rounds, a hundred, for a verdict on growth. With fewer, only what is kept
    /// after a round is found.
    pub const fn tells_growth(&self) -> bool {
        self.rounds >= FEWEST_FOR_GROWTH
    }

    /// What grew in the last series.
    fn growth(&self) -> Vec<Leak> {
        if !self.tells_growth() {
            return Vec::new();
        }
        let grown = self.curves.iter().filter_map(|curve| {
            let Rule::MayNotGrow { slack } = curve.rule else {
                return None;
            };
            let (from, to) = curve.compared?;
            (to > from.saturating_add(slack)).then(|| Leak::Grew {
                witness: curve.witness.clone(),
                from,
                to,
                rounds: self.rounds,
            })
        });
        grown.collect()
    }
}

impl fmt::Display for Outcome {
    /// One line: the name, the number of rounds, and the verdict.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} rounds: ", self.name, self.rounds)?;
        if self.leaks.is_empty() {
            f.write_str("nothing leaks")?;
            if !self.tells_growth() {
                f.write_str(", as far as so few rounds can tell")?;
            }
        }
        for (index, leak) in self.leaks.iter().enumerate() {
            let between = if index == 0 { "" } else { "; " };
            write!(f, "{between}{leak}")?;
        }
        if let Some(median) = self.median {
            write!(f, "; back after {median:.1?}")?;
        }
        if let Some(promised) = self.promised {
            write!(f, " of {promised:?}")?;
        }
        Ok(())
    }
}

/// What the rounds left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leak {
    /// A count did not return after this round.
    Kept {
        /// Which round; how many there were, for what is asked at the end.
        round: u64,
        /// What was kept.
        leaked: Leaked,
    },
    /// A count grows with the rounds.
    Grew {
        /// The name of the witness.
        witness: String,
        /// Its lowest value in the second fifth of the rounds.
        from: i64,
        /// Its lowest value in the last fifth of the rounds.
        to: i64,
        /// How many rounds there were.
        rounds: u64,
    },
    /// A round did not end within a minute.
    Hangs {
        /// Which, the warm-up counted.
        round: u64,
    },
    /// A count cannot be read any more, so nothing is known.
    Unreadable(Unreadable),
}

impl From<Unreadable> for Leak {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

impl fmt::Display for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept { round, leaked } => write!(f, "after round {round}, {leaked}"),
            Self::Grew {
                witness,
                from,
                to,
                rounds,
            } => {
                // From the one fifth to the other.
                let between = (rounds - rounds / 5 - rounds / 5).max(1);
                #[expect(clippy::cast_precision_loss, reason = "for people")]
                let each = (to - from) as f64 / between as f64;
                write!(
                    f,
                    "{witness} grew from {from} to {to} over {rounds} rounds, about {each:.2} a round"
                )
            }
            Self::Hangs { round } => {
                write!(f, "round {round} is not over within {ROUND_WITHIN:?}")
            }
            Self::Unreadable(unreadable) => unreadable.fmt(f),
        }
    }
}
