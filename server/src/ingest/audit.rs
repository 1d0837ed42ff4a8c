//! Audits: checks now and then that the store holds what etcd holds, by the digests of both at one
//! revision.
//!
//! The source reads etcd's list page by page and adds up its digest. The state of that revision is
//! immutable, and is added up here, a slice at a time. Neither delays a change.

use std::time::Duration;

use driftless_proto::digest::Digest;
use driftless_proto::{Key, KeyRange, Revision};
use rand::Rng;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::store::Snapshot;

/// How many entries are added up at a time: some 50 µs.
const SLICE: usize = 4096;

/// The audits of one prefix.
#[derive(Debug)]
pub(super) struct Audit {
    /// Average time between two audits; `None` for no audits.
    interval: Option<Duration>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    /// The next audit starts at this time; `None` for never.
    Waiting(Option<Instant>),
    /// The source reads etcd at the revision of this state.
    Reading(Snapshot),
    /// The digest of this state is being added up.
    Adding(Adding),
}

#[derive(Debug)]
struct Adding {
    state: Snapshot,
    sum: Digest,
    after: Option<Key>,
    /// etcd's digest, which the sum should equal.
    etcd: Digest,
}

/// What the caller has to do about an audit.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask the source for etcd's digest, and call [`Audit::begin`].
    Begin,
    /// Nothing; there is more to do.
    Continue,
    /// The audit of this revision ended; true if the digests are equal.
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

    /// Ends the audit under way, if there is one, without a result. The next one starts after the
    /// interval, up to half of it earlier or later, so that servers started together spread out.
    pub(super) fn stop(&mut self) {
        let next = self
            .interval
            .map(|interval| Instant::now() + interval.mul_f64(rand::rng().random_range(0.5..1.5)));
        self.phase = Phase::Waiting(next);
    }

    /// As [`Audit::stop`], but only if an audit is under way.
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
            Phase::Reading(_) => return Step::Continue,
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
            return Step::Continue;
        }
        let done = Step::Done(adding.state.revision(), adding.sum == adding.etcd);
        self.stop();
        done
    }

    /// The source was asked for etcd's digest at the revision of this state.
    pub(super) fn begin(&mut self, state: Snapshot) {
        self.phase = Phase::Reading(state);
    }

    /// Takes etcd's digest at this revision; `None` if it cannot be read.
    pub(super) fn answered(&mut self, revision: Revision, etcd: Option<Digest>) {
        let Phase::Reading(state) = &self.phase else {
            return;
        };
        // A late answer to a request that was given up.
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

    /// When the first audit starts, in parts of the interval.
    fn first(interval: Duration) -> f64 {
        let Phase::Waiting(Some(until)) = Audit::new(Some(interval)).phase else {
            panic!("it should wait");
        };
        (until - Instant::now()).div_duration_f64(interval)
    }

    #[tokio::test(start_paused = true)]
    async fn audits_of_servers_started_together_spread_out() {
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
    async fn no_interval_means_no_audits() {
        assert!(matches!(Audit::new(None).phase, Phase::Waiting(None)));
    }
}
