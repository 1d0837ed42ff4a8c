//! Properties that hold for any bytes that a peer sends. One function for each kind of input, shared
//! by the fuzz targets (`proto/fuzz`) and the tests beside this file. Each panics if its property fails.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes};
use driftless_proto::apply::Action;
use driftless_proto::delta::{self, DeltaError};
use driftless_proto::digest::Digest;
use driftless_proto::v1::{self, DeltaOp, change::Change, delta_op::Op, watch_response::Frame};
use driftless_proto::{Entry, Epoch, Key, KeyRange, MAX_VALUE_BYTES, RangeError, Revision};
use peak_alloc::PeakAlloc;
use prost::Message;

use super::frames::{Client, State};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The client's limit here, in bytes: small, so that inputs exceed it.
const LIMIT: usize = 4096;

/// Allocations that are not accounted for, in bytes: tree nodes, the first growth of a vector, and the
/// other threads of a test binary.
const SLACK: usize = 16 * 1024;

/// What a decoded message may take for each of its bytes, in bytes, while it is decoded.
///
/// The worst that a peer can do is a list of empty changes: two bytes each on the wire, some 110 in
/// memory, and while the list grows its old and its new half-empty buffer exist at once.
const DECODED_PER_BYTE: usize = 192;

/// Runs `work`, which must not allocate more than `bytes` (and [`SLACK`]) at a time.
fn within<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let done = work();
    let used = HEAP.peak_usage().saturating_sub(before);
    assert!(
        used <= bytes + SLACK,
        "{used} bytes were allocated; at most {bytes} are accounted for"
    );
    done
}

fn decode<M: Message + Default>(input: &mut Bytes) -> Option<M> {
    within(input.len() * DECODED_PER_BYTE, || {
        M::decode_length_delimited(input).ok()
    })
}

/// A value delta. The input is a byte and a `Patch`, whose key serves as the old value. An odd byte
/// puts the right length in place of the one that is claimed, so that more than a few inputs apply.
pub(crate) fn delta(input: &[u8]) {
    let mut input = Bytes::copy_from_slice(input);
    if input.is_empty() {
        return;
    }
    let honest = input.get_u8() & 1 == 1;
    let Ok(patch) = v1::Patch::decode(input) else {
        return;
    };
    let (base, ops) = (&patch.key[..], &patch.ops[..]);
    let made: u128 = ops.iter().map(|op| u128::from(claimed(op))).sum();
    let said = match u64::try_from(made) {
        Ok(made) if honest => made,
        _ => patch.length,
    };
    let allowed = usize::try_from(said).map_or(0, |said| said.min(MAX_VALUE_BYTES));
    // A patch that is rejected before it is checked allocates nothing.
    let bound = if u128::from(said) == made { allowed } else { 0 };
    let bad = |op: &DeltaOp| model(base, op).is_none();
    let first_bad = ops.iter().position(bad);
    match within(bound, || delta::apply(base, ops, said)) {
        Ok(value) => {
            assert_eq!(value.len() as u64, said);
            assert!(said <= MAX_VALUE_BYTES as u64);
            let expected = ops.iter().map(|op| model(base, op));
            let expected: Option<Vec<&[u8]>> = expected.collect();
            assert!(expected.is_some_and(|parts| parts.concat() == value));
        }
        Err(DeltaError::TooLong { said: told }) => {
            assert!(told == said && said > MAX_VALUE_BYTES as u64);
        }
        Err(DeltaError::UnknownOp { op }) => {
            assert!(first_bad == Some(op) && ops[op].op.is_none());
        }
        Err(DeltaError::OutOfBounds { op, base: length }) => {
            assert!(first_bad == Some(op) && length == base.len());
            assert!(matches!(ops[op].op, Some(Op::Copy(_))));
        }
        Err(DeltaError::WrongLength {
            said: told,
            made: told_made,
        }) => {
            assert!(first_bad.is_none() && told == said);
            assert!(u128::from(told_made) == made && made != u128::from(said));
        }
        Err(other) => panic!("an error without a property: {other}"),
    }
}

/// How many bytes an op says that it makes.
fn claimed(op: &DeltaOp) -> u64 {
    match &op.op {
        Some(Op::Copy(copy)) => copy.length,
        Some(Op::Insert(bytes)) => bytes.len() as u64,
        None => 0,
    }
}

/// What an op makes, put as plainly as can be; `None` when it cannot be made.
fn model<'a>(base: &'a [u8], op: &'a DeltaOp) -> Option<&'a [u8]> {
    match op.op.as_ref()? {
        Op::Copy(copy) => {
            let start = usize::try_from(copy.offset).ok()?;
            let length = usize::try_from(copy.length).ok()?;
            base.get(start..)?.get(..length)
        }
        Op::Insert(bytes) => Some(bytes),
    }
}

