//! Shared by the tests of several rooms: entries, and a client's state that decodes with generated
//! code only.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use driftless_proto::apply::{Action, Applier, ApplyError, Edit};
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision, v1};
use prost::Message;
use v1::watch_response::Frame;

pub(crate) fn entry(key: &str, value: impl Into<Bytes>, mod_revision: i64) -> Entry {
    Entry {
        key: Key::new(key.to_owned()).unwrap(),
        value: value.into(),
        create_revision: Revision::new(1),
        mod_revision: Revision::new(mod_revision),
        version: 1,
    }
}

pub(crate) fn prefix(prefix: &str) -> KeyRange {
    KeyRange::prefix(prefix).unwrap()
}

pub(crate) fn by_key(entries: Vec<Entry>) -> BTreeMap<Key, Entry> {
    let entries = entries.into_iter();
    entries.map(|entry| (entry.key.clone(), entry)).collect()
}

/// The edits that lead from one state to another, as etcd would report them for one transaction.
pub(crate) fn edits(before: Vec<Entry>, after: Vec<Entry>, at: Revision) -> Vec<Edit> {
    let (before, after) = (by_key(before), by_key(after));
    let gone = before.keys().filter(|key| !after.contains_key(*key));
    let gone = gone.map(|key| Edit::Delete {
        key: key.clone(),
        mod_revision: at,
    });
    let put = after.values().filter(|entry| entry.mod_revision == at);
    gone.chain(put.cloned().map(Edit::Put)).collect()
}

/// Takes whole gRPC messages off the front of a stream of bytes. The rest is the start of another.
pub(crate) fn take_messages<M: Message + Default>(bytes: &mut Bytes) -> Vec<M> {
    let mut messages = Vec::new();
    while bytes.len() >= 5 {
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        if bytes.len() < 5 + len {
            break;
        }
        assert_eq!(bytes[0], 0, "not compressed");
        bytes.advance(5);
        messages.push(M::decode(bytes.split_to(len)).expect("generated code decodes it"));
    }
    messages
}

/// The frames in these segments, which hold whole messages.
pub(crate) fn frames<'a>(segments: impl IntoIterator<Item = &'a Bytes>) -> Vec<Frame> {
    let segments: Vec<&[u8]> = segments.into_iter().map(|segment| &segment[..]).collect();
    let mut bytes = Bytes::from(segments.concat());
    let messages = take_messages::<v1::WatchResponse>(&mut bytes);
    assert!(bytes.is_empty(), "whole messages only");
    let frames = messages.into_iter();
    frames.map(|message| message.frame.unwrap()).collect()
}

/// A client's state, changed by the contract's own rules ([`Applier`]).
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) applier: Applier,
    pub(crate) entries: BTreeMap<Key, Entry>,
    /// The names of the frames that were applied.
    pub(crate) applied: Vec<&'static str>,
}

impl Replica {
    pub(crate) fn new(range: KeyRange) -> Self {
        Self {
            applier: Applier::new(range, usize::MAX),
            entries: BTreeMap::new(),
            applied: Vec::new(),
        }
    }

    /// A replica that holds this state already.
    pub(crate) fn holding(
        range: KeyRange,
        epoch: &Epoch,
        revision: Revision,
        entries: Vec<Entry>,
    ) -> Self {
        let mut replica = Self::new(range);
        replica.applier.resume(epoch.clone(), revision, &entries);
        replica.entries = by_key(entries);
        replica.applier.begin(epoch.clone());
        replica
    }

    pub(crate) fn revision(&self) -> Revision {
        self.applier.revision()
    }

    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.entries.values().cloned().collect()
    }

    pub(crate) fn take(&mut self, frame: Frame) -> Result<(), ApplyError> {
        let (name, action) = match frame {
            Frame::Hello(hello) => {
                self.applier.begin(Epoch::new(hello.epoch));
                ("hello", Action::Skipped)
            }
            Frame::Snapshot(snapshot) => ("snapshot", self.applier.snapshot(snapshot)?),
            Frame::Diff(diff) if diff.conflated => {
                ("conflated", self.applier.diff(diff, &self.entries)?)
            }
            Frame::Diff(diff) => ("diff", self.applier.diff(diff, &self.entries)?),
            Frame::Current(current) => ("current", self.applier.current(&current)?),
            Frame::Progress(progress) => ("progress", self.applier.progress(&progress)?),
            Frame::Goodbye(_) => ("goodbye", Action::Skipped),
        };
        match action {
            Action::Incomplete => return Ok(()),
            Action::Skipped | Action::Confirm { .. } => {}
            Action::Replace { entries, .. } => self.entries = by_key(entries),
            Action::Edit { edits, .. } => {
                for edit in edits {
                    match edit {
                        Edit::Put(entry) => drop(self.entries.insert(entry.key.clone(), entry)),
                        Edit::Delete { key, .. } => drop(self.entries.remove(&key)),
                    }
                }
            }
        }
        self.applied.push(name);
        Ok(())
    }

    pub(crate) fn take_all(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            self.take(frame).expect("the frame applies");
        }
    }
}
