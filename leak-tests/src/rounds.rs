//! Runs something many times, and finds what is kept after a round and what grows with the rounds.

use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::baseline::{Baseline, RETURN_WITHIN};
use crate::curve::Curve;
use crate::heap::Heap;
use crate::outcome::{Leak, Outcome};
use crate::witness::{Rule, Witnesses};
use crate::{Allocated, Threads};

/// How many rounds run before anything is counted: in these, allocators, runtimes and tables reach their
/// size.
const WARM_UP: u64 = 50;

/// The warm-up takes at most this fraction of the budget: a quarter.
const WARM_UP_FRACTION: u32 = 4;

/// The fewest rounds: with fewer there are no fifths to compare.
const MIN_ROUNDS: u64 = 5;

/// The fewest rounds for a verdict on growth: in fewer, bounded buffers are still filling up, such as a
/// connection's table of headers.
pub(crate) const MIN_ROUNDS_FOR_GROWTH: u64 = 100;

/// How many times as many rounds follow when something grew. A table that doubled once does not double again
/// between the compared fifths of these rounds, but a leak keeps growing.
const REPEAT_FACTOR: u64 = 4;

/// A repeat with a budget may take as long as the budget, and at least this long: in few rounds, a table that
/// doubled once could double again.
const REPEAT_WITHIN: Duration = Duration::from_secs(60);

/// How many more threads are not a leak: a runtime's blocking pool starts and ends threads by itself.
const POOL_SLACK: i64 = 8;

/// How many times are kept at least, spread over all rounds. Twice as many are kept at most.
const MIN_TIMES: usize = 200;

