//! Jobs that compute deltas: off the threads that serve, few at a time, owned by ingest.
//!
//! A caller waits for a job no longer than [`WITHIN`], whether it ran, panicked, or got no permit to
//! run. A job ends with its [`Jobs`]; one that runs already checks for that between two values.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::v1::DeltaOp;
use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet, spawn_blocking};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::compute;
use crate::metrics::{GaugeGuard, Metrics};

/// How many jobs run at a time in a server. They are short, and the cores are for serving.
const RUNNING: usize = 2;

/// How long one job searches for deltas. Values that it does not reach get none.
const TIME: Duration = Duration::from_millis(100);

/// How long changes may be held back for their deltas: far above what a job takes, so that it is
/// reached only where jobs do not get to run.
pub(crate) const WITHIN: Duration = Duration::from_millis(250);

/// The values to compute one delta for.
#[derive(Clone, Debug)]
pub struct ValuePair {
    /// The value that the delta is applied to.
    pub old: Bytes,
    /// The value that the delta makes.
    pub new: Bytes,
}

/// What the jobs of a server share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct JobPool {
    running: Arc<Semaphore>,
    metrics: Metrics,
    /// Locked by a test that wants jobs to wait, and set by one that wants them to panic.
    #[cfg(test)]
    pub(crate) gate: Arc<tokio::sync::Mutex<bool>>,
}

impl JobPool {
    /// A pool with no jobs.
    pub fn new(metrics: Metrics) -> Self {
        Self {
            running: Arc::new(Semaphore::new(RUNNING)),
            metrics,
            #[cfg(test)]
            gate: Arc::default(),
        }
    }

    /// Computes the deltas of one job until it is cancelled or its time is over. `encode` gets each
    /// delta with the index of its pair.
    pub(crate) fn run<P>(
        &self,
        pairs: &[ValuePair],
        encode: impl Fn(usize, Vec<DeltaOp>) -> Option<P>,
        cancelled: &CancellationToken,
    ) -> Vec<P> {
        let until = std::time::Instant::now() + TIME;
        let mut patches = Vec::new();
        for (index, pair) in pairs.iter().enumerate() {
            match compute(&pair.old, &pair.new, until) {
                Some(ops) => {
                    self.metrics.deltas_computed.inc();
                    patches.extend(encode(index, ops));
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

/// The jobs of one prefix. They end with it. `T` is what the caller wants back with a job's result,
/// `P` an encoded delta.
#[derive(Debug)]
pub struct Jobs<T, P> {
    pool: JobPool,
    tasks: JoinSet<Vec<P>>,
    /// In the order in which they were started.
    waiting: VecDeque<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    until: Instant,
    job: AbortHandle,
    ticket: T,
}

impl<T, P: Send + 'static> Jobs<T, P> {
    /// No jobs yet.
    pub fn new(pool: JobPool) -> Self {
        Self {
            pool,
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Starts a job, or queues it. `encode` is called on the job's thread, with each delta and the
    /// index of its pair. [`Jobs::next`] returns the ticket with the results.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        &mut self,
        ticket: T,
        pairs: Vec<ValuePair>,
        encode: impl Fn(usize, Vec<DeltaOp>) -> Option<P> + Send + 'static,
    ) {
        let pool = self.pool.clone();
        let job = self.tasks.spawn(async move {
            let cancelled = CancellationToken::new();
            let _cancels = cancelled.clone().drop_guard();
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&pool.running).acquire_owned().await else {
                return Vec::new();
            };
            let holding = (permit, GaugeGuard::new(&pool.metrics.delta_jobs));
            let job = spawn_blocking(move || {
                let _holding = holding;
                #[cfg(test)]
                assert!(!*pool.gate.blocking_lock(), "a test wants this");
                pool.run(&pairs, encode, &cancelled)
            });
            // If it panics, which the panic hook reports, there are no deltas.
            job.await.unwrap_or_default()
        });
        self.waiting.push_back(Waiting {
            until: Instant::now() + WITHIN,
            job,
            ticket,
        });
    }

    /// Waits for the next job that ended, or that is not waited for any longer. Returns its ticket
    /// and what it found.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn next(&mut self) -> (T, Vec<P>) {
        loop {
            let until = self.waiting.front().map(|first| first.until);
            tokio::select! {
                biased;
                Some(ended) = self.tasks.join_next_with_id() => {
                    let (id, patches) = match ended {
                        Ok((id, patches)) => (id, patches),
                        Err(error) => (error.id(), Vec::new()),
                    };
                    // An aborted job is not waited for.
                    let at = self.waiting.iter().position(|waiting| waiting.job.id() == id);
                    if let Some(waiting) = at.and_then(|at| self.waiting.remove(at)) {
                        return (waiting.ticket, patches);
                    }
                }
                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {
                    if let Some(waiting) = self.waiting.pop_front() {
                        waiting.job.abort();
                        self.pool.metrics.deltas_late.inc();
                        return (waiting.ticket, Vec::new());
                    }
                }
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are more values than any machine compares in that time.
    #[test]
    fn job_out_of_time_keeps_what_it_found() {
        const VALUES: usize = 200_000;
        let mut lines: Vec<String> = (0..1000).map(|n| format!("line {n}\n")).collect();
        let old = Bytes::from(lines.concat());
        lines[500] = "another line\n".to_owned();
        let new = Bytes::from(lines.concat());
        let pairs = vec![ValuePair { old, new }; VALUES];
        let pool = JobPool::new(Metrics::new());
        let found = pool.run(&pairs, |index, _| Some(index), &CancellationToken::new());
        assert!((1..VALUES).contains(&found.len()), "{}", found.len());
    }
}
