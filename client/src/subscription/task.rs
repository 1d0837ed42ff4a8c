//! The one task of a subscription: drives the state machine, drains the stream, publishes states.
//!
//! It never waits for readers: it publishes each state at once, and a reader that was away finds the latest.
//! It ends when its subscription is dropped, or when a goodbye tells the client to delete its copies (`purge`).
//! A revoked right without that is a refusal: the task goes on trying.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use driftless_proto::apply::Greeting;
use driftless_proto::v1::{self, watch_response::Frame};
use driftless_proto::{KeyRange, Revision};
use tokio::time::Instant;

use super::clock::Clock;
use super::decoders::Decoders;
use super::disconnect::Disconnect;
use super::outcome;
use super::publisher::{Publisher, Standing};
use super::replica::{Applied, Replica};
use super::state::{Cause, Event, Machine, Phase};
use crate::decode::VersionedState;
use crate::error::{Closed, Refused};
use crate::jitter::Jitter;
use crate::resources::ResourceGuard;
use crate::transport::{Connection, Frames, ReportSlot, Transport};
use crate::value::{Entries, Proof};

/// Drives one subscription.
pub(super) struct Task {
    range: KeyRange,
    transport: Arc<Transport>,
    decoders: Arc<Decoders>,
    publisher: Publisher,
    machine: Machine,
    jitter: Jitter,
    replica: Replica,
    /// Version of the state that is held; 0 before the first.
    version: u64,
    /// Kept between attempts while it can be used.
    connection: Option<Arc<Connection>>,
    /// Where the current stream's outcome is reported.
    report: Option<ReportSlot>,
    clock: Clock,
    /// No server serves the range. That was logged, so its end will be.
    outage: bool,
    // Last, because fields are dropped in order: it shows that the others are gone.
    _guard: ResourceGuard,
}

impl Task {
    pub(super) fn new(
        range: KeyRange,
        limit: usize,
        transport: Arc<Transport>,
        decoders: Arc<Decoders>,
        publisher: Publisher,
        guard: ResourceGuard,
    ) -> Self {
        Self {
            jitter: transport.jitter_for(&range),
            replica: Replica::new(range.clone(), limit),
            range,
            transport,
            decoders,
            publisher,
            machine: Machine::new(),
            version: 0,
            connection: None,
            report: None,
            clock: Clock::default(),
            outage: false,
            _guard: guard,
        }
    }

    /// Runs until it is dropped, or until a goodbye tells the client to delete its copies of the range.
    pub(super) async fn run(mut self) {
        loop {
            let disconnect = self.attempt().await;
            self.report = None;
            if disconnect.retire
                && let Some(connection) = self.connection.take()
            {
                connection.retire();
            }
            if disconnect.purge {
                tracing::warn!(range = %self.range, "the right to read the range was revoked");
                self.close(Closed::Revoked);
                return;
            }
            // A stream that was live may well be live again in a moment: no reason for a warning.
            let was_live = matches!(self.machine.phase(), Phase::Live { .. });
            self.step(Event::Disconnected {
                cause: disconnect.cause,
                at_least: disconnect.at_least,
            });
            self.publish_disconnect(&disconnect, was_live);
            if let Some(until) = self.machine.deadline() {
                self.serve_watchers(tokio::time::sleep_until(until)).await;
            }
            self.step(Event::Expired);
            self.publisher.publish_phase(self.standing());
        }
    }

    /// One attempt: connects, sends the request, and follows the stream to its end.
    async fn attempt(&mut self) -> Disconnect {
        let usable = self.connection.take().filter(|held| held.is_usable());
        let connection = match usable {
            Some(connection) => connection,
            None => match self.serve_watchers(self.transport.connection()).await {
                Ok(connection) => connection,
                Err(error) => return Disconnect::failed(error, self.transport.has_choice()),
            },
        };
        self.connection = Some(Arc::clone(&connection));
        match self.follow(&connection).await {
            Ok(never) => match never {},
            Err(disconnect) => Disconnect {
                endpoint: Some(connection.endpoint().to_string()),
                ..disconnect
            },
        }
    }

