//! What was begun with etcd, and etcd is lost or read anew: it is begun again. And what was begun and
//! is over is let go of.

use driftless_proto::{Epoch, Revision};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::fanout::{self, Fanout, fanout};
use crate::metrics::Metrics;
use crate::source::{SourceRequest, SourceRequests};
use crate::store::{History, Span, State};
use crate::testing::{entry, prefix};

/// A source that says what a test says, and leaves the requests to it.
struct Said(mpsc::Receiver<Update>);

impl Source for Said {
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
        running.spawn(run(Said(said), handle, publisher, limits));
        say.send(state()).await.unwrap();
        fanout.synced().await;
        Self {
            say,
            requests,
            fanout,
            _running: running,
        }
    }

    /// The next request of the kind.
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

/// etcd is lost, and there again: nothing changed meanwhile.
fn lost() -> [Update; 2] {
    let reason = "a test".to_owned();
    [Update::Lost { reason }, Update::Contact]
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_etcd_was_lost_in_is_not_the_last() {
    audits_again_after(lost).await;
}

#[tokio::test(start_paused = true)]
async fn an_audit_during_which_the_state_was_read_anew_is_not_the_last() {
    audits_again_after(|| [state()]).await;
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_etcd_has_no_answer_to_is_not_the_last() {
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
async fn what_etcd_was_saying_of_the_past_as_it_was_lost_is_asked_for_again() {
    asks_for_the_past_again_after(lost()).await;
}

#[tokio::test(start_paused = true)]
async fn what_etcd_was_saying_of_the_past_as_the_state_was_read_anew_is_asked_for_again() {
    asks_for_the_past_again_after([state()]).await;
}

async fn asks_for_the_past_again_after(updates: impl IntoIterator<Item = Update>) {
    let mut ingest = Loop::start().await;
    let fanout = ingest.fanout.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { fanout.reach_back(Revision::new(4_200)).await });
    let is_past = |request: &SourceRequest| matches!(request, SourceRequest::Backfill(_));
    ingest.asked(is_past).await;
    ingest.hear(updates).await;
    ingest.asked(is_past).await;
}

/// How far back etcd says what was before: less far than the only key is old.
const PAST: Revision = Revision::new(4_600);

/// A prefix at revision 5,000 of which etcd says what was before.
fn hearing() -> Ingest {
    let (publisher, _) = prefix_c();
    let (handle, _) = SourceHandle::channel();
    let mut ingest = Ingest {
        publisher,
        source: handle,
        writer: None,
        lost: false,
        back: Back::Idle,
        audit: Audit::new(None),
    };
    ingest.take(state());
    let span = Span {
        after: PAST,
        up_to: Revision::new(5_000),
        last_put: None,
    };
    ingest.back = Back::Hearing(Box::new(Earlier::new(span, 1024 * 1024)));
    ingest
}

#[tokio::test]
async fn what_etcd_said_of_the_past_is_let_go_of_when_it_fails() {
    let mut ingest = hearing();
    let reason = "a test".to_owned();
    ingest.take(Update::Backfill(BackfillEvent::Failed { reason }));
    assert!(matches!(ingest.back, Back::Idle), "{:?}", ingest.back);
}

#[tokio::test]
async fn what_etcd_said_of_the_past_is_let_go_of_once_all_is_adopted() {
    let mut ingest = hearing();
    ingest.take(Update::Backfill(BackfillEvent::Begin { after: PAST }));
    ingest.take(Update::Backfill(BackfillEvent::End));
    for _ in 0..10 {
        assert!(
            matches!(ingest.back, Back::Settling(_)),
            "{:?}",
            ingest.back
        );
        ingest.go_back();
        if matches!(ingest.back, Back::Idle) {
            // It fitted: what could be asked for next is from before that.
            ingest.publisher.want(Revision::new(4_200));
            let next = ingest.publisher.ask_back().map(|(span, _)| span.up_to);
            assert_eq!(next, Some(PAST));
            return;
        }
    }
    panic!("it is not let go of: {:?}", ingest.back);
}
