//! The only loop: takes what the source of a prefix says, keeps the store, publishes.
//!
//! One task a prefix, owned by the [server](crate::server): it ends when that drops it, wherever it
//! waits. It never waits on a stream, so no client can hold it up. Nor does it wait for deltas: jobs
//! of its own compute them, and only the streams whose range they are in are kept waiting.

mod audit;
#[cfg(test)]
mod tests;

use std::time::Duration;

use driftless_proto::{KeyRange, Revision};
use tokio::pin;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use self::audit::{Audit, Step};
use crate::delta::{JobPool, Jobs};
use crate::fanout::Publisher;
pub use crate::source::REQUEST_TIMEOUT;
use crate::source::{Source, SourceHandle, Update};
use crate::store::{BackfillEvent, Earlier, Misfit, Replaced, Settling, Writer};

/// How long the clients that come back at the start are waited for before etcd is asked what changed
/// while there was no server: the first of a crowd are not those that were away the longest.
const GATHER: Duration = Duration::from_millis(200);

/// What ingest needs to know.
#[derive(Clone, Debug)]
pub struct Limits {
    /// How often the state is compared with etcd's, on average; `None` for never.
    pub audit_interval: Option<Duration>,
    /// What the jobs of all prefixes share.
    pub jobs: JobPool,
}

/// Lets the service ask the source of a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(SourceHandle);

impl Handle {
    /// For the source that `source` asks.
    pub const fn new(source: SourceHandle) -> Self {
        Self(source)
    }

    /// etcd's revision now, as a linearizable read gives it; the published revision reaches it soon
    /// after. `None` when etcd did not answer within [`REQUEST_TIMEOUT`], or too many requests wait.
    ///
    /// # Cancel safety
    /// Cancel-safe: the answer is dropped.
    pub async fn revision(&self) -> Option<Revision> {
        self.0.revision().await
    }
}

/// Runs until it is dropped. `handle` sends requests to `source`.
pub async fn run(
    mut source: impl Source,
    handle: SourceHandle,
    publisher: Publisher,
    limits: Limits,
) {
    let mut wanted = publisher.wanted();
    let mut ingest = Ingest {
        publisher,
        source: handle,
        writer: None,
        lost: false,
        back: Back::Idle,
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
                Ok(_) = wanted.wait_for(Option::is_some), if ingest.may_ask_back() => {
                    ingest.back = Back::Gathering(Instant::now() + GATHER);
                }
                () = ingest.back.due() => ingest.go_back(),
                () = ingest.audit.due() => ingest.audit(),
                (pending, patches) = jobs.next() => ingest.publisher.resolve(pending, patches),
            }
        };
        ingest.take(update);
        for mut pending in ingest.publisher.take_pending() {
            let (pairs, encoder) = pending.take_work();
            let metrics = ingest.publisher.metrics().clone();
            jobs.start(pending, pairs, move |pair, ops| {
                encoder.encode(pair, ops, &metrics)
            });
        }
    }
}

/// Waits until `due`. Yields at least once, so that other tasks get their turn.
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
struct Ingest {
    publisher: Publisher,
    source: SourceHandle,
    /// `None` before the first state.
    writer: Option<Writer>,
    /// Whether etcd is.
    lost: bool,
    back: Back,
    audit: Audit,
}

/// What goes on about the time before the log begins.
#[derive(Debug)]
enum Back {
    /// Nothing.
    Idle,
    /// Somebody wants to know; others may follow, until this moment.
    Gathering(Instant),
    /// The source says it.
    Hearing(Box<Earlier>),
    /// It is being compared with the state.
    Settling(Box<Settling>),
}

impl Back {
    /// Waits until there is something to do by itself.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn due(&self) {
        match self {
            Self::Gathering(until) => sleep_until(*until).await,
            // Others first: this has waited since before the server's start.
            Self::Settling(_) => yield_now().await,
            Self::Idle | Self::Hearing(_) => std::future::pending().await,
        }
    }
}