    /// Sends the request, and follows the stream to its end.
    async fn follow(&mut self, connection: &Arc<Connection>) -> Result<Infallible, Disconnect> {
        let request = self.request();
        let requested = Instant::now();
        self.step(Event::Requested);
        let frames = &mut match self.within_deadline(connection.watch(request)).await {
            Some(Ok(frames)) => frames,
            Some(Err(error)) => {
                return Err(Disconnect::failed(error, self.transport.has_choice()));
            }
            None => return Err(Disconnect::silent()),
        };
        let hello = match self.next(frames).await? {
            Some(Frame::Hello(hello)) => hello,
            // A server that accepts no streams may send nothing else.
            Some(Frame::Goodbye(goodbye)) => return Err(Disconnect::goodbye(&goodbye)),
            _ => return Err(Disconnect::malformed("the first frame is not a hello")),
        };
        self.begin(&hello, requested, connection)?;
        loop {
            match self.next(frames).await? {
                Some(Frame::Hello(_)) => {
                    return Err(Disconnect::malformed("a second hello came"));
                }
                Some(Frame::Goodbye(goodbye)) => return Err(Disconnect::goodbye(&goodbye)),
                Some(frame) => self.apply(frame)?,
                // Of a kind that is newer than this library: the server is alive.
                None => self.alive()?,
            }
        }
    }

    /// Takes a stream's hello.
    fn begin(
        &mut self,
        hello: &v1::Hello,
        requested: Instant,
        connection: &Connection,
    ) -> Result<(), Disconnect> {
        let millis = |millis: u32| Duration::from_millis(millis.into());
        let greeting = Greeting::try_from(hello).map_err(|error| Disconnect::greeting(&error))?;
        self.replica.begin(greeting.epoch, greeting.token);
        self.clock.begin(hello, requested);
        self.step(Event::Hello {
            progress_interval: millis(hello.progress_interval_ms),
        });
        self.transport.set_keepalive(millis(hello.ping_interval_ms));
        let report_interval = millis(hello.report_interval_ms);
        let reports = connection.reports();
        self.report = Some(reports.slot(greeting.watch_id, report_interval));
        self.publisher.publish_connected(
            connection.endpoint().to_string(),
            self.machine.reconnects(),
            self.standing(),
        );
        Ok(())
    }

    /// Takes a frame that shows no more than that the server is there.
    fn alive(&mut self) -> Result<(), Disconnect> {
        if self.machine.is_overdue(Instant::now()) {
            return Err(Disconnect::unfinished());
        }
        self.step(Event::Frame);
        Ok(())
    }

    /// The next frame; `None` for one of an unknown kind.
    async fn next(&self, frames: &mut Frames) -> Result<Option<Frame>, Disconnect> {
        match self.within_deadline(frames.next()).await {
            Some(Ok(Some(response))) => Ok(response.frame),
            Some(Ok(None)) => Err(Disconnect::clean()),
            Some(Err(error)) => Err(Disconnect::failed(error, self.transport.has_choice())),
            None if self.machine.is_overdue(Instant::now()) => Err(Disconnect::unfinished()),
            None => Err(Disconnect::silent()),
        }
    }

    /// Applies a frame, and publishes the state that results.
    fn apply(&mut self, frame: Frame) -> Result<(), Disconnect> {
        match &frame {
            Frame::Diff(diff) => self.clock.contact(diff.contact_ms),
            Frame::Current(current) => self.clock.contact(current.contact_ms),
            Frame::Progress(progress) => self.clock.contact(progress.contact_ms),
            Frame::Snapshot(snapshot) => self.clock.contact(snapshot.contact_ms),
            Frame::Hello(_) | Frame::Goodbye(_) => {}
        }
        let is_reset = matches!(&frame, Frame::Snapshot(chunk) if chunk.reset);
        let before = self.revision();
        let applied = self
            .replica
            .apply(frame)
            .map_err(|error| Disconnect::not_applied(&error, &self.range))?;
        if is_reset && applied != Applied::Nothing {
            self.log_reset(before);
        }
        let changed = match applied {
            Applied::Nothing => return self.alive(),
            Applied::Confirmed => false,
            Applied::Changed => true,
        };
        self.version += u64::from(changed);
        self.publisher
            .publish_entries(self.replica.entries(), changed);
        let was_live = matches!(self.machine.phase(), Phase::Live { .. });
        self.step(Event::InSync);
        self.publisher.publish_phase(self.standing());
        if std::mem::take(&mut self.outage) {
            tracing::info!(range = %self.range, "in sync");
        }
        let proven = self.clock.proven(Instant::now());
        let proven = proven.map_or(Proof::NONE, |at| self.publisher.proven.proof(at));
        if changed || !was_live {
            self.publish_to_decoders(proven);
        }
        // After the decoders, or a value that this state supersedes would count as proven for a moment.
        self.publisher.proven.prove(proven);
        Ok(())
    }

