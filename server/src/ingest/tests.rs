//! Audits and backfills are restarted when etcd is lost or read again, and dropped when they end.

use std::time::Duration;

use driftless_proto::{Epoch, Revision};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::*;
use crate::delta::JobPool;
use crate::fanout::{self, Fanout, Publisher, fanout};
use crate::metrics::Metrics;
use crate::source::{Source, SourceHandle, SourceRequest, SourceRequests, Update};
use crate::store::{BackfillEvent, History, State};
use crate::testing::{entry, prefix};

/// A source that reports what a test tells it to, and leaves the requests to the test.
struct TestSource(mpsc::Receiver<Update>);

impl Source for TestSource {
    async fn next(&mut self) -> Update {
        match self.0.recv().await {
            Some(update) => update,
            None => std::future::pending().await,
        }
    }
}

fn state() -> Update {
    Update::State(State {
        epoch: Epoch::of_cluster(1, ""),
        revision: Revision::new(5_000),
        entries: vec![entry("/c/a", "1", 4_500)],
        history: History::Continues,
    })
}

/// Both ends of the prefix `/c/`.
fn prefix_c() -> (Publisher, Fanout) {
    let limits = fanout::Limits {
        log_bytes: 1024 * 1024,
        progress_interval: Duration::from_secs(10),
    };
    fanout(prefix("/c/"), limits, Metrics::new(), Instant::now())
}

/// The loop of a prefix at revision 5,000, which audits once a second.
struct Loop {
    say: mpsc::Sender<Update>,
    requests: SourceRequests,
    handle: Handle,
    _running: JoinSet<()>,
}

impl Loop {
    async fn start() -> Self {
        let (publisher, fanout) = prefix_c();
        let (handle, requests) = SourceHandle::channel();
        let (say, said) = mpsc::channel(16);
        let limits = Limits {
            audit_interval: Some(Duration::from_secs(1)),
            jobs: JobPool::new(fanout.metrics().clone()),
        };
        let mut running = JoinSet::new();
        let handle = Handle::new(handle);
        running.spawn(run(TestSource(said), handle.clone(), publisher, limits));
        say.send(state()).await.unwrap();
        fanout.synced().await;
        Self {
            say,
            requests,
            handle,
            _running: running,
        }
    }

    /// Waits for the next request of a kind.
    async fn asked(&mut self, is_it: impl Fn(&SourceRequest) -> bool) {
        let asked = async { while !is_it(&self.requests.recv().await.unwrap()) {} };
        let asked = timeout(Duration::from_secs(60), asked).await;
        asked.expect("within a minute");
    }

    async fn hear(&self, updates: impl IntoIterator<Item = Update>) {
        for update in updates {
            self.say.send(update).await.unwrap();
        }
    }
}

/// etcd is lost and comes back. Nothing changed meanwhile.
fn lost() -> [Update; 2] {
    let reason = "a test".to_owned();
    [Update::Lost { reason }, Update::Contact]
}

#[tokio::test(start_paused = true)]
async fn audit_restarts_after_disconnect() {
    audits_again_after(lost).await;
}

#[tokio::test(start_paused = true)]
async fn audit_restarts_after_relist() {
    audits_again_after(|| [state()]).await;
}

#[tokio::test(start_paused = true)]
async fn audit_restarts_without_an_answer() {
    let revision = Revision::new(5_000);
    let digest = None;
    audits_again_after(|| [Update::Audited { revision, digest }]).await;
}

async fn audits_again_after<U: IntoIterator<Item = Update>>(updates: impl Fn() -> U) {
    let mut ingest = Loop::start().await;
    let is_audit = |request: &SourceRequest| matches!(request, SourceRequest::Audit(_));
    for _ in 0..3 {
        ingest.asked(is_audit).await;
        ingest.hear(updates()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn backfill_is_requested_again_after_disconnect() {
    requests_backfill_again_after(lost()).await;
}

#[tokio::test(start_paused = true)]
async fn backfill_is_requested_again_after_a_new_state() {
    requests_backfill_again_after([state()]).await;
}

async fn requests_backfill_again_after(updates: impl IntoIterator<Item = Update>) {
    let mut ingest = Loop::start().await;
    let handle = ingest.handle.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { handle.backfill(Revision::new(4_200)).await });
    let is_backfill = |request: &SourceRequest| matches!(request, SourceRequest::Backfill(_));
    ingest.asked(is_backfill).await;
    ingest.hear(updates).await;
    ingest.asked(is_backfill).await;
}

/// Where etcd's past begins: after the only key was put.
const PAST: Revision = Revision::new(4_600);

#[tokio::test(start_paused = true)]
async fn adopted_backfill_wakes_the_streams_that_requested_it() {
    let mut ingest = Loop::start().await;
    let handle = ingest.handle.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { handle.backfill(PAST).await });
    ingest
        .asked(|request| matches!(request, SourceRequest::Backfill(_)))
        .await;
    let events = [BackfillEvent::Begin { after: PAST }, BackfillEvent::End];
    ingest.hear(events.map(Update::Backfill)).await;
    waiting.join_next().await.unwrap().unwrap();
    // The change log has it now.
    ingest.handle.backfill(PAST).await;
}

#[tokio::test(start_paused = true)]
async fn failed_backfill_wakes_the_streams_that_requested_it() {
    let mut ingest = Loop::start().await;
    let handle = ingest.handle.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { handle.backfill(PAST).await });
    ingest
        .asked(|request| matches!(request, SourceRequest::Backfill(_)))
        .await;
    let reason = "a test".to_owned();
    let failed = BackfillEvent::Failed { reason };
    ingest.hear([Update::Backfill(failed)]).await;
    waiting.join_next().await.unwrap().unwrap();
}
