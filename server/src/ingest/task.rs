//! The task: one loop that takes updates, and what it owns.

use std::time::Duration;

use tokio::pin;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::audit::{Audit, Step};
use super::backfill_driver::backfill_due;
use super::handle::Handle;
use crate::backfill::{self, Backfill};
use crate::delta::{JobPool, Jobs};
use crate::fanout::Publisher;
use crate::source::{Proof, Source, Update};
use crate::store::{Replaced, Writer};

/// Limits of the ingest loop.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Average time between two comparisons of the state with etcd's; `None` for no audits.
    pub audit_interval: Option<Duration>,
    /// What the jobs of all prefixes share.
    pub jobs: JobPool,
}

/// Runs until it is dropped. `handle` is the one that streams use; `source` receives its requests.
pub(crate) async fn run(
    mut source: impl Source,
    handle: Handle,
    publisher: Publisher,
    limits: Limits,
) {
    let requests = handle.backfill.clone();
    let mut ingest = Ingest {
        publisher,
        handle,
        writer: None,
        lost: false,
        backfill: Backfill::new(),
        audit: Audit::new(limits.audit_interval),
    };
    let mut jobs = Jobs::new(limits.jobs);
    loop {
        // The source's future is not cancel-safe, so it is polled to its end while the timers run.
        let next = source.next();
        pin!(next);
        let update = loop {
            tokio::select! {
                update = &mut next => break update,
                () = until(ingest.publisher.due()) => ingest.publisher.tick(),
                reaches = requests.taken() => ingest.backfill_requested(reaches),
                () = backfill_due(&ingest.backfill) => ingest.backfill_due(),
                () = ingest.audit.due() => ingest.audit(),
                (pending, patches) = jobs.next() => ingest.publisher.resolve(pending, patches),
            }
        };
        ingest.take(update);
        // A source that always has an update ready would win every select.
        ingest.publisher.tick();
        for mut pending in ingest.publisher.take_pending() {
            let (pairs, encoder) = pending.take_work();
            let metrics = ingest.publisher.metrics().clone();
            jobs.start(pending, pairs, move |pair, ops| {
                encoder.encode(pair, ops, &metrics)
            });
        }
    }
}

/// Waits until `due`. If that has passed, yields once, so that other tasks can run.
///
/// # Cancel safety
/// Cancel-safe.
async fn until(due: Instant) {
    if due <= Instant::now() {
        yield_now().await;
    } else {
        sleep_until(due).await;
    }
}

/// The writing side of one prefix.
pub(super) struct Ingest {
    pub(super) publisher: Publisher,
    pub(super) handle: Handle,
    /// `None` before the first state.
    pub(super) writer: Option<Writer>,
    /// True while the source is disconnected from etcd.
    lost: bool,
    pub(super) backfill: Backfill,
    audit: Audit,
}

impl Ingest {
    /// Takes one update.
    fn take(&mut self, update: Update) {
        match &update {
            Update::Lost { reason } => {
                self.lost = true;
                self.publisher.lost(reason.clone());
                self.step_backfill(backfill::Event::Disconnected);
                self.audit.interrupt();
                return;
            }
            Update::State(_) => {
                self.step_backfill(backfill::Event::Interrupted);
                self.audit.interrupt();
            }
            Update::Audited { revision, digest } => self.audit.answered(*revision, *digest),
            _ => {}
        }
        self.lost = false;
        self.step_backfill(backfill::Event::Connected);
        match (update, &mut self.writer) {
            (Update::State(state), Some(writer)) => {
                let (revision, asked_at) = (state.revision, state.asked_at);
                let replaced = writer.replace(state);
                // Before the state, which then comes with its proof.
                if !matches!(replaced, Replaced::Anew)
                    && let Some(asked_at) = asked_at
                {
                    self.publisher.prove(Proof { asked_at, revision });
                }
                match replaced {
                    Replaced::Anew => self.publish_anew(asked_at),
                    Replaced::Continued(batch) => {
                        self.publisher.publish(writer.snapshot().clone(), batch);
                    }
                    Replaced::Unchanged => self.publisher.advance(writer.snapshot().clone()),
                }
            }
            (Update::State(state), None) => {
                let asked_at = state.asked_at;
                self.writer = Some(Writer::new(state));
                self.publish_anew(asked_at);
            }
            (Update::Proof(proof), _) => self.publisher.prove(proof),
            (Update::Changes { revision, changes }, Some(writer)) => {
                match writer.apply(revision, changes) {
                    Some(batch) => self.publisher.publish(writer.snapshot().clone(), batch),
                    None => self.publisher.advance(writer.snapshot().clone()),
                }
            }
            (Update::Progress { revision }, Some(writer))
                if revision > writer.snapshot().revision() =>
            {
                writer.advance(revision);
                self.publisher.advance(writer.snapshot().clone());
            }
            (Update::Backfill(event), Some(_)) => {
                self.step_backfill(backfill::Event::Received(event));
            }
            // There is no state yet, or nothing new.
            (
                Update::Changes { .. }
                | Update::Progress { .. }
                | Update::Backfill(_)
                | Update::Audited { .. }
                | Update::Lost { .. },
                _,
            ) => {}
        }
    }

    /// Publishes the state of a new history, which etcd was asked for at `asked_at`.
    fn publish_anew(&mut self, asked_at: Option<Instant>) {
        let Some(writer) = &self.writer else { return };
        let snapshot = writer.snapshot().clone();
        let floor = snapshot.revision();
        self.publisher.publish_anew(snapshot, asked_at);
        self.step_backfill(backfill::Event::LogStarted { floor });
    }

    /// Does what [`Audit::due`] waited for.
    fn audit(&mut self) {
        match self.audit.step(self.publisher.prefix()) {
            Step::Continue => {}
            Step::Begin => match &self.writer {
                Some(writer)
                    if !self.lost && self.handle.source.audit(writer.snapshot().revision()) =>
                {
                    self.audit.begin(writer.snapshot().clone());
                }
                _ => self.audit.stop(),
            },
            Step::Done(_, true) => {
                self.publisher.metrics().audits.inc();
            }
            Step::Done(revision, false) => {
                let prefix = self.publisher.prefix();
                tracing::error!(%prefix, %revision, "the state differs from etcd's; listing the prefix again");
                self.publisher.metrics().audit_differences.inc();
                // If too many requests wait, the next audit finds the same.
                self.handle.source.relist();
            }
        }
    }
}
