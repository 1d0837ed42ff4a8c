//! The state of a range that this process holds: applies frames, and refuses what does not fit.
//!
//! Owned by the subscription's task, the only writer. It hands out its state as cheap immutable [`Entries`] and
//! knows nothing of who reads them.

use bytes::Bytes;
use driftless_proto::apply::{Action, Applier, ApplyError, Edit, Lookup};
use driftless_proto::v1::{self, watch_response::Frame};
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};

use crate::value::Entries;

/// What a frame did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Nothing: it is a part of a larger frame, or already known.
    Nothing,
    /// The state is proven to be the server's, maybe at a newer revision; no entry changed.
    Confirmed,
    /// The state is proven to be the server's, and entries changed (or this is the first state).
    Changed,
}

/// The state of a range, and its position in etcd's history.
#[derive(Debug)]
pub(crate) struct Replica {
    applier: Applier,
    entries: Entries,
    /// Whether there was a state, which may be empty.
    synced: bool,
    token: Bytes,
}

impl Lookup for Entries {
    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.get(key.as_ref())
    }
}

impl Replica {
    pub(crate) fn new(range: KeyRange, limit: usize) -> Self {
        Self {
            applier: Applier::new(range, limit),
            entries: Entries::default(),
            synced: false,
            token: Bytes::new(),
        }
    }

    /// The state, once there is one.
    pub(crate) fn entries(&self) -> Option<&Entries> {
        self.synced.then_some(&self.entries)
    }

    /// What to send to a server, so that it answers only with what is missing.
    pub(crate) fn have(&self) -> Option<v1::Have> {
        self.applier.have(self.token.clone())
    }

    /// Begins a stream in this history. The token is for the next one.
    pub(crate) fn begin(&mut self, epoch: Epoch, token: Bytes) {
        self.token = token;
        self.applier.begin(epoch);
    }

    /// Applies one frame: all of it, or nothing.
    pub(crate) fn apply(&mut self, frame: Frame) -> Result<Applied, ApplyError> {
        let action = match frame {
            Frame::Snapshot(chunk) => self.applier.snapshot(chunk)?,
            Frame::Diff(chunk) => self.applier.diff(chunk, &self.entries)?,
            Frame::Current(current) => self.applier.current(&current)?,
            Frame::Progress(progress) => self.applier.progress(&progress)?,
            // Not about the state: the task handles them.
            Frame::Hello(_) | Frame::Goodbye(_) => return Ok(Applied::Nothing),
        };
        Ok(match action {
            Action::Incomplete | Action::Skipped => Applied::Nothing,
            Action::Confirm { revision } => {
                self.entries.set_revision(revision);
                Applied::Confirmed
            }
            Action::Replace {
                revision, entries, ..
            } => {
                let changed = self.replace(entries);
                self.reached(revision, changed)
            }
            Action::Edit {
                revision, edits, ..
            } => {
                let mut changed = false;
                for edit in edits {
                    changed |= match edit {
                        Edit::Put(entry) => self.entries.insert(entry),
                        Edit::Delete { key, .. } => self.entries.remove(&key),
                    };
                }
                self.reached(revision, changed)
            }
        })
    }

    fn reached(&mut self, revision: Revision, changed: bool) -> Applied {
        let first = !std::mem::replace(&mut self.synced, true);
        self.entries.set_revision(revision);
        if changed || first {
            Applied::Changed
        } else {
            Applied::Confirmed
        }
    }

