//! What fuzzing starts from: one input for each thing that peers do, and for some that they must not.

use bytes::Bytes;
use driftless_proto::KeyRange;
use driftless_proto::v1::{self, Copy, DeltaOp, delta_op::Op, watch_response::Frame};
use prost::Message;

use super::frames::{Cuts, History, delete, diff, entry, key, patch, put, snapshot};

/// One input, and the target that it is for.
pub(crate) struct Seed {
    pub(crate) target: &'static str,
    pub(crate) name: &'static str,
    pub(crate) input: Vec<u8>,
}

pub(crate) fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut add = |target, name, input| {
        seeds.push(Seed {
            target,
            name,
            input,
        })
    };
    for (name, input) in deltas() {
        add("delta", name, input);
    }
    for (name, input) in streams() {
        add("frames", name, input);
    }
    for (name, input) in ranges() {
        add("ranges", name, input);
    }
    seeds
}

fn copy(offset: u64, length: u64) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Copy(Copy { offset, length })),
    }
}

fn insert(bytes: &'static [u8]) -> DeltaOp {
    DeltaOp {
        op: Some(Op::Insert(Bytes::from_static(bytes))),
    }
}

fn deltas() -> Vec<(&'static str, Vec<u8>)> {
    const BASE: &[u8] = b"rps = 100\nburst = 200\ncurrency = \"EUR\"\n";
    let delta_of = |base: &'static [u8], fix: bool, length: u64, ops: Vec<DeltaOp>| {
        let patch = v1::Patch {
            key: Bytes::from_static(base),
            length,
            ops,
            ..v1::Patch::default()
        };
        [vec![fix.into()], patch.encode_to_vec()].concat()
    };
    let delta = |fix, length, ops| delta_of(BASE, fix, length, ops);
    let end = BASE.len() as u64;
    vec![
        (
            "one-line",
            delta(true, 0, vec![copy(0, 6), insert(b"250"), copy(9, end - 9)]),
        ),
        ("rewritten", delta(true, 0, vec![insert(b"another")])),
        ("emptied", delta(false, 0, vec![copy(end, 0)])),
        ("wrong-length", delta(false, 7, vec![copy(0, 8)])),
        ("beyond", delta(true, 0, vec![copy(1, end)])),
        (
            "wraps-around",
            delta(false, 3, vec![insert(b"a"), copy(u64::MAX, 2)]),
        ),
        (
            "huge-claims",
            delta(false, u64::MAX, vec![copy(0, u64::MAX), copy(0, u64::MAX)]),
        ),
        ("too-long", delta(false, 1 << 40, Vec::new())),
        (
            "multiplied",
            delta_of(&[b'x'; 1024], true, 0, vec![copy(0, 1024); 64]),
        ),
        ("unknown", delta(true, 0, vec![DeltaOp { op: None }])),
    ]
}

/// The digests are left out: the target puts the right ones in.
fn stream(range: Option<&KeyRange>, mut frames: Vec<Frame>) -> Vec<u8> {
    for frame in &mut frames {
        match frame {
            Frame::Snapshot(chunk) => chunk.digest = Bytes::new(),
            Frame::Diff(chunk) => chunk.digest = Bytes::new(),
            _ => {}
        }
    }
    literally(range, frames)
}

/// With the digests as they are.
fn literally(range: Option<&KeyRange>, frames: Vec<Frame>) -> Vec<u8> {
    let request = v1::WatchRequest {
        range: range.map(v1::Range::from),
        ..v1::WatchRequest::default()
    };
    let mut input = request.encode_length_delimited_to_vec();
    for frame in frames {
        let frame = v1::WatchResponse { frame: Some(frame) };
        input.extend(frame.encode_length_delimited_to_vec());
    }
    input
}

fn hello(epoch: &'static [u8]) -> Frame {
    Frame::Hello(v1::Hello {
        epoch: Bytes::from_static(epoch),
        ..v1::Hello::default()
    })
}

