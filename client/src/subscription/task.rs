//! The one task of a subscription: drives the state machine, drains the stream, shows states.
//!
//! It never waits for whoever reads: states are published as they are, and a reader that was away
//! finds the latest. It ends when its subscription is dropped, or when the server takes the right
//! to the range back.

use std::sync::Arc;
use std::time::Duration;

use driftless_proto::apply::ApplyError;
use driftless_proto::v1::{self, watch_response::Frame};
use driftless_proto::{KeyRange, Revision};
use tokio::sync::watch;
use tokio::time::Instant;

use super::state::{Cause, Event, Machine, Phase};
use crate::decode::Rejection;
use crate::dice::Dice;
use crate::entries::Entries;
use crate::error::{Closed, Refused, RefusedReason, too_large};
use crate::freshness::{Proof, Proven};
use crate::inventory::Holding;
use crate::replica::{Applied, Replica};
use crate::report::Slot;
use crate::sink::{Numbered, Sinks};
use crate::status::{State, Status};
use crate::transport::{CallError, Connection, Frames, Transport, cut, pause};

/// Drives one subscription.
pub(crate) struct Task {
    range: KeyRange,
    transport: Arc<Transport>,
    sinks: Arc<Sinks>,
    show: Show,
    machine: Machine,
    dice: Dice,
    replica: Replica,
    /// Number of the state that is held; 0 before the first.
    number: u64,
    /// Kept while waiting for the next attempt, when it is still good.
    connection: Option<Arc<Connection>>,
    /// Where the outcome of the stream at hand is reported.
    slot: Option<Slot>,
    clock: Clock,
    /// No server serves the range: it was logged, and that one does again will be.
    outage: bool,
    // Last, because fields are dropped in order: it says that the others are gone.
    _holding: Holding,
}

/// Where all handles see what is held, and how it is doing.
pub(crate) struct Show {
    pub(crate) entries: watch::Sender<Option<Entries>>,
    pub(crate) status: watch::Sender<Status>,
    /// How old what they read may be.
    pub(crate) proven: Arc<Proven>,
}

/// Why a stream or an attempt ended.
struct End {
    cause: Cause,
    at_least: Duration,
    message: String,
    refused: Option<RefusedReason>,
    /// The server that it is about, where the message does not say.
    endpoint: Option<String>,
    /// The connection, or the server at its other end, is not to be used for the next attempt.
    leave: bool,
    /// The server took back the right to the range.
    purge: bool,
}

/// Relates the server's clock to ours.
#[derive(Clone, Copy, Default)]
struct Clock {
    /// When the server was asked, and what its clock said in the hello. It said so after that, so that
    /// what is told of etcd may seem older than it is, and never younger.
    origin: Option<(Instant, u64)>,
    /// The newest contact with etcd that the server told of, on its clock. Counts as proof once the
    /// state is known to be the server's.
    contact: u64,
}

impl Clock {
    fn begin(&mut self, hello: &v1::Hello, asked: Instant) {
        // A server that tells no time leaves both at 0.
        self.origin = (hello.clock_ms != 0).then_some((asked, hello.clock_ms));
        self.contact = hello.contact_ms;
    }

    fn heard(&mut self, contact_ms: u64) {
        self.contact = self.contact.max(contact_ms);
    }

    /// When, on our clock, etcd was last proven to be there; at most now.
    fn proven(&self, now: Instant) -> Option<Instant> {
        let (asked, clock) = self.origin?;
        if self.contact <= clock {
            let before = Duration::from_millis(clock - self.contact);
            asked.checked_sub(before)
        } else {
            let after = Duration::from_millis(self.contact - clock);
            asked.checked_add(after).map(|proven| proven.min(now))
        }
    }
}