    /// The request of the next stream.
    fn request(&self) -> v1::WatchRequest {
        let have = if self.machine.starts_over() {
            None
        } else {
            self.replica.have()
        };
        v1::WatchRequest {
            range: Some((&self.range).into()),
            outcome: have
                .is_some()
                .then(|| self.outcome(self.publisher.proven.last())),
            have,
            client: Some(self.transport.info().clone()),
            features: vec![v1::Feature::ValueDeltas.into()],
        }
    }

    /// Publishes the state to all decoders that do not have it, and returns what became of it. The state
    /// was last known to be etcd's at `proven`.
    fn outcome(&self, proven: Proof) -> v1::Outcome {
        let outcome = self.decoders.publish(self.versioned_state(proven));
        let held = self.revision().unwrap_or(Revision::NONE);
        outcome::report(outcome, held, self.machine.diverged())
    }

    fn versioned_state(&self, proven: Proof) -> Option<VersionedState<'_>> {
        Some(VersionedState {
            version: self.version,
            entries: self.replica.entries()?,
            proven,
            previous_proven: self.publisher.proven.last(),
        })
    }

    /// Publishes the state to all decoders that do not have it, and reports what became of it.
    fn publish_to_decoders(&self, proven: Proof) {
        let outcome = self.outcome(proven);
        if let Some(report) = &self.report {
            report.set(outcome);
        }
    }

    /// Does the work; watchers that are added meanwhile get the state.
    async fn serve_watchers<F: Future>(&self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                () = self.decoders.added() => {
                    self.publish_to_decoders(self.publisher.proven.last());
                }
                output = &mut work => return output,
            }
        }
    }

    /// The same, for as long as the phase allows; `None` when its time is up.
    async fn within_deadline<F: Future>(&self, work: F) -> Option<F::Output> {
        match self.machine.deadline() {
            Some(until) => {
                let work = tokio::time::timeout_at(until, work);
                self.serve_watchers(work).await.ok()
            }
            None => Some(self.serve_watchers(work).await),
        }
    }

    fn step(&mut self, event: Event) {
        // Only the end of an attempt is followed by a backoff.
        let jitter = match event {
            Event::Disconnected { .. } | Event::Expired => self.jitter.fraction(),
            Event::Requested | Event::Hello { .. } | Event::Frame | Event::InSync => 0.0,
        };
        self.machine.step(event, Instant::now(), jitter);
    }

    /// The revision of the state that is held.
    fn revision(&self) -> Option<Revision> {
        self.replica.entries().map(Entries::revision)
    }

    fn standing(&self) -> Standing {
        let now = Instant::now();
        Standing {
            now,
            phase: self.machine.phase(),
            revision: self.revision(),
            proven: self.clock.proven(now),
        }
    }

    /// Logs that a server replaced the history of etcd, which is the only way back to an older revision.
    fn log_reset(&self, before: Option<Revision>) {
        let (Some(from), Some(to)) = (before, self.revision()) else {
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

    /// Logs why a stream or an attempt ended, and publishes it in the status.
    fn publish_disconnect(&mut self, disconnect: &Disconnect, was_live: bool) {
        let range = &self.range;
        let wait = self.machine.deadline().map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        });
        let refused = disconnect.refused.map(|reason| Refused {
            endpoint: disconnect.endpoint.clone().unwrap_or_default(),
            reason,
            message: disconnect.message.clone(),
        });
        let why = match &disconnect.endpoint {
            Some(endpoint) => format!("{endpoint}: {}", disconnect.message),
            None => disconnect.message.clone(),
        };
        // Once for a series of equal refusals, not at each retry.
        let is_new = self.publisher.status.borrow().refused != refused;
        match (&refused, disconnect.cause) {
            (Some(refused), _) if is_new => {
                self.outage = true;
                tracing::warn!(%range, %refused, ?wait, "a range is refused; trying again");
            }
            (_, Cause::Diverged | Cause::Discard) => {
                tracing::warn!(%range, %why, ?wait, "a state cannot be trusted; fetching it again");
            }
            // Once for each outage, not at each attempt.
            (None, _) if !was_live && !std::mem::replace(&mut self.outage, true) => {
                tracing::warn!(%range, %why, "not in sync with any server; trying again, and the last state stays");
            }
            _ => tracing::debug!(%range, %why, ?wait, "a stream ended"),
        }
        let diverged = self.machine.diverged();
        self.publisher
            .publish_disconnect(why, refused, diverged, self.standing());
    }

    /// Ends the subscription for its handles.
    fn close(&self, reason: Closed) {
        self.decoders.close(reason);
        self.publisher.publish_closed();
    }
}

impl Drop for Task {
    /// However it ends (its runtime may be shutting down), nobody is left waiting.
    fn drop(&mut self) {
        self.close(Closed::Ended);
    }
}
