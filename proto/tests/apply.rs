//! The rule of application, against a model. Whatever a server sends, and wherever it is cut, the
//! client's state equals the server's at the client's revision, or the frame is rejected and nothing
//! changed.

mod frames;

use std::cell::Cell;

use bytes::Bytes;
use driftless_proto::apply::{Action, Applier, ApplyError, Lookup};
use driftless_proto::v1::{self, change::Change, delta_op::Op};
use driftless_proto::{Entry, Key, KeyRange, Revision};
use proptest::prelude::*;
use proptest::sample::Index;

use frames::{Client, Cuts, History, State, digest, epoch, key, snapshot};

const KEYS: [&[u8]; 6] = [b"/r/", b"/r/a", b"/r/a/b", b"/r/b", b"/r/\xff", b"/r/c"];

/// Above the size of every state in these tests.
const LIMIT: usize = 1 << 20;

fn client() -> Client {
    Client::new(KeyRange::prefix("/r/").expect("is one"), LIMIT)
}

fn cuts() -> impl Strategy<Value = Cuts> {
    prop::collection::vec((0..12_u8, any::<bool>()), 0..8).prop_map(Cuts::new)
}

fn value() -> impl Strategy<Value = Bytes> {
    // Few letters, so that patches have something to copy.
    prop::collection::vec(prop::sample::select(b"ab".to_vec()), 0..32).prop_map(Bytes::from)
}

fn transaction() -> impl Strategy<Value = Vec<(Key, Option<Bytes>)>> {
    let one = (
        prop::sample::select(KEYS.to_vec()).prop_map(key),
        prop::option::weighted(0.7, value()),
    );
    prop::collection::vec(one, 0..4)
}

/// What happens next. An index selects one of the history's states.
#[derive(Clone, Debug)]
enum Event {
    Write(Vec<(Key, Option<Bytes>)>),
    /// Every change from the client's state on, as on a live stream.
    Follow {
        patches: bool,
        cuts: Cuts,
    },
    /// One change, whichever: a replay, a gap, or the next.
    Replay {
        at: Index,
        patches: bool,
        cuts: Cuts,
    },
    /// Several in one, whichever.
    Conflated {
        from: Index,
        to: Index,
        cuts: Cuts,
    },
    Snapshot {
        at: Index,
        reset: bool,
        cuts: Cuts,
    },
    Progress(Option<Index>),
    Current(Option<Index>),
    Begin {
        epoch: u64,
    },
    /// etcd is restored from a backup: what follows is another history with the same revisions.
    Restore(Index),
    /// A frame in which something is wrong.
    Broken {
        frame: Box<Event>,
        how: u8,
        at: Index,
        item: Index,
    },
}

fn frame() -> impl Strategy<Value = Event> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), any::<bool>(), cuts())
            .prop_map(|(at, patches, cuts)| Event::Replay { at, patches, cuts }),
        1 => (at(), at(), cuts())
            .prop_map(|(from, to, cuts)| Event::Conflated { from, to, cuts }),
        1 => (at(), any::<bool>(), cuts())
            .prop_map(|(at, reset, cuts)| Event::Snapshot { at, reset, cuts }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let at = any::<Index>;
    prop_oneof![
        6 => transaction().prop_map(Event::Write),
        4 => (any::<bool>(), cuts()).prop_map(|(patches, cuts)| Event::Follow { patches, cuts }),
        4 => frame(),
        2 => prop::option::weighted(0.5, at()).prop_map(Event::Progress),
        1 => prop::option::weighted(0.5, at()).prop_map(Event::Current),
        1 => prop::sample::select(vec![0, 0, 0, 1]).prop_map(|epoch| Event::Begin { epoch }),
        1 => at().prop_map(Event::Restore),
        3 => (frame(), any::<u8>(), at(), at()).prop_map(|(frame, how, at, item)| Event::Broken {
            frame: Box::new(frame), how, at, item,
        }),
    ]
}

/// The chunks of one frame.
enum Frame {
    Diff(Vec<v1::Diff>),
    Snapshot(Vec<v1::Snapshot>),
}

struct World {
    history: History,
    client: Client,
    stream: u64,
    /// The epoch of what the client holds.
    held: Option<u64>,
    /// The client is of a history that a restore took back.
    astray: bool,
}

impl World {
    fn new() -> Self {
        let mut client = client();
        client.begin(epoch(0));
        Self {
            history: History::new(),
            client,
            stream: 0,
            held: None,
            astray: false,
        }
    }

    fn revision(&self) -> Revision {
        self.client.applier.revision()
    }

