//! Messages written by hand decode with generated code, keep their bounds, and share large values.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes};
use driftless_proto::apply::Edit;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, KeyRange, MAX_CHUNK_BYTES, Revision, v1};
use proptest::prelude::*;
use v1::watch_response::Frame as Message;

use super::frame::{SEGMENT, SHARE_FROM, Segments};
use super::message::SMALL;
use super::response::SCAN;
use super::*;
use crate::delta::{JobPool, ValuePair};
use crate::metrics::Metrics;
use crate::store::{History, OldValue, Replaced, Snapshot, State, Writer};
use crate::testing::{Replica, entry, frames, prefix};

const MIB: usize = 1024 * 1024;

fn sizes() -> impl Strategy<Value = usize> {
    prop_oneof![
        20 => prop_oneof![Just(0usize), Just(1), 2usize..100],
        4 => prop_oneof![Just(4095usize), Just(4096), Just(4097)],
        4 => prop_oneof![Just(SEGMENT - 1), Just(SEGMENT), Just(SEGMENT + 1)],
        2 => prop_oneof![Just(MIB - 1), Just(MIB), Just(MIB + 1)],
        1 => prop_oneof![Just(2 * MIB), Just(3 * MIB), Just(3 * MIB + 1)],
    ]
}

fn value(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at / 7) as u8 ^ seed).collect()
}

fn state(revision: i64, entries: Vec<Entry>) -> State {
    State {
        epoch: Epoch::of_cluster(7, "test"),
        revision: Revision::new(revision),
        entries,
        history: History::Continues,
        asked_at: None,
    }
}

fn key(index: usize) -> String {
    // Some keys are long.
    format!("/c/{index:04}{}", "k".repeat(index % 5 * 100))
}

fn digest(root: &Snapshot, range: &KeyRange) -> Digest {
    root.entries(range, None).map(|stored| stored.hash).sum()
}

fn held(root: &Snapshot, range: &KeyRange) -> Vec<Entry> {
    let entries = root.entries(range, None);
    entries.map(|stored| stored.entry.clone()).collect()
}

/// Bytes of values in a message, whether more messages follow, and its digest.
fn header(message: &Message) -> (usize, bool, &Bytes) {
    match message {
        Message::Snapshot(snapshot) => {
            let values = snapshot.entries.iter().map(|entry| entry.value.len());
            (values.sum(), snapshot.more, &snapshot.digest)
        }
        Message::Diff(diff) => {
            let values = diff.changes.iter().map(|change| match &change.change {
                Some(v1::change::Change::Put(entry)) => entry.value.len(),
                _ => 0,
            });
            (values.sum(), diff.more, &diff.digest)
        }
        other => panic!("{other:?}"),
    }
}

/// The messages of one frame are bounded, and only the last is marked as such.
fn check_chunks(messages: &[Message], expected: Digest) {
    let (last, others) = messages.split_last().expect("at least one");
    for message in others {
        let (values, more, digest) = header(message);
        assert!(values <= MAX_CHUNK_BYTES && more && digest.is_empty());
    }
    let (values, more, digest) = header(last);
    assert!(values <= MAX_CHUNK_BYTES && !more);
    assert_eq!(Digest::from_bytes(digest), Some(expected));
}

fn check_segments<'a>(segments: impl IntoIterator<Item = &'a Bytes>) {
    for segment in segments {
        assert!((1..=SEGMENT).contains(&segment.len()), "{}", segment.len());
    }
}

/// How many of the segments' bytes lie in the memory of `value`.
fn shared<'a>(segments: impl IntoIterator<Item = &'a Bytes>, value: &Bytes) -> usize {
    let memory = value.as_ptr_range();
    let within = segments.into_iter().filter(|segment| {
        memory.start <= segment.as_ptr() && segment.as_ptr_range().end <= memory.end
    });
    within.map(Bytes::len).sum()
}

