//! Every error that a frame can get.

mod frames;

use bytes::Bytes;
use driftless_proto::apply::{Action, ApplyError};
use driftless_proto::delta::DeltaError;
use driftless_proto::v1::{self, change::Change};
use driftless_proto::{Entry, KeyRange, MAX_VALUE_BYTES, Revision};

use frames::{
    Client, Cuts, LIMIT, State, change, delete, diff, digest, empty, entry, epoch, holding, key,
    malformed, patch, put, refused, snapshot, state,
};

#[test]
fn diff_after_held_revision_is_a_gap() {
    let mut client = holding(LIMIT);
    let chunks = diff((6, 7), Vec::new(), &State::new(), false, Cuts::none());
    let error = client.diff(chunks).expect_err("is refused");
    let (from, held) = (Revision::new(6), Revision::new(5));
    assert_eq!(error, ApplyError::Gap { from, held });
    assert!(error.keeps_state());
}

#[test]
fn wrong_digest_is_diverged() {
    let at = Revision::new(6);
    let error = refused(vec![put(&entry("/r/b", "new", 6))]);
    assert_eq!(error, ApplyError::Diverged { at });
    assert!(!error.keeps_state());

    let mut client = holding(LIMIT);
    let other = digest(&state(&[entry("/r/a", "other", 5)]));
    assert_eq!(
        client.progress(6, other.clone()),
        Err(ApplyError::Diverged { at })
    );
    assert_eq!(
        client.current(6, other.clone()),
        Err(ApplyError::Diverged { at })
    );
    let mut chunks = snapshot(6, &State::new(), false, Cuts::none());
    chunks[0].digest = other;
    assert_eq!(client.snapshot(chunks), Err(ApplyError::Diverged { at }));
}

#[test]
fn older_snapshot_needs_reset() {
    let mut client = holding(LIMIT);
    let older = State::new();
    let error = client
        .snapshot(snapshot(4, &older, false, Cuts::none()))
        .expect_err("is refused");
    let (to, held) = (Revision::new(4), Revision::new(5));
    assert_eq!(error, ApplyError::WentBack { to, held });
    assert!(
        error.keeps_state(),
        "or no server can tell that a reset is due"
    );
    // A reset may, and so may another history.
    let action = client.snapshot(snapshot(4, &older, true, Cuts::none()));
    assert!(matches!(action, Ok(Action::Replace { reset: true, .. })));
    let mut client = holding(LIMIT);
    client.begin(epoch(1));
    let action = client.snapshot(snapshot(4, &older, false, Cuts::none()));
    assert!(matches!(action, Ok(Action::Replace { reset: false, .. })));
}

#[test]
fn frames_before_a_snapshot_hold_nothing() {
    let nothing = |frame| Err(ApplyError::NothingHeld { frame });
    let mut other_history = holding(LIMIT);
    other_history.begin(epoch(1));
    for mut client in [empty(LIMIT), other_history] {
        let chunks = diff((0, 6), Vec::new(), &State::new(), false, Cuts::none());
        assert_eq!(client.diff(chunks), nothing("diff"));
        let digest = digest(&State::new());
        assert_eq!(client.progress(6, digest.clone()), nothing("progress"));
        assert_eq!(client.current(6, digest), nothing("current"));
    }
    assert!(!ApplyError::NothingHeld { frame: "diff" }.keeps_state());
}

#[test]
fn key_outside_range_is_foreign() {
    let foreign = entry("/other", "x", 6);
    let error = ApplyError::Foreign {
        key: foreign.key.clone(),
    };
    assert_eq!(refused(vec![put(&foreign)]), error);
    assert_eq!(refused(vec![delete(&foreign.key, 6)]), error);
    assert_eq!(
        refused(vec![change(Change::Patch(patch(&foreign, &foreign)))]),
        error
    );
    let chunks = snapshot(6, &state(&[foreign]), false, Cuts::new(vec![(1, false)]));
    assert_eq!(holding(LIMIT).snapshot(chunks), Err(error));
}

