//! Reads what changed before the source's first state: one etcd watch of the past, bounded in time and
//! bytes, that ends with the requested span.

use std::time::Duration;

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Bounds, Connection, Error};
use super::transactions::{Transaction, Transactions};
use super::watch::{Watch, WatchEvent};
use crate::metrics::Metrics;
use crate::source::Update;
use crate::store::{BackfillEvent, PastChange, PastTransaction, Span};

/// How long reading a span may take. Clients wait for
/// [`REQUEST_TIMEOUT`](crate::source::REQUEST_TIMEOUT) only, but later ones can still use the result.
const SPAN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a span is tried: reading starts again when etcd was compacted before or meanwhile.
const ATTEMPTS: usize = 3;

/// How long etcd has to be silent before the source checks whether that was all. etcd sends past events
/// in batches, one every 100 ms.
const SILENCE: Duration = Duration::from_millis(150);

/// Sends all that changed in the span as [`Update::Backfill`]s. Fails above `max_bytes` bytes of keys
/// and values, previous values included.
pub(super) async fn read(
    connection: Connection,
    bounds: Bounds,
    span: Span,
    max_bytes: usize,
    metrics: Metrics,
    updates: mpsc::Sender<Update>,
) {
    let reader = Reader {
        connection,
        bounds,
        span,
        max_bytes,
        metrics,
        updates: &updates,
        bytes: 0,
    };
    send_outcome(reader.read(), &updates).await;
}

/// Waits for the reader, up to the time limit, and sends the outcome. Without the limit, etcd could keep
/// the live watch busy and never finish the past.
async fn send_outcome(
    reading: impl Future<Output = Result<(), Error>>,
    updates: &mpsc::Sender<Update>,
) {
    let outcome = match timeout(SPAN_TIMEOUT, reading).await {
        Ok(Ok(())) => BackfillEvent::End,
        Ok(Err(error)) => BackfillEvent::Failed {
            reason: error.to_string(),
        },
        Err(_) => BackfillEvent::Failed {
            reason: format!("it takes longer than {} s", SPAN_TIMEOUT.as_secs()),
        },
    };
    // It fails only when the subtask is being dropped.
    let _ = updates.send(Update::Backfill(outcome)).await;
}

struct Reader<'a> {
    connection: Connection,
    bounds: Bounds,
    span: Span,
    max_bytes: usize,
    metrics: Metrics,
    updates: &'a mpsc::Sender<Update>,
    /// Bytes of keys and values so far.
    bytes: usize,
}

impl Reader<'_> {
    async fn read(mut self) -> Result<(), Error> {
        for _ in 1..ATTEMPTS {
            match self.read_once().await {
                // etcd still has what changed after that revision.
                Err(Error::Compacted { at }) => {
                    self.span.after = at.unwrap_or(self.span.after).max(self.span.after);
                    if self.span.after >= self.span.up_to {
                        return Err(Error::Compacted { at });
                    }
                }
                done => return done,
            }
        }
        self.read_once().await
    }

    async fn read_once(&mut self) -> Result<(), Error> {
        let Span { after, .. } = self.span;
        self.send(BackfillEvent::Begin { after }).await?;
        // From the known revision, for the same reason as the live watch: etcd may have lost the
        // deletes of the next one without an error.
        let mut watch = Watch::open(&mut self.connection, &self.bounds, after).await?;
        self.metrics.etcd_backfill_watches.inc();
        let mut transactions = Transactions::after(after);
        let mut progress = SpanProgress {
            received: after,
            keys: 0,
            expected_keys: None,
        };
        loop {
            let silent_at = Instant::now() + SILENCE;
            let Ok(event) = timeout_at(silent_at, watch.next()).await else {
                if self.connection.orders_progress {
                    watch.request_progress();
                } else if self.is_complete(&mut progress).await? {
                    return Ok(());
                }
                continue;
            };
            match event? {
                WatchEvent::Changes { events, fragment } => {
                    if self
                        .take(transactions.push(events, fragment)?, &mut progress)
                        .await?
                    {
                        return Ok(());
                    }
                }
                WatchEvent::Progress { revision, manual } => {
                    let proven = !manual || self.connection.orders_progress;
                    if proven && revision >= self.span.up_to {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Sends these transactions, up to the end of the span. Returns true at the end of the span.
    async fn take(
        &mut self,
        transactions: Vec<Transaction<PastChange>>,
        progress: &mut SpanProgress,
    ) -> Result<bool, Error> {
        let up_to = self.span.up_to;
        let mut taken = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            if transaction.revision > up_to {
                progress.received = up_to;
                break;
            }
            progress.received = transaction.revision;
            progress.keys += transaction.keys;
            let Transaction {
                revision, changes, ..
            } = transaction;
            self.bytes += changes.iter().map(bytes).sum::<usize>();
            taken.push(PastTransaction { revision, changes });
        }
        if self.bytes > self.max_bytes {
            return Err(Error::TooMuch {
                most: self.max_bytes,
            });
        }
        if !taken.is_empty() {
            self.send(BackfillEvent::Transactions(taken)).await?;
        }
        Ok(progress.received >= up_to)
    }

    /// True if etcd has sent the whole span, for versions whose progress cannot be trusted.
    ///
    /// The proof: the last put of every key that exists at the end was received. So only deletes can
    /// be missing; and since the number of keys is right, no delete that matters is missing.
    async fn is_complete(&mut self, progress: &mut SpanProgress) -> Result<bool, Error> {
        let Some(last_put) = self.span.last_put else {
            // Then a later change follows for certain.
            return Ok(false);
        };
        if progress.received < last_put {
            return Ok(false);
        }
        let expected = match progress.expected_keys {
            Some(expected) => expected,
            None => {
                let Span { after, up_to, .. } = self.span;
                let before = self.connection.keys_at(&self.bounds, after).await?;
                *progress
                    .expected_keys
                    .insert(self.connection.keys_at(&self.bounds, up_to).await? - before)
            }
        };
        Ok(progress.keys == expected)
    }

    async fn send(&self, event: BackfillEvent) -> Result<(), Error> {
        let sent = self.updates.send(Update::Backfill(event)).await;
        sent.map_err(|_| Error::Ended("nobody listens".to_owned()))
    }
}

/// How much of the span was received.
struct SpanProgress {
    /// Every transaction up to this revision was received.
    received: Revision,
    /// What the received events add to the number of keys.
    keys: i64,
    /// What all events of the span add, once it is known.
    expected_keys: Option<i64>,
}

fn bytes(change: &PastChange) -> usize {
    let previous = change.previous.as_ref();
    let new = match &change.edit {
        Edit::Put(entry) => entry.value.len(),
        Edit::Delete { .. } => 0,
    };
    change.edit.key().as_ref().len() + new + previous.map_or(0, |entry| entry.value.len())
}

#[cfg(test)]
mod tests {
    use super::super::subtask::{self, Subtask};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn backfill_read_ends_at_its_time_limit() {
        let (held, mut gone) = mpsc::channel::<()>(1);
        let never = async move {
            let _held = held;
            std::future::pending().await
        };
        let subtask = Subtask::new(|updates| async move { send_outcome(never, &updates).await });
        let mut subtask = Some(subtask);
        let hour = Duration::from_secs(3600);
        let outcome = timeout(hour, subtask::next(&mut subtask)).await;
        assert!(matches!(
            outcome,
            Ok(Update::Backfill(BackfillEvent::Failed { .. }))
        ));
        assert!(gone.recv().await.is_none(), "the read was dropped");
    }
}