/// The diff of a scope that nothing was encoded for yet.
fn diff(
    range: &KeyRange,
    batch: &EncodedBatch,
    variant: Variant,
    from: Revision,
    digest: Digest,
    metrics: &Metrics,
) -> Arc<Frame> {
    static SCOPES: AtomicU64 = AtomicU64::new(0);
    let of = ScopeDiff {
        scope: SCOPES.fetch_add(1, Ordering::Relaxed),
        range,
        from,
        digest,
    };
    batch.diff(of, variant, metrics)
}

/// All segments of a response, and how often its reader was told to yield.
fn exhaust(response: Arc<SyncResponse>, metrics: &Metrics) -> (Vec<Bytes>, usize) {
    read(&response, metrics)
}

fn read(response: &Arc<SyncResponse>, metrics: &Metrics) -> (Vec<Bytes>, usize) {
    let mut reader = SyncReader::new(Arc::clone(response));
    let (mut segments, mut scans) = (Vec::new(), 0);
    loop {
        match reader.next(metrics) {
            Chunk::Ready(frame) => {
                assert_eq!(
                    frame.len(),
                    frame.segments().iter().map(Bytes::len).sum::<usize>()
                );
                segments.extend(frame.segments().iter().cloned());
            }
            Chunk::Scanning => scans += 1,
            Chunk::Done => break,
            Chunk::Revoked => panic!("nothing was overwritten"),
        }
    }
    assert!(
        matches!(reader.next(metrics), Chunk::Done),
        "and stays done"
    );
    (segments, scans)
}

/// A response whose chunks are not cached.
fn uncached(root: &Snapshot, range: &KeyRange, kind: SyncKind) -> Arc<SyncResponse> {
    cached(root, range, kind, &Arc::new(ChunkCache::new(0)))
}

fn cached(
    root: &Snapshot,
    range: &KeyRange,
    kind: SyncKind,
    cache: &Arc<ChunkCache>,
) -> Arc<SyncResponse> {
    let digest = digest(root, range);
    let cache = Arc::clone(cache);
    let pinned = PinnedStates::new(usize::MAX, Metrics::new()).add_prefix();
    SyncResponse::new(root.clone(), range.clone(), kind, digest, 5, cache, &pinned)
}

fn snapshot(root: &Snapshot, range: &KeyRange) -> Arc<SyncResponse> {
    uncached(root, range, SyncKind::Snapshot { reset: false })
}

fn diff_since(root: &Snapshot, range: &KeyRange, since: Revision) -> Arc<SyncResponse> {
    uncached(root, range, SyncKind::Diff { since })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// A state, then a transaction: as snapshots, as one diff, as one conflated diff.
    #[test]
    fn hand_written_messages_decode_with_generated_code(
        first in proptest::collection::vec(sizes(), 0..12),
        second in proptest::collection::vec(proptest::option::weighted(0.8, sizes()), 1..12),
    ) {
        let metrics = Metrics::new();
        let entries = first.iter().enumerate();
        let entries = entries.map(|(at, len)| entry(&key(at), value(*len, 1), 2));
        let mut writer = Writer::new(state(10, entries.collect()));
        let before = writer.snapshot().clone();
        let to = Revision::new(20);
        let edits = second.iter().enumerate().map(|(at, len)| match len {
            Some(len) => Edit::Put(entry(&key(2 * at), value(*len, 2), 20)),
            None => Edit::Delete { key: entry(&key(2 * at), "", 20).key, mod_revision: to },
        });
        let Some(batch) = writer.apply(to, edits.collect()) else { return Ok(()) };
        let batch = EncodedBatch::new(batch, 3);
        let after = writer.snapshot().clone();

        for range in [prefix("/c/"), prefix("/c/0000"), KeyRange::key(key(2)).unwrap()] {
            let mut replica = Replica::new(range.clone());
            replica.applier.begin(before.epoch().clone());
            let (segments, _) = exhaust(snapshot(&before, &range), &metrics);
            check_segments(&segments);
            let messages = frames(&segments);
            check_chunks(&messages, digest(&before, &range));
            replica.take_all(messages);
            prop_assert_eq!(replica.entries(), held(&before, &range));

            let mut behind = Replica::holding(
                range.clone(), before.epoch(), before.revision(), held(&before, &range),
            );
            let (segments, _) = exhaust(diff_since(&after, &range, before.revision()), &metrics);
            check_segments(&segments);
            let messages = frames(&segments);
            check_chunks(&messages, digest(&after, &range));
            behind.take_all(messages);
            prop_assert_eq!(behind.entries(), held(&after, &range));
            prop_assert_eq!(&behind.applied, &["conflated"]);

            if batch.within(&range).next().is_none() { continue }
            let digest_after = digest(&after, &range);
            let whole = Variant::Whole;
            let frame = diff(&range, &batch, whole, before.revision(), digest_after, &metrics);
            check_segments(frame.segments());
            prop_assert_eq!(frame.len(), frame.segments().iter().map(Bytes::len).sum::<usize>());
            let messages = frames(frame.segments());
            check_chunks(&messages, digest(&after, &range));
            let Message::Diff(last) = messages.last().unwrap() else { panic!() };
            prop_assert_eq!((last.from, last.to, last.contact_ms), (10, 20, 3));
            replica.take_all(messages);
            prop_assert_eq!(replica.entries(), held(&after, &range));
            prop_assert_eq!(replica.revision(), to);

            for change in batch.within(&range) {
                let Edit::Put(entry) = &change.edit else { continue };
                // The rest after the last whole segment may be small, and then is copied.
                let tail = entry.value.len() % SEGMENT;
                let expected = match tail {
                    1..SHARE_FROM => entry.value.len() - tail,
                    _ => entry.value.len(),
                };
                prop_assert_eq!(shared(frame.segments(), &entry.value), expected);
                prop_assert_eq!(shared(&segments, &entry.value), expected);
            }
        }
        let encoded = metrics.changes_encoded.get();
        prop_assert!(encoded <= batch.changes.len() as u64, "each once, whatever the ranges");
    }
}

