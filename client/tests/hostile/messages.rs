//! Servers that speak gRPC and break the contract of `config.proto`.

use bytes::Bytes;
use driftless_proto::v1::{self, change::Change, delta_op::Op, watch_response::Frame};

use crate::etcd_model::EtcdModel;
use crate::grpc::{Talk, on_watch, padded};
use crate::stage::{LIMIT, Play, SLACK, alone, model};

/// A server that sends a hello and these frames, and then nothing.
pub(crate) fn frames(frames: Vec<Frame>) -> crate::stage::Act {
    on_watch(move |mut talk: Talk| {
        let frames = frames.clone();
        async move {
            talk.frame(EtcdModel::hello()).await;
            for frame in frames {
                talk.frame(frame).await;
            }
            talk.hold().await;
        }
    })
}

/// The same, which confirms the client's state first.
fn frames_once_live(frames: Vec<Frame>) -> crate::stage::Act {
    self::frames([vec![model().current()], frames].concat())
}

fn snapshot(entries: Vec<v1::Entry>) -> Frame {
    Frame::Snapshot(v1::Snapshot {
        revision: 99,
        entries,
        digest: vec![0; 16].into(),
        ..Default::default()
    })
}

fn entry(key: &[u8], value: &[u8]) -> v1::Entry {
    v1::Entry {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: 7,
        mod_revision: 7,
        version: 1,
        ..Default::default()
    }
}

/// A diff from what the client holds, with the digest of nothing.
fn diff(changes: Vec<Change>) -> Frame {
    let change = |change| v1::Change {
        change: Some(change),
    };
    Frame::Diff(v1::Diff {
        from: 11,
        to: 12,
        changes: changes.into_iter().map(change).collect(),
        digest: vec![0; 16].into(),
        ..Default::default()
    })
}

fn patch(length: u64, ops: Vec<Op>) -> Change {
    Change::Patch(v1::Patch {
        key: Bytes::from_static(b"/c/a"),
        base_mod_revision: 11,
        create_revision: 11,
        mod_revision: 12,
        version: 2,
        length,
        ops: ops
            .into_iter()
            .map(|op| v1::DeltaOp { op: Some(op) })
            .collect(),
    })
}

const fn copy(offset: u64, length: u64) -> Op {
    Op::Copy(v1::Copy { offset, length })
}

#[test]
fn negative_revisions_are_refused() {
    let alone = alone();
    let mut minus_five = model();
    minus_five.revision = -5;
    let mut next = minus_five.clone();
    next.revision = -6;
    let diff = |from, to| {
        Frame::Diff(v1::Diff {
            from,
            to,
            digest: model().digest(),
            ..Default::default()
        })
    };
    for (name, frame, says) in [
        (
            "snapshot at -5",
            minus_five.snapshot(),
            "Snapshot.revision is -5",
        ),
        (
            "current at -5",
            minus_five.current(),
            "Current.revision is -5",
        ),
        ("progress to -5", next.progress(), "Progress.revision is -5"),
        ("diff to -5", diff(-6, -5), "Diff.from is -6"),
        ("diff from -5", diff(-5, 99), "Diff.from is -5"),
        (
            "diff to minimum",
            diff(0, i64::MIN),
            "Diff.to is -9223372036854775808",
        ),
    ] {
        let frames = if matches!(frame, Frame::Snapshot(_) | Frame::Current(_)) {
            frames(vec![frame])
        } else {
            frames_once_live(vec![frame])
        };
        let played = alone.play(&Play::new(name, frames, says));
        assert_eq!(played.status.revision.get(), 11, "{name}");
    }
}

/// The highest revision cannot be told from a good one. A server that knows what etcd has can, if it is told.
#[test]
fn highest_revision_is_left_by_a_reset() {
    let alone = alone();
    let mut highest = model();
    highest.revision = i64::MAX - 1;
    let progress = highest.progress();
    let wrong = Frame::Current(v1::Current {
        revision: i64::MAX,
        digest: vec![0; 16].into(),
        ..Default::default()
    });
    let mut second = false;
    for frames in [vec![progress.clone()], vec![progress, wrong]] {
        let says = if second { "the digest" } else { "" };
        let played = alone.play(&Play::new(
            "progress to the highest revision",
            frames_once_live(frames),
            says,
        ));
        assert_eq!(played.status.revision.get(), i64::MAX);
        second = true;
    }
}