impl Task {
    pub(crate) fn new(
        range: KeyRange,
        limit: usize,
        transport: Arc<Transport>,
        sinks: Arc<Sinks>,
        show: Show,
        holding: Holding,
    ) -> Self {
        Self {
            dice: transport.dice_of(&range),
            replica: Replica::new(range.clone(), limit),
            range,
            transport,
            sinks,
            show,
            machine: Machine::new(),
            number: 0,
            connection: None,
            slot: None,
            clock: Clock::default(),
            outage: false,
            _holding: holding,
        }
    }

    /// Runs until it is dropped, or until the right to the range is taken back.
    pub(crate) async fn run(mut self) {
        loop {
            let end = self.attempt().await;
            self.slot = None;
            if end.leave
                && let Some(connection) = self.connection.take()
            {
                connection.retire();
            }
            if end.purge {
                tracing::warn!(range = %self.range, "the right to read the range was taken back");
                self.close(Closed::Revoked);
                return;
            }
            // What was live may well be live again in a moment, elsewhere: no reason to alarm.
            let fruitless = !matches!(self.machine.phase(), Phase::Live { .. });
            self.step(Event::Ended {
                cause: end.cause,
                at_least: end.at_least,
            });
            self.tell(&end, fruitless);
            if let Some(until) = self.machine.deadline() {
                self.serving(tokio::time::sleep_until(until)).await;
            }
            self.step(Event::Expired);
            self.show_phase();
        }
    }

    /// One attempt: connects, asks, and follows the stream to its end.
    async fn attempt(&mut self) -> End {
        let usable = self.connection.take().filter(|held| held.is_usable());
        let connection = match usable {
            Some(connection) => connection,
            None => match self.serving(self.transport.connection()).await {
                Ok(connection) => connection,
                Err(error) => return self.failed(error),
            },
        };
        self.connection = Some(Arc::clone(&connection));
        match self.follow(&connection).await {
            Ok(never) => match never {},
            Err(end) => End {
                endpoint: Some(connection.endpoint().to_string()),
                ..end
            },
        }
    }

    /// Asks, and follows the stream to its end.
    async fn follow(
        &mut self,
        connection: &Arc<Connection>,
    ) -> Result<std::convert::Infallible, End> {
        let request = self.request();
        let asked = Instant::now();
        self.step(Event::Asked);
        let frames = &mut match self.limited(connection.watch(request)).await {
            Some(Ok(frames)) => frames,
            Some(Err(error)) => return Err(self.failed(error)),
            None => return Err(End::silent()),
        };
        let hello = match self.next(frames).await? {
            Some(Frame::Hello(hello)) => hello,
            // A server that wants to be left alone may say only that.
            Some(Frame::Goodbye(goodbye)) => return Err(End::goodbye(&goodbye)),
            _ => return Err(End::malformed("the first frame is not a hello")),
        };
        self.replica.begin(&hello);
        self.clock.begin(&hello, asked);
        self.step(Event::Hello {
            progress_interval: Duration::from_millis(hello.progress_interval_ms.into()),
        });
        let ping_interval = Duration::from_millis(hello.ping_interval_ms.into());
        self.transport.check_every(ping_interval);
        let report_interval = Duration::from_millis(hello.report_interval_ms.into());
        self.slot = Some(
            connection
                .reports()
                .slot(hello.watch_id.clone(), report_interval),
        );
        self.show_connected(connection);
        loop {
            match self.next(frames).await? {
                Some(Frame::Hello(_)) => return Err(End::malformed("a second hello came")),
                Some(Frame::Goodbye(goodbye)) => return Err(End::goodbye(&goodbye)),
                Some(frame) => self.apply(frame)?,
                // Of a kind that is newer than this library: a sign of life.
                None => self.step(Event::Heard),
            }
        }
    }

    /// The next frame; `None` for one of an unknown kind.
    async fn next(&self, frames: &mut Frames) -> Result<Option<Frame>, End> {
        match self.limited(frames.next()).await {
            Some(Ok(Some(response))) => Ok(response.frame),
            Some(Ok(None)) => Err(End::clean()),
            Some(Err(error)) => Err(self.failed(error)),
            None => Err(End::silent()),
        }
    }