#[test]
fn many_small_changes_share_bounded_segments() {
    let metrics = Metrics::new();
    let mut writer = Writer::new(state(1, Vec::new()));
    let edits = (0..20_000).map(|at| Edit::Put(entry(&format!("/c/{at:06}"), value(200, 3), 2)));
    let batch = writer
        .apply(Revision::new(2), edits.collect())
        .expect("changes");
    let batch = EncodedBatch::new(batch, 0);
    let (range, root) = (prefix("/c/"), writer.snapshot().clone());
    let frame = diff(
        &range,
        &batch,
        Variant::Whole,
        Revision::new(1),
        digest(&root, &range),
        &metrics,
    );
    check_segments(frame.segments());
    assert!(
        frame.segments().len() < 2 * frame.len().div_ceil(SEGMENT),
        "segments are filled"
    );
    let messages = frames(frame.segments());
    check_chunks(&messages, digest(&root, &range));
    assert!(messages.len() > 1);
    let mut replica = Replica::holding(range, root.epoch(), Revision::new(1), Vec::new());
    replica.take_all(messages);
    assert_eq!(replica.entries.len(), 20_000);
}

#[test]
fn keys_as_large_as_values_are_encoded() {
    let metrics = Metrics::new();
    let long = format!("/c/{}", "k".repeat(MIB - 3));
    let mut writer = Writer::new(state(1, vec![entry("/c/a", "", 1)]));
    let put = vec![Edit::Put(entry(&long, value(MIB + 1, 1), 2))];
    let batch = EncodedBatch::new(writer.apply(Revision::new(2), put).unwrap(), 0);
    let range = prefix("/c/");
    let mut replica = Replica::holding(
        range.clone(),
        writer.snapshot().epoch(),
        Revision::new(1),
        vec![entry("/c/a", "", 1)],
    );
    let mut check = |writer: &Writer, batch: &EncodedBatch| {
        let digest = digest(writer.snapshot(), &range);
        let frame = diff(&range, batch, Variant::Whole, batch.from, digest, &metrics);
        check_segments(frame.segments());
        replica.take_all(frames(frame.segments()));
        assert_eq!(replica.entries(), held(writer.snapshot(), &range));
    };
    check(&writer, &batch);
    let key = entry(&long, "", 3).key;
    let mod_revision = Revision::new(3);
    let gone = vec![Edit::Delete { key, mod_revision }];
    let batch = EncodedBatch::new(writer.apply(mod_revision, gone).unwrap(), 0);
    check(&writer, &batch);
}