/// A stream. The input is a `WatchRequest`, for its range, and then as many `WatchResponse`s as can
/// be decoded, each after its length.
///
/// A fuzzer cannot find a digest that is right, so one that is left out of a last chunk is put in, by
/// a second and much plainer reading of the contract. Whatever is published is compared with that.
pub(crate) fn frames(input: &[u8]) {
    let mut input = Bytes::copy_from_slice(input);
    let request: Option<v1::WatchRequest> = decode(&mut input);
    let range = KeyRange::try_from(request.and_then(|request| request.range));
    let Ok(range) = range.or_else(|_| KeyRange::prefix("/")) else {
        return;
    };
    let mut stream = Stream {
        client: Client::new(range.clone(), LIMIT),
        range,
        changes: Vec::new(),
        hello: false,
    };
    while let Some(v1::WatchResponse { frame: Some(frame) }) = decode(&mut input) {
        stream.take(frame);
    }
}

/// A client, and what has come of a frame that is not complete.
struct Stream {
    client: Client,
    range: KeyRange,
    changes: Vec<v1::Change>,
    hello: bool,
}

impl Stream {
    fn take(&mut self, frame: Frame) {
        // What is kept of a frame refers to the message that it came in, and is within the limit.
        // Looking for a key, hashing and checking (which the helper does) are within the slack.
        let bound = 4 * LIMIT;
        let held = self.client.applier.revision();
        let (action, said) = match frame {
            Frame::Hello(hello) => {
                self.changes.clear();
                self.hello = true;
                return self.client.begin(Epoch::new(hello.epoch));
            }
            Frame::Goodbye(_) => return,
            Frame::Current(current) => {
                let said = current.digest.clone();
                let action = self.client.current(current.revision, current.digest);
                (action, said)
            }
            Frame::Progress(progress) => {
                let said = progress.digest.clone();
                let action = self.client.progress(progress.revision, progress.digest);
                (action, said)
            }
            Frame::Snapshot(mut chunk) => {
                let puts = chunk.entries.iter().cloned().map(Change::Put);
                let puts = puts.map(|put| v1::Change { change: Some(put) });
                self.changes.extend(puts);
                self.fill_in(&mut chunk.digest, chunk.more, &State::new());
                let said = chunk.digest.clone();
                let (reset, epoch) = (chunk.reset, self.epoch());
                let action = within(bound, || self.client.snapshot(vec![chunk]));
                if let Ok(Action::Replace { revision, .. }) = &action {
                    // Revisions of two histories are not compared.
                    let other = epoch != self.epoch();
                    assert!(reset || other || *revision >= held);
                    self.published(&State::new());
                }
                (action, said)
            }
            Frame::Diff(mut chunk) => {
                self.changes.extend(chunk.changes.iter().cloned());
                let before = self.client.state.clone();
                self.fill_in(&mut chunk.digest, chunk.more, &before);
                let said = chunk.digest.clone();
                let (from, to) = (Revision::new(chunk.from), Revision::new(chunk.to));
                let action = within(bound, || self.client.diff(vec![chunk]));
                match &action {
                    Ok(Action::Edit { revision, .. }) => {
                        assert!(from <= held && held < to && *revision == to);
                        self.published(&before);
                    }
                    Ok(Action::Skipped) => assert!(to <= held),
                    _ => {}
                }
                (action, said)
            }
        };
        match &action {
            Ok(Action::Incomplete) => return,
            Ok(Action::Skipped) => {}
            Ok(
                Action::Confirm { revision }
                | Action::Replace { revision, .. }
                | Action::Edit { revision, .. },
            ) => {
                assert!(self.hello, "something was applied before any hello");
                let digest: Digest = self.client.state.values().collect();
                assert_eq!(said, digest.to_bytes(), "not the digest that was claimed");
                assert!(*revision == self.client.applier.revision());
                assert!(
                    self.client
                        .state
                        .keys()
                        .all(|key| self.range.contains(key.as_ref()))
                );
                let bytes = self.client.state.values();
                let bytes = bytes.map(|entry| entry.key.as_ref().len() + entry.value.len());
                assert!(bytes.sum::<usize>() <= LIMIT);
            }
            // As a client does: the stream is of no further use.
            Err(_) if self.hello => self.client.reconnect(),
            Err(_) => {}
        }
        self.changes.clear();
    }

    /// The history of what is held.
    fn epoch(&self) -> Option<Bytes> {
        let have = self.client.applier.have(Bytes::new());
        have.map(|have| have.epoch)
    }