#[test]
fn impossible_entries_are_refused() {
    let alone = alone();
    let good = entry(b"/c/a", b"1");
    let with = |edit: fn(&mut v1::Entry)| {
        let mut entry = good.clone();
        edit(&mut entry);
        vec![entry]
    };
    let long = [&b"/c/"[..], &[b'k'; 1024 * 1024]].concat();
    let foreign = [&b"/\x1b[2J"[..], &vec![b'k'; 1024 * 1024 - 5]].concat();
    // Three copies at the server, and the buffer that it is read into.
    let message = 12 * 1024 * 1024;
    for (name, entries, says) in [
        (
            "negative mod revision",
            with(|entry| entry.mod_revision = -1),
            "Entry.mod_revision is -1",
        ),
        (
            "no create revision",
            with(|entry| entry.create_revision = 0),
            "Entry.create_revision is 0",
        ),
        (
            "negative version",
            with(|entry| entry.version = i64::MIN),
            "Entry.version is -",
        ),
        (
            "empty key",
            with(|entry| entry.key = Bytes::new()),
            "a key is empty",
        ),
        (
            "key of more than 1 MiB",
            vec![entry(&long, b"1")],
            "a key is 1048579 bytes long; at most 1048576",
        ),
        (
            "foreign key of 1 MiB",
            vec![entry(&foreign, b"1")],
            "k... (1048576 bytes) is outside the requested range",
        ),
        (
            "same key twice",
            vec![good.clone(), good.clone()],
            "keys are not in order",
        ),
        (
            "unsorted keys",
            vec![entry(b"/c/b", b"1"), good.clone()],
            "keys are not in order",
        ),
    ] {
        let act = frames(vec![snapshot(entries)]);
        let played = alone.play(&Play::new(name, act, says).bytes(message));
        assert_eq!(played.status.revision.get(), 11, "{name}");
    }
}

#[test]
fn impossible_patches_are_refused() {
    let alone = alone();
    let million = vec![copy(0, 1); 100_000];
    let half = 16 * 1024 * 1024 / 2;
    for (name, change, says) in [
        (
            "patch of a hundred thousand copies",
            patch(5, million),
            "a patch of /c/a cannot be applied: a delta claims 5 bytes and makes 100000",
        ),
        (
            "patch that copies what is not there",
            patch(2, vec![copy(0, 1), copy(1, 1)]),
            "op 1 of a delta copies beyond the old value's 1 bytes",
        ),
        (
            "patch that overflows",
            patch(u64::MAX, vec![copy(u64::MAX, u64::MAX)]),
            "a delta makes 18446744073709551615 bytes",
        ),
        (
            "patch of an unknown kind",
            Change::Patch(v1::Patch {
                ops: vec![v1::DeltaOp { op: None }],
                ..match patch(1, Vec::new()) {
                    Change::Patch(patch) => patch,
                    _ => unreachable!(),
                }
            }),
            "op 0 of a delta is of an unknown kind",
        ),
    ] {
        let act = frames_once_live(vec![diff(vec![change])]);
        let says = if name == "patch that overflows" {
            // It is more than the range may have, too.
            "holds more than 4194304 bytes"
        } else {
            says
        };
        let played = alone.play(&Play::new(name, act, says).bytes(2 * half));
        assert_eq!(played.status.revision.get(), 11, "{name}");
    }
}

#[test]
fn wrong_digest_for_ever_is_counted_and_backed_off() {
    let alone = alone();
    let act = frames(vec![snapshot(vec![entry(b"/c/a", b"2")])]);
    let play_it = Play::new("wrong digest", act, "the digest at revision 99 differs");
    let played = alone.play(&play_it);
    // The last call may be on its way.
    let counted = usize::try_from(played.status.diverged).unwrap();
    assert!(
        counted.abs_diff(played.calls) <= 1,
        "{counted} of {}",
        played.calls
    );
    assert!(played.calls >= 5, "it tries again: {}", played.calls);
    assert_eq!(played.dials, 1, "on the same connection");
}

/// Many windows full of frames.
const FLOOD: i64 = 20_000;

