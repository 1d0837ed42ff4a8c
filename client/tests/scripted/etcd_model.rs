//! A model of etcd: holds keys and values, and makes the frames that a server sends for its changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use driftless_client::{Entry, Key, Revision};
use driftless_proto::digest::Digest;
use driftless_proto::v1::{self, watch_response::Frame};

/// Keys, values and revisions, as etcd has them.
#[derive(Clone, Default)]
pub(crate) struct EtcdModel {
    entries: BTreeMap<Key, Entry>,
    pub(crate) revision: i64,
    /// The revision of the last change to these keys.
    last_change: i64,
}

impl EtcdModel {
    /// A model with these keys. The first is put at revision 11.
    pub(crate) fn with(pairs: &[(&str, &str)]) -> Self {
        let mut model = Self {
            revision: 10,
            last_change: 10,
            ..Self::default()
        };
        for (key, value) in pairs {
            let _ = model.put(key, value);
        }
        model
    }

    /// The first frame of a stream.
    pub(crate) fn hello() -> Frame {
        Frame::Hello(v1::Hello {
            epoch: Bytes::from_static(b"epoch"),
            watch_id: Bytes::from_static(b"0123456789abcdef"),
            progress_interval_ms: 10_000,
            report_interval_ms: 10_000,
            token: Bytes::from_static(b"token"),
            ..Default::default()
        })
    }

    /// The whole state.
    pub(crate) fn snapshot(&self) -> Frame {
        Frame::Snapshot(v1::Snapshot {
            revision: self.revision,
            entries: self.entries.values().map(v1::Entry::from).collect(),
            digest: self.digest(),
            ..Default::default()
        })
    }

    /// Puts a key, and returns the frame for it.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Frame {
        self.edit(&[(key, Some(value))])
    }

    /// Deletes a key, and returns the frame for it.
    pub(crate) fn delete(&mut self, key: &str) -> Frame {
        self.edit(&[(key, None)])
    }

    /// Changes several keys in one transaction; `None` deletes. Returns the frame for it.
    pub(crate) fn edit(&mut self, edits: &[(&str, Option<&str>)]) -> Frame {
        let from = self.last_change;
        self.revision += 1;
        self.last_change = self.revision;
        let changes = edits.iter().map(|(key, value)| self.change(key, *value));
        let changes = changes.collect::<Vec<_>>();
        Frame::Diff(v1::Diff {
            from,
            to: self.revision,
            changes,
            digest: self.digest(),
            ..Default::default()
        })
    }

    fn change(&mut self, key: &str, value: Option<&str>) -> v1::Change {
        let key = Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap();
        let now = Revision::new(self.revision);
        let change = match value {
            Some(value) => {
                let old = self.entries.get(&key);
                let entry = Entry {
                    key: key.clone(),
                    value: Bytes::copy_from_slice(value.as_bytes()),
                    create_revision: old.map_or(now, |old| old.create_revision),
                    mod_revision: now,
                    version: old.map_or(1, |old| old.version + 1),
                };
                let put = v1::change::Change::Put((&entry).into());
                self.entries.insert(key, entry);
                put
            }
            None => {
                self.entries.remove(&key);
                v1::change::Change::Delete(v1::Delete {
                    key: key.as_bytes().clone(),
                    mod_revision: self.revision,
                })
            }
        };
        v1::Change {
            change: Some(change),
        }
    }

    /// The frame for a client that already has the whole state.
    pub(crate) fn current(&self) -> Frame {
        Frame::Current(v1::Current {
            revision: self.revision,
            digest: self.digest(),
            ..Default::default()
        })
    }

    /// A progress frame after a change to another key of etcd.
    pub(crate) fn progress(&mut self) -> Frame {
        self.revision += 1;
        Frame::Progress(v1::Progress {
            revision: self.revision,
            digest: self.digest(),
            ..Default::default()
        })
    }

    pub(crate) fn values(&self) -> BTreeMap<Key, Vec<u8>> {
        let values = self.entries.values();
        values
            .map(|entry| (entry.key.clone(), entry.value.to_vec()))
            .collect()
    }

    pub(crate) fn digest(&self) -> Bytes {
        self.entries.values().collect::<Digest>().to_bytes()
    }
}
