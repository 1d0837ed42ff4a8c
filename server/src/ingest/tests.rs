//! Audits and backfills are restarted when etcd is lost or read again, and dropped when they end. A
//! flood of updates does not keep changes back. Only etcd's answers make the state younger.

use std::task::{Context, Waker};
use std::time::Duration;

use driftless_proto::apply::Edit;
use driftless_proto::{Epoch, Revision};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::task::yield_now;
use tokio::time::{Instant, advance, sleep, timeout};

use super::*;
use crate::delta::JobPool;
use crate::encode::PinnedStates;
use crate::fanout::{self, Fanout, Next, Publisher, Subscriber, fanout};
use crate::metrics::Metrics;
use crate::source::{Proof, Source, SourceHandle, SourceRequest, SourceRequests, Update};
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
        asked_at: None,
    })
}

/// Both ends of the prefix `/c/`.
fn prefix_c() -> (Publisher, Fanout) {
    let metrics = Metrics::new();
    let limits = fanout::Limits {
        log_bytes: 1024 * 1024,
        progress_interval: Duration::from_secs(10),
        pinned: PinnedStates::new(usize::MAX, metrics.clone()),
    };
    fanout(prefix("/c/"), limits, metrics, Instant::now())
}

/// The loop of a prefix at revision 5,000, which audits once a second.
struct Loop {
    say: mpsc::Sender<Update>,
    requests: SourceRequests,
    handle: Handle,
    fanout: Fanout,
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
            fanout,
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

    /// As [`Loop::hear`], and waits until the updates are taken.
    async fn take(&self, updates: impl IntoIterator<Item = Update>) {
        self.hear(updates).await;
        while self.say.capacity() < self.say.max_capacity() {
            yield_now().await;
        }
        yield_now().await;
    }
}

