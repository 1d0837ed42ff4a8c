//! Shared by the tests of the rule of application: a server's history, the frames that describe it,
//! and a client that does what the applier says.

#![allow(dead_code)] // Each test file is a crate of its own and uses a part.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use driftless_proto::apply::{Action, Applier, ApplyError, Edit};
use driftless_proto::digest::Digest;
use driftless_proto::v1::{self, change::Change, delta_op::Op};
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision};

pub(crate) type State = BTreeMap<Key, Entry>;

pub(crate) fn key(key: &[u8]) -> Key {
    Key::new(key.to_vec()).expect("is not empty")
}

pub(crate) fn entry(name: &str, value: &str, revision: i64) -> Entry {
    Entry {
        key: key(name.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        create_revision: Revision::new(revision),
        mod_revision: Revision::new(revision),
        version: 1,
    }
}

pub(crate) fn put(entry: &Entry) -> v1::Change {
    change(Change::Put(entry.into()))
}

pub(crate) fn delete(key: &Key, mod_revision: i64) -> v1::Change {
    change(Change::Delete(v1::Delete {
        key: key.as_bytes().clone(),
        mod_revision,
    }))
}

pub(crate) fn change(change: Change) -> v1::Change {
    v1::Change {
        change: Some(change),
    }
}

pub(crate) fn digest(state: &State) -> Bytes {
    state.values().collect::<Digest>().to_bytes()
}

/// Where frames are cut: for each thing that travels, the length of its value's pieces (0: not
/// cut) and whether a new chunk starts after it. Over and over.
#[derive(Clone, Debug)]
pub(crate) struct Cuts {
    pub(crate) cuts: Vec<(u8, bool)>,
    next: usize,
}

impl Cuts {
    pub(crate) fn new(cuts: Vec<(u8, bool)>) -> Self {
        Self { cuts, next: 0 }
    }

    /// Everything in one chunk.
    pub(crate) fn none() -> Self {
        Self::new(Vec::new())
    }

    fn cut(&mut self) -> (usize, bool) {
        let index = self.next;
        self.next += 1;
        match self.cuts.len() {
            0 => (0, false),
            len => {
                let (piece, chunk) = self.cuts[index % len];
                (piece.into(), chunk)
            }
        }
    }

    fn pieces(&mut self, entry: v1::Entry) -> Vec<v1::Entry> {
        let (length, _) = self.cut();
        if length == 0 || entry.value.is_empty() {
            return vec![entry];
        }
        let total = entry.value.len();
        (0..total)
            .step_by(length)
            .map(|offset| v1::Entry {
                value: entry.value.slice(offset..total.min(offset + length)),
                offset: offset as u64,
                total: total as u64,
                ..entry.clone()
            })
            .collect()
    }

    fn chunks<T>(&mut self, things: Vec<T>) -> Vec<Vec<T>> {
        let mut chunks = vec![Vec::new()];
        for thing in things {
            if let Some(last) = chunks.last_mut() {
                last.push(thing);
            }
            if self.cut().1 {
                chunks.push(Vec::new());
            }
        }
        chunks
    }
}

pub(crate) fn snapshot(
    revision: i64,
    state: &State,
    reset: bool,
    mut cuts: Cuts,
) -> Vec<v1::Snapshot> {
    let entries = state.values().map(v1::Entry::from);
    let entries = entries.flat_map(|entry| cuts.pieces(entry)).collect();
    let chunks = cuts.chunks(entries);
    let last = chunks.len() - 1;
    let chunk = |(index, entries)| v1::Snapshot {
        revision,
        entries,
        more: index < last,
        digest: if index < last {
            Bytes::new()
        } else {
            digest(state)
        },
        reset,
        epoch: Bytes::new(),
        contact_ms: 0,
    };
    chunks.into_iter().enumerate().map(chunk).collect()
}

/// A diff that leads to `state` at `to`.
pub(crate) fn diff(
    (from, to): (i64, i64),
    changes: Vec<v1::Change>,
    state: &State,
    conflated: bool,
    mut cuts: Cuts,
) -> Vec<v1::Diff> {
    let changes = changes
        .into_iter()
        .flat_map(|one| match one.change {
            Some(Change::Put(entry)) => {
                let pieces = cuts.pieces(entry).into_iter();
                pieces.map(|piece| change(Change::Put(piece))).collect()
            }
            other => vec![v1::Change { change: other }],
        })
        .collect();
    let chunks = cuts.chunks(changes);
    let last = chunks.len() - 1;
    let chunk = |(index, changes)| v1::Diff {
        from,
        to,
        changes,
        more: index < last,
        digest: if index < last {
            Bytes::new()
        } else {
            digest(state)
        },
        conflated,
        contact_ms: 0,
    };
    chunks.into_iter().enumerate().map(chunk).collect()
}

/// A patch that makes `new` from `old`: copies their common start and inserts the rest.
pub(crate) fn patch(old: &Entry, new: &Entry) -> v1::Patch {
    let same = old.value.iter().zip(&new.value);
    let same = same.take_while(|(old, new)| old == new).count();
    let mut ops = Vec::new();
    if same > 0 {
        ops.push(Op::Copy(v1::Copy {
            offset: 0,
            length: same as u64,
        }));
    }
    ops.push(Op::Insert(new.value.slice(same..)));
    v1::Patch {
        key: new.key.as_bytes().clone(),
        base_mod_revision: old.mod_revision.get(),
        create_revision: new.create_revision.get(),
        mod_revision: new.mod_revision.get(),
        version: new.version,
        length: new.value.len() as u64,
        ops: ops
            .into_iter()
            .map(|op| v1::DeltaOp { op: Some(op) })
            .collect(),
    }
}

/// The history of one range: its states, one for each revision that changed it.
#[derive(Clone, Debug)]
pub(crate) struct History {
    /// etcd's revision: at or after the last state's.
    pub(crate) revision: i64,
    /// The first is empty, before everything.
    pub(crate) states: Vec<(i64, State)>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            revision: 1,
            states: vec![(1, State::new())],
        }
    }

    /// One transaction. It may change nothing in the range.
    pub(crate) fn write(&mut self, changes: &[(Key, Option<Bytes>)]) {
        self.revision += 1;
        let revision = Revision::new(self.revision);
        let (_, mut state) = self.states[self.states.len() - 1].clone();
        let mut changed = false;
        for (key, value) in changes {
            match value {
                Some(value) => {
                    let old = state.get(key);
                    let new = Entry {
                        key: key.clone(),
                        value: value.clone(),
                        create_revision: old.map_or(revision, |old| old.create_revision),
                        mod_revision: revision,
                        version: old.map_or(1, |old| old.version + 1),
                    };
                    state.insert(key.clone(), new);
                    changed = true;
                }
                None => changed |= state.remove(key).is_some(),
            }
        }
        if changed {
            self.states.push((self.revision, state));
        }
    }

    /// The state at a revision.
    pub(crate) fn at(&self, revision: Revision) -> &State {
        let after = self.states.partition_point(|(at, _)| *at <= revision.get());
        &self.states[after - 1].1
    }

    /// The diff from one state to a later one. With all that was touched in between, also what
    /// both lack: a client may be anywhere in between.
    pub(crate) fn diff(&self, from: usize, to: usize, patches: bool, cuts: Cuts) -> Vec<v1::Diff> {
        let (from_revision, old) = &self.states[from];
        let (to_revision, new) = &self.states[to];
        let mut touched = BTreeSet::new();
        for pair in self.states[from..=to].windows(2) {
            let (one, other) = (&pair[0].1, &pair[1].1);
            touched.extend(one.keys().filter(|key| one.get(*key) != other.get(*key)));
            touched.extend(other.keys().filter(|key| one.get(*key) != other.get(*key)));
        }
        let conflated = to - from > 1;
        let changes = touched
            .into_iter()
            .map(|key| match (old.get(key), new.get(key)) {
                (Some(old), Some(new)) if patches && !conflated => {
                    change(Change::Patch(patch(old, new)))
                }
                (_, Some(new)) => put(new),
                (_, None) => delete(key, *to_revision),
            })
            .collect();
        diff(
            (*from_revision, *to_revision),
            changes,
            new,
            conflated,
            cuts,
        )
    }
}