#[test]
fn sparse_or_empty_range_yields_and_ends() {
    let metrics = Metrics::new();
    let entries = (0..3 * SCAN).map(|at| entry(&format!("/c/{at:06}"), "v", 2));
    let mut writer = Writer::new(state(2, entries.collect()));
    let since = writer.snapshot().revision();
    let edits = (0..3 * SCAN).map(|at| Edit::Put(entry(&format!("/c/{at:06}"), "w", 3)));
    let edits = edits.chain([Edit::Put(entry("/c/sparse", "x", 3))]);
    writer.apply(Revision::new(3), edits.collect()).unwrap();
    let root = writer.snapshot();

    let range = KeyRange::key("/c/sparse").unwrap();
    let (segments, scans) = exhaust(diff_since(root, &range, since), &metrics);
    assert_eq!(scans, 3, "after every stretch");
    let mut replica = Replica::holding(range.clone(), root.epoch(), since, Vec::new());
    replica.take_all(frames(&segments));
    assert_eq!(replica.entries(), held(root, &range));

    for range in [prefix("/c/none"), KeyRange::key("/c/none").unwrap()] {
        let (segments, scans) = exhaust(snapshot(root, &range), &metrics);
        assert_eq!((frames(&segments).len(), scans), (1, 0), "found at once");
        let mut replica = Replica::new(range.clone());
        replica.applier.begin(root.epoch().clone());
        replica.take_all(frames(&segments));
        assert_eq!(
            (replica.revision(), replica.entries.len()),
            (root.revision(), 0)
        );

        let (segments, _) = exhaust(diff_since(root, &range, since), &metrics);
        let mut replica = Replica::holding(range.clone(), root.epoch(), since, Vec::new());
        replica.take_all(frames(&segments));
        assert_eq!(
            (replica.revision(), replica.entries.len()),
            (root.revision(), 0)
        );
    }
}

#[test]
fn small_messages_are_padded() {
    let metrics = Metrics::new();
    for len in [0, 1, 100, 120, 150, 170, 180, 190, 200, 210, 300, 5000] {
        let mut writer = Writer::new(state(1, Vec::new()));
        let put = vec![Edit::Put(entry("/c/a", value(len, 1), 2))];
        let batch = EncodedBatch::new(writer.apply(Revision::new(2), put).unwrap(), 0);
        let (range, root) = (prefix("/c/"), writer.snapshot());
        let digest = digest(root, &range);
        let frame = diff(
            &range,
            &batch,
            Variant::Patched,
            Revision::new(1),
            digest,
            &metrics,
        );
        assert_eq!(frames(frame.alone()), frames(frame.segments()));
        let alone: usize = frame.alone().iter().map(Bytes::len).sum();
        assert!(alone >= SMALL);
        let needless = alone.saturating_sub(frame.len().max(SMALL + 2));
        assert_eq!(needless, 0, "{} became {alone}", frame.len());
    }
    for len in 0..=SMALL + 1 {
        let message = unary(&v1::Have {
            token: vec![7; len].into(),
            ..Default::default()
        });
        let padded = padded(&message);
        assert!(padded.len() >= SMALL);
        let mut whole = padded.clone();
        let read = crate::testing::take_messages::<v1::Have>(&mut whole);
        assert_eq!((read[0].token.len(), whole.len()), (len, 0));
    }
}

#[test]
fn large_last_value_has_no_empty_chunk_behind_it() {
    let metrics = Metrics::new();
    for (len, messages) in [(1, 1), (2 * SEGMENT, 1), (MIB, 1), (MIB + 1, 2)] {
        let writer = Writer::new(state(2, vec![entry("/c/a", value(len, 1), 2)]));
        let (segments, _) = exhaust(snapshot(writer.snapshot(), &prefix("/c/")), &metrics);
        assert_eq!(frames(&segments).len(), messages, "{len} bytes");
    }
}

