//! The verdict on rounds: what leaked, and what the witnesses counted.

use std::fmt;
use std::time::Duration;

use crate::baseline::Leaked;
use crate::curve::Curve;
use crate::rounds::{MIN_ROUNDS_FOR_GROWTH, ROUND_WITHIN};
use crate::witness::{Rule, Unreadable};

/// The result of the rounds.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[must_use = "call `assert_no_leak`, or a leak goes unnoticed"]
pub struct Outcome {
    /// The name of the scenario.
    pub name: String,
    /// How many rounds the verdict is about.
    pub rounds: u64,
    /// Whether something grew, so that the rounds ran again, up to four times as many.
    pub repeated: bool,
    /// The counts of each witness after the rounds, for plots.
    pub curves: Vec<Curve>,
    /// The counts read only before the first round and after the last: the witness, and both counts.
    pub ends: Vec<(String, i64, i64)>,
    /// How long the counts took to return after a round: the median of at least 200 rounds, spread over
    /// all of them, or of all if there are fewer. `None` if the rounds did not finish.
    pub median: Option<Duration>,
    /// How long that should take by promise; see [`Rounds::promised`](crate::Rounds::promised).
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
                // A witness that cannot be read notices nothing.
                Leak::Kept { .. } | Leak::Unreadable(_) | Leak::Hangs { .. } => {}
            }
        }
        names
    }

    /// Whether there were enough rounds, a hundred, for a verdict on growth. With fewer, only what is kept
    /// after a round is found.
    pub const fn can_judge_growth(&self) -> bool {
        self.rounds >= MIN_ROUNDS_FOR_GROWTH
    }

    /// What grew in the last run of the rounds.
    pub(crate) fn growth(&self) -> Vec<Leak> {
        if !self.can_judge_growth() {
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
            if !self.can_judge_growth() {
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
        /// Which round. For a witness that is read only at the end: how many rounds there were.
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
        /// Which round; those of the warm-up count too.
        round: u64,
    },
    /// A count cannot be read any more, so there is no verdict.
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
                // The rounds from the second fifth to the last.
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