    /// The frame that an event asks for, where the history has one.
    fn build(&self, event: &Event) -> Option<Frame> {
        let states = &self.history.states;
        match event {
            Event::Replay { at, patches, cuts } if states.len() > 1 => {
                let from = at.index(states.len() - 1);
                Some(Frame::Diff(self.history.diff(
                    from,
                    from + 1,
                    *patches,
                    cuts.clone(),
                )))
            }
            Event::Conflated { from, to, cuts } if states.len() > 1 => {
                let from = from.index(states.len() - 1);
                let to = from + 1 + to.index(states.len() - 1 - from);
                Some(Frame::Diff(self.history.diff(
                    from,
                    to,
                    false,
                    cuts.clone(),
                )))
            }
            Event::Snapshot { at, reset, cuts } => {
                let (revision, state) = &states[at.index(states.len())];
                Some(Frame::Snapshot(snapshot(
                    *revision,
                    state,
                    *reset,
                    cuts.clone(),
                )))
            }
            _ => None,
        }
    }

    /// The result of a correct frame, for a client of this history.
    fn expected(&self, frame: &Frame) -> &'static str {
        let ours = self.held == Some(self.stream);
        let held = self.revision().get();
        match frame {
            Frame::Diff(_) if !ours => "nothing held",
            Frame::Diff(chunks) if chunks[0].from > held => "gap",
            Frame::Diff(chunks) if chunks[0].to <= held => "skipped",
            Frame::Diff(_) => "edit",
            Frame::Snapshot(chunks) if ours && !chunks[0].reset && chunks[0].revision < held => {
                "went back"
            }
            Frame::Snapshot(_) => "replace",
        }
    }

    /// Feeds the chunks until one is rejected. Checks the result of each, because a broken frame may
    /// end early and be followed by another.
    fn deliver(&mut self, frame: Frame) -> Result<Result<Action, ApplyError>, TestCaseError> {
        let mut result = Ok(Action::Incomplete);
        match frame {
            Frame::Diff(chunks) => {
                for chunk in chunks {
                    result = self.client.diff(vec![chunk]);
                    self.check(&result)?;
                    if result.is_err() {
                        break;
                    }
                }
            }
            Frame::Snapshot(chunks) => {
                for chunk in chunks {
                    result = self.client.snapshot(vec![chunk]);
                    self.check(&result)?;
                    if result.is_err() {
                        break;
                    }
                }
            }
        }
        if matches!(result, Err(_) | Ok(Action::Incomplete)) {
            self.client.reconnect();
        }
        Ok(result)
    }

    /// An accepted frame leads to the server's state, whatever the client had before.
    fn check(&mut self, result: &Result<Action, ApplyError>) -> Result<(), TestCaseError> {
        if let Ok(Action::Replace { .. }) = result {
            self.held = Some(self.stream);
        }
        if let Ok(Action::Edit { .. } | Action::Replace { .. }) = result {
            self.astray = false;
            prop_assert!(&self.client.state == self.history.at(self.revision()));
        }
        if !self.astray {
            let held = self.held.is_some();
            prop_assert!(!held || &self.client.state == self.history.at(self.revision()));
        }
        Ok(())
    }

    fn confirm(&mut self, at: Option<Index>, progress: bool) -> Result<(), TestCaseError> {
        let states = &self.history.states;
        let revision = at.map_or(self.history.revision, |at| states[at.index(states.len())].0);
        let state = self.history.at(Revision::new(revision)).clone();
        let (ours, held) = (self.held == Some(self.stream), self.revision());
        let expected = if !ours {
            "nothing held"
        } else if progress && revision < held.get() {
            "skipped"
        } else if state == self.client.state {
            "confirm"
        } else {
            "diverged"
        };
        let result = if progress {
            self.client.progress(revision, digest(&state))
        } else {
            self.client.current(revision, digest(&state))
        };
        prop_assert_eq!(name(&result), expected);
        if let Ok(Action::Confirm { revision: at }) = result {
            prop_assert_eq!(at, held.max(Revision::new(revision)));
        }
        self.check(&result)
    }

    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        match event {
            Event::Write(changes) => self.history.write(&changes),
            Event::Follow { patches, cuts } => {
                let states = &self.history.states;
                let first = states.partition_point(|(at, _)| *at <= self.revision().get());
                // A client that holds nothing is before the first.
                for from in first.max(1) - 1..states.len() - 1 {
                    let frame =
                        Frame::Diff(self.history.diff(from, from + 1, patches, cuts.clone()));
                    self.honest(frame)?;
                }
            }
            Event::Replay { .. } | Event::Conflated { .. } | Event::Snapshot { .. } => {
                if let Some(frame) = self.build(&event) {
                    self.honest(frame)?;
                }
            }
            Event::Progress(at) => self.confirm(at, true)?,
            Event::Current(at) => self.confirm(at, false)?,
            Event::Begin { epoch: number } => {
                self.stream = number;
                self.client.begin(epoch(number));
            }
            Event::Restore(at) => {
                let at = at.index(self.history.states.len());
                self.history.states.truncate(at + 1);
                self.history.revision = self.history.states[at].0;
                // Even when the states are equal now, the client may skip what it should not.
                self.astray |= self.revision().get() > self.history.revision;
            }
            Event::Broken {
                frame,
                how,
                at,
                item,
            } => {
                if let Some(mut frame) = self.build(&frame) {
                    match &mut frame {
                        Frame::Diff(chunks) => break_diff(chunks, how, at, item),
                        Frame::Snapshot(chunks) => break_snapshot(chunks, how, at, item),
                    }
                    let _ = self.deliver(frame)?; // Checked chunk by chunk.
                }
            }
        }
        Ok(())
    }

    fn honest(&mut self, frame: Frame) -> Result<(), TestCaseError> {
        let expected = self.expected(&frame);
        let astray = self.astray;
        let result = self.deliver(frame)?;
        if !astray {
            prop_assert_eq!(name(&result), expected);
        }
        Ok(())
    }
}