/// A state, and progress that never pauses. Padded like a server's, or HTTP/2 itself takes it for an attack.
fn never_pauses(frames: i64) -> crate::stage::Act {
    on_watch(move |mut talk: Talk| async move {
        talk.frame(EtcdModel::hello()).await;
        let mut model = model();
        talk.frame(model.snapshot()).await;
        for _ in 0..frames {
            let response = v1::WatchResponse {
                frame: Some(model.progress()),
            };
            if !talk.bytes(padded(&response, 256)).await {
                return;
            }
        }
        talk.hold().await;
    })
}

#[test]
fn flood_of_progress_is_applied_and_bounded() {
    let alone = alone();
    let play_it = Play::new("flood of progress", never_pauses(FLOOD), "").lasts(20);
    let played = alone.play(&play_it.bytes(2 * SLACK));
    assert_eq!(played.calls, 1);
    assert_eq!(played.status.revision.get(), 11 + FLOOD);
}

/// Tasks of the same thread run between frames that have arrived: a client that reads on while there is something
/// to read would let them wait for whole windows.
#[test]
fn flood_of_frames_lets_other_tasks_run() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = crate::stage::client(never_pauses(FLOOD));
    runtime.block_on(async {
        let range = driftless_client::KeyRange::prefix("/c/").unwrap();
        let entries = client.entries(range).await.unwrap();
        let mut before = entries.status().revision.get();
        let mut most = 0;
        while before < FLOOD {
            tokio::task::yield_now().await;
            let now = entries.status().revision.get();
            most = most.max(now - before);
            before = now;
        }
        println!("at most {most} frames without a pause");
        assert!(most <= 512, "{most} frames without a pause");
        drop(entries);
        client.shutdown().await.unwrap();
    });
}

#[test]
fn unfinished_state_is_given_up_in_time() {
    let alone = alone();
    // Something comes now and then, and never the whole state.
    let trickle = |frame: fn(usize) -> Frame| {
        on_watch(move |mut talk: Talk| async move {
            talk.frame(EtcdModel::hello()).await;
            for n in 0.. {
                if !talk.frame(frame(n)).await {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_secs(20)).await;
            }
        })
    };
    let chunks = trickle(|n| {
        let mut frame = snapshot(vec![entry(format!("/c/{n:08}").as_bytes(), b"1")]);
        if let Frame::Snapshot(snapshot) = &mut frame {
            snapshot.more = true;
        }
        frame
    });
    let says = "the server did not send the whole state in time";
    let name = "chunk each 20 s";
    let played = alone.play(
        &Play::new(name, chunks, says)
            .lasts(16 * 60)
            .calls(2)
            .dials(2),
    );
    assert_eq!(played.calls, 2);
    // The state of a server that is behind, for ever.
    let behind = trickle(|_| {
        Frame::Progress(v1::Progress {
            revision: 1,
            digest: vec![0; 16].into(),
            contact_ms: 0,
        })
    });
    let name = "progress of a server that is behind";
    alone.play(
        &Play::new(name, behind, says)
            .lasts(16 * 60)
            .calls(2)
            .dials(2),
    );
    let empty = frames(vec![Frame::Snapshot(v1::Snapshot {
        revision: 99,
        more: true,
        ..Default::default()
    })]);
    let says = "an empty chunk says that more follow";
    alone.play(&Play::new("empty chunks", empty, says));
}

#[test]
fn announced_total_reserves_nothing() {
    let alone = alone();
    let piece = v1::Entry {
        total: 16 * 1024 * 1024,
        ..entry(b"/c/a", b"1")
    };
    let act = frames(vec![snapshot_with_more(vec![piece])]);
    let says = "the server sent nothing for too long";
    alone.play(&Play::new("16 MiB announced", act, says).dials(3).calls(3));
    let piece = v1::Entry {
        total: u64::MAX,
        ..entry(b"/c/a", b"1")
    };
    let act = frames(vec![snapshot_with_more(vec![piece])]);
    let says = "a value is longer than any may be";
    alone.play(&Play::new("2^64 bytes announced", act, says));
}

fn snapshot_with_more(entries: Vec<v1::Entry>) -> Frame {
    let Frame::Snapshot(mut snapshot) = snapshot(entries) else {
        unreachable!()
    };
    snapshot.more = true;
    Frame::Snapshot(snapshot)
}

const _: () = assert!(LIMIT > 1024 * 1024, "keys of 1 MiB are below the limit");