#[test]
fn patch_of_other_revision_is_rejected() {
    for (name, base) in [("/r/a", 4), ("/r/b", 5)] {
        let patch = patch(&entry(name, "old", base), &entry(name, "new", 6));
        let error = refused(vec![change(Change::Patch(patch))]);
        let base = Revision::new(base);
        let key = key(name.as_bytes());
        assert_eq!(error, ApplyError::PatchBase { key, base });
        assert!(!error.keeps_state());
    }
}

#[test]
fn broken_patch_is_rejected() {
    let new = entry("/r/a", "older", 6);
    let broken = v1::Patch {
        length: 99,
        ..patch(&entry("/r/a", "old", 5), &new)
    };
    let error = refused(vec![change(Change::Patch(broken))]);
    let source = DeltaError::WrongLength { said: 99, made: 5 };
    assert_eq!(
        error,
        ApplyError::Patch {
            key: new.key,
            source
        }
    );
}

#[test]
fn state_over_limit_is_too_large() {
    let limit = 1024;
    let too_large = Err(ApplyError::TooLarge { limit });
    let large = entry("/r/b", &"x".repeat(limit), 6);
    let both = state(&[entry("/r/a", "old", 5), large.clone()]);
    let mut client = holding(limit);
    let chunks = || diff((5, 6), vec![put(&large)], &both, false, Cuts::none());
    assert_eq!(client.diff(chunks()), too_large);
    // In pieces, it is rejected before the last one arrives.
    let mut chunks = snapshot(6, &both, false, Cuts::new(vec![(100, true)]));
    chunks.truncate(chunks.len() / 2 + 2);
    assert_eq!(client.snapshot(chunks), too_large);
    // Empty entries count too.
    let tiny: Vec<Entry> = (0..32).map(|i| entry(&format!("/r/{i}"), "", 6)).collect();
    let chunks = snapshot(6, &state(&tiny), false, Cuts::none());
    assert_eq!(client.snapshot(chunks), too_large);
    assert!(ApplyError::TooLarge { limit }.keeps_state());
}

/// Each diff was within the limit, and the state grew without bound.
#[test]
fn many_small_diffs_stay_within_limit() {
    let limit = 4096;
    let mut client = holding(limit);
    let mut held = client.state.clone();
    let mut error = None;
    for revision in 6..64 {
        let new = entry(&format!("/r/{revision}"), "some value", revision);
        held.insert(new.key.clone(), new.clone());
        let chunks = diff(
            (revision - 1, revision),
            vec![put(&new)],
            &held,
            false,
            Cuts::none(),
        );
        if let Err(refused) = client.diff(chunks) {
            error = Some(refused);
            break;
        }
    }
    assert_eq!(error, Some(ApplyError::TooLarge { limit }));
    assert!(client.state.len() < limit / 256);
    // Deleted entries make room again, also after a resume.
    let revision = client.applier.revision();
    let entries: Vec<Entry> = client.state.values().cloned().collect();
    client.applier.resume(epoch(0), revision, &entries);
    let at = revision.get();
    let deletes = entries
        .iter()
        .map(|entry| delete(&entry.key, at + 1))
        .collect();
    let chunks = diff((at, at + 1), deletes, &State::new(), false, Cuts::none());
    assert!(client.diff(chunks).is_ok());
    let one = state(&[entry("/r/one", &"x".repeat(1024), at + 2)]);
    let chunks = diff(
        (at + 1, at + 2),
        one.values().map(put).collect(),
        &one,
        false,
        Cuts::none(),
    );
    assert!(client.diff(chunks).is_ok());
}

