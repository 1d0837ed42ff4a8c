//! Events as etcd sends them, put together to transactions. Pure.
//!
//! One response may hold the events of many transactions; with fragments on, one transaction may
//! spread over several responses. etcd never splits a transaction over two responses that are not
//! marked as fragments of one another, so a transaction is complete when a later one follows or
//! when a response ends that no fragment follows.

use std::collections::BTreeMap;

use driftless_proto::apply::Edit;
use driftless_proto::{Key, Revision};

use crate::store::PastChange;

/// What is said of a key that changed.
pub(super) trait Keyed {
    fn key(&self) -> &Key;
}

impl Keyed for Edit {
    fn key(&self) -> &Key {
        self.key()
    }
}

impl Keyed for PastChange {
    fn key(&self) -> &Key {
        self.edit.key()
    }
}

/// What happened to one key.
#[derive(Debug)]
pub(super) struct Event<C> {
    /// The transaction's revision.
    pub(super) revision: Revision,
    /// How many keys the prefix has more after it: 1, 0 or -1.
    pub(super) keys: i64,
    /// `None` for a key that cannot be served.
    pub(super) change: Option<C>,
}

/// All that one transaction changed under the prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transaction<C> {
    pub(super) revision: Revision,
    /// How many keys the prefix has more after it.
    pub(super) keys: i64,
    /// In ascending order of keys. Empty when none of them can be served.
    pub(super) changes: Vec<C>,
}

/// Puts events together. Holds the transaction that is incomplete, which etcd bounds.
#[derive(Debug)]
pub(super) struct Transactions<C> {
    /// Everything up to here is known already.
    after: Revision,
    open: Option<Open<C>>,
}

#[derive(Debug)]
struct Open<C> {
    revision: Revision,
    keys: i64,
    changes: BTreeMap<Key, C>,
}

/// An event that is older than the one before it: the stream cannot be relied on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcd sent an event of revision {event} after one of revision {last}")]
pub(super) struct Disordered {
    event: Revision,
    last: Revision,
}

impl<C: Keyed> Transactions<C> {
    /// For events after this revision; older ones, which etcd may send, are dropped.
    pub(super) const fn after(revision: Revision) -> Self {
        Self {
            after: revision,
            open: None,
        }
    }

    /// Nothing happened up to this revision.
    pub(super) fn advance(&mut self, revision: Revision) {
        self.after = self.after.max(revision);
    }

    /// The events of one response. `fragment` says that the next response goes on where this one
    /// ends. Returns the transactions that are complete now.
    pub(super) fn push(
        &mut self,
        events: Vec<Event<C>>,
        fragment: bool,
    ) -> Result<Vec<Transaction<C>>, Disordered> {
        let mut complete = Vec::new();
        for event in events {
            if event.revision <= self.after {
                continue;
            }
            if let Some(open) = &self.open
                && event.revision != open.revision
            {
                if event.revision < open.revision {
                    return Err(Disordered {
                        event: event.revision,
                        last: open.revision,
                    });
                }
                complete.extend(self.close());
            }
            let open = self.open.get_or_insert_with(|| Open {
                revision: event.revision,
                keys: 0,
                changes: BTreeMap::new(),
            });
            open.keys += event.keys;
            if let Some(change) = event.change {
                // etcd changes a key at most once in a transaction; were it not so, the last counts.
                open.changes.insert(change.key().clone(), change);
            }
        }
        if !fragment {
            complete.extend(self.close());
        }
        Ok(complete)
    }

    fn close(&mut self) -> Option<Transaction<C>> {
        let open = self.open.take()?;
        self.after = open.revision;
        Some(Transaction {
            revision: open.revision,
            keys: open.keys,
            changes: open.changes.into_values().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delete(key: &str, at: i64) -> Edit {
        Edit::Delete {
            key: Key::new(key.to_owned()).unwrap(),
            mod_revision: Revision::new(at),
        }
    }

    fn events(events: &[(&str, i64)]) -> Vec<Event<Edit>> {
        events
            .iter()
            .map(|(key, at)| Event {
                revision: Revision::new(*at),
                keys: -1,
                change: Some(delete(key, *at)),
            })
            .collect()
    }

    fn transaction(at: i64, keys: &[&str]) -> Transaction<Edit> {
        Transaction {
            revision: Revision::new(at),
            keys: -i64::try_from(keys.len()).unwrap(),
            changes: keys.iter().map(|key| delete(key, at)).collect(),
        }
    }

    #[test]
    fn one_response_may_hold_several_transactions() {
        let mut transactions = Transactions::after(Revision::new(10));
        let complete = transactions
            .push(events(&[("b", 11), ("a", 11), ("a", 12), ("c", 15)]), false)
            .unwrap();
        assert_eq!(
            complete,
            [
                transaction(11, &["a", "b"]),
                transaction(12, &["a"]),
                transaction(15, &["c"])
            ]
        );
    }

    #[test]
    fn a_transaction_may_spread_over_fragments() {
        let mut transactions = Transactions::after(Revision::new(10));
        assert_eq!(
            transactions
                .push(events(&[("a", 11), ("a", 12)]), true)
                .unwrap(),
            [transaction(11, &["a"])]
        );
        assert_eq!(transactions.push(events(&[("b", 12)]), true).unwrap(), []);
        assert_eq!(transactions.push(Vec::new(), true).unwrap(), []);
        assert_eq!(
            transactions.push(events(&[("c", 12)]), false).unwrap(),
            [transaction(12, &["a", "b", "c"])]
        );
    }

    #[test]
    fn what_is_known_is_dropped() {
        let mut transactions = Transactions::after(Revision::new(10));
        assert_eq!(
            transactions
                .push(events(&[("a", 9), ("a", 10)]), false)
                .unwrap(),
            []
        );
        transactions.advance(Revision::new(12));
        assert_eq!(
            transactions
                .push(events(&[("a", 11), ("b", 12), ("c", 13)]), false)
                .unwrap(),
            [transaction(13, &["c"])]
        );
        assert_eq!(transactions.push(events(&[("c", 13)]), false).unwrap(), []);
    }

    #[test]
    fn a_key_twice_in_a_transaction_counts_with_its_last_event() {
        let mut transactions = Transactions::after(Revision::NONE);
        let complete = transactions
            .push(events(&[("a", 1), ("a", 1)]), false)
            .unwrap();
        assert_eq!(complete[0].changes, [delete("a", 1)]);
    }

    #[test]
    fn disorder_is_an_error() {
        let mut transactions = Transactions::after(Revision::NONE);
        assert_eq!(
            transactions.push(events(&[("a", 5), ("b", 4)]), false),
            Err(Disordered {
                event: Revision::new(4),
                last: Revision::new(5)
            })
        );
    }
}
