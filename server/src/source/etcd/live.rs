//! An open watch: applies what it delivers, answers requests, and carries out what its
//! [state](state) decides.
//!
//! A request for the revision is answered with the revision of a linearizable read. The source's
//! updates must reach it soon after, though nothing under the prefix may have changed. When etcd's
//! progress can be trusted, it is requested. Otherwise one read compares the prefix with the position.
//! If neither helps in time, the watch missed something or is stuck, and the state is listed again.
//!
//! Each such read is reported as an [`Update::Proof`], with the time when it was sent. Messages of the
//! watch are not: a member that is cut off from the others sends them too.

mod state;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::state::{Action, Event, Liveness};
use super::connection::{Connection, Error};
use super::source::{Core, Position, State};
use super::subtask::{self, Subtask};
use super::transactions::Transactions;
use super::watch::{Watch, WatchEvent};
use super::{list, past};
use crate::source::{Proof, SourceRequest, Update};
use crate::store::Span;

/// An open watch and what runs beside it.
pub(super) struct Live {
    connection: Connection,
    watch: Watch<Edit>,
    transactions: Transactions<Edit>,
    opened_at: Instant,
    liveness: Liveness,
    /// The read of etcd's revision that is under way. Requests wait until it is done.
    read: Option<PendingRead>,
    /// Reads what changed in the past.
    backfill: Option<Subtask>,
    /// Reads what the prefix held at one revision.
    audit: Option<Subtask>,
}

/// A read of etcd's revision.
struct PendingRead {
    /// Who gets the revision.
    waiters: Vec<oneshot::Sender<Revision>>,
    /// When the question was sent.
    asked_at: Instant,
    /// The revision that etcd was known to have then.
    reached: Revision,
    /// Of a read that compares the prefix with the position: the position.
    compared_with: Option<Revision>,
    answer: Answer,
}

/// etcd's revision, and whether the prefix is unchanged, if the read compares it.
type Answer = Pin<Box<dyn Future<Output = Result<(Revision, bool), Error>> + Send>>;

impl Live {
    /// Opens a watch of what comes after `position`.
    pub(super) async fn open(
        core: &Core,
        connection: &mut Connection,
        position: Position,
    ) -> Result<Self, Error> {
        // From the position's own revision, not the next one: when etcd was compacted at exactly the
        // next one, it opens the watch there, but (before 3.4.36 and 3.5.18) has lost that revision's
        // deletes. From this one it reports that it was compacted. `Transactions` ignores what was
        // reported already.
        let watch = Watch::open(connection, &core.bounds, position.revision).await?;
        core.metrics.etcd_watches.inc();
        let now = Instant::now();
        let interval = core.config.progress_interval;
        Ok(Self {
            connection: connection.clone(),
            watch,
            transactions: Transactions::after(position.revision),
            opened_at: now,
            liveness: Liveness::new(connection.orders_progress, interval, now),
            read: None,
            backfill: None,
            audit: None,
        })
    }

    pub(super) const fn connection(&self) -> &Connection {
        &self.connection
    }

    /// How long the watch has been open.
    pub(super) fn age(&self) -> Duration {
        self.opened_at.elapsed()
    }

    /// Handles the next thing that happens; there may be updates to return afterwards. Returns the
    /// source's next state, or `None` to stay.
    ///
    /// # Cancel safety
    /// Cancel-safe: what is under way is kept in `self`.
    pub(super) async fn step(&mut self, core: &mut Core) -> Result<Option<State>, Error> {
        let reading = self.read.is_some();
        let actions = tokio::select! {
            // etcd's messages come before the clock: what has arrived need not be requested. Read
            // answers and requests are few and starve nobody. The past can wait.
            biased;
            (read, answer) = finished(&mut self.read), if reading => {
                self.read_finished(core, read, answer)?
            }
            Some(request) = core.requests.recv(), if !reading => {
                if let Some(next) = self.take_requests(core, request) {
                    return Ok(Some(next));
                }
                Vec::new()
            }
            event = self.watch.next() => self.watch_event(core, event?)?,
            () = tokio::time::sleep_until(self.liveness.due()) => {
                self.decide(core, Event::Tick { reading })
            }
            update = subtask::next(&mut self.backfill) => {
                core.ready.push_back(update);
                Vec::new()
            }
            update = subtask::next(&mut self.audit) => {
                core.ready.push_back(update);
                Vec::new()
            }
        };
        self.carry_out_all(core, actions)
    }