    /// Applies a frame, and shows what it made.
    fn apply(&mut self, frame: Frame) -> Result<(), End> {
        match &frame {
            Frame::Diff(diff) => self.clock.heard(diff.contact_ms),
            Frame::Current(current) => self.clock.heard(current.contact_ms),
            Frame::Progress(progress) => self.clock.heard(progress.contact_ms),
            Frame::Snapshot(_) | Frame::Hello(_) | Frame::Goodbye(_) => {}
        }
        let is_reset = matches!(&frame, Frame::Snapshot(chunk) if chunk.reset);
        let before = self.replica.entries().map(Entries::revision);
        let applied = self
            .replica
            .apply(frame)
            .map_err(|refusal| End::refused(&refusal, &self.range))?;
        if is_reset && applied != Applied::Nothing {
            self.tell_of_reset(before);
        }
        match applied {
            Applied::Nothing => {
                self.step(Event::Heard);
                return Ok(());
            }
            Applied::Confirmed => {
                let held = self.replica.entries();
                // Nobody is woken for a revision in which nothing changed.
                self.show.entries.send_if_modified(|shown| {
                    shown.clone_from(&held.cloned());
                    false
                });
            }
            Applied::Changed => {
                self.number += 1;
                self.show
                    .entries
                    .send_replace(self.replica.entries().cloned());
            }
        }
        let was_live = matches!(self.machine.phase(), Phase::Live { .. });
        self.step(Event::InSync);
        self.show_phase();
        if std::mem::take(&mut self.outage) {
            tracing::info!(range = %self.range, "in sync");
        }
        let proven = self.clock.proven(Instant::now());
        let proven = proven.map_or(Proof::NONE, |at| self.show.proven.proof(at));
        if applied == Applied::Changed || !was_live {
            self.show_sinks(proven);
        }
        // After the sinks, or a value that this state supersedes would pass for proven a moment.
        self.show.proven.prove(proven);
        Ok(())
    }

    /// What to ask for.
    fn request(&self) -> v1::WatchRequest {
        let have = if self.machine.fresh() {
            None
        } else {
            self.replica.have()
        };
        v1::WatchRequest {
            range: Some((&self.range).into()),
            outcome: have
                .is_some()
                .then(|| self.outcome(self.show.proven.last())),
            have,
            client: Some(self.transport.info().clone()),
            features: vec![v1::Feature::ValueDeltas.into()],
        }
    }

    /// What became of the state that is held, which was last known to be etcd's at `proven`.
    fn outcome(&self, proven: Proof) -> v1::Outcome {
        let outcome = self.sinks.show(self.numbered(proven));
        let held = self
            .replica
            .entries()
            .map_or(Revision::NONE, Entries::revision);
        let diverged = self.machine.diverged();
        match outcome {
            None => v1::Outcome {
                applied_revision: held.get(),
                rejection: None,
                diverged,
            },
            Some(outcome) => v1::Outcome {
                applied_revision: outcome.accepted.get(),
                rejection: outcome
                    .rejected
                    .map(|rejected| rejection(rejected.revision, &rejected.rejection)),
                diverged,
            },
        }
    }