fn name(result: &Result<Action, ApplyError>) -> &'static str {
    match result {
        Ok(Action::Incomplete) => "incomplete",
        Ok(Action::Skipped) => "skipped",
        Ok(Action::Confirm { .. }) => "confirm",
        Ok(Action::Replace { .. }) => "replace",
        Ok(Action::Edit { .. }) => "edit",
        Err(ApplyError::Gap { .. }) => "gap",
        Err(ApplyError::Diverged { .. }) => "diverged",
        Err(ApplyError::WentBack { .. }) => "went back",
        Err(ApplyError::NothingHeld { .. }) => "nothing held",
        Err(_) => "refused",
    }
}

/// Loses, repeats, swaps or cuts off chunks. `false` if the fault is inside a chunk.
fn break_chunks<C: Clone>(chunks: &mut Vec<C>, how: u8, at: usize) -> bool {
    match how % 12 {
        0 => drop(chunks.remove(at)),
        1 => chunks.insert(at, chunks[at].clone()),
        2 => {
            let other = (at + 1) % chunks.len();
            chunks.swap(at, other);
        }
        3 => chunks.truncate(at),
        _ => return false,
    }
    true
}

/// Changes the content of an entry or of a piece.
fn break_entry(entry: &mut v1::Entry, how: u8) {
    match how % 12 {
        4 => entry.key = Bytes::from_static(b"/r/a"),
        5 => entry.key = Bytes::from_static(b"/foreign"),
        6 => entry.value = [&entry.value[..], b"x"].concat().into(),
        7 => entry.mod_revision += 1,
        8 => entry.offset += 1,
        9 => entry.total += 1,
        10 => entry.value = entry.value.slice(..entry.value.len() / 2),
        _ => entry.key = Bytes::new(),
    }
}

fn break_diff(chunks: &mut Vec<v1::Diff>, how: u8, at: Index, item: Index) {
    let at = at.index(chunks.len());
    if break_chunks(chunks, how, at) {
        return;
    }
    let chunk = &mut chunks[at];
    if chunk.changes.is_empty() {
        chunk.more = !chunk.more;
        return;
    }
    let item = item.index(chunk.changes.len());
    match &mut chunk.changes[item].change {
        Some(Change::Put(entry)) => break_entry(entry, how),
        Some(Change::Patch(patch)) => match how % 3 {
            0 => patch.base_mod_revision += 1,
            1 => patch.length += 1,
            _ => patch.ops.push(v1::DeltaOp {
                op: Some(Op::Insert(Bytes::from_static(b"x"))),
            }),
        },
        Some(Change::Delete(delete)) => delete.key = Bytes::from_static(b"/r/a"),
        None => {}
    }
}

