//! Sums of hashes over the keyspace, so that the digest of any range costs a few look-ups, and not one
//! for each key.

use std::ops::Bound;
use std::sync::Arc;

use driftless_proto::digest::Digest;
use driftless_proto::{Key, KeyRange};
use imbl::OrdMap;

use super::snapshot::Stored;

/// How many keys a block has at most. The digest of a range looks at the keys of two blocks, some 10 µs,
/// and at all blocks in between: as many as that in a keyspace of 50,000 keys.
const MOST: usize = 256;

/// A block with fewer keys is joined with a neighbour if both together have at most twice as many.
const FEW: usize = MOST / 4;

/// Consecutive keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Block {
    keys: usize,
    /// The sum of their hashes.
    sum: Digest,
}

/// The keyspace in blocks, by their first keys: each reaches up to the next one. Persistent, as the
/// entries are.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums(OrdMap<Key, Block>);

impl Sums {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(OrdMap::new())
    }

    /// The entry of the key was inserted into `entries`; `old` is the one that it replaced.
    pub(super) fn inserted(
        &mut self,
        new: &Stored,
        old: Option<&Stored>,
        entries: &OrdMap<Key, Arc<Stored>>,
    ) {
        let key = &new.entry.key;
        let (begin, mut block) = match self.0.get_prev(key) {
            Some((begin, block)) => (begin.clone(), *block),
            // Before all others: the first block begins with it now.
            None => {
                let first = self.0.get_min().map(|(begin, _)| begin.clone());
                let block = first.and_then(|begin| self.0.remove(&begin));
                (key.clone(), block.unwrap_or_default())
            }
        };
        block.sum += new.hash;
        match old {
            Some(old) => block.sum -= old.hash,
            None => block.keys += 1,
        }
        if block.keys > MOST {
            let half = block.keys / 2;
            let mut rest = entries.range((Bound::Included(begin.clone()), Bound::Unbounded));
            let sum = rest
                .by_ref()
                .take(half)
                .map(|(_, stored)| stored.hash)
                .sum();
            if let Some((middle, _)) = rest.next() {
                let second = Block {
                    keys: block.keys - half,
                    sum: block.sum - sum,
                };
                block = Block { keys: half, sum };
                self.0.insert(middle.clone(), second);
            }
        }
        self.0.insert(begin, block);
    }

    /// This entry was removed.
    pub(super) fn removed(&mut self, old: &Stored) {
        let Some((begin, block)) = self.0.get_prev(&old.entry.key) else {
            return;
        };
        let (begin, mut block) = (begin.clone(), *block);
        block.sum -= old.hash;
        block.keys -= 1;
        if block.keys >= FEW {
            self.0.insert(begin, block);
            return;
        }
        let is_small = |(other, neighbour): &(&Key, &Block)| {
            **other != begin && block.keys + neighbour.keys <= 2 * FEW
        };
        let after = (Bound::Excluded(begin.clone()), Bound::Unbounded);
        let next = self.0.range(after).next().filter(is_small);
        let before = (Bound::Unbounded, Bound::Excluded(begin.clone()));
        let previous = self.0.range(before).next_back().filter(is_small);
        let join = |neighbour: Block| Block {
            keys: block.keys + neighbour.keys,
            sum: block.sum + neighbour.sum,
        };
        if let Some((other, neighbour)) = previous {
            let (other, joined) = (other.clone(), join(*neighbour));
            self.0.remove(&begin);
            self.0.insert(other, joined);
        } else if let Some((other, neighbour)) = next {
            let (other, joined) = (other.clone(), join(*neighbour));
            self.0.remove(&other);
            self.0.insert(begin, joined);
        } else if block.keys == 0 {
            self.0.remove(&begin);
        } else {
            self.0.insert(begin, block);
        }
    }

    /// The digest of a range of these entries.
    pub(super) fn digest(&self, range: &KeyRange, entries: &OrdMap<Key, Arc<Stored>>) -> Digest {
        let (digest, _) = self.search(range, entries);
        digest
    }

    /// The digest of a range of these entries, and how many entries and blocks were looked at.
    fn search(&self, range: &KeyRange, entries: &OrdMap<Key, Arc<Stored>>) -> (Digest, usize) {
        let (mut sum, mut looked_at) = (Digest::EMPTY, 0);
        // One by one: from a key on, as long as they are in the range.
        let mut add_from = |from: &Key, up_to: Option<&Key>| {
            let rest = entries.range((Bound::Included(from.clone()), Bound::Unbounded));
            for (key, stored) in rest {
                looked_at += 1;
                if !range.contains(key.as_ref()) || up_to.is_some_and(|up_to| key >= up_to) {
                    break;
                }
                sum += stored.hash;
            }
        };
        let start = range.start();
        let blocks = self
            .0
            .range((Bound::Included(start.clone()), Bound::Unbounded))
            .take_while(|(begin, _)| range.contains(begin.as_ref()));
        let mut last: Option<(&Key, &Block)> = None;
        let mut whole = (Digest::EMPTY, 0);
        for next in blocks {
            match last.replace(next) {
                None => add_from(start, Some(next.0)),
                Some((_, block)) => whole = (whole.0 + block.sum, whole.1 + 1),
            }
        }
        add_from(last.map_or(start, |(begin, _)| begin), None);
        (sum + whole.0, looked_at + whole.1)
    }

    /// Checks the blocks against the entries. Returns how many there are.
    #[cfg(test)]
    pub(super) fn check(&self, entries: &OrdMap<Key, Arc<Stored>>) -> usize {
        let mut blocks = OrdMap::new();
        for (key, stored) in entries {
            let begin = self.0.get_prev(key).expect("a block").0;
            let block: &mut Block = blocks.entry(begin.clone()).or_default();
            block.keys += 1;
            block.sum += stored.hash;
            assert!(block.keys <= MOST);
        }
        // The first key of a block may be gone, but no block is empty.
        assert!(self.0 == blocks);
        blocks.len()
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::Epoch;
    use driftless_proto::Revision;
    use driftless_proto::apply::Edit;
    use proptest::prelude::*;

    use super::*;
    use crate::store::{History, State, Writer};
    use crate::testing::{entry, prefix};

    fn key(n: usize) -> String {
        format!("/c/{n:04}")
    }

    /// Puts or deletes so many keys from the first on, each the given number after the one before.
    #[derive(Clone, Debug)]
    struct Change {
        put: bool,
        first: usize,
        count: usize,
        step: usize,
    }

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let change = (any::<bool>(), 0usize..2000, 1usize..1500, 1usize..4);
        let change = change.prop_map(|(put, first, count, step)| Change {
            put,
            first,
            count,
            step,
        });
        proptest::collection::vec(change, 1..8)
    }

    /// Regression: the first stream of a range cost a look at each of its keys, and so did the next one
    /// once that was gone.
    #[test]
    fn digest_looks_at_few_of_many_keys() {
        const KEYS: usize = 100_000;
        let entries = (0..KEYS).map(|n| entry(&format!("/c/{n:06}"), "v", 1));
        let writer = Writer::new(State {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(1),
            entries: entries.collect(),
            history: History::Continues,
            asked_at: None,
        });
        let snapshot = writer.snapshot();
        for range in ["/", "/c/", "/c/0", "/c/01", "/c/012", "/c/0123", "/d"].map(prefix) {
            let (digest, looked_at) = snapshot.sums.search(&range, &snapshot.by_key);
            let entries = snapshot.entries(&range, None);
            assert!(digest == entries.map(|stored| stored.hash).sum(), "{range}");
            let most = 2 * (MOST + 1) + 2 * KEYS / MOST;
            assert!(looked_at <= most, "{looked_at} for {range}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn digests_are_the_sums_of_their_entries(changes in changes()) {
            let mut writer = Writer::new(State {
                epoch: Epoch::of_cluster(1, ""),
                revision: Revision::new(1),
                entries: Vec::new(),
                history: History::Continues,
                asked_at: None,
            });
            for (at, change) in (2..).zip(changes) {
                let keys = (change.first..).step_by(change.step).take(change.count);
                let edits = keys.map(|n| match change.put {
                    true => Edit::Put(entry(&key(n % 3000), "v", at)),
                    false => Edit::Delete {
                        key: Key::new(key(n % 3000)).unwrap(),
                        mod_revision: Revision::new(at),
                    },
                });
                writer.apply(Revision::new(at), edits.collect());
                let snapshot = writer.snapshot();
                let keys = snapshot.entries(&prefix("/c/"), None).count();
                let blocks = snapshot.sums.check(&snapshot.by_key);
                prop_assert!(blocks <= 2 + keys / (FEW / 2), "{blocks} blocks of {keys} keys");
                let ranges = ["/", "/c/", "/c/0", "/c/01", "/c/012", "/c/1", "/c/29", "/d"];
                let ranges = ranges.map(prefix).into_iter();
                for range in ranges.chain([KeyRange::key("/c/0128").unwrap()]) {
                    let sum = snapshot.entries(&range, None).map(|stored| stored.hash).sum();
                    prop_assert!(snapshot.digest(&range) == sum, "{range}");
                }
            }
        }
    }
}
