//! Frames that no server sends: numbers, lengths and endings that the contract rules out.

mod frames;

use bytes::Bytes;
use driftless_proto::apply::{
    Action, ApplyError, Greeting, MAX_EPOCH_BYTES, MAX_TOKEN_BYTES, MAX_WATCH_ID_BYTES,
};
use driftless_proto::v1::{self, change::Change};
use driftless_proto::{Entry, MAX_KEY_BYTES};

use frames::{
    Cuts, LIMIT, State, change, delete, diff, digest, empty, entry, holding, key, malformed, patch,
    put, refused, snapshot, state,
};

/// A change or entry whose numbers are not etcd's, and the field that is wrong.
#[test]
fn numbers_that_etcd_never_has_are_refused() {
    let wrong = |field, number| ApplyError::NotPositive { field, number };
    let good = v1::Entry::from(&entry("/r/b", "new", 6));
    for number in [0, -1, -5, i64::MIN] {
        let entries = [
            (
                "Entry.create_revision",
                v1::Entry {
                    create_revision: number,
                    ..good.clone()
                },
            ),
            (
                "Entry.mod_revision",
                v1::Entry {
                    mod_revision: number,
                    ..good.clone()
                },
            ),
            (
                "Entry.version",
                v1::Entry {
                    version: number,
                    ..good.clone()
                },
            ),
        ];
        for (field, entry) in entries {
            let mut chunks = snapshot(6, &State::new(), false, Cuts::none());
            chunks[0].entries = vec![entry.clone()];
            assert_eq!(holding(LIMIT).snapshot(chunks), Err(wrong(field, number)));
            assert_eq!(
                refused(vec![change(Change::Put(entry))]),
                wrong(field, number)
            );
        }
        let old = entry("/r/a", "old", 5);
        let good = patch(&old, &entry("/r/a", "older", 6));
        let patches = [
            (
                "Patch.base_mod_revision",
                v1::Patch {
                    base_mod_revision: number,
                    ..good.clone()
                },
            ),
            (
                "Patch.create_revision",
                v1::Patch {
                    create_revision: number,
                    ..good.clone()
                },
            ),
            (
                "Patch.mod_revision",
                v1::Patch {
                    mod_revision: number,
                    ..good.clone()
                },
            ),
            (
                "Patch.version",
                v1::Patch {
                    version: number,
                    ..good.clone()
                },
            ),
        ];
        for (field, patch) in patches {
            assert_eq!(
                refused(vec![change(Change::Patch(patch))]),
                wrong(field, number)
            );
        }
        assert_eq!(
            refused(vec![delete(&old.key, number)]),
            wrong("Delete.mod_revision", number)
        );
        let mut client = holding(LIMIT);
        let held = digest(&client.state);
        assert_eq!(
            client.progress(number, held.clone()),
            Err(wrong("Progress.revision", number))
        );
        assert_eq!(
            client.current(number, held),
            Err(wrong("Current.revision", number))
        );
        // A reset too, which may lower the revision.
        for reset in [false, true] {
            let chunks = snapshot(number, &State::new(), reset, Cuts::none());
            assert_eq!(
                client.snapshot(chunks),
                Err(wrong("Snapshot.revision", number))
            );
        }
        let chunks = |ends| diff(ends, Vec::new(), &State::new(), false, Cuts::none());
        assert_eq!(
            client.diff(chunks((4, number))),
            Err(wrong("Diff.to", number))
        );
        if number < 0 {
            assert_eq!(
                client.diff(chunks((number, 6))),
                Err(wrong("Diff.from", number))
            );
        }
    }
    let shown = wrong("Snapshot.revision", -5).to_string();
    let expected = "the server broke the contract: Snapshot.revision is -5; etcd's are positive";
    assert_eq!(shown, expected);
}

#[test]
fn keys_longer_than_any_may_be_are_refused() {
    let long = |len: usize| v1::Entry {
        key: [&b"/r/"[..], &vec![b'k'; len - 3]].concat().into(),
        ..v1::Entry::from(&entry("/r/b", "new", 6))
    };
    let put = |entry| diff_of(vec![change(Change::Put(entry))]);
    let mut client = holding(4 * MAX_KEY_BYTES);
    let error = client.diff(put(long(MAX_KEY_BYTES + 1)));
    let (field, len, max) = ("a key", MAX_KEY_BYTES + 1, MAX_KEY_BYTES);
    assert_eq!(error, Err(ApplyError::TooLong { field, len, max }));
    // The digest is wrong, so the rest was right.
    let error = client.diff(put(long(MAX_KEY_BYTES)));
    assert!(
        matches!(error, Err(ApplyError::Diverged { .. })),
        "{error:?}"
    );
}

