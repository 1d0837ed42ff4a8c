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
    /// Has the first frame, and waits for the rest of the state.
    Syncing { silence: Duration, until: Instant },
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
                }
            }
            (Phase::Syncing { silence, .. }, Event::Frame) => Phase::Syncing {
                silence,
                until: now + silence,
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
mod tests {
    use super::*;

    const ZERO: Duration = Duration::ZERO;

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn hello(progress_interval: Duration) -> Event {
        Event::Hello { progress_interval }
    }

    fn ended(cause: Cause) -> Event {
        Event::Disconnected {
            cause,
            at_least: ZERO,
        }
    }

    /// A machine that went through these events at one moment.
    fn after(now: Instant, events: &[Event]) -> Machine {
        let mut machine = Machine::new();
        for event in events {
            machine.step(*event, now, 0.5);
        }
        machine
    }

    /// Waits of a machine in backoff.
    fn wait(machine: &Machine, now: Instant) -> Duration {
        assert!(matches!(
            machine.phase(),
            Phase::Backoff { .. } | Phase::Refused { .. }
        ));
        machine.deadline().unwrap() - now
    }

    #[test]
    fn attempt_goes_from_connecting_to_live() {
        let now = Instant::now();
        let silence = secs(6);
        let steps = [
            (
                Event::Requested,
                Phase::Requested {
                    until: now + secs(10),
                },
            ),
            (
                hello(secs(2)),
                Phase::Syncing {
                    silence,
                    until: now + silence,
                },
            ),
            (
                Event::Frame,
                Phase::Syncing {
                    silence,
                    until: now + silence,
                },
            ),
            (
                Event::InSync,
                Phase::Live {
                    silence,
                    until: now + silence,
                    since: now,
                },
            ),
        ];
        let mut machine = Machine::new();
        for (event, phase) in steps {
            machine.step(event, now, 0.0);
            assert_eq!(machine.phase(), phase, "after {event:?}");
        }
        machine.step(Event::Frame, now + secs(1), 0.0);
        assert_eq!(machine.deadline(), Some(now + secs(7)), "a frame buys time");
        assert_eq!(machine.reconnects(), 0);
    }

    #[test]
    fn silence_limit_is_clamped() {
        let now = Instant::now();
        for (interval, silence) in [
            (ZERO, secs(30)),
            (Duration::from_millis(1), secs(1)),
            (secs(10), secs(30)),
            (secs(4_000_000), secs(600)),
        ] {
            let machine = after(now, &[Event::Requested, hello(interval)]);
            assert_eq!(machine.deadline(), Some(now + silence), "{interval:?}");
        }
    }

    #[test]
    fn every_phase_can_expire_and_end() {
        let now = Instant::now();
        let way = [Event::Requested, hello(secs(1)), Event::InSync];
        for length in 0..=way.len() {
            for end in [Event::Expired, ended(Cause::Transient)] {
                let mut machine = after(now, &way[..length]);
                machine.step(end, now, 0.5);
                assert_eq!(wait(&machine, now), Duration::from_millis(50));
                machine.step(Event::Expired, now, 0.5);
                assert_eq!(machine.phase(), Phase::Connecting);
                assert!(!machine.starts_over());
            }
        }
    }

    #[test]
    fn backoff_doubles_to_its_cap_with_full_jitter() {
        let now = Instant::now();
        let mut machine = Machine::new();
        for ceiling in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
            machine.step(ended(Cause::Transient), now, 0.0);
            assert_eq!(wait(&machine, now), ZERO, "jitter is full");
            let mut twin = Machine {
                phase: Phase::Connecting,
                failures: machine.failures - 1,
                ..Machine::new()
            };
            twin.step(ended(Cause::Transient), now, 0.999_999);
            let most = wait(&twin, now);
            let ceiling = Duration::from_millis(ceiling);
            assert!(most < ceiling && most > ceiling.mul_f64(0.99), "{most:?}");
            machine.step(Event::Expired, now, 0.0);
        }
    }

    #[test]
    fn only_a_stable_stream_resets_the_backoff() {
        for (live_for, expected) in [(ZERO, 1600), (secs(9), 1600), (secs(10), 100)] {
            let now = Instant::now();
            let mut machine = Machine {
                failures: 4,
                ..Machine::new()
            };
            for event in [Event::Requested, hello(secs(60)), Event::InSync] {
                machine.step(event, now, 0.0);
            }
            let then = now + live_for;
            machine.step(ended(Cause::Transient), then, 0.5);
            assert_eq!(
                wait(&machine, then),
                Duration::from_millis(expected / 2),
                "live for {live_for:?}"
            );
        }
    }

    #[test]
    fn server_can_lengthen_but_not_shorten_the_wait() {
        let now = Instant::now();
        for (cause, least, expected) in [
            (Cause::Transient, secs(20), Duration::from_millis(20_050)),
            (Cause::Refused, secs(20), secs(20)),
            (Cause::Refused, secs(1), Duration::from_millis(3750)),
        ] {
            let mut machine = Machine::new();
            let at_least = least;
            machine.step(Event::Disconnected { cause, at_least }, now, 0.5);
            assert_eq!(wait(&machine, now), expected, "{cause:?}");
        }
    }

    #[test]
    fn refusal_is_retried_near_the_cap() {
        let now = Instant::now();
        for (jitter, millis) in [(0.0, 2500), (0.5, 3750)] {
            let mut machine = Machine::new();
            machine.step(ended(Cause::Refused), now, jitter);
            assert!(matches!(machine.phase(), Phase::Refused { .. }));
            assert_eq!(wait(&machine, now), Duration::from_millis(millis));
            machine.step(Event::Expired, now, jitter);
            assert_eq!(machine.phase(), Phase::Connecting);
        }
    }

    #[test]
    fn divergence_starts_over_until_in_sync_again() {
        let now = Instant::now();
        let mut machine = after(now, &[Event::Requested, hello(secs(1)), Event::InSync]);
        machine.step(ended(Cause::Diverged), now, 0.0);
        assert!(machine.starts_over());
        machine.step(Event::Expired, now, 0.0);
        machine.step(Event::Requested, now, 0.0);
        machine.step(ended(Cause::Transient), now, 0.0);
        assert!(
            machine.starts_over(),
            "an attempt that failed changes nothing"
        );
        for event in [
            Event::Expired,
            Event::Requested,
            hello(secs(1)),
            Event::InSync,
        ] {
            machine.step(event, now, 0.0);
        }
        assert!(!machine.starts_over());
        assert_eq!((machine.diverged(), machine.reconnects()), (1, 1));
        machine.step(ended(Cause::Discard), now, 0.0);
        assert!(machine.starts_over());
        assert_eq!(machine.diverged(), 1, "what is broken is no difference");
    }

    #[test]
    fn repeated_divergence_backs_off() {
        let now = Instant::now();
        let mut machine = Machine::new();
        for (count, ceiling) in [100, 200, 400, 800, 1600, 3200, 5000, 5000]
            .into_iter()
            .enumerate()
        {
            // The state that is fetched again diverges at once.
            for event in [Event::Requested, hello(secs(1)), Event::InSync] {
                machine.step(event, now, 0.5);
            }
            machine.step(ended(Cause::Diverged), now, 0.5);
            assert_eq!(wait(&machine, now), Duration::from_millis(ceiling / 2));
            assert!(machine.starts_over());
            assert_eq!(machine.diverged(), count as u64 + 1);
            machine.step(Event::Expired, now, 0.5);
        }
    }
}
