//! The events of a run in simulated time, and the first broken promise.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::checks::Violation;

/// How many lines before a failure are printed. The cause is rarely longer ago.
const LINES: usize = 120;

/// All hosts of a run write into it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Journal(Arc<Mutex<Inside>>);

#[derive(Debug, Default)]
struct Inside {
    now: Duration,
    lines: Vec<(Duration, String)>,
    broken: Option<(Duration, Violation)>,
}

impl Journal {
    /// The simulated time from now on.
    pub(crate) fn set_now(&self, now: Duration) {
        self.lock().now = now;
    }

    pub(crate) fn note(&self, line: impl fmt::Display) {
        let mut inside = self.lock();
        let now = inside.now;
        inside.lines.push((now, line.to_string()));
    }

    /// Who found something. Only the first counts: what follows may follow from it.
    pub(crate) fn check(&self, who: &str, found: Result<(), Violation>) {
        if let Err(violation) = found {
            let violation = Violation::new(violation.promise, format!("{who}: {}", violation.what));
            let mut inside = self.lock();
            let now = inside.now;
            inside.broken.get_or_insert((now, violation));
        }
    }

    /// Whether anybody found anything.
    pub(crate) fn is_broken(&self) -> bool {
        self.lock().broken.is_some()
    }

    /// What was found.
    pub(crate) fn broken(&self) -> Option<Failure> {
        let inside = self.lock();
        let (at, violation) = inside.broken.clone()?;
        let until = inside.lines.partition_point(|(when, _)| *when <= at);
        let lines = inside.lines[until.saturating_sub(LINES)..until].to_vec();
        Some(Failure {
            at,
            violation,
            lines,
        })
    }

    /// All of it.
    pub(crate) fn lines(&self) -> Vec<(Duration, String)> {
        self.lock().lines.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run in which a promise was not kept.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    at: Duration,
    pub(crate) violation: Violation,
    lines: Vec<(Duration, String)>,
}

impl fmt::Display for Failure {
    /// What and when, and what happened before.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "after {:.3} s: {}",
            self.at.as_secs_f64(),
            self.violation
        )?;
        writeln!(f, "what happened up to then:")?;
        for (at, line) in &self.lines {
            writeln!(f, "{:>9.3}  {line}", at.as_secs_f64())?;
        }
        Ok(())
    }
}
