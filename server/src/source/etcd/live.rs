//! A source that watches: hears changes, sees to it that etcd is not silent, answers questions.
//!
//! A question is answered with the revision of a linearizable read, and the source's updates must
//! reach it soon after, though nothing under the prefix may have changed. Where etcd's progress can
//! be relied on, it is asked for. Where not, one read proves that nothing changed. When neither
//! helps in time, the watch has missed something or is stuck, and the state is read anew.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connection::{Connection, Error};
use super::errand::{self, Errand};
use super::transactions::Transactions;
use super::watch::{Heard, Watch};
use super::{Core, Phase, Said, Update, earlier, list};
use crate::source::SourceRequest;

/// Intervals of progress after which etcd counts as lost when it said nothing; at the end of each but the
/// last it is asked to. Counted and not measured: a server that was itself stopped for long (SIGSTOP, a
/// frozen container) takes that for one of them at most.
const SILENT_INTERVALS: u32 = 3;

/// Intervals of progress between two proofs that an idle prefix is unchanged, where there is no
/// other way to know: etcd looks at every key of the prefix for one.
const PROOF_INTERVALS: u32 = 6;

/// Between two attempts to reach a revision that was promised.
const CHASE_INTERVAL: Duration = Duration::from_millis(100);

/// How many of them there are before the state is read anew. So two such reads are more than a second
/// apart. Counted and not measured, as [`SILENT_INTERVALS`] are.
const CHASE_ATTEMPTS: u32 = 10;

/// A watch and what is going on around it.
pub(super) struct Live {
    connection: Connection,
    watch: Watch<Edit>,
    transactions: Transactions<Edit>,
    since: Instant,
    /// When to ask for progress next.
    pulse: Instant,
    /// How often that was due since etcd said something on this watch; what it answers to reads does
    /// not count, since a stream can go silent by itself.
    unheard: u32,
    chase: Option<Chase>,
    reading: Option<Reading>,
    /// Reads what happened before.
    earlier: Option<Errand>,
    /// Reads what there was at one revision.
    audit: Option<Errand>,
    /// etcd says that it is ahead of what was said, but cannot be relied on to have said it all.
    ahead: bool,
    /// When to prove next that an idle prefix is unchanged.
    proof: Instant,
}

/// A revision that the updates have to reach.
#[derive(Clone, Copy, Debug)]
struct Chase {
    to: Revision,
    /// Promised since; next in line.
    then: Revision,
    /// When to try again.
    again: Instant,
    /// Attempts that are left before it has taken too long.
    left: u32,
}

/// A read under way.
struct Reading {
    /// Who waits for it.
    asked: Vec<oneshot::Sender<Revision>>,
    /// What was said when it began.
    said: Said,
    /// The revision that etcd was known to have when it began.
    reached: Revision,
    answer: Answer,
}

/// The revision, and whether the prefix is proven to be the same as when the read began.
type Answer = Pin<Box<dyn Future<Output = Result<(Revision, bool), Error>> + Send>>;

