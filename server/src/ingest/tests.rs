//! What was begun with etcd, and etcd is lost: it is begun again.

use driftless_proto::{Epoch, Revision};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::fanout::{Fanout, fanout};
use crate::metrics::Metrics;
use crate::source::{History, Question, Questions, State};
use crate::testing::{entry, prefix};

/// A source that says what a test says, and leaves the questions to it.
struct Said(mpsc::Receiver<Update>);

impl Source for Said {
    async fn next(&mut self) -> Update {
        match self.0.recv().await {
            Some(update) => update,
            None => std::future::pending().await,
        }
    }
}

/// The loop of a prefix at revision 5,000, which audits once a second.
struct Loop {
    say: mpsc::Sender<Update>,
    questions: Questions,
    fanout: Fanout,
    _running: JoinSet<()>,
}

impl Loop {
    async fn start() -> Self {
        let (publisher, fanout) = fanout(prefix("/c/"), Metrics::new(), Instant::now());
        let (catch_up, questions) = CatchUp::channel();
        let (say, said) = mpsc::channel(16);
        let limits = Limits {
            log_bytes: 1024 * 1024,
            progress_interval: Duration::from_secs(10),
            audit_interval: Some(Duration::from_secs(1)),
            deltas: Deltas::new(fanout.metrics().clone()),
        };
        let mut running = JoinSet::new();
        running.spawn(run(Said(said), catch_up, publisher, limits));
        let state = State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(5_000),
            entries: vec![entry("/c/a", "1", 4_500)],
            history: History::Continues,
        };
        say.send(Update::State(state)).await.unwrap();
        fanout.synced().await;
        Self {
            say,
            questions,
            fanout,
            _running: running,
        }
    }

    /// The next question of the kind.
    async fn asked(&mut self, is_it: impl Fn(&Question) -> bool) {
        let asked = async { while !is_it(&self.questions.recv().await.unwrap()) {} };
        let asked = timeout(Duration::from_secs(60), asked).await;
        asked.expect("within a minute");
    }

    /// etcd is lost, and there again: nothing changed meanwhile.
    async fn lose(&self) {
        let reason = "a test".to_owned();
        for update in [Update::Lost { reason }, Update::Contact] {
            self.say.send(update).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_audit_that_etcd_was_lost_in_is_not_the_last() {
    let mut ingest = Loop::start().await;
    let is_audit = |question: &Question| matches!(question, Question::Audit(_));
    for _ in 0..3 {
        ingest.asked(is_audit).await;
        ingest.lose().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_etcd_was_saying_of_the_past_as_it_was_lost_is_asked_for_again() {
    let mut ingest = Loop::start().await;
    let fanout = ingest.fanout.clone();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { fanout.reach_back(Revision::new(4_200)).await });
    let is_past = |question: &Question| matches!(question, Question::Earlier(_));
    ingest.asked(is_past).await;
    ingest.lose().await;
    ingest.asked(is_past).await;
}