/// A client near its limit could never take a conflated diff that replaced all of its state.
#[test]
fn diff_may_replace_a_state_near_the_limit() {
    let limit = 4096;
    let old: Vec<Entry> = (0..12)
        .map(|i| entry(&format!("/r/old{i}"), "x", 5))
        .collect();
    let new: Vec<Entry> = (0..12)
        .map(|i| entry(&format!("/r/new{i}"), "x", 6))
        .collect();
    let mut client = empty(limit);
    let action = client.snapshot(snapshot(5, &state(&old), false, Cuts::none()));
    assert!(action.is_ok());
    let deletes = old.iter().map(|old| delete(&old.key, 6));
    let changes = deletes.chain(new.iter().map(put)).collect();
    let action = client.diff(diff((5, 6), changes, &state(&new), true, Cuts::none()));
    assert!(
        matches!(
            action,
            Ok(Action::Edit {
                conflated: true,
                ..
            })
        ),
        "{action:?}"
    );
}

#[test]
fn frames_out_of_order_are_malformed() {
    // No hello.
    let mut client = Client::new(KeyRange::prefix("/r/").expect("is one"), LIMIT);
    let whole = snapshot(6, &State::new(), false, Cuts::none());
    assert_eq!(
        client.snapshot(whole.clone()),
        Err(malformed("no hello came first"))
    );
    // Another frame between chunks.
    let both = state(&[entry("/r/a", "old", 5), entry("/r/b", "new", 6)]);
    let cuts = || Cuts::new(vec![(0, true)]);
    let chunks = snapshot(6, &both, false, cuts());
    let diffs = diff(
        (5, 6),
        vec![put(&both[&key(b"/r/b")])],
        &both,
        false,
        cuts(),
    );
    let begun = || {
        let mut client = holding(LIMIT);
        assert_eq!(
            client.snapshot(vec![chunks[0].clone()]),
            Ok(Action::Incomplete)
        );
        client
    };
    let between = Err(malformed("a frame came between the chunks of another"));
    for revision in [4, 5] {
        assert_eq!(begun().progress(revision, digest(&both)), between);
    }
    assert_eq!(begun().current(5, digest(&both)), between);
    let mixed = Err(malformed("chunks of two frames are mixed"));
    assert_eq!(begun().diff(diffs.clone()), mixed);
    let other = snapshot(7, &both, false, cuts());
    assert_eq!(begun().snapshot(other), mixed);
    let other = snapshot(6, &both, true, cuts());
    assert_eq!(begun().snapshot(other), mixed);
    let mut client = holding(LIMIT);
    assert_eq!(client.diff(vec![diffs[0].clone()]), Ok(Action::Incomplete));
    assert_eq!(client.snapshot(whole), mixed);
    let mut client = holding(LIMIT);
    assert_eq!(client.diff(vec![diffs[0].clone()]), Ok(Action::Incomplete));
    let other = diff((5, 7), Vec::new(), &both, false, Cuts::none());
    assert_eq!(client.diff(other), mixed);
    assert!(!malformed("").keeps_state());
}

#[test]
fn inconsistent_chunk_heads_are_malformed() {
    let mut client = holding(LIMIT);
    let backward = diff((5, 5), Vec::new(), &State::new(), false, Cuts::none());
    assert_eq!(
        client.diff(backward),
        Err(malformed("a diff does not move forward"))
    );
    let short = malformed("a digest is not 16 bytes long");
    let digest = Bytes::from_static(b"short");
    assert_eq!(client.progress(6, digest.clone()), Err(short.clone()));
    assert_eq!(client.current(6, digest.clone()), Err(short.clone()));
    let mut chunks = snapshot(6, &State::new(), false, Cuts::none());
    chunks[0].digest = digest.clone();
    assert_eq!(client.snapshot(chunks), Err(short.clone()));
    let mut chunks = diff((5, 6), Vec::new(), &State::new(), false, Cuts::none());
    chunks[0].digest = digest;
    assert_eq!(client.diff(chunks), Err(short));
}

