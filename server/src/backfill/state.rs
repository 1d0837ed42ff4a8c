//! The state machine of a backfill. Pure: the ingest task delivers events and carries out actions.

use std::collections::VecDeque;
use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

use super::received::Received;
use super::requests::Reachable;
use super::verification::{Mismatch, Slice, Verification};
use crate::store::{BackfillEvent, Batch, Span, Writer};

/// How long to collect requests before the source is asked: the first of a returning crowd are not
/// those that were away the longest.
const COLLECTION_TIME: Duration = Duration::from_millis(200);

/// How many revisions before the first state a backfill reaches at most, whatever is requested: etcd
/// reads all of them into memory, those of other prefixes too, and takes some 10 s for as many of one
/// prefix.
const MAX_REVISIONS: i64 = 100_000;

/// How many revisions a backfill requests at least, so that a client slightly older than the first ones
/// needs no further backfill: etcd sends as many at a time.
const MIN_REVISIONS: i64 = 1_000;

/// How many backfills there are per change log: one for the returning crowd, one for clients that were
/// away for longer, and one more if the connection was lost.
const ATTEMPTS: u8 = 3;

/// What a backfill is doing.
#[derive(Debug)]
pub enum State {
    /// Nothing: no revision is requested that can be reached, or the source is disconnected.
    Idle,
    /// A client requested a revision. Others may follow until this moment.
    Collecting {
        /// When the source is asked.
        until: Instant,
    },
    /// The source was asked for a span, and its transactions are being received.
    Requesting(Box<Received>),
    /// The whole span was received, and is compared with the state.
    Verifying(Box<Verification>),
}

/// Where the change log begins, and what fits in front of it.
#[derive(Clone, Copy, Debug)]
pub struct LogStart {
    /// The oldest revision whose state can be derived from the log.
    pub floor: Revision,
    /// Bytes of batches that still fit.
    pub room: usize,
    /// True if nothing changed since the floor.
    pub is_empty: bool,
}

/// What happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A new change log begins at this revision.
    LogStarted {
        /// Its first revision.
        floor: Revision,
    },
    /// A client holds the state at this revision.
    Requested {
        /// The client's revision.
        revision: Revision,
        /// Where the change log begins.
        floor: Revision,
    },
    /// The source is connected.
    Connected,
    /// The source lost its connection, and any answer in progress.
    Disconnected,
    /// The source read the whole state again, and dropped any answer in progress.
    Interrupted,
    /// The source could not take the request: its queue is full.
    NotSent,
    /// A part of the source's answer.
    Received(BackfillEvent),
    /// The batches of [`Action::Adopt`] were put in front of the change log.
    Adopted {
        /// Where the log begins now; `None` if the batches do not meet it any more.
        floor: Option<Revision>,
    },
    /// The time of [`Backfill::due`] has come.
    Due {
        /// The change log.
        log: LogStart,
        /// The state.
        writer: &'a mut Writer,
    },
}

/// What the caller has to do.
#[derive(Debug)]
#[must_use = "the backfill waits for the outcome"]
pub enum Action {
    /// Ask the source for this span; deliver [`Event::NotSent`] if it cannot be asked.
    Request(Span),
    /// Put these batches in front of the change log, and deliver [`Event::Adopted`].
    Adopt {
        /// Every change after this revision is in the batches.
        floor: Revision,
        /// The oldest first.
        batches: VecDeque<Batch>,
        /// The revision that the batches lead to: where the log has to begin.
        up_to: Revision,
    },
    /// Report that the past is not available: clients from that time get a snapshot.
    Abandon(Abandoned),
}

/// Why a backfill was abandoned.
#[derive(Debug)]
pub enum Abandoned {
    /// The source cannot read the span.
    Unavailable {
        /// Why, for people.
        reason: String,
    },
    /// The span does not match the state.
    Mismatch(Mismatch),
}

/// When a backfill has something to do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Only after another event.
    Never,
    /// At this moment.
    At(Instant),
    /// As soon as nothing else is to be done.
    Soon,
}

/// The backfill of one prefix.
#[derive(Debug)]
pub struct Backfill {
    state: State,
    connected: bool,
    /// The earliest revision that was requested since the source was asked.
    requested: Option<Revision>,
    /// Where the change log began at first.
    origin: Revision,
    /// Where the change log begins, as far as is known here.
    floor: Revision,
    /// How many more times the source may be asked.
    attempts: u8,
}

impl Backfill {
    /// Idle and disconnected, before the first change log.
    pub const fn new() -> Self {
        Self {
            state: State::Idle,
            connected: false,
            requested: None,
            origin: Revision::NONE,
            floor: Revision::NONE,
            attempts: 0,
        }
    }

    /// What it is doing.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// When the next [`Event::Due`] is to be delivered.
    pub const fn due(&self) -> Due {
        match &self.state {
            State::Collecting { until } => Due::At(*until),
            State::Verifying(_) => Due::Soon,
            State::Idle | State::Requesting(_) => Due::Never,
        }
    }

    /// Which revisions before the change log may still be reached, by what is under way or by another
    /// attempt.
    pub fn reachable(&self) -> Reachable {
        let from = match self.span() {
            _ if self.attempts > 0 => self.farthest(),
            Some(span) => span.after,
            None => self.floor,
        };
        let floor = self.floor;
        Reachable { from, floor }
    }

