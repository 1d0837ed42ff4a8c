//! Something that is done for all scopes of a prefix now and then, a few at a time, so that no change
//! waits for it.

use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::fanout::{Publisher, Walk};

/// The rounds of one kind.
#[derive(Debug)]
pub(super) struct Round {
    ticks: Interval,
    /// The one under way.
    walk: Option<Walk>,
}

impl Round {
    /// One every `interval`, the first after the first.
    ///
    /// # Panics
    /// Outside a tokio runtime, and when the interval is zero.
    pub(super) fn every(interval: Duration) -> Self {
        let mut ticks = interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { ticks, walk: None }
    }

    /// Waits until it is time for [`Round::visit`].
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(super) async fn due(&mut self) {
        match &self.walk {
            // Others first: they may be changes.
            Some(_) => yield_now().await,
            None => drop(self.ticks.tick().await),
        }
    }

    /// Does what [`Round::due`] waited for. `some` visits a few scopes and says whether there are
    /// more.
    pub(super) fn visit(
        &mut self,
        publisher: &Publisher,
        some: impl FnOnce(&Publisher, &mut Walk) -> bool,
    ) {
        let mut walk = self.walk.take().unwrap_or_else(|| publisher.walk());
        if some(publisher, &mut walk) {
            self.walk = Some(walk);
        }
    }
}
