//! Assembles etcd's watch events into whole transactions. Pure.
//!
//! One response may hold the events of many transactions; with fragments on, one transaction may
//! spread over several responses. etcd never splits a transaction over two responses that are not
//! marked as fragments of one another, so a transaction is complete when a later one follows or
//! when a response ends that no fragment follows.

use std::collections::BTreeMap;

use driftless_proto::apply::Edit;
use driftless_proto::{Key, Revision};

use crate::store::PastChange;

/// A change of one key.
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

/// The event of one key.
#[derive(Debug)]
pub(super) struct Event<C> {
    /// The transaction's revision.
    pub(super) revision: Revision,
    /// What it adds to the number of keys in the prefix: 1, 0 or -1.
    pub(super) keys: i64,
    /// `None` for a key that cannot be served.
    pub(super) change: Option<C>,
}

/// All that one transaction changed under the prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transaction<C> {
    pub(super) revision: Revision,
    /// What it adds to the number of keys in the prefix.
    pub(super) keys: i64,
    /// In ascending order of keys. Empty when none of them can be served.
    pub(super) changes: Vec<C>,
}

/// Assembles transactions. Holds the incomplete one, which etcd bounds.
#[derive(Debug)]
pub(super) struct Transactions<C> {
    /// Events up to this revision are ignored.
    after: Revision,
    open: Option<Open<C>>,
}

#[derive(Debug)]
struct Open<C> {
    revision: Revision,
    keys: i64,
    changes: BTreeMap<Key, C>,
}

/// An event that is older than the one before it: the stream cannot be trusted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("etcd sent an event of revision {event} after one of revision {last}")]
pub(super) struct OutOfOrder {
    event: Revision,
    last: Revision,
}

impl<C: Keyed> Transactions<C> {
    /// For events after this revision. Older ones, which etcd may send, are ignored.
    pub(super) const fn after(revision: Revision) -> Self {
        Self {
            after: revision,
            open: None,
        }
    }

    /// Nothing changed up to this revision.
    pub(super) fn advance(&mut self, revision: Revision) {
        self.after = self.after.max(revision);
    }

    /// Adds the events of one response. `fragment` means that the next response continues it. Returns
    /// the transactions that are complete now.
    pub(super) fn push(
        &mut self,
        events: Vec<Event<C>>,
        fragment: bool,
    ) -> Result<Vec<Transaction<C>>, OutOfOrder> {
        let mut complete = Vec::new();
        for event in events {
            if event.revision <= self.after {
                continue;
            }
            if let Some(open) = &self.open
                && event.revision != open.revision
            {
                if event.revision < open.revision {
                    return Err(OutOfOrder {
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
                // etcd changes a key at most once in a transaction. If it did not, the last would count.
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
    fn response_is_split_into_transactions() {
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
    fn fragments_are_joined_into_a_transaction() {
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
    fn events_up_to_the_position_are_ignored() {
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
    fn last_event_of_a_key_counts() {
        let mut transactions = Transactions::after(Revision::NONE);
        let complete = transactions
            .push(events(&[("a", 1), ("a", 1)]), false)
            .unwrap();
        assert_eq!(complete[0].changes, [delete("a", 1)]);
    }

    #[test]
    fn older_event_is_an_error() {
        let mut transactions = Transactions::after(Revision::NONE);
        assert_eq!(
            transactions.push(events(&[("a", 5), ("b", 4)]), false),
            Err(OutOfOrder {
                event: Revision::new(4),
                last: Revision::new(5)
            })
        );
    }
}