/// An applier and the state that it describes.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) applier: Applier,
    pub(crate) state: State,
    stream: Epoch,
}

impl Client {
    pub(crate) fn new(range: KeyRange, limit: usize) -> Self {
        Self {
            applier: Applier::new(range, limit),
            state: State::new(),
            stream: epoch(0),
        }
    }

    pub(crate) fn begin(&mut self, stream: Epoch) {
        self.stream = stream.clone();
        self.applier.begin(stream);
    }

    /// Drops an incomplete frame, as a reconnect does.
    pub(crate) fn reconnect(&mut self) {
        self.applier.begin(self.stream.clone());
    }

    pub(crate) fn snapshot(&mut self, chunks: Vec<v1::Snapshot>) -> Result<Action, ApplyError> {
        self.frame(chunks, |applier, _, chunk| applier.snapshot(chunk))
    }

    pub(crate) fn diff(&mut self, chunks: Vec<v1::Diff>) -> Result<Action, ApplyError> {
        self.frame(chunks, |applier, state, chunk| applier.diff(chunk, state))
    }

    pub(crate) fn progress(&mut self, revision: i64, digest: Bytes) -> Result<Action, ApplyError> {
        let progress = v1::Progress {
            revision,
            digest,
            contact_ms: 0,
        };
        self.frame(vec![progress], |applier, _, frame| applier.progress(&frame))
    }