    /// etcd was read before the watch was opened, and had this revision.
    pub(super) fn observed(
        &mut self,
        core: &mut Core,
        revision: Revision,
    ) -> Result<Option<State>, Error> {
        let wanted = false;
        let actions = self.decide(core, Event::Read { revision, wanted });
        self.carry_out_all(core, actions)
    }

    fn decide(&mut self, core: &Core, event: Event) -> Vec<Action> {
        let nowhere = Position {
            revision: Revision::NONE,
            keys: 0,
        };
        let position = core.position.unwrap_or(nowhere);
        self.liveness.step(event, position, Instant::now())
    }

    fn carry_out_all(
        &mut self,
        core: &mut Core,
        actions: Vec<Action>,
    ) -> Result<Option<State>, Error> {
        for action in actions {
            if let Some(next) = self.carry_out(core, action)? {
                return Ok(Some(next));
            }
        }
        self.decide(core, Event::PositionMoved);
        Ok(None)
    }

    /// Does what the liveness decided. Returns the source's next state, or `None` to stay.
    fn carry_out(&mut self, core: &mut Core, action: Action) -> Result<Option<State>, Error> {
        match action {
            Action::Advance(revision) => {
                if let Some(position) = &mut core.position {
                    position.revision = revision;
                    self.transactions.advance(revision);
                    core.ready.push_back(Update::Progress { revision });
                }
            }
            Action::RequestProgress => self.watch.request_progress(),
            Action::Read => self.start_read(core, Vec::new()),
            Action::Compare => self.start_comparison(core),
            Action::Relist { unreached } => {
                tracing::warn!(
                    prefix = %core.range, revision = %unreached,
                    "the watch does not reach a revision that etcd has; listing the prefix again"
                );
                return Ok(Some(State::Listing(Box::new(self.connection.clone()))));
            }
            Action::Disconnect { silence } => return Err(Error::Silent { silence }),
            // Carried out where the error is.
            Action::GiveUp => {}
        }
        Ok(None)
    }

    /// The watch delivered something.
    fn watch_event(
        &mut self,
        core: &mut Core,
        event: WatchEvent<Edit>,
    ) -> Result<Vec<Action>, Error> {
        let mut actions = self.decide(core, Event::Message);
        match event {
            WatchEvent::Changes { events, fragment } => {
                for transaction in self.transactions.push(events, fragment)? {
                    if let Some(position) = &mut core.position {
                        position.revision = transaction.revision;
                        position.keys += transaction.keys;
                    }
                    let (revision, changes) = (transaction.revision, transaction.changes);
                    if let Some(known) = &mut core.known_history {
                        known.record_changes(revision, &changes);
                    }
                    core.ready.push_back(if changes.is_empty() {
                        Update::Progress { revision }
                    } else {
                        Update::Changes { revision, changes }
                    });
                }
            }
            WatchEvent::Progress { revision, manual } => {
                if let Some(known) = &mut core.known_history {
                    known.record_revision(revision);
                }
                let event = if manual {
                    Event::ProgressAnswer(revision)
                } else {
                    Event::ProgressNotification(revision)
                };
                actions.extend(self.decide(core, event));
            }
        }
        Ok(actions)
    }

    /// Takes a request and those that wait behind it. Returns the source's next state, or `None` to
    /// stay. Before another state, requests for the revision are dropped, and their streams ask again.
    fn take_requests(&mut self, core: &mut Core, request: SourceRequest) -> Option<State> {
        let mut waiters = Vec::new();
        let mut next = Some(request);
        // The channel bounds the loop.
        while let Some(request) = next {
            match request {
                SourceRequest::Revision(waiter) => waiters.push(waiter),
                SourceRequest::Backfill(span) => self.start_backfill(core, span),
                SourceRequest::Audit(revision) => self.start_audit(core, revision),
                SourceRequest::Relist => {
                    return Some(State::Listing(Box::new(self.connection.clone())));
                }
            }
            next = core.requests.try_recv().ok();
        }
        if !waiters.is_empty() {
            self.start_read(core, waiters);
        }
        None
    }

