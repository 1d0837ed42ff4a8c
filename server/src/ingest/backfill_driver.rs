//! Carries out what the [backfill](crate::backfill) of the prefix decides.

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use super::task::Ingest;
use crate::backfill::{Abandoned, Action, Backfill, Due, Event, LogStart, Reaches};

/// Waits until [`Ingest::backfill_due`] is to be called.
///
/// # Cancel safety
/// Cancel-safe.
pub(super) async fn backfill_due(backfill: &Backfill) {
    match backfill.due() {
        Due::Never => std::future::pending().await,
        Due::At(moment) => sleep_until(moment).await,
        // Changes come first: the past has waited since before the server's start.
        Due::Soon => yield_now().await,
    }
}

impl Ingest {
    /// Streams requested this.
    pub(super) fn backfill_requested(&mut self, reaches: Reaches) {
        if let Some(log) = self.publisher.change_log() {
            let floor = log.floor();
            self.step_backfill(Event::Requested { reaches, floor });
        }
    }

    /// Does what [`backfill_due`] waited for.
    pub(super) fn backfill_due(&mut self) {
        let (Some(log), Some(writer)) = (self.publisher.change_log(), &mut self.writer) else {
            return;
        };
        let log = LogStart {
            floor: log.floor(),
            room: log.room(),
            is_empty: log.is_empty(),
        };
        let action = self
            .backfill
            .step(Event::Due { log, writer }, Instant::now());
        self.carry_out(action);
    }

    /// Delivers an event, carries out what follows, and wakes the streams that wait for it.
    pub(super) fn step_backfill(&mut self, event: Event<'_>) {
        let action = self.backfill.step(event, Instant::now());
        self.carry_out(action);
    }

    fn carry_out(&mut self, action: Option<Action>) {
        let mut action = action;
        while let Some(event) = action.take().and_then(|action| self.outcome(action)) {
            action = self.backfill.step(event, Instant::now());
        }
        let reachable = self.backfill.reachable();
        self.handle.backfill.set_reachable(reachable);
    }

    /// Carries out an action. Returns the event that follows from it, if any.
    fn outcome(&mut self, action: Action) -> Option<Event<'static>> {
        match action {
            Action::Request(span) => {
                let sent = self.handle.source.backfill(span);
                (!sent).then_some(Event::NotSent)
            }
            Action::Adopt {
                floor,
                batches,
                up_to,
            } => {
                let snapshot = self.writer.as_ref()?.snapshot().clone();
                let floor = self.publisher.prepend(snapshot, floor, batches, up_to);
                Some(Event::Adopted { floor })
            }
            Action::Abandon(why) => {
                self.report(&why);
                None
            }
        }
    }

    fn report(&self, why: &Abandoned) {
        let prefix = self.publisher.prefix();
        match why {
            Abandoned::Unavailable { after, reason } => {
                tracing::info!(%prefix, %after, %reason, "the backfill failed; clients from that time get a snapshot");
            }
            Abandoned::Mismatch(mismatch) => {
                tracing::error!(%prefix, %mismatch, "the backfill does not match the state; clients from before the start get a snapshot");
                self.publisher.metrics().backfills_rejected.inc();
            }
        }
    }
}
