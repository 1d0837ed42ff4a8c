//! Backfills: what changed before the first state.

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use driftless_server::source::etcd::EtcdConfig;
use driftless_server::source::{PastTransaction, Span, State};
use driftless_test_support::{Etcd, eventually};
use etcd_client::Client;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::subject::{PROGRESS_INTERVAL, Subject, delete, held_at, put, write};

/// The highest mod revision of the state's keys.
fn last_put(state: &State) -> Option<Revision> {
    let puts = state.entries.iter().map(|entry| entry.mod_revision);
    Some(puts.max().unwrap_or(Revision::NONE))
}

/// Checks that these transactions lead from etcd's state at `from` to its state at `to`.
async fn assert_leads(
    client: &Client,
    from: Revision,
    to: Revision,
    transactions: &[PastTransaction],
) {
    let mut held = held_at(client, from).await;
    let mut at = from;
    for transaction in transactions {
        assert!(at < transaction.revision && transaction.revision <= to);
        at = transaction.revision;
        for change in &transaction.changes {
            let before = match &change.edit {
                Edit::Put(entry) => held.insert(entry.key.clone(), entry.clone()),
                Edit::Delete { key, .. } => held.remove(key),
            };
            assert_eq!(before, change.previous, "what was there before");
        }
        assert_eq!(held, held_at(client, at).await, "a whole transaction");
    }
    assert_eq!(held, held_at(client, to).await, "all of them");
}

#[tokio::test]
async fn backfill_reports_past_changes_with_previous_entries() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..5 {
        write(&mut client, &mut random).await;
    }
    // The last change is a delete, and nothing follows in the prefix: no event marks the end.
    put(&mut client, "/c/last", "1").await;
    delete(&mut client, "/c/last").await;
    for _ in 0..20 {
        put(&mut client, "/outside", "x").await;
    }
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let up_to = state.revision;
    for after in [1, 2, up_to.get() / 2, up_to.get() - 10] {
        let span = Span {
            after: Revision::new(after),
            up_to,
            last_put: last_put(&state),
        };
        let (from, transactions) = subject.backfill(span).await.unwrap();
        assert_eq!(from, span.after);
        assert_leads(&client, from, up_to, &transactions).await;
    }
    assert_eq!(subject.metrics.etcd_backfill_watches.get(), 4);

    // Changes that happen meanwhile are reported too, once.
    put(&mut client, "/c/new", "1").await;
    subject.changes().await;
    let span = Span {
        after: Revision::new(1),
        up_to,
        last_put: None,
    };
    let (_, transactions) = subject.backfill(span).await.unwrap();
    assert_leads(&client, span.after, up_to, &transactions).await;
    put(&mut client, "/c/new", "2").await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;

    // A source dropped during a backfill leaves no watch behind.
    assert!(subject.handle.backfill(span));
    subject
        .until("the backfill has started", |subject| {
            subject.metrics.etcd_backfill_watches.get() == 6
        })
        .await;
    drop(subject);
    eventually("no watch", async || etcd.watches().await == (0, 0)).await;
}

#[tokio::test]
async fn backfill_begins_at_the_compacted_revision() {
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    put(&mut client, "/c/a", "1").await;
    put(&mut client, "/c/b", "1").await;
    // etcd has lost the deletes of the compacted revision itself: the answer begins after it.
    let compacted = delete(&mut client, "/c/a").await;
    delete(&mut client, "/c/b").await;
    put(&mut client, "/c/c", "1").await;
    let physical = || Some(etcd_client::CompactionOptions::new().with_physical());
    client.compact(compacted.get(), physical()).await.unwrap();
    let mut subject = Subject::new(&[etcd.url()]);
    let state = subject.state().await;
    let span = |after, state: &State| Span {
        after: Revision::new(after),
        up_to: state.revision,
        last_put: last_put(state),
    };
    for after in [1, compacted.get() - 1, compacted.get()] {
        let (from, transactions) = subject.backfill(span(after, &state)).await.unwrap();
        assert_eq!((from, transactions.len()), (compacted, 2), "after {after}");
        assert_leads(&client, from, state.revision, &transactions).await;
    }
    // Compacted beyond the whole span.
    let last = put(&mut client, "/c/c", "2").await;
    subject.changes().await;
    client.compact(last.get(), physical()).await.unwrap();
    let error = subject.backfill(span(compacted.get(), &state)).await;
    assert!(error.unwrap_err().contains("compacted"));
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}

#[tokio::test]
async fn backfill_above_its_byte_limit_fails() {
    const MAX_BYTES: usize = 10_000;
    let etcd = Etcd::started().await;
    let mut client = etcd.client().await;
    // Each change with its previous value.
    let mut after = Revision::NONE;
    for n in 0..12 {
        let revision = put(&mut client, "/c/a", vec![n; 1000]).await;
        if n == 8 {
            after = revision;
        }
    }
    let mut subject = Subject::with(EtcdConfig {
        progress_interval: PROGRESS_INTERVAL,
        backfill_bytes: MAX_BYTES,
        ..EtcdConfig::new([etcd.url()])
    });
    let state = subject.state().await;
    let span = |after| Span {
        after,
        up_to: state.revision,
        last_put: last_put(&state),
    };
    let error = subject.backfill(span(Revision::new(1))).await.unwrap_err();
    assert!(error.contains("more than 10000 bytes"), "{error}");
    // A span below the limit is read, and the watch continues.
    let (from, transactions) = subject.backfill(span(after)).await.unwrap();
    assert_leads(&client, from, state.revision, &transactions).await;
    put(&mut client, "/c/a", "new").await;
    assert_eq!(subject.changes().await.len(), 1);
    assert_eq!(subject.metrics.etcd_lists.get(), 1);
    subject
        .during(eventually("one watch", async || {
            etcd.watches().await == (1, 1)
        }))
        .await;
}
