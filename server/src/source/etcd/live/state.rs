//! What an open watch does besides reporting changes: it asks at intervals how far etcd is, notices an
//! etcd that is silent or cut off, and makes sure that the position reaches every revision that a read
//! returned. Pure: the time is passed in, and the caller carries out the actions.
//!
//! Two questions are asked in every interval. Progress, on the watch itself: it tells that the watch is
//! alive. And a linearizable read, which tells how far the cluster is: a member that is cut off from the
//! others still answers the first.

use std::time::Duration;

use driftless_proto::Revision;
use tokio::time::Instant;

use super::super::source::Position;

/// After so many intervals without a message etcd counts as lost. At the end of each but the last,
/// progress is requested. The intervals are counted, not measured: one whose end comes late does not
/// count, because this process itself stood still (SIGSTOP, a frozen container, a suspended machine).
const SILENT_INTERVALS: u32 = 3;

/// After so many intervals in a row in which a read failed, and none succeeded, the member counts as
/// lost although its watch goes on: it has no leader, is cut off from the others, or applies nothing.
/// An election takes less.
const FAILED_INTERVALS: u32 = 3;

/// How many keys etcd may have to visit in a second for proofs that nothing changed, for etcd versions
/// whose progress cannot be trusted: a small part of one core. etcd visits every key of the prefix for
/// each proof.
const PROVING_KEYS: u32 = 2_000;

/// The longest wait between two such proofs, in intervals: 30 s by default.
const PROVING_INTERVALS: u32 = 6;

/// How long to wait before etcd is asked again about a revision that the position has not reached, and
/// that nobody waits for.
const AHEAD_INTERVAL: Duration = Duration::from_millis(500);

/// After so many comparisons that found changes which the watch does not deliver, the state is listed
/// again.
const MISSED_COMPARISONS: u32 = 4;

/// How long to wait between two attempts to reach a revision that somebody waits for.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(100);

/// How many attempts there are before the state is listed again. So two such lists are more than a
/// second apart. Counted, not measured, as [`SILENT_INTERVALS`] are.
const ATTEMPTS: u32 = 10;

/// How the position relates to the revision that etcd is known to have.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The position is not known to be behind etcd.
    Current,
    /// A read returned a later revision, which may be of a change elsewhere. It is found out now and
    /// then whether anything changed.
    Ahead(Revision),
    /// A read that a client waits for returned a later revision: the position has to reach it.
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
    /// Intervals with failed reads, since the last read that succeeded.
    failed_intervals: u32,
    /// True if a read has failed in this interval: reads of clients may fail in quick succession.
    read_failed: bool,
    interval_ends: Instant,
    /// When etcd may be asked next whether anything changed up to the revision of [`State::Ahead`].
    ahead_due: Instant,
    /// Comparisons that found changes after the position, and the position.
    missed: (u32, Revision),
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
        /// True if a client waits until the position reaches it.
        wanted: bool,
    },
    /// A linearizable read that compares the prefix with the position returned this revision.
    Compared {
        revision: Revision,
        /// True if it proves that the prefix did not change since the position of its start.
        unchanged: bool,
        /// True if the position has not moved since it started.
        at_start: bool,
    },
    /// A read failed.
    ReadFailed,
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
    /// Request progress on the watch.
    RequestProgress,
    /// Start a linearizable read.
    Read,
    /// Start a linearizable read that compares the prefix with the position. It is expensive.
    Compare,
    /// List the state again: the watch does not reach this revision, which etcd has.
    Relist { unreached: Revision },
    /// End the watch: etcd has been silent for this long.
    Disconnect { silence: Duration },
    /// End the watch with the error of the read that failed.
    GiveUp,
}

impl Liveness {
    /// Of a watch that was opened now.
    pub(super) fn new(orders_progress: bool, interval: Duration, now: Instant) -> Self {
        Self {
            state: State::Current,
            orders_progress,
            interval,
            silent_intervals: 0,
            failed_intervals: 0,
            read_failed: false,
            interval_ends: now + interval,
            ahead_due: now,
            missed: (0, Revision::NONE),
        }
    }

    /// When the next [`Event::Tick`] is due.
    pub(super) fn due(&self) -> Instant {
        match &self.state {
            State::Waiting(wait) => wait.retry_at.min(self.interval_ends),
            State::Ahead(_) => self.ahead_due.min(self.interval_ends),
            State::Current => self.interval_ends,
        }
    }