    /// What the contract says that the frame leads to is what the client shows.
    fn published(&self, before: &State) {
        let expected = after(before, &self.changes);
        assert!(expected.is_some_and(|expected| expected == self.client.state));
    }

    fn fill_in(&self, digest: &mut Bytes, more: bool, before: &State) {
        if digest.is_empty()
            && !more
            && let Some(state) = after(before, &self.changes)
        {
            *digest = state.values().collect::<Digest>().to_bytes();
        }
    }
}

/// The state after the changes; `None` when they make no sense.
fn after(before: &State, changes: &[v1::Change]) -> Option<State> {
    let mut pieces: BTreeMap<Bytes, (v1::Entry, Vec<u8>)> = BTreeMap::new();
    let mut state = before.clone();
    for change in changes {
        match change.change.as_ref()? {
            Change::Put(piece) => {
                let (head, value) = pieces
                    .entry(piece.key.clone())
                    .or_insert_with(|| (piece.clone(), Vec::new()));
                if (head.total, piece.offset) != (piece.total, value.len() as u64) {
                    return None;
                }
                value.extend_from_slice(&piece.value);
            }
            Change::Patch(patch) => {
                if patch.length > LIMIT as u64 {
                    return None;
                }
                let old = before.get(&patch.key[..])?;
                let parts = patch.ops.iter().map(|op| model(&old.value, op));
                let parts: Option<Vec<&[u8]>> = parts.collect();
                let head = v1::Entry {
                    key: patch.key.clone(),
                    create_revision: patch.create_revision,
                    mod_revision: patch.mod_revision,
                    version: patch.version,
                    ..v1::Entry::default()
                };
                let parts = parts?;
                if parts.iter().map(|part| part.len()).sum::<usize>() > LIMIT {
                    return None;
                }
                pieces.insert(patch.key.clone(), (head, parts.concat()));
            }
            Change::Delete(delete) => {
                state.remove(&delete.key[..]);
            }
        }
    }
    for (key, (head, value)) in pieces {
        let entry = Entry {
            key: Key::new(key)?,
            value: value.into(),
            create_revision: Revision::new(head.create_revision),
            mod_revision: Revision::new(head.mod_revision),
            version: head.version,
        };
        state.insert(entry.key.clone(), entry);
    }
    Some(state)
}

/// Ranges and keys. The input is two `Range`s, each after its length, and a key.
pub(crate) fn ranges(input: &[u8]) {
    let mut input = Bytes::copy_from_slice(input);
    let Some(a) = range(&mut input) else { return };
    let Some(b) = range(&mut input) else { return };
    let Some(key) = Key::new(input) else { return };
    assert_eq!(
        key.as_str().is_some(),
        std::str::from_utf8(key.as_ref()).is_ok()
    );
    assert_shown(&key.to_string());
    for (one, other) in [(&a, &b), (&b, &a), (&a, &a)] {
        assert!(!one.contains(key.as_ref()) || one.start() <= &key);
        if one.covers(other) {
            assert!(one.contains(other.start().as_ref()));
            assert!(!other.contains(key.as_ref()) || one.contains(key.as_ref()));
        } else {
            // Something in the other is missing from the one: its start, or what comes after it.
            let next = [other.start().as_ref(), b"\0"].concat();
            let outside = |key: &[u8]| other.contains(key) && !one.contains(key);
            assert!(outside(other.start().as_ref()) || outside(&next));
        }
    }
    assert_eq!(a == b, a.covers(&b) && b.covers(&a));
}

/// The range, or `None` if it is rightly rejected.
fn range(input: &mut Bytes) -> Option<KeyRange> {
    let wire: v1::Range = decode(input)?;
    let length = match &wire.kind {
        Some(v1::range::Kind::Key(bytes) | v1::range::Kind::Prefix(bytes)) => bytes.len(),
        None => 0,
    };
    match KeyRange::try_from(Some(wire.clone())) {
        Ok(range) => {
            assert!((1..=KeyRange::MAX_LEN).contains(&length));
            assert_eq!(v1::Range::from(&range), wire);
            assert!(range.covers(&range) && range.contains(range.start().as_ref()));
            assert_shown(&range.to_string());
            Some(range)
        }
        Err(RangeError::Empty { .. }) => {
            assert_eq!(length, 0);
            None
        }
        Err(RangeError::TooLong { len, .. }) => {
            assert!(len == length && len > KeyRange::MAX_LEN);
            None
        }
        Err(other) => panic!("an error without a property: {other}"),
    }
}

/// Keys come from others and end up in terminals and logs.
fn assert_shown(text: &str) {
    assert!(!text.contains(char::is_control));
}
