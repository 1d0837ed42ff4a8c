//! A subscription as a state machine: when to connect, how long to wait, when to give up.
//!
//! Pure: no I/O, no clock and no randomness of its own. The task passes it what happened, and when; its phase
//! says what to wait for.

use std::time::Duration;

use tokio::time::Instant;

/// How long the first frame of a call may take. A server answers from memory; one that takes longer is stuck.
const FIRST_FRAME: Duration = Duration::from_secs(10);

/// The progress interval of a server that sends none.
const DEFAULT_PROGRESS: Duration = Duration::from_secs(10);

/// How many progress intervals may pass without a frame: two may be lost by chance, three mean that the server
/// is gone.
const SILENT_INTERVALS: u32 = 3;

/// The limits of that time, whatever the server sends: a wrong interval must neither make a client reconnect
/// all the time nor wait for hours.
const SILENCE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);

/// How long a state may take to arrive, however often something comes of it. A range of the default limit needs
/// 300 KB/s for that; a server that is slower is no better than one that is gone.
const SYNC_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The longest first backoff; the actual one is random.
const BACKOFF_BASE: Duration = Duration::from_millis(100);

/// The longest later backoff. A client reconnects at most this long after its server is back.
const BACKOFF_CAP: Duration = Duration::from_secs(5);

/// How long a stream must be live for the next backoff to start from the base again. Longer than the cap, so
/// that a stream that ends right after it began does not count as success.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// The phase of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Waits for a connection, which has time limits of its own.
    Connecting,
    /// Sent the request, and waits for the first frame.
    Requested { until: Instant },
    /// Has the first frame, and waits for the rest of the state, for as long as `by`.
    Syncing {
        silence: Duration,
        until: Instant,
        by: Instant,
    },
    /// Holds what the server holds.
    Live {
        silence: Duration,
        until: Instant,
        since: Instant,
    },
    /// Waits before the next attempt.
    Backoff { until: Instant },
    /// Was refused, and waits before the next attempt.
    Refused { until: Instant },
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// There is a connection, and the request is being sent.
    Requested,
    /// The first frame. The interval is zero if the server sends none.
    Hello { progress_interval: Duration },
    /// Any other frame.
    Frame,
    /// The state is proven to be the server's.
    InSync,
    /// The attempt or the stream ended, with or without an error.
    Disconnected { cause: Cause, at_least: Duration },
    /// The deadline of the phase has passed.
    Expired,
}

/// Why an attempt or a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Anything that may be over at the next attempt; also a clean end.
    Transient,
    /// The server cannot continue from the state that is held: the next request starts over.
    Discard,
    /// The same, because the state differs from the server's. Counted.
    Diverged,
    /// The state is newer than the server's: the next request has to mention it. Only a server that knows the
    /// revision can tell whether etcd ever reached it, and may answer with a state that is older.
    Ahead,
    /// The server refused the range.
    Refused,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct Machine {
    phase: Phase,
    /// Disconnects since a stream was last live for [`STABLE_AFTER`].
    failures: u32,
    /// The next request asks for the whole state.
    starts_over: bool,
    streams: u64,
    diverged: u64,
}

impl Machine {
    pub(crate) const fn new() -> Self {
        Self {
            phase: Phase::Connecting,
            failures: 0,
            starts_over: false,
            streams: 0,
            diverged: 0,
        }
    }

    pub(crate) const fn phase(&self) -> Phase {
        self.phase
    }

    /// When [`Event::Expired`] is due. `None` while connecting, which has limits of its own.
    pub(crate) const fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Connecting => None,
            Phase::Requested { until }
            | Phase::Syncing { until, .. }
            | Phase::Live { until, .. }
            | Phase::Backoff { until }
            | Phase::Refused { until } => Some(until),
        }
    }

    /// Whether the time for the state to arrive is over.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        matches!(self.phase, Phase::Syncing { by, .. } if by <= now)
    }

    /// Whether the next request must not mention the state that is held.
    pub(crate) const fn starts_over(&self) -> bool {
        self.starts_over
    }

    /// Streams after the first.
    pub(crate) const fn reconnects(&self) -> u64 {
        self.streams.saturating_sub(1)
    }

    /// How often the state differed from the server's.
    pub(crate) const fn diverged(&self) -> u64 {
        self.diverged
    }

    /// Moves on. `jitter` is a random number, at least 0 and below 1.
    pub(crate) fn step(&mut self, event: Event, now: Instant, jitter: f64) {
        self.phase = match (self.phase, event) {
            (Phase::Connecting, Event::Requested) => Phase::Requested {
                until: now + FIRST_FRAME,
            },
            (Phase::Requested { .. }, Event::Hello { progress_interval }) => {
                self.streams += 1;
                let interval = if progress_interval.is_zero() {
                    DEFAULT_PROGRESS
                } else {
                    progress_interval
                };
                let silence = (interval * SILENT_INTERVALS).clamp(*SILENCE.start(), *SILENCE.end());
                Phase::Syncing {
                    silence,
                    until: now + silence,
                    by: now + SYNC_LIMIT,
                }
            }
            (Phase::Syncing { silence, by, .. }, Event::Frame) => Phase::Syncing {
                silence,
                until: by.min(now + silence),
                by,
            },
            (Phase::Syncing { silence, .. }, Event::InSync) => {
                self.starts_over = false;
                Phase::Live {
                    silence,
                    until: now + silence,
                    since: now,
                }
            }
            (Phase::Live { silence, since, .. }, Event::Frame | Event::InSync) => Phase::Live {
                silence,
                until: now + silence,
                since,
            },
            (Phase::Backoff { .. } | Phase::Refused { .. }, Event::Expired) => Phase::Connecting,
            (
                Phase::Connecting
                | Phase::Requested { .. }
                | Phase::Syncing { .. }
                | Phase::Live { .. },
                Event::Expired,
            ) => self.disconnected(Cause::Transient, Duration::ZERO, now, jitter),
            (
                Phase::Connecting
                | Phase::Requested { .. }
                | Phase::Syncing { .. }
                | Phase::Live { .. },
                Event::Disconnected { cause, at_least },
            ) => self.disconnected(cause, at_least, now, jitter),
            // Frames without a stream, a second hello and the like: the task does not pass them on.
            (phase, _) => phase,
        };
    }

    fn disconnected(
        &mut self,
        cause: Cause,
        at_least: Duration,
        now: Instant,
        jitter: f64,
    ) -> Phase {
        if let Phase::Live { since, .. } = self.phase
            && now.duration_since(since) >= STABLE_AFTER
        {
            self.failures = 0;
        }
        let doublings = self.failures.min(16);
        let ceiling = BACKOFF_CAP.min(BACKOFF_BASE * 2_u32.pow(doublings));
        self.failures = self.failures.saturating_add(1);
        match cause {
            Cause::Transient => {}
            Cause::Ahead => self.starts_over = false,
            Cause::Discard => self.starts_over = true,
            Cause::Diverged => {
                self.starts_over = true;
                self.diverged += 1;
            }
            Cause::Refused => {
                // Never at once: a refusal rarely ends by itself.
                let wait = BACKOFF_CAP.mul_f64(0.5 + jitter / 2.0);
                return Phase::Refused {
                    until: now + at_least.max(wait),
                };
            }
        }
        // In addition to what the server asks for, because it asks all its clients for the same.
        Phase::Backoff {
            until: now + at_least + ceiling.mul_f64(jitter),
        }
    }
}

#[cfg(test)]
mod tests;
