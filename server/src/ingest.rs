//! The only loop: takes what the source of a prefix says, keeps the store, publishes.
//!
//! One task a prefix, owned by the [server](crate::server): it ends when that drops it, wherever it
//! waits. It never waits on a stream, so no client can hold it up.

use std::time::Duration;

use tokio::pin;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::fanout::{PACE, Publisher};
use crate::source::{Source, Update};
use crate::store::{Replaced, Writer};

/// What ingest needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes that the prefix's change log may hold.
    pub log_bytes: usize,
    /// How often streams get a progress.
    pub progress_interval: Duration,
}

/// Runs until it is dropped.
pub async fn run(mut source: impl Source, publisher: Publisher, limits: Limits) {
    let mut ingest = Ingest {
        publisher,
        log_bytes: limits.log_bytes,
        writer: None,
    };
    let mut progress = interval_at(
        Instant::now() + limits.progress_interval,
        limits.progress_interval,
    );
    progress.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut flush_at: Option<Instant> = None;
    loop {
        // The source's future is not cancel-safe, so it is polled to its end while the timers run.
        let next = source.next();
        pin!(next);
        let update = loop {
            tokio::select! {
                update = &mut next => break update,
                _ = progress.tick() => ingest.publisher.progress(),
                () = sleep_until(flush_at.unwrap_or_else(Instant::now)), if flush_at.is_some() => {
                    flush_at = None;
                    ingest.publisher.flush();
                }
            }
        };
        if ingest.take(update) && flush_at.is_none() {
            flush_at = Some(Instant::now() + PACE);
        }
    }
}

/// The writing side of one prefix.
struct Ingest {
    publisher: Publisher,
    log_bytes: usize,
    /// `None` before the first state.
    writer: Option<Writer>,
}

impl Ingest {
    /// Takes one update. Returns whether the publisher holds changes back.
    fn take(&mut self, update: Update) -> bool {
        if let Update::Lost { reason } = update {
            self.publisher.lost(reason);
            return false;
        }
        let contact_ms = self.publisher.contact();
        match (update, &mut self.writer) {
            (Update::State(state), Some(writer)) => match writer.replace(state, contact_ms) {
                Replaced::Anew => self
                    .publisher
                    .publish_anew(writer.snapshot().clone(), self.log_bytes),
                Replaced::Continued(batch) => {
                    return self.publisher.publish(writer.snapshot().clone(), batch);
                }
                Replaced::Unchanged => self.publisher.advance(writer.snapshot().clone()),
            },
            (Update::State(state), None) => {
                let writer = self.writer.insert(Writer::new(state));
                self.publisher
                    .publish_anew(writer.snapshot().clone(), self.log_bytes);
            }
            (Update::Changes { revision, changes }, Some(writer)) => {
                match writer.apply(revision, changes, contact_ms) {
                    Some(batch) => return self.publisher.publish(writer.snapshot().clone(), batch),
                    None => self.publisher.advance(writer.snapshot().clone()),
                }
            }
            (Update::Progress { revision }, Some(writer))
                if revision > writer.snapshot().revision() =>
            {
                writer.advance(revision);
                self.publisher.advance(writer.snapshot().clone());
            }
            // Nothing to build on, or nothing new.
            (
                Update::Changes { .. }
                | Update::Progress { .. }
                | Update::Contact
                | Update::Lost { .. },
                _,
            ) => {}
        }
        false
    }
}