    fn numbered(&self, proven: Proof) -> Option<Numbered<'_>> {
        Some(Numbered {
            number: self.number,
            entries: self.replica.entries()?,
            proven,
            before: self.show.proven.last(),
        })
    }

    /// Shows the state that is held to all sinks that have not seen it.
    fn show_sinks(&self, proven: Proof) {
        let outcome = self.outcome(proven);
        if let Some(slot) = &self.slot {
            slot.set(outcome);
        }
    }

    /// What a call's error means for the attempt.
    fn failed(&self, error: CallError) -> End {
        End {
            cause: match error.refused {
                Some(_) => Cause::Refused,
                None => Cause::Over,
            },
            at_least: error.at_least,
            refused: error.refused,
            // Another server may do better than one that cannot answer now. Where there is none, a
            // connection that works is not given up.
            leave: error.lost
                || (error.refused.is_none() && !error.here && self.transport.has_choice()),
            ..End::over(error.message)
        }
    }

    /// Does the work, and serves watchers that come meanwhile.
    async fn serving<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.sinks.added() => self.show_sinks(self.show.proven.last()),
                output = &mut work => return output,
            }
        }
    }

    /// The same, for as long as the phase allows; `None` when that is over.
    async fn limited<F: Future>(&self, work: F) -> Option<F::Output> {
        match self.machine.deadline() {
            Some(until) => {
                let work = tokio::time::timeout_at(until, work);
                self.serving(work).await.ok()
            }
            None => Some(self.serving(work).await),
        }
    }

    fn step(&mut self, event: Event) {
        // Only what ends is followed by a pause.
        let jitter = match event {
            Event::Ended { .. } | Event::Expired => self.dice.fraction(),
            Event::Asked | Event::Hello { .. } | Event::Heard | Event::InSync => 0.0,
        };
        self.machine.step(event, Instant::now(), jitter);
    }

    /// Shows the phase in the status. Wakes nobody when only the revision moved.
    fn show_phase(&self) {
        let status = &self.show.status;
        status.send_if_modified(|status| self.enter_phase(status));
    }

    /// Whether it tells more than a revision.
    fn enter_phase(&self, status: &mut Status) -> bool {
        let now = Instant::now();
        let state = match self.machine.phase() {
            Phase::Connecting | Phase::Asking { .. } => State::Connecting,
            Phase::Syncing { .. } => State::Syncing,
            Phase::Live { .. } => State::Live,
            Phase::Backoff { .. } => State::Backoff,
            Phase::Refused { .. } => State::Refused,
        };
        let revision = self.replica.entries().map(Entries::revision);
        status.revision = revision.unwrap_or(status.revision);
        let mut changed = status.state != state;
        if changed {
            status.state = state;
            status.since = now.into_std();
        }
        if state == State::Live {
            // Another server may have heard of etcd less lately.
            status.proven = self.clock.proven(now).max(status.proven);
            // Over, once a server serves.
            changed |= status.refused.take().is_some();
        }
        changed
    }

    fn show_connected(&self, connection: &Connection) {
        self.show.status.send_modify(|status| {
            status.endpoint = Some(connection.endpoint().to_string());
            status.reconnects = self.machine.reconnects();
            self.enter_phase(status);
        });
    }

    /// Says that a server replaced the history that was held until now, which is the only way back to
    /// an older revision.
    fn tell_of_reset(&self, before: Option<Revision>) {
        let (Some(from), Some(to)) = (before, self.replica.entries().map(Entries::revision)) else {
            return;
        };
        let connection = self.connection.as_ref();
        let endpoint = connection.map(|connection| connection.endpoint().to_string());
        tracing::warn!(
            range = %self.range,
            endpoint,
            %from,
            %to,
            "the server has another history of etcd; what was held is replaced by what it has"
        );
    }

    /// Says why a stream or an attempt ended, in the status and in the log.
    fn tell(&mut self, end: &End, fruitless: bool) {
        let range = &self.range;
        let wait = self.machine.deadline().map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        });
        let refused = end.refused.map(|reason| Refused {
            endpoint: end.endpoint.clone().unwrap_or_default(),
            reason,
            message: end.message.clone(),
        });
        let why = match &end.endpoint {
            Some(endpoint) => format!("{endpoint}: {}", end.message),
            None => end.message.clone(),
        };
        // Once for each run of refusals, not at every retry.
        let news = self.show.status.borrow().refused != refused;
        match (&refused, end.cause) {
            (Some(refused), _) if news => {
                self.outage = true;
                tracing::warn!(%range, %refused, ?wait, "a range is refused; asking again");
            }
            (_, Cause::Differs | Cause::Discard) => {
                tracing::warn!(%range, %why, ?wait, "a state cannot be trusted; fetching it anew");
            }
            // Once for each outage, not at every attempt.
            (None, _) if fruitless && !std::mem::replace(&mut self.outage, true) => {
                tracing::warn!(%range, %why, "not in sync with any server; trying again, and the last state stays");
            }
            _ => tracing::debug!(%range, %why, ?wait, "a stream ended"),
        }
        self.show.status.send_modify(|status| {
            status.last_error = Some(why);
            status.diverged = self.machine.diverged();
            // Of a server that cannot be reached it is not known whether it still refuses.
            if refused.is_some() {
                status.refused = refused;
            }
            // With the reason and not after it: whoever is woken sees both.
            self.enter_phase(status);
        });
    }

    /// Ends the subscription for its handles.
    fn close(&self, reason: Closed) {
        self.sinks.close(reason);
        self.show.status.send_if_modified(|status| {
            let changed = status.state != State::Closed;
            if changed {
                status.state = State::Closed;
                status.since = Instant::now().into_std();
            }
            changed
        });
    }
}

