//! What changed before the state that the source read: one watch of the past, bounded in time and
//! bytes, that ends when it has said everything.

use std::time::Duration;

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Bounds, Connection, Error};
use super::transactions::{Transaction, Transactions};
use super::watch::{Heard, Watch};
use crate::metrics::Metrics;
use crate::source::Update;
use crate::store::{BackfillEvent, PastChange, PastTransaction, Span};

/// For all of it. Clients wait for [`ANSWER_WITHIN`](crate::source::REQUEST_TIMEOUT) only, but those
/// that come later have use for it still.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Times that it starts anew because etcd was compacted before or meanwhile.
const ATTEMPTS: usize = 3;

/// How long etcd has to be silent before it is asked whether that was all. It sends what is past in
/// batches, one every 100 ms.
const QUIET: Duration = Duration::from_millis(150);

/// Says all that changed in the span, if that is no more than `most` bytes of keys and values, the old
/// ones included.
pub(super) async fn read(
    connection: Connection,
    bounds: Bounds,
    span: Span,
    most: usize,
    metrics: Metrics,
    say: mpsc::Sender<Update>,
) {
    let reader = Reader {
        connection,
        bounds,
        span,
        most,
        metrics,
        say: &say,
        bytes: 0,
    };
    say_how_it_ends(reader.read(), &say).await;
}

/// Waits for the end, but not for too long, and says which it was. etcd may go on to say other things,
/// so that the live watch stays, and never this.
async fn say_how_it_ends(
    reading: impl Future<Output = Result<(), Error>>,
    say: &mpsc::Sender<Update>,
) {
    let end = match timeout(READ_WITHIN, reading).await {
        Ok(Ok(())) => BackfillEvent::End,
        Ok(Err(error)) => BackfillEvent::Failed {
            reason: error.to_string(),
        },
        Err(_) => BackfillEvent::Failed {
            reason: format!("it takes longer than {} s", READ_WITHIN.as_secs()),
        },
    };
    // Who is not there any more needs no end.
    let _ = say.send(Update::Backfill(end)).await;
}

struct Reader<'a> {
    connection: Connection,
    bounds: Bounds,
    span: Span,
    most: usize,
    metrics: Metrics,
    say: &'a mpsc::Sender<Update>,
    bytes: usize,
}

impl Reader<'_> {
    async fn read(mut self) -> Result<(), Error> {
        for _ in 1..ATTEMPTS {
            match self.read_once().await {
                // What is left begins there: everything but what led to that state.
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
        self.say(BackfillEvent::Begin { after }).await?;
        // From the revision that is known, for the reason that the live watch does: deletes of the
        // next one may be forgotten without a word.
        let mut watch = Watch::open(&mut self.connection, &self.bounds, after).await?;
        self.metrics.etcd_earlier_watches.inc();
        let mut transactions = Transactions::after(after);
        let mut end = End {
            heard: after,
            keys: 0,
            grown: None,
        };
        loop {
            let quiet = Instant::now() + QUIET;
            let Ok(heard) = timeout_at(quiet, watch.next()).await else {
                if self.connection.orders_progress {
                    watch.request_progress();
                } else if self.silence_is_the_end(&mut end).await? {
                    return Ok(());
                }
                continue;
            };
            match heard? {
                Heard::Events { events, fragment } => {
                    if self
                        .take(transactions.push(events, fragment)?, &mut end)
                        .await?
                    {
                        return Ok(());
                    }
                }
                Heard::Progress { revision, manual } => {
                    let proven = !manual || self.connection.orders_progress;
                    if proven && revision >= self.span.up_to {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Says these transactions, as far as they were asked for. Returns whether that was the end.
    async fn take(
        &mut self,
        transactions: Vec<Transaction<PastChange>>,
        end: &mut End,
    ) -> Result<bool, Error> {
        let up_to = self.span.up_to;
        let mut taken = Vec::with_capacity(transactions.len());
        for transaction in transactions {
            if transaction.revision > up_to {
                end.heard = up_to;
                break;
            }
            end.heard = transaction.revision;
            end.keys += transaction.keys;
            let Transaction {
                revision, changes, ..
            } = transaction;
            self.bytes += changes.iter().map(bytes).sum::<usize>();
            taken.push(PastTransaction { revision, changes });
        }
        if self.bytes > self.most {
            return Err(Error::TooMuch { most: self.most });
        }
        if !taken.is_empty() {
            self.say(BackfillEvent::Transactions(taken)).await?;
        }
        Ok(end.heard >= up_to)
    }

    /// Whether that etcd is silent means that it has said everything, where it cannot be asked.
    ///
    /// Proven like this: every key that is there at the end was heard of for the last time. So what
    /// may be missing are deletes; and since the number of keys is right, none that mattered is.
    async fn silence_is_the_end(&mut self, end: &mut End) -> Result<bool, Error> {
        let Some(last_put) = self.span.last_put else {
            // Then something follows for certain.
            return Ok(false);
        };
        if end.heard < last_put {
            return Ok(false);
        }
        let grown = match end.grown {
            Some(grown) => grown,
            None => {
                let Span { after, up_to, .. } = self.span;
                let before = self.connection.keys_at(&self.bounds, after).await?;
                *end.grown
                    .insert(self.connection.keys_at(&self.bounds, up_to).await? - before)
            }
        };
        Ok(end.keys == grown)
    }

    async fn say(&self, what: BackfillEvent) -> Result<(), Error> {
        let said = self.say.send(Update::Backfill(what)).await;
        said.map_err(|_| Error::Ended("nobody listens".to_owned()))
    }
}

/// How near the end is.
struct End {
    /// Everything up to here was heard.
    heard: Revision,
    /// How many keys more there are by what was heard.
    keys: i64,
    /// How many more there are in truth, once that is known.
    grown: Option<i64>,
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
    use super::super::errand::{self, Errand};
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_etcd_that_never_says_what_was_is_given_up() {
        let (held, mut gone) = mpsc::channel::<()>(1);
        let never = async move {
            let _held = held;
            std::future::pending().await
        };
        let errand = Errand::new(|say| async move { say_how_it_ends(never, &say).await });
        let mut errand = Some(errand);
        let hour = Duration::from_secs(3600);
        let said = timeout(hour, errand::next(&mut errand)).await;
        assert!(matches!(
            said,
            Ok(Update::Backfill(BackfillEvent::Failed { .. }))
        ));
        assert!(gone.recv().await.is_none(), "nobody reads any more");
    }
}
