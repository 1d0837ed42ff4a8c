//! What an open watch does besides reporting changes: it requests progress, notices a silent etcd,
//! and makes sure that the position reaches every revision that a read returned. Pure: the time is
//! passed in, and the caller carries out the actions.

use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

/// After so many progress intervals without a message etcd counts as lost. At the end of each but the
/// last, progress is requested. The intervals are counted, not measured: a server that was itself
/// stopped for long (SIGSTOP, a frozen container) counts that as one interval at most.
const SILENT_INTERVALS: u32 = 3;

/// Progress intervals between two proofs that an idle prefix is unchanged, for etcd versions whose
/// progress cannot be trusted. A proof is expensive: etcd visits every key of the prefix.
const PROOF_INTERVALS: u32 = 6;

/// How long to wait between two attempts to reach a revision.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(100);

/// How many attempts there are before the state is listed again. So two such lists are more than a
/// second apart. Counted, not measured, as [`SILENT_INTERVALS`] are.
const ATTEMPTS: u32 = 10;

/// How the position relates to the revision that etcd is known to have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The position is not known to be behind etcd.
    Current,
    /// etcd reported this later revision in an answer that may overtake events. A read proves now and
    /// then that nothing changed.
    Ahead(Revision),
    /// A read returned a later revision: the position has to reach it.
    Waiting(RevisionWait),
}

/// A revision that the position has to reach.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RevisionWait {
    revision: Revision,
    /// The highest revision that was read since: waited for next.
    next: Revision,
    retry_at: Instant,
    attempts_left: u32,
}

impl RevisionWait {
    fn new(revision: Revision, now: Instant) -> Self {
        Self {
            revision,
            next: revision,
            retry_at: now + ATTEMPT_INTERVAL,
            attempts_left: ATTEMPTS,
        }
    }
}

/// Decides what an open watch does next.
#[derive(Debug)]
pub(super) struct Liveness {
    state: State,
    /// True if an answer to a progress request is ordered after the events.
    orders_progress: bool,
    interval: Duration,
    /// Intervals that ended since the last message of the watch. Answers to reads do not count: a
    /// stream can fall silent by itself.
    silent_intervals: u32,
    interval_ends: Instant,
    /// When to prove next that an idle prefix is unchanged.
    proof_due: Instant,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// The watch delivered a message.
    Message,
    /// The position moved.
    PositionMoved,
    /// etcd reported this revision by itself.
    ProgressNotification(Revision),
    /// etcd answered a progress request with this revision.
    ProgressAnswer(Revision),
    /// A linearizable read returned this revision.
    Read {
        revision: Revision,
        /// True if the read proves that the prefix did not change since the position of its start.
        unchanged: bool,
        /// True if the position has not moved since the read started.
        at_start: bool,
    },
    /// The time of [`Liveness::due`] has come.
    Tick {
        /// True while a read is under way.
        reading: bool,
    },
}

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Report that nothing changed up to this revision, and move the position there.
    Advance(Revision),
    /// Report that etcd answers.
    ReportContact,
    /// Request progress on the watch.
    RequestProgress,
    /// Start a linearizable read.
    Read,
    /// List the state again: the watch does not reach this revision, which etcd has.
    Relist { unreached: Revision },
    /// End the watch: etcd has been silent for this long.
    Disconnect { silence: Duration },
}