fn break_snapshot(chunks: &mut Vec<v1::Snapshot>, how: u8, at: Index, item: Index) {
    let at = at.index(chunks.len());
    if break_chunks(chunks, how, at) {
        return;
    }
    let chunk = &mut chunks[at];
    if chunk.entries.is_empty() {
        chunk.more = !chunk.more;
        return;
    }
    let item = item.index(chunk.entries.len());
    break_entry(&mut chunk.entries[item], how);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 768, ..ProptestConfig::default() })]

    #[test]
    fn client_holds_the_server_state_or_rejects(
        events in prop::collection::vec(event(), 1..48)
    ) {
        let mut world = World::new();
        // Most histories start with something.
        world.step(Event::Write(vec![(key(b"/r/a"), Some(Bytes::from_static(b"abab")))]))?;
        for event in events {
            world.step(event)?;
        }
        // A reset repairs the client after anything.
        world.client.reconnect();
        let (_, state) = world.history.states[world.history.states.len() - 1].clone();
        let result = world.deliver(Frame::Snapshot(snapshot(
            world.history.revision, &state, true, Cuts::none(),
        )))?;
        prop_assert_eq!(name(&result), "replace");
        prop_assert!(world.client.state == state);
    }

    /// A state arrives whole and at once, wherever it is cut.
    #[test]
    fn chunk_boundaries_do_not_matter(transactions in prop::collection::vec(transaction(), 1..6), cuts in cuts()) {
        let mut history = History::new();
        for changes in &transactions {
            history.write(changes);
        }
        let last = history.states.len() - 1;
        let (revision, state) = history.states[last].clone();
        let mut one = client();
        one.begin(epoch(0));
        let whole = one.snapshot(snapshot(revision, &state, false, Cuts::none()));
        let mut other = client();
        other.begin(epoch(0));
        let cut = other.snapshot(snapshot(revision, &state, false, cuts.clone()));
        prop_assert_eq!(name(&whole), "replace");
        prop_assert_eq!(whole, cut);
        if last > 0 {
            let mut one = client();
            one.begin(epoch(0));
            let _ = one.snapshot(snapshot(1, &State::new(), false, Cuts::none()));
            let result = one.diff(history.diff(0, last, false, cuts));
            prop_assert_eq!(name(&result), "edit");
            prop_assert!(one.state == state);
        }
    }
}

/// Counts the look-ups.
struct Counting<'a> {
    held: &'a State,
    asked: Cell<usize>,
}

impl Lookup for Counting<'_> {
    fn entry(&self, key: &Key) -> Option<&Entry> {
        self.asked.set(self.asked.get() + 1);
        self.held.get(key)
    }
}

/// The cost of a diff depends on what it changes, not on the size of the state.
#[test]
fn diff_looks_up_each_changed_key_once() {
    let entries = (0..100_000).map(|n| frames::entry(&format!("/r/{n:06}"), "v", 1));
    let mut held: State = entries.map(|entry| (entry.key.clone(), entry)).collect();
    let mut applier = Applier::new(KeyRange::prefix("/r/").expect("is one"), usize::MAX);
    applier.resume(epoch(0), Revision::new(1), held.values());
    applier.begin(epoch(0));
    // A patch needs one more: it is applied before the rest of the diff is checked.
    for (to, patched, expected) in [(2, false, 3), (3, true, 4)] {
        let [edited, put, gone] =
            [10, 50_000, 90_000].map(|n| key(format!("/r/{:06}", n + to).as_bytes()));
        let mut after = held.clone();
        let newer = |key: &Key| Entry {
            value: "another".into(),
            mod_revision: Revision::new(to),
            version: 2,
            ..held[key].clone()
        };
        let (edited, put) = (newer(&edited), newer(&put));
        let changes = vec![
            match patched {
                true => frames::change(Change::Patch(frames::patch(&held[&edited.key], &edited))),
                false => frames::put(&edited),
            },
            frames::put(&put),
            frames::delete(&gone, to),
        ];
        after.insert(edited.key.clone(), edited);
        after.insert(put.key.clone(), put);
        after.remove(&gone);
        let mut chunks = frames::diff((to - 1, to), changes, &after, false, Cuts::none());
        let diff = chunks.pop().expect("one");
        assert!(chunks.is_empty());
        let counting = Counting {
            held: &held,
            asked: Cell::new(0),
        };
        let action = applier.diff(diff, &counting);
        assert!(matches!(action, Ok(Action::Edit { edits, .. }) if edits.len() == 3));
        assert_eq!(counting.asked.get(), expected, "of {}", held.len());
        held = after;
    }
}

// Frames that no server would send.

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::sample::select(vec!["/r/", "/r/a", "/r/b", "/x", "", "/r/a/b"])
            .prop_map(Bytes::from_static_str),
        prop::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from),
    ]
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Self;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Self {
        Self::from_static(text.as_bytes())
    }
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..6_i64, 1 => prop::sample::select(vec![i64::MIN, -1, i64::MAX])]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..8_u64, 1 => prop::sample::select(vec![1 << 24, (1 << 24) + 1, u64::MAX])]
}