/// etcd is lost and comes back. Nothing changed meanwhile.
fn lost() -> [Update; 2] {
    let reason = "a test".to_owned();
    let proof = Proof {
        asked_at: Instant::now(),
        revision: Revision::new(5_000),
    };
    [Update::Lost { reason }, Update::Proof(proof)]
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

fn proof(asked_at: Instant, revision: i64) -> Update {
    let revision = Revision::new(revision);
    Update::Proof(Proof { asked_at, revision })
}

fn change(revision: i64) -> Update {
    Update::Changes {
        revision: Revision::new(revision),
        changes: vec![Edit::Put(entry("/c/a", "2", revision))],
    }
}

#[tokio::test(start_paused = true)]
async fn only_proofs_make_the_state_younger() {
    let ingest = Loop::start().await;
    let start = Instant::now();
    assert_eq!(ingest.fanout.age(), None, "the first state proves nothing");
    ingest.take([proof(start, 5_000)]).await;
    advance(Duration::from_secs(10)).await;
    let revision = Revision::new(5_002);
    let updates = [
        // An audit that failed, because etcd stands still.
        Update::Audited {
            revision: Revision::new(5_000),
            digest: None,
        },
        // What etcd sent before this process stood still.
        change(5_001),
        Update::Progress { revision },
        Update::Backfill(BackfillEvent::End),
    ];
    for update in updates {
        ingest.take([update]).await;
        assert_eq!(ingest.fanout.age(), Some(Duration::from_secs(10)));
    }
    assert_eq!(ingest.fanout.revision(), revision);
    // The question counts, not the answer.
    ingest
        .take([proof(start + Duration::from_secs(4), 5_002)])
        .await;
    assert_eq!(ingest.fanout.age(), Some(Duration::from_secs(6)));
}

#[tokio::test(start_paused = true)]
async fn state_is_not_in_sync_before_it_reaches_etcd() {
    let ingest = Loop::start().await;
    ingest.take([proof(Instant::now(), 5_000)]).await;
    let reason = "cut off".to_owned();
    ingest.take([Update::Lost { reason }]).await;
    advance(Duration::from_secs(47)).await;
    // Meanwhile there were 470 transactions.
    let asked_at = Instant::now();
    ingest.take([proof(asked_at, 5_470)]).await;
    for revision in [5_001, 5_469] {
        ingest.take([change(revision)]).await;
        assert_eq!(ingest.fanout.age(), Some(Duration::from_secs(47)));
        let trouble = ingest.fanout.trouble().unwrap();
        assert!(trouble.contains("etcd is at revision 5470"), "{trouble}");
    }
    ingest.take([change(5_470)]).await;
    assert_eq!(ingest.fanout.age(), Some(Duration::ZERO));
    assert_eq!(ingest.fanout.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn change_does_not_end_a_loss() {
    let ingest = Loop::start().await;
    for reason in ["first", "last"] {
        let reason = reason.to_owned();
        ingest.take([Update::Lost { reason }]).await;
    }
    ingest.take([change(5_001)]).await;
    assert_eq!(ingest.fanout.trouble().as_deref(), Some("last"));
    ingest.take([proof(Instant::now(), 5_001)]).await;
    assert_eq!(ingest.fanout.trouble(), None);
}

#[tokio::test(start_paused = true)]
async fn state_that_stays_behind_is_reported() {
    let ingest = Loop::start().await;
    ingest.take([proof(Instant::now(), 5_001)]).await;
    assert_eq!(ingest.fanout.trouble(), None, "it may be on its way");
    // It goes on, but never gets there.
    for n in 1..10 {
        sleep(Duration::from_secs(5)).await;
        let behind = proof(Instant::now(), 5_001 + n);
        ingest.take([behind, change(5_000 + n)]).await;
    }
    let trouble = ingest.fanout.trouble().unwrap();
    assert!(trouble.contains("etcd is at revision"), "{trouble}");
    ingest.take([change(5_010)]).await;
    assert_eq!(ingest.fanout.trouble(), None);
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

/// A source that never waits once a stream is there: it reports change after change, until one that
/// was held back has reached the stream.
struct Flood {
    state: Option<Update>,
    stream: Option<oneshot::Receiver<Subscriber>>,
    subscriber: Option<Subscriber>,
    began: Instant,
    revision: Revision,
    cursor: Revision,
    held_back: bool,
    /// Receives whether the change was released.
    released: Option<oneshot::Sender<bool>>,
}

impl Flood {
    /// Reads what there is for the stream. Returns whether that ends the flood.
    fn read(&mut self) -> bool {
        let subscriber = self.subscriber.as_ref().unwrap();
        let cx = Context::from_waker(Waker::noop());
        let published = self.cursor < self.revision;
        let mut moved = false;
        loop {
            match subscriber.next(self.cursor, 0, &cx) {
                Next::Frame { to, .. } | Next::Coalesced { to, .. } => self.cursor = to,
                // So much was released at once that one diff is cheaper.
                Next::Behind => self.cursor = self.revision,
                _ => break,
            }
            moved = true;
        }
        let released = self.held_back && moved;
        self.held_back |= published && !moved;
        let over = released || self.began.elapsed() > Duration::from_secs(10);
        if over && let Some(waiting) = self.released.take() {
            waiting.send(released).unwrap();
        }
        over
    }
}

impl Source for Flood {
    async fn next(&mut self) -> Update {
        if let Some(state) = self.state.take() {
            return state;
        }
        if let Some(stream) = self.stream.take() {
            self.subscriber = Some(stream.await.unwrap());
            self.began = Instant::now();
        }
        if self.read() {
            return std::future::pending().await;
        }
        self.revision = self.revision.next();
        let revision = self.revision;
        let changes = vec![Edit::Put(entry("/c/a", "2", revision.get()))];
        Update::Changes { revision, changes }
    }
}

#[tokio::test]
async fn flood_of_updates_does_not_keep_changes_back() {
    let (publisher, fanout) = prefix_c();
    let (handle, _requests) = SourceHandle::channel();
    let limits = Limits {
        audit_interval: None,
        jobs: JobPool::new(fanout.metrics().clone()),
    };
    let (stream_is_there, stream) = oneshot::channel();
    let (released, was_released) = oneshot::channel();
    let flood = Flood {
        state: Some(state()),
        stream: Some(stream),
        subscriber: None,
        began: Instant::now(),
        revision: Revision::new(5_000),
        cursor: Revision::new(5_000),
        held_back: false,
        released: Some(released),
    };
    let mut running = JoinSet::new();
    running.spawn(run(flood, Handle::new(handle), publisher, limits));
    fanout.synced().await;
    let subscriber = fanout.subscribe(prefix("/c/")).unwrap();
    subscriber.view().unwrap();
    assert!(stream_is_there.send(subscriber).is_ok());
    assert!(was_released.await.unwrap(), "it was held back for 10 s");
}
