//! When the machine connects, how long it waits, and when it gives up.

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
                by: now + SYNC_LIMIT,
            },
        ),
        (
            Event::Frame,
            Phase::Syncing {
                silence,
                until: now + silence,
                by: now + SYNC_LIMIT,
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
fn state_that_trickles_in_has_a_time_limit() {
    let begin = Instant::now();
    let mut machine = after(begin, &[Event::Requested, hello(secs(10))]);
    let mut now = begin;
    while now < begin + SYNC_LIMIT {
        assert!(!machine.is_overdue(now));
        assert!(machine.deadline().is_some_and(|until| until > now));
        machine.step(Event::Frame, now, 0.0);
        now += secs(25);
    }
    assert_eq!(machine.deadline(), Some(begin + SYNC_LIMIT));
    assert!(machine.is_overdue(begin + SYNC_LIMIT));
    machine.step(Event::Expired, begin + SYNC_LIMIT, 0.0);
    assert!(matches!(machine.phase(), Phase::Backoff { .. }));
    // One that has arrived may be old.
    let machine = after(begin, &[Event::Requested, hello(secs(10)), Event::InSync]);
    assert!(!machine.is_overdue(begin + 2 * SYNC_LIMIT));
}

#[test]
fn server_that_is_behind_is_told_what_is_held() {
    let now = Instant::now();
    let mut machine = after(now, &[Event::Requested, hello(secs(1))]);
    machine.step(ended(Cause::Diverged), now, 0.0);
    assert!(machine.starts_over());
    machine.step(Event::Expired, now, 0.0);
    machine.step(ended(Cause::Ahead), now, 0.0);
    assert!(!machine.starts_over());
    assert_eq!(machine.diverged(), 1);
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