    fn start_backfill(&mut self, core: &Core, span: Span) {
        let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
        let (max_bytes, metrics) = (core.config.backfill_bytes, core.metrics.clone());
        self.backfill = Some(Subtask::new(move |updates| {
            past::read(connection, bounds, span, max_bytes, metrics, updates)
        }));
    }

    fn start_audit(&mut self, core: &Core, revision: Revision) {
        let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
        let prefix = core.range.clone();
        self.audit = Some(Subtask::new(move |updates| async move {
            let digest = list::digest(connection, bounds, revision).await;
            if let Err(error) = &digest {
                tracing::debug!(%prefix, %error, "an audit failed");
            }
            let digest = digest.ok();
            // It fails only when the subtask is being dropped.
            let _ = updates.send(Update::Audited { revision, digest }).await;
        }));
    }

    /// Starts a read of etcd's revision. None must be under way.
    fn start_read(&mut self, core: &Core, waiters: Vec<oneshot::Sender<Revision>>) {
        let Some(known) = &core.known_history else {
            return;
        };
        let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
        self.read = Some(PendingRead {
            waiters,
            asked_at: Instant::now(),
            reached: known.reached(),
            compared_with: None,
            answer: Box::pin(async move { Ok((connection.revision(bounds).await?, false)) }),
        });
    }

    /// Starts a read that compares the prefix with the position. No read must be under way.
    fn start_comparison(&mut self, core: &Core) {
        let (Some(position), Some(known)) = (core.position, &core.known_history) else {
            return;
        };
        let (connection, bounds) = (self.connection.clone(), core.bounds.clone());
        let (since, keys) = (position.revision, position.keys);
        self.read = Some(PendingRead {
            waiters: Vec::new(),
            asked_at: Instant::now(),
            reached: known.reached(),
            compared_with: Some(since),
            answer: Box::pin(connection.unchanged(bounds, since, keys)),
        });
    }

    fn read_finished(
        &mut self,
        core: &mut Core,
        read: PendingRead,
        answer: Result<(Revision, bool), Error>,
    ) -> Result<Vec<Action>, Error> {
        let (revision, unchanged) = match answer {
            Ok(answer) => answer,
            Err(Error::OtherCluster) => return Err(Error::OtherCluster),
            // The dropped senders tell the waiters.
            Err(error) => {
                tracing::debug!(prefix = %core.range, %error, "a read of etcd's revision failed");
                let actions = self.decide(core, Event::ReadFailed);
                return match actions.contains(&Action::GiveUp) {
                    true => Err(error),
                    false => Ok(actions),
                };
            }
        };
        if revision < read.reached {
            return Err(Error::WentBack);
        }
        if let Some(known) = &mut core.known_history {
            known.record_revision(revision);
        }
        let asked_at = read.asked_at;
        core.ready
            .push_back(Update::Proof(Proof { asked_at, revision }));
        let wanted = !read.waiters.is_empty();
        for waiter in read.waiters {
            // It fails only when nobody waits any more.
            let _ = waiter.send(revision);
        }
        let event = match read.compared_with {
            Some(since) => Event::Compared {
                revision,
                unchanged,
                at_start: core.position.is_some_and(|at| at.revision == since),
            },
            None => Event::Read { revision, wanted },
        };
        Ok(self.decide(core, event))
    }
}

/// Waits until the read in `slot` is done, and empties the slot.
///
/// # Cancel safety
/// Cancel-safe: the read stays in the slot until it is done.
async fn finished(
    slot: &mut Option<PendingRead>,
) -> (PendingRead, Result<(Revision, bool), Error>) {
    let answer = match slot {
        Some(read) => read.answer.as_mut().await,
        None => std::future::pending().await,
    };
    match slot.take() {
        Some(read) => (read, answer),
        None => std::future::pending().await,
    }
}
