//! Whether the store holds what etcd holds: now and then, etcd's list at one revision is compared
//! with the state that the store had then, by their digests.
//!
//! The source reads the list page by page and adds it up; the state of that revision is immutable,
//! and is added up here, a slice at a time. Neither holds up a change.

use std::time::Duration;

use driftless_proto::digest::Digest;
use driftless_proto::{Key, KeyRange, Revision};
use rand::Rng;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::store::Snapshot;

/// Entries that are added up at a time: some 50 µs.
const SLICE: usize = 4096;

/// The audits of one prefix.
#[derive(Debug)]
pub(super) struct Audit {
    /// Between two of them, on average; `None` for none at all.
    interval: Option<Duration>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// Until this moment; `None` for ever.
    Waiting(Option<Instant>),
    /// etcd is being read, at the revision of this state.
    Reading(Snapshot),
    /// This state is being added up.
    Adding(Adding),
}

#[derive(Debug)]
struct Adding {
    state: Snapshot,
    sum: Digest,
    after: Option<Key>,
    /// What it should come to.
    etcd: Digest,
}

/// What is to be done about an audit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Begin one.
    Begin,
    /// More of the same.
    GoOn,
    /// It is over: this is the revision, and whether the two were the same.
    Done(Revision, bool),
}

impl Audit {
    pub(super) fn new(interval: Option<Duration>) -> Self {
        let mut audit = Self {
            interval,
            phase: Phase::Waiting(None),
        };
        audit.stop();
        audit
    }

    /// Ends the audit that is under way, if one is, without a result. The next comes after the
    /// interval, half of it more or less: servers that were started together part.
    pub(super) fn stop(&mut self) {
        let next = self
            .interval
            .map(|interval| Instant::now() + interval.mul_f64(rand::rng().random_range(0.5..1.5)));
        self.phase = Phase::Waiting(next);
    }

    /// As [`Audit::stop`], if one is under way.
    pub(super) fn interrupt(&mut self) {
        if !matches!(self.phase, Phase::Waiting(_)) {
            self.stop();
        }
    }

    /// Waits until [`Audit::step`] has something to do.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(super) async fn due(&self) {
        match &self.phase {
            Phase::Waiting(Some(until)) => sleep_until(*until).await,
            Phase::Adding(_) => yield_now().await,
            Phase::Waiting(None) | Phase::Reading(_) => std::future::pending().await,
        }
    }

    /// Does what [`Audit::due`] waited for.
    pub(super) fn step(&mut self, prefix: &KeyRange) -> Step {
        let adding = match &mut self.phase {
            Phase::Waiting(_) => return Step::Begin,
            Phase::Reading(_) => return Step::GoOn,
            Phase::Adding(adding) => adding,
        };
        let mut count = 0;
        let mut last = None;
        let entries = adding.state.entries(prefix, adding.after.as_ref());
        for stored in entries.take(SLICE) {
            adding.sum += stored.hash;
            count += 1;
            last = Some(stored.entry.key.clone());
        }
        adding.after = last;
        if count == SLICE {
            return Step::GoOn;
        }
        let done = Step::Done(adding.state.revision(), adding.sum == adding.etcd);
        self.stop();
        done
    }

    /// etcd is being asked for the digest of this state.
    pub(super) fn begin(&mut self, state: Snapshot) {
        self.phase = Phase::Reading(state);
    }

    /// etcd's digest at this revision; `None` when it cannot say.
    pub(super) fn answered(&mut self, revision: Revision, etcd: Option<Digest>) {
        let Phase::Reading(state) = &self.phase else {
            return;
        };
        // An answer that was on its way when the question was given up.
        if state.revision() != revision {
            return;
        }
        match etcd {
            Some(etcd) => {
                self.phase = Phase::Adding(Adding {
                    state: state.clone(),
                    sum: Digest::EMPTY,
                    after: None,
                    etcd,
                });
            }
            None => self.stop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the first audit comes, in parts of the interval.
    fn first(interval: Duration) -> f64 {
        let Phase::Waiting(Some(until)) = Audit::new(Some(interval)).phase else {
            panic!("it waits");
        };
        (until - Instant::now()).div_duration_f64(interval)
    }

    #[tokio::test(start_paused = true)]
    async fn audits_of_servers_that_were_started_together_part() {
        let first: Vec<f64> = (0..1000).map(|_| first(Duration::from_secs(600))).collect();
        assert!(first.iter().all(|at| (0.5..=1.5).contains(at)), "{first:?}");
        // Each tenth of that time has its share, of a hundred on average.
        let mut tenths = [0; 10];
        for at in first {
            tenths[(((at - 0.5) * 10.0) as usize).min(9)] += 1;
        }
        assert!(tenths.iter().all(|count| *count >= 30), "{tenths:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_interval_there_is_none() {
        assert!(matches!(Audit::new(None).phase, Phase::Waiting(None)));
    }
}