    /// Replaces the state by these entries, which are sorted. Equal entries stay shared with the states that
    /// readers hold.
    fn replace(&mut self, entries: Vec<Entry>) -> bool {
        let gone: Vec<Key> = {
            let mut new = entries.iter().map(|entry| &entry.key).peekable();
            let keys = self.entries.iter().map(|entry| &entry.key);
            keys.filter(|key| {
                while new.peek().is_some_and(|next| next < key) {
                    new.next();
                }
                new.peek() != Some(key)
            })
            .cloned()
            .collect()
        };
        let mut changed = false;
        for key in &gone {
            changed |= self.entries.remove(key);
        }
        for entry in entries {
            if self.entries.get(entry.key.as_ref()) != Some(&entry) {
                changed |= self.entries.insert(entry);
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use driftless_proto::digest::Digest;

    use super::*;

    fn entry(key: &str, value: &str, revision: i64) -> Entry {
        Entry {
            key: Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap(),
            value: Bytes::copy_from_slice(value.as_bytes()),
            create_revision: Revision::new(1),
            mod_revision: Revision::new(revision),
            version: 1,
        }
    }

    fn snapshot(revision: i64, entries: &[Entry]) -> Frame {
        Frame::Snapshot(v1::Snapshot {
            revision,
            entries: entries.iter().map(v1::Entry::from).collect(),
            digest: entries.iter().collect::<Digest>().to_bytes(),
            ..Default::default()
        })
    }

    fn replica() -> Replica {
        let mut replica = Replica::new(KeyRange::prefix("/").unwrap(), 1 << 20);
        let epoch = Epoch::new(Bytes::from_static(b"e"));
        replica.begin(epoch, Bytes::from_static(b"t"));
        replica
    }

    fn keys(replica: &Replica) -> Vec<String> {
        let entries = replica.entries().unwrap();
        entries.iter().map(|entry| entry.key.to_string()).collect()
    }

    #[test]
    fn empty_range_is_a_state() {
        let mut replica = replica();
        assert!(replica.entries().is_none() && replica.have().is_none());
        assert_eq!(replica.apply(snapshot(5, &[])), Ok(Applied::Changed));
        assert!(replica.entries().unwrap().is_empty());
        assert_eq!(replica.apply(snapshot(6, &[])), Ok(Applied::Confirmed));
        let have = replica.have().unwrap();
        assert_eq!((have.revision, &have.token[..]), (6, &b"t"[..]));
    }

    #[test]
    fn snapshot_replaces_and_shares_equal_entries() {
        let mut replica = replica();
        let (a, b, c) = (
            entry("/a", "1", 2),
            entry("/b", "1", 2),
            entry("/c", "1", 2),
        );
        let first = snapshot(2, &[a.clone(), b, c.clone()]);
        assert_eq!(replica.apply(first), Ok(Applied::Changed));
        let held = replica.entries().unwrap().clone();
        let again = snapshot(3, &[a.clone(), entry("/b", "1", 2), c.clone()]);
        assert_eq!(replica.apply(again), Ok(Applied::Confirmed));

        let next = snapshot(4, &[entry("/0", "0", 4), a, c, entry("/d", "1", 4)]);
        assert_eq!(replica.apply(next), Ok(Applied::Changed));
        assert_eq!(keys(&replica), ["/0", "/a", "/c", "/d"]);
        let now = replica.entries().unwrap();
        assert_eq!(now.revision(), Revision::new(4));
        let (old, new) = (held.get(b"/a").unwrap(), now.get(b"/a").unwrap());
        assert_eq!(old.value.as_ptr(), new.value.as_ptr(), "not copied again");
        assert_eq!(held.len(), 3, "a state that is held does not move");
    }

    #[test]
    fn value_does_not_pin_its_message() {
        let mut replica = replica();
        let message = Bytes::from(vec![7; 1 << 16]);
        let small = Entry {
            value: message.slice(10..20),
            ..entry("/a", "", 2)
        };
        replica.apply(snapshot(2, &[small])).unwrap();
        assert!(message.is_unique());
    }

    #[test]
    fn refused_frame_changes_nothing() {
        let mut replica = replica();
        replica.apply(snapshot(2, &[entry("/a", "1", 2)])).unwrap();
        let mut bad = snapshot(3, &[entry("/b", "1", 3)]);
        if let Frame::Snapshot(chunk) = &mut bad {
            chunk.digest = Digest::EMPTY.to_bytes();
        }
        assert!(matches!(
            replica.apply(bad),
            Err(ApplyError::Diverged { .. })
        ));
        assert_eq!(keys(&replica), ["/a"]);
        assert_eq!(replica.have().unwrap().revision, 2);
    }
}