fn streams() -> Vec<(&'static str, Vec<u8>)> {
    let range = KeyRange::prefix("/c/").expect("is one");
    let write = |key_: &str, value: &str| {
        let value = Bytes::copy_from_slice(value.as_bytes());
        (key(key_.as_bytes()), Some(value))
    };
    let mut history = History::new();
    history.write(&[write("/c/a", "rps = 100\n"), write("/c/b", "")]);
    history.write(&[write("/c/a", "rps = 250\n")]);
    history.write(&[(key(b"/c/b"), None), write("/c/c", "new")]);
    let first = |cuts| {
        let (revision, state) = &history.states[1];
        snapshot(*revision, state, false, cuts)
    };
    let start = |cuts| {
        let chunks = first(cuts).into_iter().map(Frame::Snapshot);
        std::iter::once(hello(b"e"))
            .chain(chunks)
            .collect::<Vec<_>>()
    };
    let chunks = |from, to, patches, cuts| {
        let chunks = history.diff(from, to, patches, cuts).into_iter();
        chunks.map(Frame::Diff).collect::<Vec<_>>()
    };
    let whole = || start(Cuts::none());
    let told = |frames: Vec<Frame>| stream(Some(&range), frames);
    let cuts = || Cuts::new(vec![(4, true), (3, false)]);
    let one = |change| {
        let state = &history.states[2].1;
        diff((1, 2), change, state, false, Cuts::none())
    };
    let old = entry("/c/a", "rps = 100\n", 1);
    let many = v1::Patch {
        ops: vec![copy(0, 10); 40],
        length: 400,
        ..patch(&old, &entry("/c/a", "", 2))
    };
    // Far more than a client is prepared to hold, from a few bytes.
    let far_too_many = v1::Patch {
        ops: vec![copy(0, 3000); 60],
        length: 180_000,
        ..patch(&entry("/c/a", "", 1), &entry("/c/a", "", 2))
    };
    let large = entry("/c/a", &"x".repeat(3000), 1);
    let large_state = [(large.key.clone(), large)].into_iter().collect();
    let large = snapshot(1, &large_state, false, Cuts::none());
    let large = large.into_iter().map(Frame::Snapshot);
    let patched = |patch| super::frames::change(v1::change::Change::Patch(patch));
    let confirm = |revision| {
        // Of an empty range.
        Frame::Progress(v1::Progress {
            revision,
            digest: Bytes::from_static(&[0; 16]),
            contact_ms: 3,
        })
    };
    let empty = || {
        let empty = snapshot(1, &Default::default(), true, Cuts::none());
        empty.into_iter().map(Frame::Snapshot)
    };
    vec![
        (
            "patched",
            told(
                [
                    whole(),
                    chunks(1, 2, true, Cuts::none()),
                    chunks(2, 3, false, Cuts::none()),
                ]
                .concat(),
            ),
        ),
        (
            "in-pieces",
            told(
                [
                    start(cuts()),
                    chunks(1, 2, false, cuts()),
                    chunks(2, 3, false, cuts()),
                ]
                .concat(),
            ),
        ),
        (
            "conflated",
            told([whole(), chunks(1, 3, false, Cuts::none())].concat()),
        ),
        (
            "repeated",
            told(
                [
                    whole(),
                    chunks(1, 2, false, Cuts::none()),
                    chunks(1, 2, false, Cuts::none()),
                ]
                .concat(),
            ),
        ),
        (
            "gap",
            told([whole(), chunks(2, 3, false, Cuts::none())].concat()),
        ),
        (
            "reconnected",
            told(
                [
                    start(cuts())[..2].to_vec(),
                    whole(),
                    chunks(1, 2, true, Cuts::none()),
                    vec![hello(b"e")],
                    chunks(2, 3, true, Cuts::none()),
                ]
                .concat(),
            ),
        ),
        (
            "another-history",
            told([whole(), vec![hello(b"f")], chunks(1, 2, true, Cuts::none())].concat()),
        ),
        (
            "reset",
            told(
                [
                    vec![hello(b"e")],
                    empty().collect(),
                    whole(),
                    empty().collect(),
                ]
                .concat(),
            ),
        ),
        (
            "confirmed",
            told(
                [
                    vec![hello(b"e")],
                    empty().collect(),
                    vec![confirm(2), confirm(1), confirm(9)],
                ]
                .concat(),
            ),
        ),
        (
            "diverged",
            literally(
                Some(&range),
                [
                    whole(),
                    one(Vec::new()).into_iter().map(Frame::Diff).collect(),
                ]
                .concat(),
            ),
        ),
        (
            "diverged-at-once",
            literally(
                Some(&range),
                [whole(), start(Cuts::none())]
                    .concat()
                    .into_iter()
                    .map(|frame| match frame {
                        Frame::Snapshot(chunk) => Frame::Snapshot(v1::Snapshot {
                            entries: Vec::new(),
                            ..chunk
                        }),
                        other => other,
                    })
                    .collect(),
            ),
        ),
        (
            "one-key",
            stream(Some(&KeyRange::key("/c/a").expect("is one")), whole()),
        ),
        ("no-range", stream(None, whole())),
        (
            "put-and-delete",
            told(
                [
                    whole(),
                    one(vec![
                        put(&entry("/c/a", "new", 2)),
                        delete(&key(b"/c/none"), 2),
                    ])
                    .into_iter()
                    .map(Frame::Diff)
                    .collect(),
                ]
                .concat(),
            ),
        ),
        (
            "multiplied",
            told(
                [
                    whole(),
                    one(vec![patched(many)])
                        .into_iter()
                        .map(Frame::Diff)
                        .collect(),
                ]
                .concat(),
            ),
        ),
        (
            "multiplied-beyond-the-limit",
            told(
                [
                    vec![hello(b"e")],
                    large.collect(),
                    one(vec![patched(far_too_many)])
                        .into_iter()
                        .map(Frame::Diff)
                        .collect(),
                ]
                .concat(),
            ),
        ),
    ]
}

fn ranges() -> Vec<(&'static str, Vec<u8>)> {
    let input = |a: KeyRange, b: KeyRange, key: &[u8]| {
        let a = v1::Range::from(&a).encode_length_delimited_to_vec();
        let b = v1::Range::from(&b).encode_length_delimited_to_vec();
        [&a[..], &b[..], key].concat()
    };
    let prefix = |prefix: &str| KeyRange::prefix(prefix).expect("is one");
    let one = |key: &str| KeyRange::key(key).expect("is one");
    vec![
        ("nested", input(prefix("/a/"), prefix("/a/b/"), b"/a/b/c")),
        ("key-in-prefix", input(prefix("/a/"), one("/a/b"), b"/a/b")),
        (
            "key-and-its-prefix",
            input(one("/a"), prefix("/a"), b"/a/b"),
        ),
        ("apart", input(prefix("/a"), prefix("/b"), b"/c")),
        (
            "no-text",
            input(prefix("/\u{1b}[2J"), one("/\n"), b"/\xff\x07\x00"),
        ),
    ]
}