    /// The one step function. `position` is how far changes were reported.
    pub(super) fn step(&mut self, event: Event, position: Position, now: Instant) -> Vec<Action> {
        match event {
            Event::Message => {
                self.silent_intervals = 0;
                Vec::new()
            }
            Event::PositionMoved => {
                self.position_moved(position.revision, now);
                Vec::new()
            }
            // Ordered after the events in every version of etcd.
            Event::ProgressNotification(revision) => vec![advance(revision, position)],
            Event::ProgressAnswer(revision) if self.orders_progress => {
                vec![advance(revision, position)]
            }
            // It may have overtaken events.
            Event::ProgressAnswer(_) => Vec::new(),
            Event::Read { revision, wanted } => {
                self.failed_intervals = 0;
                self.read(revision, wanted, position, now)
            }
            Event::Compared {
                revision,
                unchanged,
                at_start,
            } => {
                self.failed_intervals = 0;
                self.ahead_due = now + self.proving_pause(position.keys);
                // An event that arrived meanwhile is newer than what the read proves.
                if unchanged && at_start {
                    return vec![advance(revision, position)];
                }
                if let State::Waiting(wait) = &mut self.state {
                    wait.next = wait.next.max(revision);
                    return Vec::new();
                }
                if position.revision < revision {
                    self.state = State::Ahead(revision);
                }
                if at_start {
                    return self.missed(revision, position.revision);
                }
                Vec::new()
            }
            Event::ReadFailed => {
                let counted = std::mem::replace(&mut self.read_failed, true);
                self.failed_intervals += u32::from(!counted);
                match self.failed_intervals {
                    FAILED_INTERVALS.. => vec![Action::GiveUp],
                    _ => Vec::new(),
                }
            }
            Event::Tick { reading } => self.tick(reading, position, now),
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

    fn read(
        &mut self,
        revision: Revision,
        wanted: bool,
        position: Position,
        now: Instant,
    ) -> Vec<Action> {
        if position.revision >= revision {
            return Vec::new();
        }
        match &mut self.state {
            State::Waiting(wait) if wanted => wait.next = wait.next.max(revision),
            State::Waiting(_) => return Vec::new(),
            State::Current | State::Ahead(_) if wanted => {
                self.state = State::Waiting(RevisionWait::new(revision, now));
            }
            State::Current | State::Ahead(_) => {
                self.state = State::Ahead(revision);
                return self.ask_ahead(false, position, now);
            }
        }
        vec![self.question()]
    }

    /// etcd has changes after the position, up to `revision`, that the watch has not delivered.
    fn missed(&mut self, revision: Revision, position: Revision) -> Vec<Action> {
        let before = match self.missed {
            (count, at) if at == position => count,
            _ => 0,
        };
        self.missed = (before + 1, position);
        match before + 1 {
            MISSED_COMPARISONS.. => vec![Action::Relist {
                unreached: revision,
            }],
            _ => Vec::new(),
        }
    }

    /// Asks, if it is time for that, whether anything changed up to the revision of [`State::Ahead`].
    fn ask_ahead(&mut self, reading: bool, position: Position, now: Instant) -> Vec<Action> {
        if now < self.ahead_due {
            return Vec::new();
        }
        self.ahead_due = now + self.proving_pause(position.keys);
        match self.question() {
            Action::Compare if reading => Vec::new(),
            question => vec![question],
        }
    }

    /// What shows whether anything changed up to a revision that etcd has.
    const fn question(&self) -> Action {
        if self.orders_progress {
            Action::RequestProgress
        } else {
            Action::Compare
        }
    }

    /// How long to wait between two questions about [`State::Ahead`].
    fn proving_pause(&self, keys: i64) -> Duration {
        if self.orders_progress {
            return AHEAD_INTERVAL;
        }
        let keys = u32::try_from(keys).unwrap_or(u32::MAX);
        let pause = Duration::from_secs(1) * keys / PROVING_KEYS;
        pause
            .min(self.interval * PROVING_INTERVALS)
            .max(AHEAD_INTERVAL)
    }

    fn tick(&mut self, reading: bool, position: Position, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match &mut self.state {
            State::Waiting(wait) if now >= wait.retry_at => {
                if wait.attempts_left == 0 {
                    return vec![Action::Relist {
                        unreached: wait.revision,
                    }];
                }
                // An attempt counts even while the read before it is under way: what does not help is
                // not waited for.
                wait.attempts_left -= 1;
                wait.retry_at = now + ATTEMPT_INTERVAL;
                match self.question() {
                    Action::Compare if reading => {}
                    question => actions.push(question),
                }
            }
            State::Ahead(_) => actions = self.ask_ahead(reading, position, now),
            State::Current | State::Waiting(_) => {}
        }
        if now >= self.interval_ends {
            let stood_still = now >= self.interval_ends + self.interval;
            self.silent_intervals += u32::from(!stood_still);
            if self.silent_intervals >= SILENT_INTERVALS {
                let silence = self.interval * SILENT_INTERVALS;
                return vec![Action::Disconnect { silence }];
            }
            self.interval_ends = now + self.interval;
            self.read_failed = false;
            if !actions.contains(&Action::RequestProgress) {
                actions.push(Action::RequestProgress);
            }
            if !reading && !actions.contains(&Action::Compare) {
                actions.push(Action::Read);
            }
        }
        actions
    }
}

/// Nothing changed up to `revision`. A member that lags reports less than is known.
fn advance(revision: Revision, position: Position) -> Action {
    Action::Advance(revision.max(position.revision))
}

#[cfg(test)]
mod tests;
