//! The state machine of a backfill. Pure: the ingest task delivers events and carries out actions.

use std::collections::VecDeque;
use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

use super::reach::{Reach, Reaches};
use super::received::Received;
use super::requests::Reachable;
use super::verification::{Mismatch, Slice, Verification};
use crate::store::{BackfillEvent, Batch, Span, Writer};

/// How long to collect requests before the source is asked: the first of a returning crowd are not
/// those that were away the longest.
const COLLECTION_TIME: Duration = Duration::from_millis(200);

/// How many times a read may be interrupted per change log, as by a lost connection, and be requested
/// again.
const INTERRUPTIONS: u8 = 3;

/// What a backfill is doing.
#[derive(Debug)]
pub enum State {
    /// Nothing: no revision is requested that can be reached, or the source is disconnected.
    Idle,
    /// Clients requested revisions. Others may follow until this moment.
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
    /// Clients hold states from before the change log.
    Requested {
        /// How far back.
        reaches: Reaches,
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
    /// The source cannot read the span. A nearer one may follow.
    Unavailable {
        /// The span's beginning.
        after: Revision,
        /// Why, for people.
        reason: String,
    },
    /// The span does not match the state. None follows.
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
    /// What is requested and not reached yet.
    requested: Reaches,
    /// How far the log may be extended: not as far as what was found to be too much.
    open: Reaches,
    /// What is being read.
    reach: Option<Reach>,
    /// Where the change log began at first.
    origin: Revision,
    /// Where the change log begins, as far as is known here.
    floor: Revision,
    /// Bytes of the batches that were adopted.
    adopted_bytes: usize,
    /// How many more times a read may be interrupted.
    interruptions: u8,
}

impl Backfill {
    /// Idle and disconnected, before the first change log.
    pub const fn new() -> Self {
        Self {
            state: State::Idle,
            connected: false,
            requested: Reaches::NONE,
            open: Reaches::NONE,
            reach: None,
            origin: Revision::NONE,
            floor: Revision::NONE,
            adopted_bytes: 0,
            interruptions: 0,
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

    /// Which revisions before the change log may still be reached.
    pub const fn reachable(&self) -> Reachable {
        Reachable {
            origin: self.origin,
            floor: self.floor,
            open: self.open,
        }
    }

    /// The one step function.
    pub fn step(&mut self, event: Event<'_>, now: Instant) -> Option<Action> {
        match event {
            Event::LogStarted { floor } => {
                self.interrupt();
                if floor != self.origin {
                    // What was requested was so far back from another revision.
                    self.requested = Reaches::NONE;
                }
                self.origin = floor;
                self.floor = floor;
                self.open = Reaches::ALL;
                self.adopted_bytes = 0;
                self.interruptions = INTERRUPTIONS;
                // A stream that waits is woken only when what is reachable changes: until then its request
                // stays.
                self.finish(now + COLLECTION_TIME);
                None
            }
            Event::Requested { reaches, floor } => {
                self.requested = self.requested.union(reaches);
                if floor != self.floor {
                    self.exhaust();
                } else if matches!(self.state, State::Idle) {
                    self.finish(now + COLLECTION_TIME);
                }
                None
            }
            Event::Connected => {
                self.connected = true;
                if matches!(self.state, State::Idle) {
                    self.finish(now + COLLECTION_TIME);
                }
                None
            }
            Event::Disconnected => {
                self.connected = false;
                self.interrupt();
                self.finish(now + COLLECTION_TIME);
                None
            }
            Event::Interrupted | Event::NotSent => {
                if self.interrupt() {
                    self.finish(now + COLLECTION_TIME);
                }
                None
            }
            Event::Received(event) => self.receive(event, now),
            Event::Adopted { floor } => {
                self.adopted(floor, now);
                None
            }
            Event::Due { log, writer } => self.due_event(log, writer, now),
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

    /// Drops the read in progress; it is requested again. Returns false if there is none.
    fn interrupt(&mut self) -> bool {
        let Some(reach) = self.reach.take() else {
            return false;
        };
        self.state = State::Idle;
        match self.interruptions.checked_sub(1) {
            Some(left) => {
                self.interruptions = left;
                self.requested.add(reach);
            }
            None => self.exhaust(),
        }
        true
    }

    /// Nothing is in progress: waits for requests, or collects them until this moment if there are any
    /// that can still be reached.
    fn finish(&mut self, until: Instant) {
        self.state = State::Idle;
        self.reach = None;
        let open = self.requested.intersection(self.open).iter();
        let open = open.filter(|reach| reach.leads_to(self.origin) < self.floor);
        self.requested = open.collect();
        if self.connected && !self.requested.is_empty() {
            self.state = State::Collecting { until };
        }
    }

    /// Nothing before the change log can be reached any more.
    fn exhaust(&mut self) {
        self.open = Reaches::NONE;
        self.requested = Reaches::NONE;
        self.reach = None;
        self.state = State::Idle;
    }

    /// The past does not match the state: nothing that is said of it counts.
    fn reject(&mut self, why: Mismatch) -> Option<Action> {
        self.exhaust();
        Some(Action::Abandon(Abandoned::Mismatch(why)))
    }

    fn due_event(&mut self, log: LogStart, writer: &mut Writer, now: Instant) -> Option<Action> {
        if matches!(self.state, State::Collecting { .. }) {
            self.request(log, writer, now)
        } else {
            self.verify(writer)
        }
    }

    /// The requests are collected: asks the source.
    fn request(&mut self, log: LogStart, writer: &Writer, now: Instant) -> Option<Action> {
        let reach = self.next_reach().filter(|_| log.floor == self.floor);
        let Some(reach) = reach else {
            // The log dropped its oldest batches: there is no room for what lies before them.
            self.exhaust();
            return None;
        };
        let span = Span {
            after: reach.leads_to(self.origin),
            up_to: self.floor,
            last_put: log.is_empty.then(|| writer.snapshot().last_put()),
        };
        if self.expected_bytes(span) > log.room {
            self.open = Reaches::nearer_than(reach);
            self.finish(now);
            return None;
        }
        self.reach = Some(reach);
        self.state = State::Requesting(Box::new(Received::new(span, log.room)));
        Some(Action::Request(span))
    }

    /// What to read next. The nearest first: they are many after a restart, and what is far may be too
    /// much.
    fn next_reach(&self) -> Option<Reach> {
        if self.floor < self.origin {
            return self.requested.iter().next();
        }
        self.open.iter().rfind(|reach| *reach <= Reach::FIRST)
    }

    /// How many bytes of batches a span has, if it is like what was read: etcd reads all of it into its
    /// memory before it sends any, so it is not asked for what does not fit in the log.
    fn expected_bytes(&self, span: Span) -> usize {
        let revisions = |from: Revision, to: Revision| usize::try_from(to.get() - from.get());
        let read = revisions(self.floor, self.origin).unwrap_or(0).max(1);
        let asked = revisions(span.after, span.up_to).unwrap_or(usize::MAX);
        (self.adopted_bytes / read).saturating_mul(asked)
    }

    /// Receives a part of the answer.
    fn receive(&mut self, event: BackfillEvent, now: Instant) -> Option<Action> {
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
                Err(mismatch) => self.reject(mismatch),
            },
            BackfillEvent::End => {
                if let State::Requesting(received) = std::mem::replace(&mut self.state, State::Idle)
                {
                    self.state = State::Verifying(Box::new(received.verify()));
                }
                None
            }
            BackfillEvent::Failed { reason } => {
                let after = received.span().after;
                // Nor can anything farther be read. What is nearer may be.
                let nearer = self.reach.map_or(Reaches::NONE, Reaches::nearer_than);
                self.open = self.open.intersection(nearer);
                self.finish(now);
                Some(Action::Abandon(Abandoned::Unavailable { after, reason }))
            }
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
            Ok(Slice::Verified { floor, batches }) => {
                self.adopted_bytes += batches.iter().map(Batch::bytes).sum::<usize>();
                Some(Action::Adopt {
                    floor,
                    batches,
                    up_to,
                })
            }
            Err(mismatch) => self.reject(mismatch),
        }
    }

    fn adopted(&mut self, floor: Option<Revision>, now: Instant) {
        let (Some(span), Some(floor)) = (self.span(), floor) else {
            return self.exhaust();
        };
        self.floor = floor;
        if floor > span.after {
            // etcd has compacted what lies before, or there is no room for it.
            self.open = Reaches::NONE;
        }
        self.finish(now + COLLECTION_TIME);
    }
}

impl Default for Backfill {
    fn default() -> Self {
        Self::new()
    }
}