fn diff_of(changes: Vec<v1::Change>) -> Vec<v1::Diff> {
    diff((5, 6), changes, &State::new(), false, Cuts::none())
}

/// A client would collect them for as long as the server sends them.
#[test]
fn chunks_that_never_end_are_refused() {
    let endless = Err(malformed("an empty chunk says that more follow"));
    let mut chunks = snapshot(6, &State::new(), false, Cuts::none());
    chunks[0].more = true;
    assert_eq!(holding(LIMIT).snapshot(chunks), endless);
    let mut chunks = diff_of(Vec::new());
    chunks[0].more = true;
    assert_eq!(holding(LIMIT).diff(chunks), endless);
    // Also those of a diff that is skipped.
    let too_large = Err(ApplyError::TooLarge { limit: LIMIT });
    for change in [
        put(&entry("/r/b", "new", 5)),
        delete(&key(b"/r/b"), 5),
        v1::Change { change: None },
    ] {
        let mut client = holding(LIMIT);
        let mut chunk = diff((4, 5), vec![change], &State::new(), false, Cuts::none()).remove(0);
        chunk.more = true;
        let fed = (0..=LIMIT / 256)
            .map(|_| client.diff(vec![chunk.clone()]))
            .find(|result| *result != Ok(Action::Incomplete));
        assert_eq!(fed, Some(too_large.clone()));
    }
}

/// A slice of a message keeps all of it in memory, with whatever it is padded.
#[test]
fn entries_share_no_memory_with_their_message() {
    let message = Bytes::from(b"/r/b and its value, and more".to_vec());
    let within = |bytes: &[u8]| {
        let message = message.as_ptr_range();
        message.contains(&bytes.as_ptr())
    };
    let mut whole = v1::Entry::from(&entry("/r/b", "", 6));
    whole.key = message.slice(..4);
    whole.value = message.slice(9..18);
    let made = Entry {
        key: key(b"/r/b"),
        value: Bytes::from_static(b"its value"),
        ..entry("/r/b", "", 6)
    };
    let held = state(&[made]);
    let mut chunks = snapshot(6, &held, false, Cuts::none());
    chunks[0].entries = vec![whole];
    let Ok(Action::Replace { entries, .. }) = empty(LIMIT).snapshot(chunks) else {
        panic!("a good snapshot is applied");
    };
    assert!(!within(entries[0].key.as_ref()) && !within(&entries[0].value));
}

#[test]
fn greeting_is_bounded_and_copied() {
    let hello = |len: usize| v1::Hello {
        epoch: vec![1; len.min(MAX_EPOCH_BYTES)].into(),
        watch_id: vec![2; len.min(MAX_WATCH_ID_BYTES)].into(),
        token: vec![3; len].into(),
        ..Default::default()
    };
    let most = hello(MAX_TOKEN_BYTES);
    let greeting = Greeting::try_from(&most).expect("is within the limits");
    assert_eq!(greeting.token, most.token);
    assert_ne!(greeting.token.as_ptr(), most.token.as_ptr());
    assert_ne!(greeting.watch_id.as_ptr(), most.watch_id.as_ptr());
    assert_ne!(greeting.epoch.as_bytes().as_ptr(), most.epoch.as_ptr());
    for (field, max) in [
        ("Hello.epoch", MAX_EPOCH_BYTES),
        ("Hello.watch_id", MAX_WATCH_ID_BYTES),
        ("Hello.token", MAX_TOKEN_BYTES),
    ] {
        let mut hello = hello(1);
        let len = max + 1;
        let bytes = Bytes::from(vec![4; len]);
        match field {
            "Hello.epoch" => hello.epoch = bytes,
            "Hello.watch_id" => hello.watch_id = bytes,
            _ => hello.token = bytes,
        }
        let error = Greeting::try_from(&hello).expect_err("is too long");
        assert_eq!(error, ApplyError::TooLong { field, len, max });
    }
}
