//! Reports to the server what became of the states that it sent.
//!
//! Each connection has one [`Reports`]; each stream on it has a [`ReportSlot`] with its latest outcome. One task
//! sends all changed outcomes in one call, no more often than the server asks for. An outcome is a state and
//! not an event: the next report makes up for a lost one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::v1;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::caller::Caller;
use crate::jitter::Jitter;

/// The report interval of a server that sends none.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest interval, whatever the server sends: it may ask for short ones while somebody waits for an
/// edit to arrive.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The longest interval, whatever the server sends: an operator should not wait for days.
const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// How long a report may take. A server answers from memory; without a limit, one that does not answer would
/// never get another report on the connection.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);

/// The most watches in one report, by the protocol.
const MAX_WATCHES: usize = 1024;

/// The reports of one connection.
pub(crate) struct Reports {
    outbox: Arc<Outbox>,
    started: AtomicBool,
}

/// What the slots and the reporter share.
struct Outbox {
    info: v1::ClientInfo,
    jitter: Jitter,
    streams: Mutex<Streams>,
    /// An outcome is to be reported.
    changed: Notify,
}

#[derive(Default)]
struct Streams {
    next: u64,
    interval: Duration,
    by_id: BTreeMap<u64, Stream>,
}

/// The outcome of one stream.
struct Stream {
    watch_id: Bytes,
    outcome: v1::Outcome,
    /// Incremented with each outcome.
    sequence: u64,
    /// The sequence number that the server is known to have.
    sent: u64,
}

impl Reports {
    /// `jitter` spreads the calls.
    pub(super) fn new(info: v1::ClientInfo, jitter: Jitter) -> Self {
        let outbox = Outbox {
            info,
            jitter,
            streams: Mutex::default(),
            changed: Notify::new(),
        };
        Self {
            outbox: Arc::new(outbox),
            started: AtomicBool::new(false),
        }
    }

    /// Passes the reporter to `start`, the first time.
    pub(super) fn start_once(&self, start: impl FnOnce(Reporter)) {
        if !self.started.swap(true, Ordering::Relaxed) {
            start(Reporter(Arc::clone(&self.outbox)));
        }
    }

    /// A slot for the outcome of one stream. Dropping it ends the reports about the stream.
    pub(crate) fn slot(&self, watch_id: Bytes, interval: Duration) -> ReportSlot {
        let mut streams = self.outbox.streams.lock();
        streams.interval = match interval {
            Duration::ZERO => DEFAULT_INTERVAL,
            interval => interval.clamp(MIN_INTERVAL, MAX_INTERVAL),
        };
        let id = streams.next;
        streams.next += 1;
        let stream = Stream {
            watch_id,
            outcome: v1::Outcome::default(),
            sequence: 0,
            sent: 0,
        };
        streams.by_id.insert(id, stream);
        drop(streams);
        ReportSlot {
            outbox: Arc::clone(&self.outbox),
            id,
        }
    }
}

/// Holds one stream's outcome for the next report.
pub(crate) struct ReportSlot {
    outbox: Arc<Outbox>,
    id: u64,
}

impl ReportSlot {
    /// Replaces the outcome.
    pub(crate) fn set(&self, outcome: v1::Outcome) {
        let mut streams = self.outbox.streams.lock();
        let Some(stream) = streams.by_id.get_mut(&self.id) else {
            return;
        };
        if stream.outcome != outcome {
            stream.outcome = outcome;
            stream.sequence += 1;
            drop(streams);
            self.outbox.changed.notify_one();
        }
    }
}

impl Drop for ReportSlot {
    fn drop(&mut self) {
        self.outbox.streams.lock().by_id.remove(&self.id);
    }
}

/// Sends the reports of one connection.
pub(super) struct Reporter(Arc<Outbox>);

impl Reporter {
    /// Runs until it is dropped, which its connection does.
    pub(super) async fn run(self, caller: Caller) {
        loop {
            self.0.changed.notified().await;
            // After the change and not before it, so that changes that come together are reported together;
            // and with jitter, so that clients do not report at the same moment.
            let interval = self.0.streams.lock().interval;
            tokio::time::sleep(interval.mul_f64(1.0 + self.0.jitter.fraction() / 4.0)).await;
            for (request, sent) in self.0.due() {
                let answer = tokio::time::timeout(REPORT_TIMEOUT, caller.report(request)).await;
                match answer {
                    Ok(Ok(())) => {
                        self.0.sent(&sent);
                        continue;
                    }
                    Ok(Err(error)) => tracing::debug!(why = %error.message, "a report was lost"),
                    Err(_) => tracing::debug!("a report was not answered"),
                }
                // Again, after another interval.
                self.0.changed.notify_one();
            }
        }
    }
}

/// Ids of streams, with the sequence numbers that were sent.
type Sent = Vec<(u64, u64)>;

impl Outbox {
    /// The requests that carry all outcomes which the server does not have.
    fn due(&self) -> Vec<(v1::ReportRequest, Sent)> {
        let streams = self.streams.lock();
        let due: Vec<_> = streams
            .by_id
            .iter()
            .filter(|(_, stream)| stream.sent < stream.sequence)
            .collect();
        due.chunks(MAX_WATCHES)
            .map(|chunk| {
                let watches = chunk.iter().map(|(_, stream)| v1::WatchReport {
                    watch_id: stream.watch_id.clone(),
                    sequence: stream.sequence,
                    outcome: Some(stream.outcome.clone()),
                });
                let request = v1::ReportRequest {
                    client: Some(self.info.clone()),
                    watches: watches.collect(),
                };
                let sent = chunk.iter().map(|(id, stream)| (**id, stream.sequence));
                (request, sent.collect())
            })
            .collect()
    }

    fn sent(&self, sent: &Sent) {
        let mut streams = self.streams.lock();
        for (id, sequence) in sent {
            if let Some(stream) = streams.by_id.get_mut(id) {
                stream.sent = *sequence;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(applied_revision: i64) -> v1::Outcome {
        v1::Outcome {
            applied_revision,
            ..Default::default()
        }
    }

    fn due(reports: &Reports) -> Vec<(u64, i64)> {
        let due = reports.outbox.due().into_iter();
        due.flat_map(|(request, _)| request.watches)
            .map(|watch| (watch.sequence, watch.outcome.unwrap().applied_revision))
            .collect()
    }

    #[test]
    fn only_the_latest_changed_outcome_is_due() {
        let reports = Reports::new(v1::ClientInfo::default(), Jitter::default());
        let slot = reports.slot(Bytes::from_static(b"w"), Duration::ZERO);
        assert_eq!(due(&reports), []);
        slot.set(outcome(1));
        slot.set(outcome(2));
        slot.set(outcome(2));
        assert_eq!(due(&reports), [(2, 2)]);
        let (_, sent) = reports.outbox.due().remove(0);
        slot.set(outcome(3));
        reports.outbox.sent(&sent);
        assert_eq!(due(&reports), [(3, 3)], "what came meanwhile stays due");
        drop(slot);
        assert_eq!(due(&reports), []);
    }

    #[test]
    fn report_is_split_at_the_limit_of_the_protocol() {
        let reports = Reports::new(v1::ClientInfo::default(), Jitter::default());
        let slots: Vec<ReportSlot> = (0..1500)
            .map(|_| reports.slot(Bytes::new(), Duration::ZERO))
            .collect();
        slots.iter().for_each(|slot| slot.set(outcome(1)));
        let sizes: Vec<usize> = reports
            .outbox
            .due()
            .iter()
            .map(|(request, _)| request.watches.len())
            .collect();
        assert_eq!(sizes, [1024, 476]);
    }
}
