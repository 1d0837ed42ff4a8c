//! The jobs that compute deltas: off the threads that serve, few at a time, owned by ingest.
//!
//! Changes are held back for a job no longer than [`WITHIN`], whatever becomes of it: it ran, it
//! panicked, or others kept it from its turn. A job ends with its [`Jobs`]; one that runs already
//! sees that between two values.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::apply::Edit;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::compute;
use crate::encode;
use crate::fanout::Unsettled;
use crate::metrics::{Held, Metrics};
use crate::store::{Base, Batch, Patch};

/// How many jobs run at a time in a server. They are short, and the cores are for serving.
const RUNNING: usize = 2;

/// How long one job looks for deltas. The values that it does not get to travel whole.
const TIME: Duration = Duration::from_millis(100);

/// How long changes may be held back for their deltas: far above what a job takes, so that it is
/// reached only where jobs do not get their turn.
pub(crate) const WITHIN: Duration = Duration::from_millis(250);

/// What the jobs of a server share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Deltas {
    running: Arc<Semaphore>,
    metrics: Metrics,
    /// Held by a test that wants jobs to wait, and set by one that wants them to panic.
    #[cfg(test)]
    pub(crate) gate: Arc<tokio::sync::Mutex<bool>>,
}

impl Deltas {
    /// With nothing running.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            running: Arc::new(Semaphore::new(RUNNING)),
            metrics,
            #[cfg(test)]
            gate: Arc::default(),
        }
    }

    /// Looks for the deltas of a batch, until it is cancelled.
    pub(crate) fn run(
        &self,
        batch: &Batch,
        bases: &[Base],
        cancelled: &CancellationToken,
    ) -> Vec<Patch> {
        let until = std::time::Instant::now() + TIME;
        let mut patches = Vec::new();
        for base in bases {
            let Some(Edit::Put(entry)) = batch.changes.get(base.change).map(|change| &change.edit)
            else {
                continue;
            };
            let old = &base.old.entry;
            match compute(&old.value, &entry.value, until) {
                Some(ops) => {
                    self.metrics.deltas_computed.inc();
                    self.metrics.changes_encoded.inc();
                    patches.push(Patch {
                        change: base.change,
                        encoded: encode::patch(entry, old.mod_revision, ops),
                    });
                }
                None => drop(self.metrics.deltas_dropped.inc()),
            }
            if cancelled.is_cancelled() || std::time::Instant::now() >= until {
                break;
            }
        }
        patches
    }
}

/// The jobs of one prefix. They end with it.
#[derive(Debug)]
pub struct Jobs {
    deltas: Deltas,
    tasks: JoinSet<Vec<Patch>>,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    until: Instant,
    job: AbortHandle,
    unsettled: Unsettled,
}

impl Jobs {
    /// None yet.
    pub fn new(deltas: Deltas) -> Self {
        Self {
            deltas,
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Starts the job for this, or puts it in line.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&mut self, mut unsettled: Unsettled) {
        let (batch, bases) = unsettled.take_work();
        let deltas = self.deltas.clone();
        let job = self.tasks.spawn(async move {
            let cancelled = CancellationToken::new();
            let _cancels = cancelled.clone().drop_guard();
            // The semaphore is never closed.
            let Ok(turn) = Arc::clone(&deltas.running).acquire_owned().await else {
                return Vec::new();
            };
            let holding = (turn, Held::new(&deltas.metrics.delta_jobs));
            let job = spawn_blocking(move || {
                let _holding = holding;
                #[cfg(test)]
                assert!(!*deltas.gate.blocking_lock(), "a test wants this");
                deltas.run(&batch, &bases, &cancelled)
            });
            // Should it panic, which the panic hook tells of, the values travel whole.
            job.await.unwrap_or_default()
        });
        self.waiting.push_back(Waiting {
            until: Instant::now() + WITHIN,
            job,
            unsettled,
        });
    }

    /// Waits for the next job that is over, or need not be waited for any longer: what it was for,
    /// and what it found.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn settled(&mut self) -> (Unsettled, Vec<Patch>) {
        loop {
            let until = self.waiting.front().map(|first| first.until);
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, patches) = match ended {
                        Ok((id, patches)) => (id, patches),
                        Err(error) => (error.id(), Vec::new()),
                    };
                    // One that was aborted is not waited for.
                    let at = self.waiting.iter().position(|waiting| waiting.job.id() == id);
                    if let Some(waiting) = at.and_then(|at| self.waiting.remove(at)) {
                        return (waiting.unsettled, patches);
                    }
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if let Some(waiting) = self.waiting.pop_front() {
                        waiting.job.abort();
                        self.deltas.metrics.deltas_late.inc();
                        return (waiting.unsettled, Vec::new());
                    }
                }
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::Revision;
    use driftless_proto::digest::Digest;

    use super::*;
    use crate::store::{Change, Stored};
    use crate::testing::entry;

    /// More values than any machine looks at in that time.
    #[test]
    fn a_job_that_takes_long_ends_with_what_it_found() {
        const VALUES: usize = 200_000;
        let mut lines: Vec<String> = (0..1000).map(|n| format!("line {n}\n")).collect();
        let old = entry("/c/a", lines.concat(), 1);
        lines[500] = "another line\n".to_owned();
        let put = Edit::Put(entry("/c/a", lines.concat(), 2));
        let (from, to) = (Revision::new(1), Revision::new(2));
        let change = Change::new(put, Digest::EMPTY);
        let batch = Batch::new(from, to, false, 0, vec![change]);
        let old = Arc::new(Stored::new(old));
        let bases: Vec<Base> = (0..VALUES)
            .map(|_| Base {
                change: 0,
                old: Arc::clone(&old),
            })
            .collect();
        let deltas = Deltas::new(Metrics::new());
        let patches = deltas.run(&batch, &bases, &CancellationToken::new());
        assert!((1..VALUES).contains(&patches.len()), "{}", patches.len());
    }
}
