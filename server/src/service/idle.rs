//! Decides how long a connection without open calls may stay.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::places::{IdleGuard, Place};
use crate::session::ConnectionControl;

/// How long a client has to leave after it was told that its connection was idle for too long.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// How long a connection may be without an open call.
#[derive(Clone, Copy, Debug)]
pub(super) struct IdleLimits {
    /// Before it may be closed to make room.
    pub(super) kept: Duration,
    /// Before its first call.
    pub(super) first_call: Duration,
    /// After a call.
    pub(super) between_calls: Duration,
}

/// What to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Verdict {
    /// It stays.
    Stay,
    /// Tell the client to leave.
    Drain,
    /// Close it: the client did not leave.
    Close,
}

/// Where a connection is on its way out.
#[derive(Debug)]
enum Phase {
    /// It has an open call.
    Busy,
    /// It has none, but will not be closed for it yet.
    Quiet,
    /// It may be closed to make room. The guard lists it for that, if it has a place to give.
    Idle { _listed: Option<IdleGuard> },
    /// Its client was told to leave.
    Leaving,
}

/// The clock of one connection.
#[derive(Debug)]
pub(super) struct IdleTimer {
    phase: Phase,
    limits: IdleLimits,
    /// Whether it ever had a call.
    called: bool,
    /// Since when it has none.
    since: Instant,
    /// Set anew only when it has fired, or would fire too late, so that calls that come and go do not
    /// move it.
    timer: Pin<Box<Sleep>>,
    place: Option<Place>,
    control: Arc<ConnectionControl>,
}

impl IdleTimer {
    /// Starts now, for a new connection. `place` is kept for as long as this.
    pub(super) fn new(
        limits: IdleLimits,
        place: Option<Place>,
        control: Arc<ConnectionControl>,
    ) -> Self {
        Self {
            phase: Phase::Quiet,
            limits,
            called: false,
            since: Instant::now(),
            timer: Box::pin(sleep(limits.kept)),
            place,
            control,
        }
    }

    /// A call has come.
    pub(super) fn called(&mut self) {
        self.called = true;
        if !matches!(self.phase, Phase::Leaving) {
            self.phase = Phase::Busy;
        }
    }

    /// What to do now. Wakes the task when that changes without a call.
    pub(super) fn poll(&mut self, has_calls: bool, cx: &mut Context<'_>) -> Verdict {
        if has_calls {
            return Verdict::Stay;
        }
        if matches!(self.phase, Phase::Busy) {
            self.phase = Phase::Quiet;
            self.since = Instant::now();
        }
        let limit = match self.called {
            false => self.limits.first_call,
            true => self.limits.between_calls,
        };
        loop {
            let until = match self.phase {
                Phase::Busy | Phase::Quiet => self.since + self.limits.kept.min(limit),
                Phase::Idle { .. } => self.since + limit,
                Phase::Leaving => self.since + limit + LEAVES_WITHIN,
            };
            // It was set for a later phase, before the last call.
            if self.timer.deadline() > until {
                self.timer.as_mut().reset(until);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                // It may fire too early, and is set anew then.
                return Verdict::Stay;
            }
            if Instant::now() < until {
                self.timer.as_mut().reset(until);
                continue;
            }
            match self.phase {
                Phase::Busy | Phase::Quiet => {
                    let place = self.place.as_ref();
                    let _listed = place.map(|place| place.idle(&self.control));
                    self.phase = Phase::Idle { _listed };
                }
                Phase::Idle { .. } => {
                    self.phase = Phase::Leaving;
                    return Verdict::Drain;
                }
                Phase::Leaving => return Verdict::Close,
            }
        }
    }
}
