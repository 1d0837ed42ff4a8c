//! The laws of the digest, and the test vectors for every implementation.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Key, Revision};
use proptest::prelude::*;
use serde_json::Value;

fn entry(key: Vec<u8>, value: Vec<u8>, revisions: (i64, i64, i64)) -> Entry {
    Entry {
        key: Key::new(key).expect("is not empty"),
        value: Bytes::from(value),
        create_revision: Revision::new(revisions.0),
        mod_revision: Revision::new(revisions.1),
        version: revisions.2,
    }
}

fn entries(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Entry>> {
    let one = (
        prop::collection::vec(any::<u8>(), 1..6),
        prop::collection::vec(any::<u8>(), 0..6),
        (0..5_i64, 0..5_i64, 0..5_i64),
    );
    prop::collection::vec(one, sizes).prop_map(|all| {
        all.into_iter()
            .map(|(key, value, revisions)| entry(key, value, revisions))
            .collect()
    })
}

proptest! {
    #[test]
    fn digest_ignores_order(
        (one, other) in entries(0..12).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
    ) {
        prop_assert_eq!(one.iter().collect::<Digest>(), other.iter().collect());
    }

    /// Updating the digest with each change gives the digest of the whole state.
    #[test]
    fn digest_follows_changes(changes in prop::collection::vec((0..5_u8, any::<Option<[u8; 2]>>()), 0..40)) {
        let mut state: BTreeMap<u8, Entry> = BTreeMap::new();
        let mut digest = Digest::EMPTY;
        for (revision, (key, value)) in (1..).zip(changes) {
            let old = match value {
                Some(value) => {
                    let new = entry(vec![key], value.to_vec(), (1, revision, 1));
                    digest += Digest::of(&new);
                    state.insert(key, new)
                }
                None => state.remove(&key),
            };
            if let Some(old) = old {
                digest -= Digest::of(&old);
            }
            prop_assert_eq!(digest, state.values().collect());
        }
        for entry in state.values() {
            digest -= Digest::of(entry);
        }
        prop_assert_eq!(digest, Digest::EMPTY);
    }

    #[test]
    fn every_field_changes_the_digest(entry in entries(1..2), flip in any::<prop::sample::Index>()) {
        let [entry] = &entry[..] else {
            return Err(TestCaseError::fail("is one"));
        };
        let mut others = vec![
            Entry { create_revision: entry.create_revision.next(), ..entry.clone() },
            Entry { mod_revision: entry.mod_revision.next(), ..entry.clone() },
            Entry { version: entry.version + 1, ..entry.clone() },
            Entry { value: [&entry.value[..], b"\0"].concat().into(), ..entry.clone() },
        ];
        let mut key = entry.key.as_ref().to_vec();
        let at = flip.index(key.len());
        key[at] ^= 1;
        others.push(Entry { key: Key::new(key).expect("is not empty"), ..entry.clone() });
        if !entry.value.is_empty() {
            let mut value = entry.value.to_vec();
            let at = flip.index(value.len());
            value[at] ^= 1;
            others.push(Entry { value: value.into(), ..entry.clone() });
        }
        for other in others {
            prop_assert!(Digest::of(entry) != Digest::of(&other));
        }
    }

    /// The same bytes, split differently between key and value, are another entry.
    #[test]
    fn boundaries_change_the_digest(bytes in prop::collection::vec(any::<u8>(), 2..24)) {
        let splits: Vec<Digest> = (1..=bytes.len())
            .map(|at| Digest::of(&entry(bytes[..at].to_vec(), bytes[at..].to_vec(), (0, 0, 0))))
            .collect();
        for (index, one) in splits.iter().enumerate() {
            prop_assert!(!splits[index + 1..].contains(one));
        }
    }

    #[test]
    fn wire_form_round_trips(entries in entries(0..4), other in prop::collection::vec(any::<u8>(), 0..40)) {
        let digest: Digest = entries.iter().collect();
        prop_assert_eq!(Digest::from_bytes(&digest.to_bytes()), Some(digest));
        prop_assert_eq!(Digest::from_bytes(&other).is_some(), other.len() == 16);
    }
}

#[test]
fn debug_hides_the_digest() {
    let digest = Digest::of(&entry(b"k".to_vec(), b"v".to_vec(), (1, 1, 1)));
    assert_eq!(format!("{digest:?}"), "Digest(..)");
}

#[test]
fn test_vectors_match() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/digest.json");
    let text = fs::read_to_string(path).expect("the vectors are there");
    let file: Value = serde_json::from_str(&text).expect("they are JSON");
    let vectors = file["vectors"].as_array().expect("a list");
    assert!(vectors.len() >= 10);
    for vector in vectors {
        let entries = vector["entries"].as_array().expect("a list");
        let digest: Digest = entries.iter().map(|entry| Digest::of(&read(entry))).sum();
        assert_eq!(
            digest.to_bytes(),
            hex(&vector["digest"]),
            "{}",
            vector["name"]
        );
    }
}

fn read(json: &Value) -> Entry {
    let number = |field: &str| json[field].as_i64().expect("an integer");
    let value = match &json["value"] {
        Value::Object(pattern) => {
            let times = pattern["times"].as_u64().expect("an integer");
            hex(&pattern["repeat"]).repeat(usize::try_from(times).expect("is small"))
        }
        text => hex(text),
    };
    let revisions = (
        number("create_revision"),
        number("mod_revision"),
        number("version"),
    );
    entry(hex(&json["key"]), value, revisions)
}

fn hex(json: &Value) -> Vec<u8> {
    let text = json.as_str().expect("text");
    assert!(text.len().is_multiple_of(2));
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex"))
        .collect()
}
