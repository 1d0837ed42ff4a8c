//! The counts before something was done, and the verdict on the counts after it.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::witness::{Rule, Unreadable, Witnesses};

/// How long a count may take to return: 5 s. Generous on purpose: a slow machine must not fail a
/// test, and a leak never returns.
pub const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// Between two looks at a count that did not return at once.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// How many looks come first without a pause, with a yield to other tasks between them. Most counts
/// return at once; a pause in each of ten thousand rounds would take most of the time.
const LOOKS_AT_ONCE: usize = 32;

/// How many looks in a row must agree before they are a baseline. What ends by itself after a start
/// has a few milliseconds for it.
pub(crate) const STEADY_LOOKS: usize = 20;

/// The counts before something was done. Take it when everything is warm: see
/// [`Witnesses::baseline`].
#[derive(Clone, Debug)]
pub struct Baseline {
    witnesses: Witnesses,
    before: Vec<i64>,
}

impl Baseline {
    /// Waits until enough looks in a row agree.
    pub(crate) async fn take(witnesses: Witnesses, steady: usize) -> Result<Self, Unreadable> {
        let start = Instant::now();
        let mut before = witnesses.read().await?;
        let mut same = 1;
        while same < steady && start.elapsed() < RETURN_WITHIN {
            sleep(LOOK_EVERY).await;
            let now = witnesses.read().await?;
            same = if now == before { same + 1 } else { 1 };
            before = now;
        }
        Ok(Self { witnesses, before })
    }

    /// The count of the witness with this name.
    pub fn before(&self, name: &str) -> Option<i64> {
        let mut all = self.witnesses.iter().zip(&self.before);
        let found = all.find(|(witness, _)| witness.name() == name);
        found.map(|(_, before)| *before)
    }

    /// The counts of all witnesses, in the order in which they were given.
    pub(crate) fn counts(&self) -> impl Iterator<Item = i64> {
        self.before.iter().copied()
    }

    /// Waits until every count has returned, and returns how long that took. A count that may not grow
    /// has returned when it is at most its slack above the baseline.
    ///
    /// # Errors
    /// When one has not returned after [`RETURN_WITHIN`], or cannot be read any more.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn returned(&self) -> Result<Duration, Leaked> {
        self.returned_within(RETURN_WITHIN).await
    }

    /// As [`Baseline::returned`], with another deadline.
    ///
    /// # Errors
    /// When a count has not returned in time, or cannot be read any more.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn returned_within(&self, limit: Duration) -> Result<Duration, Leaked> {
        let start = Instant::now();
        let mut looks = 0;
        while !self.is_back().await? {
            if start.elapsed() > limit {
                // They may have returned in this moment.
                let differences = self.differences().await?;
                return if differences.is_empty() {
                    Ok(start.elapsed())
                } else {
                    Err(Leaked::Kept { limit, differences })
                };
            }
            looks += 1;
            if looks < LOOKS_AT_ONCE {
                tokio::task::yield_now().await;
            } else {
                sleep(LOOK_EVERY).await;
            }
        }
        Ok(start.elapsed())
    }

    /// Whether all have returned; stops at the first that has not.
    async fn is_back(&self) -> Result<bool, Unreadable> {
        for (witness, before) in self.witnesses.iter().zip(&self.before) {
            if !keeps(witness.rule(), *before, witness.read().await?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn differences(&self) -> Result<Vec<Difference>, Unreadable> {
        let mut differences = Vec::new();
        for (witness, before) in self.witnesses.iter().zip(&self.before) {
            let after = witness.read().await?;
            if !keeps(witness.rule(), *before, after) {
                differences.push(Difference {
                    witness: witness.name().to_owned(),
                    before: *before,
                    after,
                    details: witness.details(),
                });
            }
        }
        Ok(differences)
    }
}

const fn keeps(rule: Rule, before: i64, after: i64) -> bool {
    match rule {
        Rule::Returns => after == before,
        Rule::MayNotGrow { slack } => after <= before.saturating_add(slack),
    }
}

/// A count that differs from the baseline.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The name of the witness.
    pub witness: String,
    /// The count before.
    pub before: i64,
    /// The count in the end.
    pub after: i64,
    /// What was counted in the end, if the witness can list it.
    pub details: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            witness,
            before,
            after,
            details,
        } = self;
        write!(f, "{witness}: {before} before and {after} after")?;
        match details {
            Some(details) => write!(f, " ({details})"),
            None => Ok(()),
        }
    }
}

/// Something was kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Leaked {
    /// These counts did not return.
    Kept {
        /// How long they were waited for.
        limit: Duration,
        /// Which counts, before and after.
        differences: Vec<Difference>,
    },
    /// A count cannot be read any more, so nothing is known.
    Unreadable(Unreadable),
}

impl Leaked {
    /// The names of the witnesses that noticed.
    pub fn witnesses(&self) -> Vec<&str> {
        match self {
            Self::Kept { differences, .. } => {
                let noticed = differences.iter();
                noticed.map(|found| found.witness.as_str()).collect()
            }
            Self::Unreadable(unreadable) => vec![&unreadable.witness],
        }
    }
}

impl From<Unreadable> for Leaked {
    fn from(unreadable: Unreadable) -> Self {
        Self::Unreadable(unreadable)
    }
}

impl fmt::Display for Leaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept { limit, differences } => {
                write!(f, "not back after {limit:?}: ")?;
                for (index, difference) in differences.iter().enumerate() {
                    let between = if index == 0 { "" } else { "; " };
                    write!(f, "{between}{difference}")?;
                }
                Ok(())
            }
            Self::Unreadable(unreadable) => unreadable.fmt(f),
        }
    }
}

impl std::error::Error for Leaked {}