impl Ingest {
    /// Takes one update.
    fn take(&mut self, update: Update) {
        match &update {
            Update::Lost { reason } => {
                self.lost = true;
                self.publisher.lost(reason.clone());
                self.ask_back_again();
                self.audit.interrupt();
                return;
            }
            Update::State(_) => {
                self.ask_back_again();
                self.audit.interrupt();
            }
            Update::Audited { revision, digest } => self.audit.answered(*revision, *digest),
            _ => {}
        }
        self.lost = false;
        self.publisher.contact();
        match (update, &mut self.writer) {
            (Update::State(state), Some(writer)) => match writer.replace(state) {
                Replaced::Anew => self.publisher.publish_anew(writer.snapshot().clone()),
                Replaced::Continued(batch) => {
                    self.publisher.publish(writer.snapshot().clone(), batch);
                }
                Replaced::Unchanged => self.publisher.advance(writer.snapshot().clone()),
            },
            (Update::State(state), None) => {
                let writer = self.writer.insert(Writer::new(state));
                self.publisher.publish_anew(writer.snapshot().clone());
            }
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
            (Update::Backfill(earlier), Some(_)) => self.hear(earlier),
            // Nothing to build on, or nothing new.
            (
                Update::Changes { .. }
                | Update::Progress { .. }
                | Update::Contact
                | Update::Backfill(_)
                | Update::Audited { .. }
                | Update::Lost { .. },
                _,
            ) => {}
        }
    }

    /// Whether etcd can be asked what changed before the log begins.
    const fn may_ask_back(&self) -> bool {
        matches!(self.back, Back::Idle) && self.writer.is_some() && !self.lost
    }

    /// The source has stopped in the midst of what it was saying: once more, when it can.
    fn ask_back_again(&mut self) {
        let span = match std::mem::replace(&mut self.back, Back::Idle) {
            Back::Hearing(earlier) => earlier.span(),
            Back::Settling(settling) => settling.span(),
            Back::Idle | Back::Gathering(_) => return,
        };
        self.publisher.want(span.after);
    }

    /// Does what [`Back::due`] waited for.
    fn go_back(&mut self) {
        match &mut self.back {
            Back::Gathering(_) => {
                self.back = Back::Idle;
                if let Some((span, room)) = self.publisher.ask_back() {
                    if self.source.backfill(span) {
                        self.back = Back::Hearing(Box::new(Earlier::new(span, room)));
                    } else {
                        self.publisher.want(span.after);
                    }
                }
            }
            Back::Settling(settling) => {
                let Some(writer) = &mut self.writer else {
                    return;
                };
                let up_to = settling.span().up_to;
                match settling.settle(writer) {
                    Ok(None) => {}
                    Ok(Some(past)) => {
                        self.back = Back::Idle;
                        let snapshot = writer.snapshot().clone();
                        if !self.publisher.reach_back(snapshot, past, up_to) {
                            self.publisher.give_up_back();
                        }
                    }
                    Err(misfit) => self.refuse(&misfit),
                }
            }
            Back::Idle | Back::Hearing(_) => {}
        }
    }

    /// Takes a part of what happened before.
    fn hear(&mut self, said: BackfillEvent) {
        let Back::Hearing(earlier) = &mut self.back else {
            return;
        };
        match said {
            BackfillEvent::Begin { after } => earlier.begin(after),
            BackfillEvent::Transactions(transactions) => {
                if let Err(misfit) = earlier.take(transactions) {
                    self.refuse(&misfit);
                }
            }
            BackfillEvent::End => {
                if let Back::Hearing(earlier) = std::mem::replace(&mut self.back, Back::Idle) {
                    self.back = Back::Settling(Box::new(earlier.end()));
                }
            }
            BackfillEvent::Failed { reason } => {
                let prefix = self.publisher.prefix();
                tracing::info!(%prefix, %reason, "what changed before the start cannot be had; clients from then get a snapshot");
                self.give_up_back();
            }
        }
    }

    fn refuse(&mut self, misfit: &Misfit) {
        let prefix: &KeyRange = self.publisher.prefix();
        tracing::error!(%prefix, %misfit, "what etcd says of the time before the start does not fit the state; clients from then get a snapshot");
        self.publisher.metrics().earlier_refused.inc();
        self.give_up_back();
    }

    fn give_up_back(&mut self) {
        self.back = Back::Idle;
        self.publisher.give_up_back();
    }

    /// Does what [`Audit::due`] waited for.
    fn audit(&mut self) {
        match self.audit.step(self.publisher.prefix()) {
            Step::Continue => {}
            Step::Begin => match &self.writer {
                Some(writer) if !self.lost && self.source.audit(writer.snapshot().revision()) => {
                    self.audit.begin(writer.snapshot().clone());
                }
                _ => self.audit.stop(),
            },
            Step::Done(_, true) => {
                self.publisher.metrics().audits.inc();
            }
            Step::Done(revision, false) => {
                let prefix = self.publisher.prefix();
                tracing::error!(%prefix, %revision, "the state differs from what etcd holds; reading it anew");
                self.publisher.metrics().audit_differences.inc();
                // Should too many requests wait, the next audit finds the same.
                self.source.relist();
            }
        }
    }
}
