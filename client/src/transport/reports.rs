//! Tells the server what became of the states that it sent.
//!
//! Each connection has one [`Reports`]; each stream on it has a [`ReportSlot`] in there that holds its
//! latest outcome. One task sends what changed, all of it in one call, no more often than the server
//! asks for. Reports are state: one that is lost is made good by the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::v1;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::caller::Caller;
use crate::jitter::Jitter;

/// How often to report to a server that does not say.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest interval that is kept, whatever the server says: while somebody waits for an edit to
/// arrive it may ask for reports sooner.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The most watches in one report, by the contract.
const MAX_WATCHES: usize = 1024;

/// The reports of one connection.
pub(crate) struct Reports {
    board: Arc<Board>,
    started: AtomicBool,
}

struct Board {
    info: v1::ClientInfo,
    jitter: Jitter,
    lines: Mutex<Lines>,
    /// Something is to be reported.
    news: Notify,
}

#[derive(Default)]
struct Lines {
    next: u64,
    interval: Duration,
    lines: BTreeMap<u64, Line>,
}

/// What is known of one stream.
struct Line {
    watch_id: Bytes,
    outcome: v1::Outcome,
    /// Grows with each outcome.
    sequence: u64,
    /// The sequence that the server is known to have.
    sent: u64,
}

impl Reports {
    /// `jitter` decides when they are sent.
    pub(super) fn new(info: v1::ClientInfo, jitter: Jitter) -> Self {
        let board = Board {
            info,
            jitter,
            lines: Mutex::default(),
            news: Notify::new(),
        };
        Self {
            board: Arc::new(board),
            started: AtomicBool::new(false),
        }
    }

    /// Hands out the reporter, the first time.
    pub(super) fn start_once(&self, start: impl FnOnce(Reporter)) {
        if !self.started.swap(true, Ordering::Relaxed) {
            start(Reporter(Arc::clone(&self.board)));
        }
    }

    /// A place for the outcome of one stream. Dropping it ends the reports about the stream.
    pub(crate) fn slot(&self, watch_id: Bytes, interval: Duration) -> ReportSlot {
        let mut lines = self.board.lock();
        lines.interval = match interval {
            Duration::ZERO => DEFAULT_INTERVAL,
            interval => interval.max(MIN_INTERVAL),
        };
        let id = lines.next;
        lines.next += 1;
        let line = Line {
            watch_id,
            outcome: v1::Outcome::default(),
            sequence: 0,
            sent: 0,
        };
        lines.lines.insert(id, line);
        drop(lines);
        ReportSlot {
            board: Arc::clone(&self.board),
            id,
        }
    }
}

/// Where one stream's outcome is kept for the next report.
pub(crate) struct ReportSlot {
    board: Arc<Board>,
    id: u64,
}

impl ReportSlot {
    /// The latest outcome takes the place of the one before.
    pub(crate) fn set(&self, outcome: v1::Outcome) {
        let mut lines = self.board.lock();
        let Some(line) = lines.lines.get_mut(&self.id) else {
            return;
        };
        if line.outcome != outcome {
            line.outcome = outcome;
            line.sequence += 1;
            drop(lines);
            self.board.news.notify_one();
        }
    }
}

impl Drop for ReportSlot {
    fn drop(&mut self) {
        self.board.lock().lines.remove(&self.id);
    }
}

/// Sends the reports of one connection.
pub(super) struct Reporter(Arc<Board>);

impl Reporter {
    /// Runs until it is dropped, which its connection does.
    pub(super) async fn run(self, caller: Caller) {
        loop {
            self.0.news.notified().await;
            // After the news and not before it, so that what comes together is told together; and
            // not at the same moment as everybody else.
            let interval = self.0.lock().interval;
            tokio::time::sleep(interval.mul_f64(1.0 + self.0.jitter.fraction() / 4.0)).await;
            for (request, sent) in self.0.due() {
                match caller.report(request).await {
                    Ok(()) => self.0.sent(&sent),
                    Err(error) => {
                        tracing::debug!(why = %error.message, "a report was lost");
                        // Once more, after another interval.
                        self.0.news.notify_one();
                    }
                }
            }
        }
    }
}

/// Which lines were sent, and up to where.
type Sent = Vec<(u64, u64)>;

impl Board {
    /// The requests that say all that the server does not know.
    fn due(&self) -> Vec<(v1::ReportRequest, Sent)> {
        let lines = self.lock();
        let due: Vec<_> = lines
            .lines
            .iter()
            .filter(|(_, line)| line.sent < line.sequence)
            .collect();
        due.chunks(MAX_WATCHES)
            .map(|chunk| {
                let watches = chunk.iter().map(|(_, line)| v1::WatchReport {
                    watch_id: line.watch_id.clone(),
                    sequence: line.sequence,
                    outcome: Some(line.outcome.clone()),
                });
                let request = v1::ReportRequest {
                    client: Some(self.info.clone()),
                    watches: watches.collect(),
                };
                let sent = chunk.iter().map(|(id, line)| (**id, line.sequence));
                (request, sent.collect())
            })
            .collect()
    }

    fn sent(&self, sent: &Sent) {
        let mut lines = self.lock();
        for (id, sequence) in sent {
            if let Some(line) = lines.lines.get_mut(id) {
                line.sent = *sequence;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock()
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
        let due = reports.board.due().into_iter();
        due.flat_map(|(request, _)| request.watches)
            .map(|watch| (watch.sequence, watch.outcome.unwrap().applied_revision))
            .collect()
    }

    #[test]
    fn only_news_are_due_and_only_the_latest() {
        let reports = Reports::new(v1::ClientInfo::default(), Jitter::default());
        let slot = reports.slot(Bytes::from_static(b"w"), Duration::ZERO);
        assert_eq!(due(&reports), []);
        slot.set(outcome(1));
        slot.set(outcome(2));
        slot.set(outcome(2));
        assert_eq!(due(&reports), [(2, 2)]);
        let (_, sent) = reports.board.due().remove(0);
        slot.set(outcome(3));
        reports.board.sent(&sent);
        assert_eq!(due(&reports), [(3, 3)], "what came meanwhile stays due");
        drop(slot);
        assert_eq!(due(&reports), []);
    }

    #[test]
    fn a_report_holds_no_more_than_the_contract_allows() {
        let reports = Reports::new(v1::ClientInfo::default(), Jitter::default());
        let slots: Vec<ReportSlot> = (0..1500)
            .map(|_| reports.slot(Bytes::new(), Duration::ZERO))
            .collect();
        slots.iter().for_each(|slot| slot.set(outcome(1)));
        let sizes: Vec<usize> = reports
            .board
            .due()
            .iter()
            .map(|(request, _)| request.watches.len())
            .collect();
        assert_eq!(sizes, [1024, 476]);
    }
}