fn any_digest() -> impl Strategy<Value = Bytes> {
    // The digest of an empty range is often right.
    prop_oneof![
        4 => Just(Bytes::from_static(&[0; 16])),
        1 => Just(Bytes::new()),
        1 => prop::collection::vec(any::<u8>(), 16).prop_map(Bytes::from),
    ]
}

fn any_entry() -> impl Strategy<Value = v1::Entry> {
    (bytes(), bytes(), number(), number(), size(), size()).prop_map(
        |(key, value, mod_revision, version, offset, total)| v1::Entry {
            key,
            value,
            create_revision: version,
            mod_revision,
            version,
            offset,
            total,
        },
    )
}

fn any_change() -> impl Strategy<Value = v1::Change> {
    let op = prop_oneof![
        (size(), size()).prop_map(|(offset, length)| Some(Op::Copy(v1::Copy { offset, length }))),
        bytes().prop_map(|bytes| Some(Op::Insert(bytes))),
        Just(None),
    ];
    let ops = prop::collection::vec(op.prop_map(|op| v1::DeltaOp { op }), 0..3);
    let patch =
        (bytes(), number(), size(), ops).prop_map(|(key, revision, length, ops)| v1::Patch {
            key,
            base_mod_revision: revision,
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            length,
            ops,
        });
    let delete = (bytes(), number());
    prop_oneof![
        any_entry().prop_map(|entry| Some(Change::Put(entry))),
        patch.prop_map(|patch| Some(Change::Patch(patch))),
        delete
            .prop_map(|(key, mod_revision)| Some(Change::Delete(v1::Delete { key, mod_revision }))),
        Just(None),
    ]
    .prop_map(|change| v1::Change { change })
}

#[derive(Clone, Debug)]
enum Odd {
    Begin(u64),
    Snapshot(v1::Snapshot),
    /// With the right digest, as far as the entries can be applied.
    Diff(v1::Diff),
    Progress(i64, Bytes),
    Current(i64, Bytes),
}

fn odd() -> impl Strategy<Value = Odd> {
    let snapshot = (
        number(),
        prop::collection::vec(any_entry(), 0..3),
        any::<bool>(),
        any_digest(),
        any::<bool>(),
    )
        .prop_map(|(revision, entries, more, digest, reset)| v1::Snapshot {
            revision,
            entries,
            more,
            digest,
            reset,
            epoch: Bytes::new(),
            contact_ms: 0,
        });
    let diff = (
        (number(), number()),
        prop::collection::vec(any_change(), 0..3),
        any::<bool>(),
        any_digest(),
    )
        .prop_map(|((from, to), changes, more, digest)| v1::Diff {
            from,
            to,
            changes,
            more,
            digest,
            conflated: more,
            contact_ms: 0,
        });
    prop_oneof![
        1 => (0..2_u64).prop_map(Odd::Begin),
        4 => snapshot.prop_map(Odd::Snapshot),
        4 => diff.prop_map(Odd::Diff),
        1 => (number(), any_digest()).prop_map(|(at, digest)| Odd::Progress(at, digest)),
        1 => (number(), any_digest()).prop_map(|(at, digest)| Odd::Current(at, digest)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    /// No frame causes a panic or adds a key outside the range. The client checks after each frame
    /// that an error changes nothing.
    #[test]
    fn any_frame_gets_an_answer(frames in prop::collection::vec(odd(), 1..24), limit in 0..2048_usize) {
        let range = KeyRange::prefix("/r/").expect("is one");
        let mut client = Client::new(range.clone(), limit);
        let mut empty = true;
        client.begin(epoch(0));
        for frame in frames {
            let result = match frame {
                Odd::Begin(number) => {
                    client.begin(epoch(number));
                    continue;
                }
                Odd::Snapshot(chunk) => client.snapshot(vec![chunk]),
                Odd::Diff(chunk) => client.diff(vec![chunk]),
                Odd::Progress(at, digest) => client.progress(at, digest),
                Odd::Current(at, digest) => client.current(at, digest),
            };
            if let Ok(Action::Replace { .. } | Action::Confirm { .. }) = result {
                empty = false;
            }
            prop_assert!(empty || client.applier.have(Bytes::new()).is_some());
            prop_assert!(client.state.keys().all(|key| range.contains(key.as_ref())));
            if result.is_err() {
                client.reconnect();
            }
        }
    }
}