    /// The one step function.
    pub fn step(&mut self, event: Event<'_>, now: Instant) -> Option<Action> {
        match event {
            Event::LogStarted { floor } => {
                self.interrupt();
                self.origin = floor;
                self.floor = floor;
                self.attempts = ATTEMPTS;
                // A stream that waits is woken only when what is reachable changes: its request stays.
                self.finish(now);
                None
            }
            Event::Requested { revision, floor } => {
                self.add_request(revision);
                if floor != self.floor {
                    self.exhaust();
                } else if matches!(self.state, State::Idle) {
                    self.finish(now);
                }
                None
            }
            Event::Connected => {
                self.connected = true;
                if matches!(self.state, State::Idle) {
                    self.finish(now);
                }
                None
            }
            Event::Disconnected => {
                self.connected = false;
                self.interrupt();
                self.finish(now);
                None
            }
            Event::Interrupted | Event::NotSent => {
                if self.interrupt() {
                    self.finish(now);
                }
                None
            }
            Event::Received(event) => self.receive(event),
            Event::Adopted { floor } => {
                self.adopted(floor, now);
                None
            }
            Event::Due { log, writer } => self.due_event(log, writer),
        }
    }

    /// The span that is being requested or verified.
    fn span(&self) -> Option<Span> {
        match &self.state {
            State::Requesting(received) => Some(received.span()),
            State::Verifying(verification) => Some(verification.span()),
            State::Idle | State::Collecting { .. } => None,
        }
    }

    /// The earliest revision that may be requested of the source.
    fn farthest(&self) -> Revision {
        Revision::new((self.origin.get() - MAX_REVISIONS).max(1))
    }

    fn add_request(&mut self, revision: Revision) {
        let earliest = self.requested.map_or(revision, |known| known.min(revision));
        self.requested = Some(earliest);
    }

    /// Drops the span in progress and requests it again. Returns false if there is none.
    fn interrupt(&mut self) -> bool {
        let Some(span) = self.span() else {
            return false;
        };
        self.add_request(span.after);
        self.state = State::Idle;
        true
    }

    /// Nothing is in progress: waits for requests, or collects them if there are any that can still be
    /// reached.
    fn finish(&mut self, now: Instant) {
        self.state = State::Idle;
        let reachable = self.reachable();
        self.requested = self.requested.filter(|at| reachable.contains(*at));
        if self.connected && self.requested.is_some() {
            let until = now + COLLECTION_TIME;
            self.state = State::Collecting { until };
        }
    }

    /// Nothing before the change log can be reached any more.
    fn exhaust(&mut self) {
        self.attempts = 0;
        self.requested = None;
        self.state = State::Idle;
    }

    fn abandon(&mut self, why: Abandoned) -> Option<Action> {
        self.exhaust();
        Some(Action::Abandon(why))
    }

    fn due_event(&mut self, log: LogStart, writer: &mut Writer) -> Option<Action> {
        if matches!(self.state, State::Collecting { .. }) {
            self.request(log, writer)
        } else {
            self.verify(writer)
        }
    }

    /// The requests are collected: asks the source.
    fn request(&mut self, log: LogStart, writer: &Writer) -> Option<Action> {
        let requested = self.requested.take();
        // The log dropped its oldest batches: there is no room for what lies before them.
        let Some(requested) = requested.filter(|_| log.floor == self.floor) else {
            self.exhaust();
            return None;
        };
        self.attempts = self.attempts.saturating_sub(1);
        let farthest = self.farthest();
        let after = if self.floor == self.origin {
            let nearest = Revision::new(self.floor.get() - MIN_REVISIONS);
            requested.min(nearest).max(farthest)
        } else {
            // Clients of any age may follow: the second backfill is the last.
            self.attempts = 0;
            farthest
        };
        let span = Span {
            after,
            up_to: self.floor,
            last_put: log.is_empty.then(|| writer.snapshot().last_put()),
        };
        self.state = State::Requesting(Box::new(Received::new(span, log.room)));
        Some(Action::Request(span))
    }

    /// Receives a part of the answer.
    fn receive(&mut self, event: BackfillEvent) -> Option<Action> {
        let State::Requesting(received) = &mut self.state else {
            // A late part of an answer that is not awaited any more.
            return None;
        };
        match event {
            BackfillEvent::Begin { after } => {
                received.begin(after);
                None
            }
            BackfillEvent::Transactions(transactions) => match received.receive(transactions) {
                Ok(()) => None,
                Err(mismatch) => self.abandon(Abandoned::Mismatch(mismatch)),
            },
            BackfillEvent::End => {
                if let State::Requesting(received) = std::mem::replace(&mut self.state, State::Idle)
                {
                    self.state = State::Verifying(Box::new(received.verify()));
                }
                None
            }
            BackfillEvent::Failed { reason } => self.abandon(Abandoned::Unavailable { reason }),
        }
    }

    /// Compares the next slice with the state.
    fn verify(&mut self, writer: &mut Writer) -> Option<Action> {
        let State::Verifying(verification) = &mut self.state else {
            return None;
        };
        let up_to = verification.span().up_to;
        match verification.slice(writer) {
            Ok(Slice::Pending) => None,
            Ok(Slice::Verified { floor, batches }) => Some(Action::Adopt {
                floor,
                batches,
                up_to,
            }),
            Err(mismatch) => self.abandon(Abandoned::Mismatch(mismatch)),
        }
    }

    fn adopted(&mut self, floor: Option<Revision>, now: Instant) {
        let (Some(span), Some(floor)) = (self.span(), floor) else {
            return self.exhaust();
        };
        self.floor = floor;
        if floor > span.after {
            // etcd has compacted what lies before, or there is no room for it.
            self.attempts = 0;
        }
        self.finish(now);
    }
}

impl Default for Backfill {
    fn default() -> Self {
        Self::new()
    }
}