impl Live {
    /// Watches what comes after `said`.
    pub(super) async fn open(
        core: &Core,
        connection: &mut Connection,
        said: Said,
    ) -> Result<Self, Error> {
        // Not from the next revision: where etcd was compacted at just that one, it would let the
        // watch begin there but (before 3.4.36 and 3.5.18) have forgotten the deletes of it. From
        // this one it says that it was compacted. What was heard already is dropped.
        let watch = Watch::open(connection, &core.bounds, said.revision).await?;
        core.metrics.etcd_watches.inc();
        let now = Instant::now();
        Ok(Self {
            connection: connection.clone(),
            watch,
            transactions: Transactions::after(said.revision),
            since: now,
            pulse: now + core.config.progress_interval,
            unheard: 0,
            chase: None,
            reading: None,
            earlier: None,
            audit: None,
            ahead: false,
            proof: now + core.config.progress_interval * PROOF_INTERVALS,
        })
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How long it has been good.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Takes the next thing that happens; there may be updates to say afterwards. Returns the phase
    /// to go on with, if not this one.
    ///
    /// # Cancel safety
    /// Cancel-safe: what is under way is kept in `self`.
    pub(super) async fn step(&mut self, core: &mut Core) -> Result<Option<Phase>, Error> {
        let chase = self.chase.as_ref().map(|chase| chase.again);
        let due = chase.map_or(self.pulse, |again| again.min(self.pulse));
        let reading = self.reading.is_some();
        tokio::select! {
            // What etcd said comes before the clock: what is there already need not be asked for.
            // Answers and questions are few: they starve nobody. What is past can wait.
            biased;
            answer = answer(&mut self.reading), if reading => {
                let (reading, answer) = answer;
                self.answered(core, reading, answer)?;
            }
            Some(question) = core.questions.recv(), if !reading => {
                if let Some(phase) = self.ask(core, question) {
                    return Ok(Some(phase));
                }
            }
            heard = self.watch.next() => {
                self.unheard = 0;
                self.hear(core, heard?)?;
            }
            () = tokio::time::sleep_until(due) => return self.tick(core),
            update = errand::next(&mut self.earlier) => core.ready.push_back(update),
            update = errand::next(&mut self.audit) => core.ready.push_back(update),
        }
        self.reach(core);
        Ok(None)
    }

    /// Something came by the watch.
    fn hear(&mut self, core: &mut Core, heard: Heard<Edit>) -> Result<(), Error> {
        match heard {
            Heard::Events { events, fragment } => {
                for transaction in self.transactions.push(events, fragment)? {
                    if let Some(said) = &mut core.said {
                        said.revision = transaction.revision;
                        said.keys += transaction.keys;
                    }
                    let (revision, changes) = (transaction.revision, transaction.changes);
                    if let Some(memory) = &mut core.memory {
                        memory.heard(revision, &changes);
                    }
                    core.ready.push_back(if changes.is_empty() {
                        Update::Progress { revision }
                    } else {
                        Update::Changes { revision, changes }
                    });
                }
            }
            Heard::Progress { revision, manual } => {
                if let Some(memory) = &mut core.memory {
                    memory.reach(revision);
                }
                if !manual || self.connection.orders_progress {
                    self.advance(core, revision);
                } else {
                    self.ahead |= core.said.is_some_and(|said| said.revision < revision);
                    core.ready.push_back(Update::Contact);
                }
            }
        }
        Ok(())
    }

    /// Nothing under the prefix changed up to `revision`.
    fn advance(&mut self, core: &mut Core, revision: Revision) {
        let Some(said) = &mut core.said else { return };
        // A member that lags says less than is known; that it is there is worth saying.
        said.revision = said.revision.max(revision);
        self.transactions.advance(said.revision);
        self.ahead = false;
        let revision = said.revision;
        core.ready.push_back(Update::Progress { revision });
    }

    /// Takes a question, and those that wait behind it. Returns the phase to go on with, if not this
    /// one; who asked for a revision then asks again.
    fn ask(&mut self, core: &mut Core, question: SourceRequest) -> Option<Phase> {
        let mut asked = Vec::new();
        let mut next = Some(question);
        // The channel bounds them.
        while let Some(question) = next {
            match question {
                SourceRequest::Revision(answer) => asked.push(answer),
                SourceRequest::Backfill(span) => {
                    let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
                    let (most, metrics) = (core.config.earlier_bytes, core.metrics.clone());
                    self.earlier = Some(Errand::new(move |say| {
                        earlier::read(connection, bounds, span, most, metrics, say)
                    }));
                }
                SourceRequest::Audit(revision) => {
                    let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
                    let prefix = core.range.clone();
                    self.audit = Some(Errand::new(move |say| async move {
                        let digest = list::digest(connection, bounds, revision).await;
                        if let Err(error) = &digest {
                            tracing::debug!(%prefix, %error, "an audit came to nothing");
                        }
                        let digest = digest.ok();
                        // Who is not there any more needs no answer.
                        let _ = say.send(Update::Audited { revision, digest }).await;
                    }));
                }
                SourceRequest::Relist => {
                    return Some(Phase::Listing(Box::new(self.connection.clone())));
                }
            }
            next = core.questions.try_recv().ok();
        }
        if !asked.is_empty() {
            self.read(core, asked);
        }
        None
    }

    /// Begins a read. None must be under way.
    fn read(&mut self, core: &Core, asked: Vec<oneshot::Sender<Revision>>) {
        let (Some(said), Some(memory)) = (core.said, &core.memory) else {
            return;
        };
        let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
        let answer: Answer = if self.connection.orders_progress {
            Box::pin(async move { Ok((connection.revision(bounds).await?, false)) })
        } else {
            Box::pin(connection.unchanged(bounds, said.revision, said.keys))
        };
        self.reading = Some(Reading {
            asked,
            said,
            reached: memory.reached(),
            answer,
        });
    }

    /// A read is done.
    fn answered(
        &mut self,
        core: &mut Core,
        reading: Reading,
        answer: Result<(Revision, bool), Error>,
    ) -> Result<(), Error> {
        let (revision, unchanged) = match answer {
            Ok(answer) => answer,
            Err(Error::OtherCluster) => return Err(Error::OtherCluster),
            // Whoever asked learns it by the question's end. Whether etcd is lost, the watch tells.
            Err(error) => {
                tracing::debug!(prefix = %core.range, %error, "a read of etcd's revision failed");
                return Ok(());
            }
        };
        if revision < reading.reached {
            return Err(Error::WentBack);
        }
        if let Some(memory) = &mut core.memory {
            memory.reach(revision);
        }
        for asked in reading.asked {
            // Who does not wait any more needs no answer.
            let _ = asked.send(revision);
        }
        self.proof = Instant::now() + core.config.progress_interval * PROOF_INTERVALS;
        // Where something was heard meanwhile, it is newer than all that was proven.
        if unchanged
            && core
                .said
                .is_some_and(|said| said.revision == reading.said.revision)
        {
            self.advance(core, revision);
        } else if core.said.is_some_and(|said| said.revision < revision) {
            self.pursue(revision);
            if self.connection.orders_progress {
                self.watch.request_progress();
            }
        }
        Ok(())
    }

    /// The updates have to reach this revision from now on.
    fn pursue(&mut self, revision: Revision) {
        let now = Instant::now();
        let chase = self.chase.get_or_insert(Chase {
            to: revision,
            then: revision,
            again: now + CHASE_INTERVAL,
            left: CHASE_ATTEMPTS,
        });
        chase.then = chase.then.max(revision);
    }

    /// Lets a pursuit end that has reached its aim.
    fn reach(&mut self, core: &Core) {
        let (Some(chase), Some(said)) = (self.chase, core.said) else {
            return;
        };
        if said.revision >= chase.to {
            self.chase = None;
            if said.revision < chase.then {
                self.pursue(chase.then);
            }
        }
    }

    /// The clock says that something is due.
    fn tick(&mut self, core: &mut Core) -> Result<Option<Phase>, Error> {
        let now = Instant::now();
        if let Some(chase) = &mut self.chase
            && now >= chase.again
        {
            if chase.left == 0 {
                tracing::warn!(
                    prefix = %core.range, to = %chase.to,
                    "the watch does not reach a revision that etcd has; reading the state anew"
                );
                return Ok(Some(Phase::Listing(Box::new(self.connection.clone()))));
            }
            // One that is under way already counts as well: what does not help is not waited for.
            chase.left -= 1;
            chase.again = now + CHASE_INTERVAL;
            if self.connection.orders_progress {
                self.watch.request_progress();
            } else if self.reading.is_none() {
                self.read(core, Vec::new());
            }
        }
        if now >= self.pulse {
            self.unheard += 1;
            if self.unheard >= SILENT_INTERVALS {
                let silence = core.config.progress_interval * SILENT_INTERVALS;
                return Err(Error::Quiet { silence });
            }
            self.pulse = now + core.config.progress_interval;
            self.watch.request_progress();
            if self.ahead && now >= self.proof && self.reading.is_none() {
                self.read(core, Vec::new());
            }
        }
        Ok(None)
    }
}

/// Waits for the answer to the read under way, and takes both out.
///
/// # Cancel safety
/// Cancel-safe: the read stays where it is until its answer is there.
async fn answer(reading: &mut Option<Reading>) -> (Reading, Result<(Revision, bool), Error>) {
    let answer = match reading {
        Some(reading) => reading.answer.as_mut().await,
        None => std::future::pending().await,
    };
    match reading.take() {
        Some(reading) => (reading, answer),
        None => std::future::pending().await,
    }
}