/// As it travels: a key that is too long to name is left out, and such a path is cut off.
fn rejection(revision: Revision, rejection: &Rejection) -> v1::Rejection {
    let key = rejection.key().map(|key| key.as_bytes());
    let key = key.filter(|key| key.len() <= KeyRange::MAX_LEN);
    v1::Rejection {
        revision: revision.get(),
        kind: rejection.kind().as_str().to_owned(),
        key: key.cloned().unwrap_or_default(),
        path: cut(rejection.path().to_owned(), KeyRange::MAX_LEN),
    }
}

impl Drop for Task {
    /// However it ends (its runtime may be going), nobody is left waiting.
    fn drop(&mut self) {
        self.close(Closed::Ended);
    }
}

impl End {
    fn over(message: impl Into<String>) -> Self {
        Self {
            cause: Cause::Over,
            at_least: Duration::ZERO,
            message: message.into(),
            refused: None,
            endpoint: None,
            leave: false,
            purge: false,
        }
    }

    fn clean() -> Self {
        Self::over("the server ended the stream")
    }

    /// Nothing came for too long: the connection may be up and lead nowhere.
    fn silent() -> Self {
        Self {
            leave: true,
            ..Self::over("the server fell silent")
        }
    }

    fn malformed(what: &str) -> Self {
        Self::over(format!("the server broke the contract: {what}"))
    }

    fn refused(refusal: &ApplyError, range: &KeyRange) -> Self {
        let over = Self::over(refusal.to_string());
        match refusal {
            ApplyError::TooLarge { limit } => Self {
                message: too_large(range, *limit),
                cause: Cause::Refused,
                refused: Some(RefusedReason::TooLarge),
                // Finding out costs both ends as much as the limit allows.
                at_least: pause(u32::MAX),
                ..over
            },
            _ if refusal.keeps_state() => over,
            ApplyError::Diverged { .. }
            | ApplyError::PatchBase { .. }
            | ApplyError::Patch { .. } => Self {
                cause: Cause::Differs,
                ..over
            },
            _ => Self {
                cause: Cause::Discard,
                ..over
            },
        }
    }

    fn goodbye(goodbye: &v1::Goodbye) -> Self {
        use v1::goodbye::Reason;
        let reason = goodbye.reason();
        let (message, leave) = match reason {
            Reason::Unspecified => ("the server said goodbye", true),
            Reason::Drain => ("the server is shutting down", true),
            Reason::Rebalance => ("the server spreads its load", true),
            Reason::Stalled => ("the server found this client too slow", false),
            Reason::Revoked => ("the right to read the range was taken back", false),
            Reason::History => ("etcd's history was replaced", false),
        };
        let revoked = reason == Reason::Revoked;
        Self {
            cause: if revoked { Cause::Refused } else { Cause::Over },
            at_least: pause(goodbye.retry_after_ms),
            refused: revoked.then_some(RefusedReason::Denied),
            leave,
            purge: goodbye.purge,
            ..Self::over(message)
        }
    }
}