#[test]
fn header_does_not_enlarge_a_full_segment() {
    let mut segments = Segments::default();
    segments.open.resize(SEGMENT, 0);
    segments.write(|out| out.put_u8(1));
    let lens: Vec<usize> = segments
        .finish()
        .segments()
        .iter()
        .map(Bytes::len)
        .collect();
    assert_eq!(lens, [SEGMENT, 1]);
}

#[test]
fn snapshot_carries_epoch_and_reset() {
    let metrics = Metrics::new();
    let writer = Writer::new(state(2, vec![entry("/c/a", value(3 * MIB, 1), 2)]));
    let (root, range) = (writer.snapshot(), prefix("/c/"));
    let kind = SyncKind::Snapshot { reset: true };
    let (segments, _) = exhaust(uncached(root, &range, kind), &metrics);
    let messages = frames(&segments);
    assert_eq!(metrics.chunks_encoded.get(), messages.len() as u64);
    let epochs = messages.iter().map(|message| match message {
        Message::Snapshot(snapshot) => {
            assert!(snapshot.reset && snapshot.revision == 2);
            snapshot.epoch.clone()
        }
        other => panic!("{other:?}"),
    });
    let epoch = root.epoch().as_bytes().clone();
    assert_eq!(
        epochs.collect::<Vec<_>>(),
        [Bytes::new(), Bytes::new(), epoch]
    );
}

#[test]
fn difference_of_states_is_marked_conflated() {
    let metrics = Metrics::new();
    let mut writer = Writer::new(state(2, vec![entry("/c/a", "1", 2)]));
    let Replaced::Continued(batch) = writer.replace(state(9, vec![entry("/c/b", "1", 7)])) else {
        panic!("the history went on");
    };
    let batch = EncodedBatch::new(batch, 0);
    let range = prefix("/c/");
    let digest = digest(writer.snapshot(), &range);
    let frame = diff(&range, &batch, Variant::Whole, batch.from, digest, &metrics);
    let [Message::Diff(diff)] = &frames(frame.segments())[..] else {
        panic!("one diff");
    };
    assert!(diff.conflated && diff.changes.len() == 2);
}

#[test]
fn many_readers_share_chunks_encoded_once() {
    let metrics = Metrics::new();
    let entries = (0..100).map(|at| entry(&format!("/c/{at:03}"), value(10 * 1024, at as u8), 2));
    let writer = Writer::new(state(2, entries.collect()));
    let (root, range) = (writer.snapshot(), prefix("/c/"));
    let kind = SyncKind::Snapshot { reset: false };

    let cache = Arc::new(ChunkCache::new(MIB * 2));
    let response = cached(root, &range, kind, &cache);
    let (first, _) = read(&response, &metrics);
    let made = metrics.chunks_encoded.get();
    assert!(made > 10, "{made}");
    for _ in 0..50 {
        assert_eq!(read(&response, &metrics).0, first);
    }
    assert_eq!(metrics.chunks_encoded.get(), made, "later readers too");
    assert!(cache.room() < MIB + MIB / 2);
    drop(response);
    assert_eq!(cache.room(), 2 * MIB);
}

#[test]
fn uncached_chunks_are_shared_while_read_and_made_again() {
    let metrics = Metrics::new();
    // Large values too, so that chunks end within them.
    let sizes = [10_000, 3 * MIB, 5, 70_000, 2 * MIB, 1, 40_000, 40_000];
    let entries = sizes.iter().enumerate();
    let entries = entries.map(|(at, len)| entry(&format!("/c/{at}"), value(*len, at as u8), 2));
    let writer = Writer::new(state(2, entries.collect()));
    let (root, range) = (writer.snapshot(), prefix("/c/"));
    let cache = Arc::new(ChunkCache::new(70_000));
    let kind = SyncKind::Snapshot { reset: false };
    let response = cached(root, &range, kind, &cache);

    let mut together: Vec<_> = (0..5)
        .map(|_| SyncReader::new(Arc::clone(&response)))
        .collect();
    let mut read_together: Vec<Vec<Bytes>> = vec![Vec::new(); 5];
    let mut in_hand = Vec::new();
    loop {
        let mut frames = Vec::new();
        for (reader, read) in together.iter_mut().zip(&mut read_together) {
            if let Chunk::Ready(frame) = reader.next(&metrics) {
                read.extend(frame.segments().iter().cloned());
                frames.push(frame);
            }
        }
        if frames.is_empty() {
            break;
        }
        // Holds one chunk, as a connection does.
        in_hand = frames;
    }
    drop(in_hand);
    let made = metrics.chunks_encoded.get();
    let messages = frames(&read_together[0]);
    assert_eq!(made, messages.len() as u64, "by one of the five");
    check_chunks(&messages, digest(root, &range));
    assert!(read_together.iter().all(|read| *read == read_together[0]));

    let (late, _) = read(&response, &metrics);
    assert_eq!(late, read_together[0]);
    let again = metrics.chunks_encoded.get() - made;
    assert!(
        again > 0 && again < made,
        "cached chunks are not made again: {again} of {made}"
    );
    // For the next reader as well: chunks made again are not cached.
    assert_eq!(read(&response, &metrics).0, late);
    assert_eq!(metrics.chunks_encoded.get() - made, 2 * again);
}