impl Liveness {
    /// Of a watch that was opened now.
    pub(super) fn new(orders_progress: bool, interval: Duration, now: Instant) -> Self {
        Self {
            state: State::Current,
            orders_progress,
            interval,
            silent_intervals: 0,
            interval_ends: now + interval,
            proof_due: now + interval * PROOF_INTERVALS,
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub(super) fn due(&self) -> Instant {
        match &self.state {
            State::Waiting(wait) => wait.retry_at.min(self.interval_ends),
            State::Current | State::Ahead(_) => self.interval_ends,
        }
    }

    /// The one step function. `position` is the revision up to which changes were reported.
    pub(super) fn step(&mut self, event: Event, position: Revision, now: Instant) -> Vec<Action> {
        match event {
            Event::Message => {
                self.silent_intervals = 0;
                Vec::new()
            }
            Event::PositionMoved => {
                self.position_moved(position, now);
                Vec::new()
            }
            // Ordered after the events in every version of etcd.
            Event::ProgressNotification(revision) => vec![self.advance(revision, position)],
            Event::ProgressAnswer(revision) => vec![self.progress_answer(revision, position)],
            Event::Read {
                revision,
                unchanged,
                at_start,
            } => {
                self.proof_due = now + self.interval * PROOF_INTERVALS;
                // An event that arrived meanwhile is newer than what the read proves.
                if unchanged && at_start {
                    vec![self.advance(revision, position)]
                } else if position < revision {
                    self.wait_for(revision, now);
                    self.request_progress_if_ordered()
                } else {
                    Vec::new()
                }
            }
            Event::Tick { reading } => self.tick(reading, now),
        }
    }

    /// Ends a wait that the position reached.
    fn position_moved(&mut self, position: Revision, now: Instant) {
        match &self.state {
            State::Ahead(revision) if position >= *revision => self.state = State::Current,
            State::Waiting(wait) if position >= wait.revision => {
                self.state = if position < wait.next {
                    State::Waiting(RevisionWait::new(wait.next, now))
                } else {
                    State::Current
                };
            }
            State::Current | State::Ahead(_) | State::Waiting(_) => {}
        }
    }

    fn progress_answer(&mut self, revision: Revision, position: Revision) -> Action {
        if self.orders_progress {
            return self.advance(revision, position);
        }
        if position < revision && !matches!(self.state, State::Waiting(_)) {
            self.state = State::Ahead(revision);
        }
        Action::ReportContact
    }

    /// Nothing changed up to `revision`. A member that lags reports less than is known; it is a sign
    /// of life all the same.
    fn advance(&mut self, revision: Revision, position: Revision) -> Action {
        if matches!(self.state, State::Ahead(_)) {
            self.state = State::Current;
        }
        Action::Advance(revision.max(position))
    }

    fn wait_for(&mut self, revision: Revision, now: Instant) {
        match &mut self.state {
            State::Waiting(wait) => wait.next = wait.next.max(revision),
            State::Current | State::Ahead(_) => {
                self.state = State::Waiting(RevisionWait::new(revision, now));
            }
        }
    }

    fn request_progress_if_ordered(&self) -> Vec<Action> {
        if self.orders_progress {
            vec![Action::RequestProgress]
        } else {
            Vec::new()
        }
    }

    fn tick(&mut self, reading: bool, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        let mut reading = reading;
        if let State::Waiting(wait) = &mut self.state
            && now >= wait.retry_at
        {
            if wait.attempts_left == 0 {
                return vec![Action::Relist {
                    unreached: wait.revision,
                }];
            }
            // An attempt counts even while the read before it is under way: what does not help is not
            // waited for.
            wait.attempts_left -= 1;
            wait.retry_at = now + ATTEMPT_INTERVAL;
            if self.orders_progress {
                actions.push(Action::RequestProgress);
            } else if !reading {
                reading = true;
                actions.push(Action::Read);
            }
        }
        if now >= self.interval_ends {
            self.silent_intervals += 1;
            if self.silent_intervals >= SILENT_INTERVALS {
                let silence = self.interval * SILENT_INTERVALS;
                return vec![Action::Disconnect { silence }];
            }
            self.interval_ends = now + self.interval;
            if !actions.contains(&Action::RequestProgress) {
                actions.push(Action::RequestProgress);
            }
            if matches!(self.state, State::Ahead(_)) && now >= self.proof_due && !reading {
                actions.push(Action::Read);
            }
        }
        actions
    }
}

#[cfg(test)]
mod tests;