    pub(crate) fn current(&mut self, revision: i64, digest: Bytes) -> Result<Action, ApplyError> {
        let current = v1::Current {
            revision,
            digest,
            contact_ms: 0,
        };
        self.frame(vec![current], |applier, _, frame| applier.current(&frame))
    }

    /// Feeds the chunks until one is rejected, and does what the applier says. Checks what holds for
    /// every frame: nothing changes before the last chunk or on an error, and the digest matches the
    /// state.
    fn frame<F>(
        &mut self,
        chunks: Vec<F>,
        mut feed: impl FnMut(&mut Applier, &State, F) -> Result<Action, ApplyError>,
    ) -> Result<Action, ApplyError> {
        let mut result = Ok(Action::Incomplete);
        for chunk in chunks {
            let before = self.applier.have(Bytes::new());
            result = feed(&mut self.applier, &self.state, chunk);
            let have = self.applier.have(Bytes::new());
            match &result {
                Err(_) | Ok(Action::Incomplete | Action::Skipped) => assert!(have == before),
                Ok(Action::Confirm { .. }) => {}
                Ok(Action::Replace { entries, .. }) => {
                    assert!(entries.windows(2).all(|pair| pair[0].key < pair[1].key));
                    let entries = entries.iter().cloned();
                    self.state = entries.map(|entry| (entry.key.clone(), entry)).collect();
                }
                Ok(Action::Edit { edits, .. }) => {
                    assert!(edits.windows(2).all(|pair| pair[0].key() < pair[1].key()));
                    for edit in edits {
                        match edit.clone() {
                            Edit::Put(entry) => self.state.insert(entry.key.clone(), entry),
                            Edit::Delete { key, .. } => self.state.remove(&key),
                        };
                    }
                }
            }
            assert!(self.applier.digest() == self.state.values().collect());
            if result.is_err() {
                break;
            }
        }
        result
    }
}

pub(crate) fn epoch(number: u64) -> Epoch {
    Epoch::of_cluster(number, "")
}

/// A client's limit far above the size of every state in the tests of errors.
pub(crate) const LIMIT: usize = 1 << 16;

pub(crate) fn state(entries: &[Entry]) -> State {
    let entries = entries.iter().cloned();
    entries.map(|entry| (entry.key.clone(), entry)).collect()
}

pub(crate) fn empty(limit: usize) -> Client {
    let mut client = Client::new(KeyRange::prefix("/r/").expect("is one"), limit);
    client.begin(epoch(0));
    client
}

/// Holds `/r/a` = "old" at revision 5.
pub(crate) fn holding(limit: usize) -> Client {
    let mut client = empty(limit);
    let held = state(&[entry("/r/a", "old", 5)]);
    let action = client.snapshot(snapshot(5, &held, false, Cuts::none()));
    assert!(matches!(action, Ok(Action::Replace { .. })));
    client
}

/// The error of a diff from 5 to 6 with these changes, at a client of revision 5.
pub(crate) fn refused(changes: Vec<v1::Change>) -> ApplyError {
    let mut client = holding(LIMIT);
    let chunks = diff((5, 6), changes, &State::new(), false, Cuts::none());
    client.diff(chunks).expect_err("is refused")
}

pub(crate) fn malformed(what: &'static str) -> ApplyError {
    ApplyError::Malformed { what }
}
