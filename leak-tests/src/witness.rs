//! What a witness is: something that counts, apart from the code under test.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::baseline::{Baseline, STEADY_LOOKS};
use crate::{Descriptors, Tasks};

/// What a count promises about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It is again exactly what it was, after everything that was made is dropped.
    Returns,
    /// It may come and go, and does not grow: beside a [`Baseline`] it is at most so much above what
    /// it was, and over [rounds](crate::rounds()) its lowest values are.
    MayNotGrow {
        /// How much is not called growth, in the witness's unit.
        slack: i64,
    },
}

/// A count in the making.
pub type Reading<'a> = Pin<Box<dyn Future<Output = Result<i64, Unreadable>> + Send + 'a>>;

/// Something that counts what may leak: tasks, descriptors, bytes, another process's gauges.
///
/// What is at hand needs no implementation: see [`gauge`].
pub trait Witness: Send + Sync {
    /// What it counts, in the plural: verdicts and plots are named after it.
    fn name(&self) -> &str;

    /// The rule for the count. Default: [`Rule::Returns`].
    fn rule(&self) -> Rule {
        Rule::Returns
    }

    /// The count now.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    fn read(&self) -> Reading<'_>;

    /// What there is now, where that says more than a number: a verdict quotes it. Default: nothing.
    fn details(&self) -> Option<String> {
        None
    }
}

/// A count could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{witness} cannot be counted: {why}")]
pub struct Unreadable {
    /// The name of the witness.
    pub witness: String,
    /// What went wrong, and what to do.
    pub why: String,
}

impl Unreadable {
    pub(crate) fn new(witness: &str, why: impl Into<String>) -> Self {
        Self {
            witness: witness.to_owned(),
            why: why.into(),
        }
    }
}

/// A reading that is there already.
pub(crate) fn counted<'a>(count: Result<i64, Unreadable>) -> Reading<'a> {
    Box::pin(std::future::ready(count))
}

/// A count of this process's own, such as a gauge of the code under test. Its rule is
/// [`Rule::Returns`].
///
/// ```
/// use std::sync::Arc;
///
/// let shared = Arc::new(());
/// let held = Arc::clone(&shared);
/// let handles = leak_tests::gauge("handles", move || Arc::strong_count(&held) as i64);
/// # let _ = handles;
/// ```
pub fn gauge(
    name: impl Into<String>,
    count: impl Fn() -> i64 + Send + Sync + 'static,
) -> impl Witness + 'static {
    Gauge {
        name: name.into(),
        rule: Rule::Returns,
        count,
    }
}

/// As [`gauge`], for a count that may come and go, and does not grow by more than `slack`.
pub fn bounded_gauge(
    name: impl Into<String>,
    slack: i64,
    count: impl Fn() -> i64 + Send + Sync + 'static,
) -> impl Witness + 'static {
    Gauge {
        name: name.into(),
        rule: Rule::MayNotGrow { slack },
        count,
    }
}

struct Gauge<F> {
    name: String,
    rule: Rule,
    count: F,
}

impl<F: Fn() -> i64 + Send + Sync> Witness for Gauge<F> {
    fn name(&self) -> &str {
        &self.name
    }

    fn rule(&self) -> Rule {
        self.rule
    }

    fn read(&self) -> Reading<'_> {
        counted(Ok((self.count)()))
    }
}

/// Witnesses that are asked together, in the order in which they were named: the cheap and the near
/// ones first. Cheap to clone.
#[derive(Clone, Default)]
pub struct Witnesses(Arc<Vec<Arc<dyn Witness>>>);

impl Witnesses {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// What any test can ask: the [tasks](Tasks) of this runtime and the [descriptors](Descriptors)
    /// of this process.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn of_the_process() -> Self {
        Self::new().and(Tasks::here()).and(Descriptors::all())
    }

    /// These and one more.
    #[must_use = "witnesses that are not asked see nothing"]
    pub fn and(mut self, witness: impl Witness + 'static) -> Self {
        Arc::make_mut(&mut self.0).push(Arc::new(witness));
        self
    }

    /// These and those.
    #[must_use = "witnesses that are not asked see nothing"]
    pub fn and_all(mut self, others: impl IntoIterator<Item = impl Witness + 'static>) -> Self {
        for other in others {
            self = self.and(other);
        }
        self
    }

    /// These and the others.
    #[must_use = "witnesses that are not asked see nothing"]
    pub fn and_those_of(mut self, others: &Self) -> Self {
        Arc::make_mut(&mut self.0).extend(others.iter().cloned());
        self
    }

    /// What they count now, once it has held still for some looks in a row. What never holds still
    /// is taken as it is after [`RETURN_WITHIN`](crate::RETURN_WITHIN).
    ///
    /// # Errors
    /// When a count cannot be had.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn baseline(&self) -> Result<Baseline, Unreadable> {
        Baseline::take(self.clone(), STEADY_LOOKS).await
    }

    /// What each counts now, in order.
    ///
    /// # Errors
    /// When a count cannot be had.
    ///
    /// # Cancel safety
    /// Cancel-safe: it only reads.
    pub async fn read(&self) -> Result<Vec<i64>, Unreadable> {
        let mut counts = Vec::with_capacity(self.0.len());
        for witness in self.iter() {
            counts.push(witness.read().await?);
        }
        Ok(counts)
    }

    /// Each of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Arc<dyn Witness>> {
        self.0.iter()
    }

    /// Those that keep to a rule of this kind.
    pub(crate) fn that(&self, keep: impl Fn(Rule) -> bool) -> Self {
        let kept = self.iter().filter(|witness| keep(witness.rule()));
        Self(Arc::new(kept.cloned().collect()))
    }
}

impl fmt::Debug for Witnesses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.iter().map(|witness| witness.name());
        f.debug_list().entries(names).finish()
    }
}