#[test]
fn invalid_changes_are_malformed() {
    let unknown = vec![v1::Change { change: None }];
    assert_eq!(
        refused(unknown),
        malformed("a change is of an unknown kind")
    );
    let b = entry("/r/b", "new", 6);
    let twice = malformed("a key appears twice in one frame");
    assert_eq!(refused(vec![put(&b), put(&b)]), twice);
    assert_eq!(refused(vec![put(&b), delete(&b.key, 6)]), twice);
    let no_key = v1::Delete {
        key: Bytes::new(),
        mod_revision: 6,
    };
    let no_key = vec![change(Change::Delete(no_key))];
    assert_eq!(refused(no_key), malformed("a key is empty"));

    let disorder = malformed("a snapshot's keys are not in order");
    let a = entry("/r/a", "x", 6);
    for entries in [[&b, &a], [&a, &a]] {
        let mut chunks = snapshot(6, &State::new(), false, Cuts::none());
        chunks[0].entries = entries.into_iter().map(v1::Entry::from).collect();
        assert_eq!(holding(LIMIT).snapshot(chunks), Err(disorder.clone()));
    }
}

#[test]
fn pieces_that_do_not_fit_are_malformed() {
    let b = v1::Entry::from(&entry("/r/b", "0123456789", 6));
    let piece = |offset: usize, length: usize| v1::Entry {
        value: b.value.slice(offset..offset + length),
        offset: offset as u64,
        total: 10,
        ..b.clone()
    };
    let put = |piece: v1::Entry| change(Change::Put(piece));
    let other_key = v1::Entry {
        key: Bytes::from_static(b"/r/c"),
        ..piece(5, 5)
    };
    let other_revision = v1::Entry {
        mod_revision: 7,
        ..piece(5, 5)
    };
    let other_total = v1::Entry {
        total: 11,
        ..piece(5, 5)
    };
    let no_total = v1::Entry {
        total: 0,
        ..piece(5, 5)
    };
    let excess = v1::Entry {
        value: Bytes::from_static(b"5678901"),
        ..piece(5, 5)
    };
    let unfit = malformed("the pieces of a value do not fit together");
    for second in [
        piece(5, 0),
        piece(6, 4),
        piece(4, 6),
        piece(0, 5),
        other_key,
        other_revision,
        other_total,
        excess,
    ] {
        assert_eq!(refused(vec![put(piece(0, 5)), put(second)]), unfit);
    }
    assert_eq!(refused(vec![put(piece(5, 5))]), unfit);
    assert_eq!(refused(vec![put(piece(0, 0))]), unfit);
    assert_eq!(refused(vec![put(no_total)]), unfit);

    let cut_off = malformed("a value is cut off");
    let c = entry("/r/c", "x", 6);
    let first = || put(piece(0, 5));
    assert_eq!(refused(vec![first()]), cut_off);
    assert_eq!(refused(vec![first(), frames::put(&c)]), cut_off);
    assert_eq!(refused(vec![first(), delete(&c.key, 6)]), cut_off);
    assert_eq!(
        refused(vec![first(), change(Change::Patch(patch(&c, &c)))]),
        cut_off
    );

    let endless = v1::Entry {
        total: MAX_VALUE_BYTES as u64 + 1,
        ..piece(0, 5)
    };
    assert_eq!(
        refused(vec![put(endless)]),
        malformed("a value is longer than any may be")
    );
}

#[test]
fn errors_show_no_value() {
    let secret = entry("/r/a", "CANARY", 6);
    let longer = entry("/r/a", "CANARY and more", 7);
    let mut client = holding(LIMIT);
    let chunks = snapshot(
        6,
        &state(std::slice::from_ref(&secret)),
        false,
        Cuts::new(vec![(3, true)]),
    );
    assert_eq!(
        client.snapshot(chunks[..1].to_vec()),
        Ok(Action::Incomplete)
    );
    assert!(!format!("{client:?}").contains("CAN"), "half of it is held");
    let errors = [
        refused(vec![put(&secret)]),
        refused(vec![change(Change::Patch(patch(&secret, &longer)))]),
        refused(vec![put(&secret), put(&secret)]),
        refused(vec![put(&entry("/other", "CANARY", 6))]),
    ];
    for error in errors {
        assert!(!format!("{error} {error:?}").contains("CANARY"));
    }
}