/// How long a round may take. A round that hangs fails with its number. The limit is generous, so that no
/// slow machine reaches it.
pub(crate) const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// This many rounds of something that should leave nothing behind; [`Rounds::run`] runs them.
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
        count: count.max(MIN_ROUNDS),
        warm_up: WARM_UP,
        budget: None,
        return_within: RETURN_WITHIN,
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
    return_within: Duration,
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

    /// Runs no more rounds than this, and at least five.
    pub fn at_most(mut self, rounds: u64) -> Self {
        self.count = self.count.min(rounds).max(MIN_ROUNDS);
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
    pub const fn return_within(mut self, limit: Duration) -> Self {
        self.return_within = limit;
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

    /// Reads these witnesses only before the first round and after the last one, because they are too slow
    /// for each round. Replaces those that were given before.
    pub fn at_the_end(mut self, witnesses: Witnesses) -> Self {
        self.at_the_end = witnesses;
        self
    }

    /// How soon after a round the code under test promises that the counts return. The report shows it
    /// beside the measured median. It never fails a test, because times depend on the machine.
    pub const fn promised(mut self, within: Duration) -> Self {
        self.promised = Some(within);
        self
    }

    /// Runs the rounds: calls `round` with 0, 1, 2, …, and waits after each for the counts to return.
    ///
    /// A count that [returns](Rule::Returns) must do so after each round in
    /// [time](Self::return_within); the first round after which it does not ends the run.
    /// From a hundred rounds on, a count that [may not grow](Rule::MayNotGrow) is judged by its minima in
    /// the second and in the last fifth of the rounds. If it grew, four times as many rounds follow, or as
    /// many as there is [time](Self::within) for, and the verdict is about those.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Dropping it drops the current round's future.
    pub async fn run(self, mut round: impl AsyncFnMut(u64)) -> Outcome {
        let Self {
            name,
            count,
            warm_up,
            budget,
            return_within,
            only,
            without_bytes,
            more,
            at_the_end,
            promised,
        } = self;
        let mut unreadable = None;
        let witnesses = only.unwrap_or_else(|| {
            let witnesses = all_but_bytes();
            match Allocated::by_jemalloc() {
                _ if without_bytes => witnesses,
                Ok(allocated) => witnesses.and(allocated),
                Err(error) => {
                    unreadable = Some(error);
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
            leaks: unreadable.map(Leak::Unreadable).into_iter().collect(),
            stacks: Vec::new(),
        };
        let mut started = 0;
        let mut run_next = async || {
            let number = started;
            started += 1;
            let done = timeout(ROUND_WITHIN, round(number)).await;
            done.map_err(|_| Leak::Hangs { round: number })
        };
        let plan = Plan {
            witnesses,
            at_the_end,
            warm_up,
            budget,
            return_within,
        };
        if let Err(leak) = plan.measure(count, &mut outcome, &mut run_next).await {
            outcome.leaks.push(leak);
        }
        outcome
    }
}

/// The default witnesses, without allocated bytes.
fn all_but_bytes() -> Witnesses {
    Witnesses::of_the_process()
        .and(Threads::but_the_runtimes())
        .and(Threads::all().with_slack(POOL_SLACK))
}

/// What to read, and for how long to run.
struct Plan {
    witnesses: Witnesses,
    at_the_end: Witnesses,
    warm_up: u64,
    budget: Option<Duration>,
    return_within: Duration,
}

impl Plan {
    /// Runs the warm-up, then the rounds, and the rounds again if something grew.
    async fn measure(
        &self,
        count: u64,
        outcome: &mut Outcome,
        run_next: &mut impl AsyncFnMut() -> Result<(), Leak>,
    ) -> Result<(), Leak> {
        let start = Instant::now();
        for _ in 0..self.warm_up {
            run_next().await?;
            let took_its_part = |budget| start.elapsed() >= budget / WARM_UP_FRACTION;
            if self.budget.is_some_and(took_its_part) {
                break;
            }
        }
        let slow_before = self.at_the_end.baseline().await?;
        let returning = self.witnesses.that(|rule| rule == Rule::Returns);
        let before = returning.baseline().await?;
        let deadline = self.budget.map(|budget| start + budget);
        let mut heap = Heap::now();
        let rounds = MIN_ROUNDS..=count;
        self.run_rounds(outcome, rounds, deadline, &before, run_next)
            .await?;
        if !outcome.growth().is_empty() {
            outcome.repeated = true;
            // With fewer there would be no verdict on growth, and a leak would pass.
            let rounds = MIN_ROUNDS_FOR_GROWTH..=outcome.rounds.saturating_mul(REPEAT_FACTOR);
            let now = Instant::now();
            let deadline = self.budget.map(|budget| now + budget.max(REPEAT_WITHIN));
            heap = Heap::now();
            self.run_rounds(outcome, rounds, deadline, &before, run_next)
                .await?;
        }
        // Also if there were too few rounds for a verdict: the profile was asked for.
        if let Some((before, after)) = heap.zip(Heap::now()) {
            outcome.stacks = after.grown_since(&before);
        }
        let growth = outcome.growth();
        outcome.leaks.extend(growth);
        let back = slow_before.returned_within(self.return_within).await;
        for (witness, before) in self.at_the_end.iter().zip(slow_before.counts()) {
            let ends = (witness.name().to_owned(), before, witness.read().await?);
            outcome.ends.push(ends);
        }
        back.map_err(|leaked| Leak::Kept {
            round: outcome.rounds,
            leaked,
        })?;
        Ok(())
    }

    /// Runs rounds: at most the upper of these numbers, fewer if the deadline passes, and at least the lower.
    /// It allocates what it keeps before the first round, so that its own memory does not count as growth.
    async fn run_rounds(
        &self,
        outcome: &mut Outcome,
        rounds: RangeInclusive<u64>,
        deadline: Option<Instant>,
        before: &Baseline,
        run_next: &mut impl AsyncFnMut() -> Result<(), Leak>,
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
            run_next().await?;
            let back = before.returned_within(self.return_within).await;
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

/// How long the counts took to return after some of the rounds, in bounded memory.
struct Times {
    kept: Vec<Duration>,
    /// Every n-th time is kept; this is n.
    every: u64,
}

impl Times {
    fn new() -> Self {
        Self {
            kept: Vec::with_capacity(2 * MIN_TIMES),
            every: 1,
        }
    }

    fn add(&mut self, round: u64, took: Duration) {
        if !round.is_multiple_of(self.every) {
            return;
        }
        if self.kept.len() == 2 * MIN_TIMES {
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
