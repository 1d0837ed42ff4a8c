use driftless_proto::{Epoch, KeyRange, Revision};

use super::*;
use crate::source::{Source, SourceHandle, Update};
use crate::store::{History, State};

fn range() -> KeyRange {
    KeyRange::prefix("/c/").unwrap()
}

fn source(etcd: &ScriptedEtcd) -> (SourceHandle, ScriptedEtcdSource) {
    let (handle, requests) = SourceHandle::channel();
    (handle, etcd.source(range(), requests))
}

async fn state(source: &mut ScriptedEtcdSource) -> State {
    match source.next().await {
        Update::State(state) => state,
        other => panic!("no state but {other:?}"),
    }
}

async fn changes(source: &mut ScriptedEtcdSource) -> (Revision, usize) {
    match source.next().await {
        Update::Changes { revision, changes } => (revision, changes.len()),
        other => panic!("no changes but {other:?}"),
    }
}

#[test]
fn model_counts_revisions_as_etcd_does() {
    let etcd = ScriptedEtcd::default();
    assert_eq!(etcd.revision(), Revision::new(1));
    assert_eq!(etcd.put("/c/a", "1"), Revision::new(2));
    assert_eq!(etcd.put("/c/a", "2"), Revision::new(3));
    assert_eq!(etcd.delete("/c/none"), Revision::new(3), "nothing happened");
    assert_eq!(etcd.txn([]), Revision::new(3));
    let a = &etcd.state(&range())[0];
    assert_eq!(
        (a.create_revision.get(), a.mod_revision.get(), a.version),
        (2, 3, 2)
    );
    assert_eq!(etcd.delete("/c/a"), Revision::new(4));
    assert_eq!(
        etcd.txn([Op::put("/c/a", "3"), Op::put("/b", "")]),
        Revision::new(5)
    );
    let a = &etcd.state(&range())[0];
    assert_eq!(
        (a.create_revision.get(), a.mod_revision.get(), a.version),
        (5, 5, 1)
    );
    assert_eq!(etcd.state(&range()).len(), 1);
    let at = |revision| etcd.state_at(&range(), Revision::new(revision));
    assert_eq!(at(2).unwrap()[0].value, "1");
    assert_eq!(at(4), Some(Vec::new()));
    assert_eq!(at(6), None);
}

#[tokio::test(start_paused = true)]
async fn model_reports_changes_and_answers_requests() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let (handle, mut source) = source(&etcd);
    assert_eq!(state(&mut source).await.entries.len(), 1);
    etcd.put("/c/a", "2");
    etcd.put("/outside", "2");
    let last = etcd.txn([Op::delete("/c/a"), Op::put("/c/b", "")]);
    assert_eq!(changes(&mut source).await, (Revision::new(3), 1));
    assert_eq!(changes(&mut source).await, (last, 2));
    let outside = etcd.put("/outside", "3");
    let (answer, update) = tokio::join!(handle.revision(), source.next());
    assert_eq!(answer, Some(outside));
    assert!(matches!(update, Update::Progress { revision } if revision == outside));
    assert!(matches!(source.next().await, Update::Proof(proof) if proof.revision == outside));
    // By the clock, without a request.
    assert!(matches!(source.next().await, Update::Proof(proof) if proof.revision == outside));
}

#[tokio::test(start_paused = true)]
async fn model_can_be_disconnected_compacted_and_restored() {
    let etcd = ScriptedEtcd::default();
    let known = etcd.put("/c/a", "1");
    let (handle, mut source) = source(&etcd);
    state(&mut source).await;

    etcd.disconnect();
    assert!(matches!(source.next().await, Update::Lost { .. }));
    etcd.put("/c/a", "2");
    let nothing = async {
        tokio::select! {
            answer = handle.revision() => answer,
            update = source.next() => panic!("{update:?}"),
        }
    };
    assert_eq!(nothing.await, None);
    etcd.connect();
    assert!(matches!(source.next().await, Update::Proof(_)));
    changes(&mut source).await;

    etcd.disconnect();
    assert!(matches!(source.next().await, Update::Lost { .. }));
    etcd.delete("/c/a");
    etcd.compact(etcd.revision());
    etcd.connect();
    let compacted = state(&mut source).await;
    assert_eq!(
        (compacted.history, compacted.entries.len()),
        (History::Continues, 0)
    );

    etcd.restore(known);
    assert!(matches!(source.next().await, Update::Lost { .. }));
    let restored = state(&mut source).await;
    assert_eq!(restored.history, History::Replaced);
    assert_eq!((restored.revision, restored.entries.len()), (known, 1));

    etcd.replace(Epoch::of_cluster(2, ""));
    assert!(matches!(source.next().await, Update::Lost { .. }));
    let other = state(&mut source).await;
    assert_eq!(
        (other.history, other.epoch),
        (History::Replaced, etcd.epoch())
    );
}

#[tokio::test(start_paused = true)]
async fn cut_link_does_not_affect_others() {
    let etcd = ScriptedEtcd::default();
    let link = etcd.link();
    let (handle, requests) = SourceHandle::channel();
    let mut cut = link.source(range(), requests);
    let (_keep, mut other) = source(&etcd);
    state(&mut cut).await;
    state(&mut other).await;

    link.cut();
    assert!(matches!(cut.next().await, Update::Lost { .. }));
    let put = etcd.put("/c/a", "1");
    assert_eq!(changes(&mut other).await, (put, 1));
    let nothing = async {
        tokio::select! {
            answer = handle.revision() => answer,
            update = cut.next() => panic!("{update:?}"),
        }
    };
    assert_eq!(nothing.await, None);
    link.mend();
    assert!(matches!(cut.next().await, Update::Proof(_)));
    assert_eq!(changes(&mut cut).await, (put, 1));

    etcd.disconnect();
    assert!(matches!(cut.next().await, Update::Lost { .. }));
    assert!(matches!(other.next().await, Update::Lost { .. }));
    link.cut();
    etcd.connect();
    assert!(matches!(other.next().await, Update::Proof(_)));
    link.mend();
    assert!(matches!(cut.next().await, Update::Proof(_)));
}

#[tokio::test]
async fn script_sends_updates_and_answers_requests() {
    let (handle, requests) = SourceHandle::channel();
    let (script, mut source) = ScriptedSource::new(requests);
    script.answer(Some(Revision::new(7)));
    let lost = || Update::Lost {
        reason: "a test".to_owned(),
    };
    assert!(script.send(lost()).await);
    assert!(matches!(source.next().await, Update::Lost { .. }));
    let answer = tokio::select! {
        answer = handle.revision() => answer,
        update = source.next() => panic!("{update:?}"),
    };
    assert_eq!(answer, Some(Revision::new(7)));
    drop(source);
    assert!(!script.send(lost()).await);
}