#[test]
fn patch_decodes_and_makes_the_new_value() {
    let metrics = Metrics::new();
    let range = prefix("/c/");
    // Patches that are copied into a segment, that fill one, and that need several.
    for (len, insert) in [(2000, 10), (20_000, 5000), (2 * MIB, 200_000)] {
        let old = entry("/c/a", value(len, 1), 2);
        let others = (0..3).map(|at| entry(&format!("/c/b{at}"), value(100, 3), 2));
        let entries: Vec<Entry> = [old.clone()].into_iter().chain(others).collect();
        let mut writer = Writer::new(state(2, entries.clone()));
        let mut changed = old.value.to_vec();
        changed.splice(len / 2..len / 2, vec![b'!'; insert]);
        let puts = [
            entry("/c/a", changed, 3),
            entry("/c/b1", "small", 3),
            entry("/c/new", value(5000, 1), 3),
        ];
        let mut batch = writer
            .apply(Revision::new(3), puts.map(Edit::Put).into())
            .unwrap();
        let replaced = std::mem::take(&mut batch.replaced);
        let batch = EncodedBatch::new(batch, 0);
        let value_of = |replaced: &OldValue| match &batch.changes[replaced.change].edit {
            Edit::Put(entry) => entry.value.clone(),
            Edit::Delete { .. } => panic!("it was put"),
        };
        let pairs: Vec<ValuePair> = replaced
            .iter()
            .map(|replaced| ValuePair {
                old: replaced.old.entry.value.clone(),
                new: value_of(replaced),
            })
            .collect();
        let encode = |pair: usize, ops| {
            let OldValue { change, old } = &replaced[pair];
            batch.encode_patch(*change, old.entry.mod_revision, ops, &metrics)
        };
        let pool = JobPool::new(metrics.clone());
        let patches = pool.run(&pairs, encode, &Default::default());
        assert_eq!(patches.len(), 1, "of what is large and was there");
        let size = patches[0].len();
        assert!(insert < size && size < insert + 100);
        let before = batch.bytes();
        batch.add_patches(patches);
        assert_eq!(batch.bytes() - before, 2 * size, "the budget counts it");
        assert!(batch.has_patch_within(&range) && !batch.has_patch_within(&prefix("/c/b")));

        let digest = digest(writer.snapshot(), &range);
        for variant in Variant::ALL {
            let frame = diff(&range, &batch, variant, batch.from, digest, &metrics);
            check_segments(frame.segments());
            let messages = frames(frame.segments());
            check_chunks(&messages, digest);
            let mut replica = Replica::holding(
                range.clone(),
                writer.snapshot().epoch(),
                Revision::new(2),
                entries.clone(),
            );
            replica.take_all(messages);
            assert_eq!(replica.entries(), held(writer.snapshot(), &range));
            match variant {
                Variant::Whole => assert!(frame.len() > len + insert),
                Variant::Patched => assert!(frame.len() < size + 5000 + 400),
            }
        }
    }
    assert_eq!(metrics.changes_encoded.get(), 3 * (3 + 1), "once a variant");
}
