//! What decodes to what, what is refused and how, and that no value shows.

mod formats;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use bytes::Bytes;
use driftless_proto::{Entry, Key, KeyRange, Revision};
use proptest::prelude::*;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::range::decode;
use crate::error::{Rejection, RejectionKind};

const KEY: &str = "/config/shop/it";
const PREFIX: &str = "/config/shop/";

fn entry(key: &[u8], value: &[u8]) -> Entry {
    Entry {
        key: Key::new(key.to_vec()).unwrap(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision::new(1),
        mod_revision: Revision::new(1),
        version: 1,
    }
}

fn decode_entries<T: DeserializeOwned>(
    range: &KeyRange,
    entries: &[Entry],
) -> Result<Option<T>, Rejection> {
    decode(range, &mut entries.iter(), None)
}

/// One key that holds `value`.
fn one<T: DeserializeOwned>(value: impl AsRef<[u8]>) -> Result<T, Rejection> {
    let range = KeyRange::key(KEY).unwrap();
    let decoded = decode_entries(&range, &[entry(KEY.as_bytes(), value.as_ref())]);
    decoded.map(|value| value.expect("the key exists"))
}

/// The keys below the prefix, given without it.
fn below<T: DeserializeOwned>(keys: &[(&str, &str)]) -> Result<T, Rejection> {
    under(PREFIX, keys)
}

fn under<T: DeserializeOwned>(prefix: &str, keys: &[(&str, &str)]) -> Result<T, Rejection> {
    let entries: Vec<Entry> = keys
        .iter()
        .map(|(key, value)| entry(format!("{prefix}{key}").as_bytes(), value.as_bytes()))
        .collect();
    let decoded = decode_entries(&KeyRange::prefix(prefix).unwrap(), &entries);
    decoded.map(|value| value.expect("a prefix always makes something"))
}

/// A rejection as (kind, key, path).
fn told(rejection: &Rejection) -> (RejectionKind, String, &str) {
    let key = rejection.key().map(Key::to_string).unwrap_or_default();
    (rejection.kind(), key, rejection.path())
}

#[derive(Debug, Deserialize, PartialEq)]
struct Limits {
    rps: u32,
    #[serde(default)]
    burst: Option<u32>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Fast,
    Slow,
    Custom { rps: u32 },
    Pair(u8, u8),
    Same(Limits),
}

#[derive(Debug, Deserialize, PartialEq)]
struct Newtype<T>(T);

#[derive(Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Untagged {
    Number(u32),
    Text(String),
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(tag = "type")]
enum Tagged {
    A { n: u32 },
}

#[derive(Debug, Deserialize, PartialEq)]
struct Shop {
    name: String,
    limits: Limits,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    prices: BTreeMap<String, f64>,
    #[serde(default)]
    regions: BTreeMap<String, Limits>,
    mode: Option<Mode>,
}

// One key.

#[test]
fn type_decides_how_one_key_is_read() {
    assert_eq!(one::<String>(" 100\n").unwrap(), " 100\n", "exactly");
    assert_eq!(one::<u32>(" 100\n").unwrap(), 100, "trimmed");
    assert_eq!(one::<i64>("-7").unwrap(), -7);
    assert_eq!(one::<u128>(u128::MAX.to_string()).unwrap(), u128::MAX);
    assert_eq!(one::<f64>("1.5").unwrap(), 1.5);
    assert!(one::<bool>("true\n").unwrap());
    assert_eq!(one::<char>("\u{fc}").unwrap(), '\u{fc}');
    assert_eq!(one::<Mode>("fast\n").unwrap(), Mode::Fast);
    assert_eq!(one::<Mode>("\"slow\"").unwrap(), Mode::Slow);
    assert_eq!(
        one::<Mode>(" {\"custom\": {\"rps\": 1}}").unwrap(),
        Mode::Custom { rps: 1 }
    );
    assert_eq!(one::<Option<u32>>("5").unwrap(), Some(5));
    assert_eq!(one::<Newtype<Option<u32>>>("5").unwrap(), Newtype(Some(5)));
    assert_eq!(one::<Vec<u8>>("[1, 2]").unwrap(), [1, 2]);
    assert_eq!(one::<(u8, String)>("[1, \"x\"]").unwrap(), (1, "x".into()));
    one::<()>("null").unwrap();
    assert_eq!(one::<IpAddr>("::1").unwrap().to_string(), "::1");
    assert_eq!(
        one::<Limits>(r#"{"rps": 1, "burst": null, "more": []}"#).unwrap(),
        Limits {
            rps: 1,
            burst: None
        }
    );
    assert_eq!(
        one::<HashMap<u32, bool>>(r#"{"1": true}"#).unwrap(),
        HashMap::from([(1, true)])
    );
    assert_eq!(
        one::<Value>(r#"{"a": [1, null]}"#).unwrap(),
        json!({"a": [1, null]})
    );
    assert_eq!(one::<Untagged>("5").unwrap(), Untagged::Number(5));
    assert_eq!(
        one::<Tagged>(r#"{"type": "A", "n": 1}"#).unwrap(),
        Tagged::A { n: 1 }
    );
}

#[test]
fn bytes_take_any_value() {
    struct Raw(Vec<u8>);
    impl<'de> Deserialize<'de> for Raw {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl serde::de::Visitor<'_> for Visitor {
                type Value = Raw;
                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("bytes")
                }
                fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Raw, E> {
                    Ok(Raw(bytes.to_vec()))
                }
            }
            d.deserialize_byte_buf(Visitor)
        }
    }
    assert_eq!(one::<Raw>(b"\xff\x00").unwrap().0, b"\xff\x00");
}

#[test]
fn missing_key_is_none_or_no_value() {
    fn missing<T: DeserializeOwned>() -> Option<T> {
        decode_entries(&KeyRange::key(KEY).unwrap(), &[]).unwrap()
    }
    assert_eq!(missing::<Option<u32>>(), Some(None));
    assert_eq!(missing::<Newtype<Option<u32>>>(), Some(Newtype(None)));
    assert_eq!(missing::<u32>(), None);
    assert_eq!(missing::<String>(), None);
    assert_eq!(missing::<Value>(), None);
    assert_eq!(missing::<Vec<u8>>(), None);
    assert_eq!(missing::<()>(), None);
    assert_eq!(missing::<HashMap<String, String>>(), None);
}

#[test]
fn wrong_value_of_one_key_is_refused() {
    fn kind<T: DeserializeOwned>(value: impl AsRef<[u8]>) -> RejectionKind {
        let rejection = one::<T>(value).err().expect("is refused");
        assert_eq!(rejection.key().map(Key::to_string).as_deref(), Some(KEY));
        rejection.kind()
    }
    use RejectionKind::{MissingField, Syntax, Type, Utf8};
    assert_eq!(kind::<u32>("-1"), Type);
    assert_eq!(kind::<u32>(""), Type);
    assert_eq!(kind::<u8>("256"), Type);
    assert_eq!(kind::<f64>("1e999"), Type);
    assert_eq!(kind::<f32>("nan"), Type);
    assert_eq!(kind::<bool>("yes"), Type);
    assert_eq!(kind::<char>("ab"), Type);
    assert_eq!(kind::<Mode>("fats"), Type);
    assert_eq!(kind::<Mode>("custom"), Type);
    assert_eq!(kind::<Mode>("{\"custom\": {}}"), MissingField);
    assert_eq!(kind::<IpAddr>("::x"), Type);
    assert_eq!(kind::<String>(b"\xff"), Utf8);
    assert_eq!(kind::<Limits>(b"{\"\xff\"}"), Utf8);
    assert_eq!(kind::<Limits>("{"), Syntax);
    assert_eq!(kind::<Limits>(""), Syntax);
    assert_eq!(kind::<Limits>("{\"rps\": 1} x"), Syntax);
    assert_eq!(kind::<Limits>("{}"), MissingField);
    assert_eq!(kind::<Limits>("[]"), Type);
    assert_eq!(kind::<Limits>("7"), Type);
    assert_eq!(kind::<Option<Limits>>("null"), Type);
    assert_eq!(kind::<()>("7"), Type);
    assert_eq!(kind::<Value>("{\"a\""), Syntax);
    assert_eq!(
        kind::<Value>("[".repeat(100_000)),
        Syntax,
        "and no overflow"
    );
    assert!(one::<Value>("[".repeat(120) + &"]".repeat(120)).is_ok());
}

#[test]
fn error_names_the_place_in_the_document() {
    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    struct Doc {
        list: Vec<Limits>,
        map: HashMap<String, Limits>,
        mode: Mode,
        #[serde(default)]
        optional: Option<Limits>,
        #[serde(default)]
        strict: Option<Strict>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {}

    let doc = |list: &str, map: &str, mode: &str, more: &str| {
        let text = format!("{{\"list\": {list},\n\"map\": {map},\n\"mode\": {mode}\n{more}}}");
        one::<Doc>(text).unwrap_err()
    };
    let cases = [
        (
            doc(r#"[{"rps": 1}, {"rps": "x"}]"#, "{}", r#""fast""#, ""),
            (RejectionKind::Type, "list[1].rps", Some(1)),
            "expected an integer (u32)",
        ),
        (
            doc("[{}]", "{}", r#""fast""#, ""),
            (RejectionKind::MissingField, "list[0].rps", Some(1)),
            "missing, and has no default",
        ),
        (
            doc("[]", r#"{"k": {"rps": -1}}"#, r#""fast""#, ""),
            (RejectionKind::Type, "map.*.rps", Some(2)),
            "expected an integer (u32), found a negative number",
        ),
        (
            doc("[]", "{}", r#"{"custom": {"rps": []}}"#, ""),
            (RejectionKind::Type, "mode.custom.rps", Some(3)),
            "expected an integer (u32)",
        ),
        (
            doc("[]", "{}", r#"{"pair": [1]}"#, ""),
            (RejectionKind::Type, "mode.pair", Some(3)),
            "expected a variant's content, found another number of elements",
        ),
        (
            doc("[]", "{}", r#"{"same": {"rps": true}}"#, ""),
            (RejectionKind::Type, "mode.same.rps", Some(3)),
            "expected an integer (u32)",
        ),
        (
            doc("[]", "{}", r#""fats""#, ""),
            (RejectionKind::Type, "mode", Some(3)),
            "expected one of fast, slow, custom, pair, same",
        ),
        (
            doc(
                "[]",
                "{}",
                r#""fast""#,
                r#", "optional": {"rps": 1, "burst": {}}"#,
            ),
            (RejectionKind::Type, "optional.burst", Some(4)),
            "expected an integer (u32)",
        ),
        (
            doc("[]", "{}", r#""fast""#, r#", "strict": {"x": 1}"#),
            (RejectionKind::UnknownField, "strict.*", Some(4)),
            "the type has no such field",
        ),
        (
            doc("[]", "{}", r#""fast""#, r#", "list": []"#),
            (RejectionKind::Conflict, "list", Some(4)),
            "given twice",
        ),
        (
            doc("[]", "{", "", ""),
            (RejectionKind::Syntax, "map", Some(2)),
            "not JSON",
        ),
        (
            doc("[1", "", "", ""),
            (RejectionKind::Type, "list[0]", Some(1)),
            "expected a struct",
        ),
    ];
    for (rejection, (kind, path, line), message) in cases {
        let shown = rejection.to_string();
        assert_eq!(
            (rejection.kind(), rejection.path(), rejection.line()),
            (kind, path, line),
            "{shown}"
        );
        assert!(shown.contains(message), "{shown}");
        assert!(rejection.column().is_some(), "{shown}");
    }
    let rejection = one::<Limits>("{\n\"rps\": \"x\"}").unwrap_err();
    assert_eq!(
        rejection.to_string(),
        "key /config/shop/it: field `rps`: line 2, column 10: expected an integer (u32), found a \
         string"
    );
}

// A prefix.

#[test]
fn prefix_makes_a_nested_struct() {
    let shop: Shop = below(&[
        ("limits/rps", "100"),
        ("limits/unknown/deep", "x"),
        ("mode", "{\"pair\": [1, 2]}"),
        ("name", "shop"),
        ("prices/eu/apple", "1.5"),
        ("prices/us", "2"),
        ("regions/eu/rps", "7"),
        ("regions/us.json", "{\"rps\": 8}"),
        ("tags.json", "[\"a\"]"),
        ("unknown", "\u{1}"),
    ])
    .unwrap();
    let limits = |rps| Limits { rps, burst: None };
    assert_eq!(
        shop,
        Shop {
            name: "shop".into(),
            limits: limits(100),
            tags: vec!["a".into()],
            prices: BTreeMap::from([("eu/apple".into(), 1.5), ("us".into(), 2.0)]),
            regions: BTreeMap::from([("eu".into(), limits(7)), ("us".into(), limits(8))]),
            mode: Some(Mode::Pair(1, 2)),
        }
    );
}

#[test]
fn deleted_key_returns_to_the_default() {
    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct All {
        a: u32,
        b: Option<String>,
        c: HashMap<String, String>,
    }
    assert_eq!(below::<All>(&[]).unwrap(), All::default());
    assert_eq!(below::<Option<All>>(&[]).unwrap(), None);
    assert_eq!(below::<Option<All>>(&[("a", "1")]).unwrap().unwrap().a, 1);
    assert!(below::<HashMap<String, u32>>(&[]).unwrap().is_empty());
    assert_eq!(below::<Value>(&[]).unwrap(), json!({}));
}

#[test]
fn maps_of_text_have_whole_paths() {
    type Map<T> = BTreeMap<String, T>;
    let keys = [
        ("", "1"),
        ("a", "2"),
        ("a/b", "3"),
        ("a/b.json", "4"),
        ("c//d/", "5"),
    ];
    let numbers: Map<u32> = below(&keys).unwrap();
    let expected: Map<u32> = keys
        .iter()
        .map(|(key, value)| (key.to_string(), value.parse().unwrap()))
        .collect();
    assert_eq!(numbers, expected);
    assert_eq!(below::<Map<String>>(&keys).unwrap().len(), keys.len());
    assert_eq!(below::<Map<Option<u8>>>(&keys).unwrap().len(), keys.len());
    assert_eq!(
        below::<Newtype<Map<Newtype<u8>>>>(&keys).unwrap().0.len(),
        5
    );
    assert_eq!(
        below::<Map<Mode>>(&[("a/b", "fast"), ("a/c/d", "slow")]).unwrap(),
        Map::from([("a/b".into(), Mode::Fast), ("a/c/d".into(), Mode::Slow)])
    );
    // The suffix stays also where nothing but it tells that these are whole paths.
    let files: Map<String> = below(&[("app.json", "{}"), ("app.toml", "")]).unwrap();
    assert_eq!(files.keys().collect::<Vec<_>>(), ["app.json", "app.toml"]);
    let file: Map<String> = below(&[("app.json", "{}")]).unwrap();
    assert_eq!(file.keys().collect::<Vec<_>>(), ["app.json"]);
}

#[test]
fn other_maps_have_one_segment_a_key() {
    type Map<T> = BTreeMap<String, T>;
    let nested: Map<Map<u32>> = below(&[("a/x", "1"), ("a/y/z", "2"), ("b/x", "3")]).unwrap();
    assert_eq!(
        nested,
        Map::from([
            ("a".into(), Map::from([("x".into(), 1), ("y/z".into(), 2)])),
            ("b".into(), Map::from([("x".into(), 3)])),
        ])
    );
    let ports: BTreeMap<u16, Limits> =
        below(&[("80/rps", "1"), ("443.json", "{\"rps\":2}")]).unwrap();
    assert_eq!(ports.keys().collect::<Vec<_>>(), [&80, &443]);
    let lists: Map<Vec<u8>> = below(&[("a", "[1]"), ("b.json", "[2]")]).unwrap();
    assert_eq!(
        lists,
        Map::from([("a".into(), vec![1]), ("b".into(), vec![2])])
    );
    // Names sort by segment, not by byte: `a-b` is between `a` and `a/`.
    let value: Value = below(&[("a-b", "1"), ("a/c", "2"), ("a/d.json", "[3]")]).unwrap();
    assert_eq!(value, json!({"a-b": "1", "a": {"c": "2", "d": [3]}}));
}

#[test]
fn thousand_inner_maps_take_one_more_attempt() {
    thread_local!(static MADE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });
    #[derive(Debug)]
    struct Counted;
    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            MADE.set(MADE.get() + 1);
            u32::deserialize(d).map(|_| Self)
        }
    }
    let keys: Vec<String> = (0..1000).map(|i| format!("{i}/a/b")).collect();
    let keys: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "1")).collect();
    let map: HashMap<String, HashMap<String, Counted>> = below(&keys).unwrap();
    assert_eq!(map.len(), 1000);
    assert_eq!(MADE.get(), 1001);
}

#[test]
fn structs_that_flatten_stay_structs() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Flat {
        a: BTreeMap<String, u32>,
        b: BTreeMap<String, Limits>,
        limits: Limits,
        #[serde(flatten)]
        rest: BTreeMap<String, Value>,
    }
    let flat: Flat = below(&[
        ("a/x/y", "1"),
        ("b/x/rps", "2"),
        ("limits/rps", "3"),
        ("other", "4"),
        ("tree/x", "5"),
    ])
    .unwrap();
    assert_eq!(flat.a, BTreeMap::from([("x/y".into(), 1)]));
    assert_eq!(flat.b["x"].rps, 2);
    assert_eq!(
        flat.rest,
        BTreeMap::from([
            ("other".into(), json!("4")),
            ("tree".into(), json!({"x": "5"}))
        ])
    );
    let rejection = below::<Flat>(&[("a", "{}"), ("limits/rps/x", "1")]).unwrap_err();
    assert_eq!(
        told(&rejection),
        (
            RejectionKind::Type,
            "/config/shop/limits/rps/x".into(),
            "limits.rps"
        )
    );
}

#[test]
fn variants_with_data_can_be_keys() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Has {
        mode: Mode,
    }
    let mode = |keys: &[(&str, &str)]| below::<Has>(keys).map(|has| has.mode);
    assert_eq!(
        mode(&[("mode/custom/rps", "1")]).unwrap(),
        Mode::Custom { rps: 1 }
    );
    assert_eq!(mode(&[("mode/pair", "[1, 2]")]).unwrap(), Mode::Pair(1, 2));
    assert!(matches!(mode(&[("mode/same/rps", "1")]), Ok(Mode::Same(_))));
    for (keys, path) in [
        (&[("mode/custom/rps", "x")][..], "mode.custom.rps"),
        (&[("mode/custom", "1"), ("mode/pair", "1")], "mode"),
        (&[("mode/fast", "")], "mode.fast"),
        (&[("mode/other/rps", "1")], "mode"),
    ] {
        let rejection = mode(keys).unwrap_err();
        assert_eq!(rejection.path(), path, "{rejection}");
        assert_eq!(rejection.kind(), RejectionKind::Type, "{rejection}");
    }
}

#[test]
fn any_type_below_a_prefix_is_text_without_a_suffix() {
    #[derive(Debug, Deserialize, PartialEq)]
    struct Any {
        untagged: Untagged,
        value: Value,
        tagged: Tagged,
    }
    let any: Any = below(&[
        ("tagged.json", r#"{"type": "A", "n": 1}"#),
        ("untagged", "5"),
        ("value", "5"),
    ])
    .unwrap();
    assert_eq!(any.untagged, Untagged::Text("5".into()));
    assert_eq!(any.value, json!("5"));
    let any: Any = below(&[
        ("tagged/n.json", "1"),
        ("tagged/type", "A"),
        ("untagged.json", "5"),
        ("value.json", "5"),
    ])
    .unwrap();
    assert_eq!(any.untagged, Untagged::Number(5));
    assert_eq!(any.value, json!(5));
}

#[test]
fn prefix_error_names_key_and_field() {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Strict {
        #[serde(default)]
        inner: Inner,
        #[serde(default)]
        text: String,
    }
    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[allow(dead_code)]
    struct Inner {
        n: u32,
        limits: Option<Limits>,
    }
    use RejectionKind::{Conflict, MissingField, Syntax, TooDeep, Type, UnknownField};
    let deep = "a/".repeat(100_000);
    let cases: [(Rejection, RejectionKind, &str, &str); 12] = [
        (
            below::<Strict>(&[("inner/n", "x")]).unwrap_err(),
            Type,
            "inner/n",
            "inner.n",
        ),
        (
            below::<Strict>(&[("inner/n/x", "1")]).unwrap_err(),
            Type,
            "inner/n/x",
            "inner.n",
        ),
        (
            below::<Strict>(&[("other", "1")]).unwrap_err(),
            UnknownField,
            "other",
            "other",
        ),
        (
            below::<Strict>(&[("inner/x/y", "1")]).unwrap_err(),
            UnknownField,
            "inner/x/y",
            "inner.x",
        ),
        (
            below::<Strict>(&[("inner/limits/burst", "1")]).unwrap_err(),
            MissingField,
            "inner/limits/rps",
            "inner.limits.rps",
        ),
        (
            below::<Strict>(&[("inner/limits", "{}")]).unwrap_err(),
            MissingField,
            "inner/limits",
            "inner.limits.rps",
        ),
        (
            below::<Strict>(&[("inner", "{")]).unwrap_err(),
            Syntax,
            "inner",
            "inner",
        ),
        (
            below::<Limits>(&[]).unwrap_err(),
            MissingField,
            "rps",
            "rps",
        ),
        (
            below::<Strict>(&[("text", "1"), ("text/a", "1")]).unwrap_err(),
            Conflict,
            "text",
            "text",
        ),
        (
            below::<Strict>(&[("inner", "{}"), ("inner.json", "{}")]).unwrap_err(),
            Conflict,
            "inner",
            "inner",
        ),
        (below::<Vec<u8>>(&[("x", "1")]).unwrap_err(), Type, "", ""),
        (
            below::<Value>(&[(&deep, "1")]).unwrap_err(),
            TooDeep,
            &deep,
            "a.a",
        ),
    ];
    for (rejection, kind, key, path) in cases {
        let (was, was_key, was_path) = told(&rejection);
        assert_eq!(was, kind, "{rejection}");
        let key = if key.is_empty() {
            String::new()
        } else {
            format!("{PREFIX}{key}")
        };
        assert_eq!(was_key, key, "{rejection}");
        if kind == TooDeep {
            assert!(was_path.starts_with(path));
        } else {
            assert_eq!(was_path, path, "{rejection}");
        }
    }
    assert!(
        below::<Strict>(&[("text.toml", "a = 1")]).is_ok(),
        "a string takes text"
    );
    let both = below::<Strict>(&[("text", "1"), ("text/a", "1")]).unwrap_err();
    assert_eq!(both.other_key().unwrap().to_string(), "/config/shop/text/a");
    assert_eq!(
        both.to_string(),
        "keys /config/shop/text and /config/shop/text/a: field `text`: one has a value and is a \
         parent of the other: use one of them"
    );
}

#[test]
fn ignored_keys_do_not_conflict() {
    let keys = [("rps", "1"), ("x", "1"), ("x.json", "1"), ("x/y", "1")];
    assert_eq!(below::<Limits>(&keys).unwrap().rps, 1);
}

#[test]
fn unusual_keys_are_decoded() {
    // Empty segments are names that no struct has.
    let keys = [
        ("", "x"),
        ("/rps", "2"),
        ("rps", "1"),
        ("x/", "3"),
        (".json", "4"),
    ];
    assert_eq!(below::<Limits>(&keys).unwrap().rps, 1);
    // A prefix may end within a name.
    let found: BTreeMap<String, String> =
        under("/config/shop", &[("", "0"), ("-a", "1"), ("ping/b", "2")]).unwrap();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["", "-a", "ping/b"]);
    assert_eq!(under::<Limits>("app.", &[("rps", "1")]).unwrap().rps, 1);
    let rejection = under::<Limits>("app.", &[]).unwrap_err();
    assert_eq!(rejection.key().unwrap().to_string(), "app.rps");
    // A key that is not text has no path.
    let keys = [entry(b"/config/shop/\xff", b"1")];
    let range = KeyRange::prefix(PREFIX).unwrap();
    let rejection = decode_entries::<Limits>(&range, &keys).unwrap_err();
    assert_eq!(
        told(&rejection),
        (RejectionKind::Utf8, "/config/shop/\\xff".into(), "")
    );
    // What a key holds cannot write to a terminal by way of the path.
    let rejection = below::<BTreeMap<String, Limits>>(&[("\u{1b}[2J", "x")]).unwrap_err();
    assert_eq!(rejection.path(), "\\u{1b}[2J");
    assert!(!rejection.to_string().contains('\u{1b}'));
}

#[test]
fn prefix_without_its_slash_is_refused() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    #[allow(dead_code)]
    struct Defaults {
        rps: u32,
    }
    macro_rules! refused {
        ($($type:ty),*) => {$(
            let keys = [("-old/rps", "1"), ("/rps", "1"), ("/x", "1")];
            let rejection = under::<$type>("/config/shop", &keys).unwrap_err();
            assert_eq!(
                told(&rejection),
                (RejectionKind::Prefix, "/config/shop/rps".into(), "")
            );
            assert_eq!(
                rejection.to_string(),
                "key /config/shop/rps: the watched prefix does not end in `/`; watch /config/shop/"
            );
        )*};
    }
    refused!(
        Defaults, Limits, Option<Limits>, Value, BTreeMap<String, String>, BTreeMap<String, Limits>
    );
    // What has its slash may go on with another: that is an odd key, and no odd prefix.
    let odd = [("/rps", "2"), ("rps", "1")];
    assert_eq!(under::<Limits>(PREFIX, &odd).unwrap().rps, 1);
    assert_eq!(under::<Limits>("/", &odd).unwrap().rps, 1);
}

#[test]
fn wrong_number_is_described_and_not_quoted() {
    fn said<T: DeserializeOwned + std::fmt::Debug>(value: &str) -> String {
        let rejection = one::<T>(value).unwrap_err().to_string();
        let (_, said) = rejection.split_once("found ").expect("what was found");
        said.to_owned()
    }
    let range = "an integer out of its range (0 to 4294967295)";
    for (value, found) in [
        ("abc", "text that is no number"),
        ("-3", "a negative number"),
        ("6.5", "a number with a fraction"),
        ("1e3", "a number that is not written as an integer"),
        ("\"7\"", "quoted text"),
        ("5000000000", range),
        (" ", "an empty value"),
    ] {
        assert_eq!(said::<u32>(value), found, "{value}");
    }
    assert_eq!(said::<f32>("1e99"), "a number out of its range");
    assert_eq!(said::<bool>("yes"), "other text");
    for (value, found) in [
        ("\"abc\"", "a string"),
        ("-3", "a negative number"),
        ("6.5", "a number with a fraction"),
        ("1e3", "a number that is not written as an integer"),
        ("\"7\"", "a string"),
        ("5000000000", range),
        ("99999999999999999999999", range),
        ("true", "a boolean"),
        ("null", "null"),
        ("[7]", "a list"),
        ("{\"a\": 7}", "a map"),
    ] {
        let document = format!("{{\"rps\": {value}}}");
        assert_eq!(said::<Limits>(&document), found, "{value}");
    }
    // Within its range, and refused for another reason.
    let other = said::<Vec<std::num::NonZeroU8>>("[0]");
    assert_eq!(other, "an integer out of its range");
}

#[test]
fn validation_errors_do_not_reveal_the_value() {
    assert_eq!(Rejection::invalid(None).kind().as_str(), "invalid");
    assert_eq!(Rejection::panicked().kind().as_str(), "panic");
    assert!(Rejection::invalid(None).key().is_none());
    let plain = "the service's validation refused it";
    assert_eq!(Rejection::invalid(None).to_string(), plain);
    let reason = Rejection::invalid(Some("burst is below rps")).to_string();
    assert_eq!(reason, format!("{plain}: burst is below rps"));
}

// Secrecy.

const CANARY: &str = "CANARY";
const CANARY_NUMBER: &str = "987654321";

/// Quotes what it got in every way that serde offers.
#[derive(Debug)]
struct Quoting<const HOW: u8>;

impl<'de, const HOW: u8> Deserialize<'de> for Quoting<HOW> {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::{Error, Unexpected};
        let text = String::deserialize(d)?;
        Err(match HOW {
            0 => D::Error::custom(format!("bad: {text}")),
            1 => D::Error::invalid_value(Unexpected::Str(&text), &text.as_str()),
            2 => D::Error::invalid_type(Unexpected::Other(&text), &text.as_str()),
            3 => D::Error::unknown_variant(&text, &["a", "b"]),
            4 => D::Error::unknown_field(&text, &["a"]),
            5 => D::Error::invalid_length(3, &text.as_str()),
            6 => D::Error::custom(D::Error::custom(text)),
            _ => unreachable!(),
        })
    }
}

#[test]
fn no_error_reveals_the_value() {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Doc {
        #[serde(default)]
        n: u32,
        #[serde(default)]
        small: u8,
        #[serde(default)]
        b: bool,
        #[serde(default)]
        list: Vec<(u8, u8)>,
        #[serde(default)]
        map: HashMap<String, HashMap<u32, u8>>,
        #[serde(default)]
        ports: HashMap<u8, u8>,
        mode: Option<Mode>,
        untagged: Option<Untagged>,
        tagged: Option<Tagged>,
        q: Option<Quoting<0>>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Flat {
        #[serde(flatten)]
        doc: Limits,
    }

    let mut seen = Vec::new();
    let mut check = |rejection: Option<Rejection>| {
        let rejection = rejection.expect("is refused");
        let shown = format!(
            "{rejection} {rejection:?} {rejection:#?} {}",
            rejection.path()
        );
        assert!(!shown.contains(CANARY), "{shown}");
        assert!(!shown.contains(CANARY_NUMBER), "{shown}");
        assert!(std::error::Error::source(&rejection).is_none());
        seen.push(rejection.kind());
    };

    // As text, and in a document, with JSON and without.
    macro_rules! text {
        ($($type:ty),*) => {$(
            for value in [CANARY, CANARY_NUMBER, "CANARY\n1", "{\"CANARY\": 987654321}"] {
                if let Err(rejection) = one::<$type>(value) {
                    check(Some(rejection));
                }
            }
            check(one::<$type>(CANARY).err());
            check(below::<HashMap<String, $type>>(&[("k", CANARY)]).err());
            check(one::<Vec<$type>>("[\"CANARY\"]").err());
            check(one::<HashMap<String, $type>>("{\"CANARY\": \"CANARY\"}").err());
            check(one::<HashMap<String, Vec<Option<$type>>>>("{\"CANARY\": [\"CANARY\"]}").err());
        )*};
    }
    text!(
        bool, u8, i8, i16, u16, i32, i64, u64, i128, u128, f32, f64, char, Mode, Limits, Doc, Flat,
        IpAddr, Tagged, Vec<u8>, (u8, u8), (), HashMap<String, u32>, Quoting<0>, Quoting<1>,
        Quoting<2>, Quoting<3>, Quoting<4>, Quoting<5>, Quoting<6>
    );
    let documents = [
        r#"{"n": "CANARY"}"#,
        r#"{"n": -987654321}"#,
        r#"{"small": 987654321}"#,
        r#"{"small": 987654321.5}"#,
        r#"{"b": "CANARY"}"#,
        r#"{"CANARY": 1}"#,
        r#"{"list": [[1]], "CANARY": 1}"#,
        r#"{"list": [["CANARY"]]}"#,
        r#"{"map": {"CANARY": {"CANARY": 1}}}"#,
        r#"{"map": {"CANARY": {"1": "CANARY"}}}"#,
        r#"{"map": {"CANARY": "CANARY"}}"#,
        r#"{"ports": {"CANARY": 1}}"#,
        r#"{"ports": {"987654321": 1}}"#,
        r#"{"mode": "CANARY"}"#,
        r#"{"mode": {"CANARY": 1}}"#,
        r#"{"mode": {"custom": {"rps": "CANARY"}}}"#,
        r#"{"mode": {"pair": ["CANARY"]}}"#,
        r#"{"mode": {"fast": "CANARY"}}"#,
        r#"{"untagged": {"CANARY": 1}}"#,
        r#"{"tagged": {"type": "CANARY"}}"#,
        r#"{"tagged": {"type": "A", "n": "CANARY"}}"#,
        r#"{"q": "CANARY"}"#,
        r#"{"n": 1, "n": 987654321}"#,
        r#"{"n": CANARY}"#,
        r#"{"n": "CANARY"#,
        r#"{"n": 1} CANARY"#,
        r#"{"CANARY""#,
        r#"["CANARY"]"#,
        r#""CANARY""#,
        "CANARY",
        "\u{1}CANARY",
    ];
    for document in documents {
        check(one::<Doc>(document).err());
        check(below::<HashMap<String, Doc>>(&[("k", document)]).err());
        check(below::<HashMap<String, Doc>>(&[("k.json", document)]).err());
        check(one::<Flat>(document).err());
    }
    let text = [
        ("n", CANARY),
        ("b", CANARY),
        ("small", CANARY_NUMBER),
        ("list", "[\"CANARY\"]"),
        ("map/x/y", CANARY),
        ("map/x/1", CANARY),
        ("ports/x", CANARY),
        ("ports/1", CANARY_NUMBER),
        ("mode", CANARY),
        ("mode/custom/rps", CANARY),
        ("untagged/x", CANARY),
        ("tagged/type", CANARY),
        ("tagged", CANARY),
        ("q", CANARY),
        ("unknown", CANARY),
        ("rps", CANARY),
    ];
    for (key, value) in text {
        check(below::<Doc>(&[(key, value)]).err());
        check(below::<Flat>(&[(key, value)]).err());
    }
    check(below::<Doc>(&[("q", CANARY), ("q/x", CANARY)]).err());
    check(below::<Limits>(&[("burst", CANARY)]).err());
    check(one::<String>([CANARY.as_bytes(), b"\xff"].concat()).err());
    let deep = "a/".repeat(200);
    check(below::<Value>(&[(&deep, CANARY)]).err());
    use RejectionKind as Kind;
    for kind in [
        Kind::Type,
        Kind::Syntax,
        Kind::MissingField,
        Kind::UnknownField,
        Kind::Utf8,
        Kind::Conflict,
        Kind::TooDeep,
    ] {
        assert!(seen.contains(&kind), "{kind} was not tried");
    }
}

// Totality.

fn keys() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let segment = prop::sample::select(vec![
        "",
        "a",
        "b",
        "a-b",
        "rps",
        "limits",
        "mode",
        "custom",
        "name",
        "rest",
        ".json",
        "a.json",
        "limits.json",
        "mode.toml",
        "\u{fc}",
    ]);
    let path = prop::collection::vec(segment, 0..4)
        .prop_map(|segments| format!("{PREFIX}{}", segments.join("/")).into_bytes());
    let odd = prop::collection::vec(any::<u8>(), 0..8)
        .prop_map(|bytes| [PREFIX.as_bytes(), &bytes].concat());
    let value = prop_oneof![
        prop::sample::select(vec![
            "",
            "1",
            "-1",
            "true",
            "x",
            "fast",
            "{}",
            "[]",
            "[1]",
            "null",
            "\"fast\"",
            "{\"rps\": 1}",
            "{\"rps\": [{}]}",
            "{\"custom\": {\"rps\": 1}}",
            "{",
            "{\"a\": {\"b\": 1}}",
            "1e999",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..16),
        "[\\[\\]{}\",:0-9a ]{0,16}".prop_map(String::into_bytes),
    ];
    prop::collection::btree_map(prop_oneof![9 => path, 1 => odd], value, 0..8)
        .prop_map(|map| map.into_iter().collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever is written, whatever is wanted: an answer, with a text that can be shown.
    #[test]
    fn decoding_is_total(keys in keys()) {
        let entries: Vec<Entry> = keys.iter().map(|(key, value)| entry(key, value)).collect();
        let mut ranges = vec![KeyRange::prefix(PREFIX).unwrap(), KeyRange::prefix("/config/sh").unwrap()];
        ranges.extend(entries.iter().map(|entry| KeyRange::Key(entry.key.clone())));
        macro_rules! all {
            ($range:ident: $($type:ty),*) => {$(
                if let Err(rejection) = decode_entries::<$type>(&$range, &entries) {
                    prop_assert!(!rejection.to_string().contains(char::is_control));
                }
            )*};
        }
        for range in ranges {
            all!(range: String, u32, bool, f64, char, (), Limits, Shop, Mode, Value, Untagged, Tagged,
                Vec<u8>, Vec<Limits>, (u8, String), Option<Shop>, Newtype<Option<u32>>,
                HashMap<String, String>, HashMap<String, u32>, HashMap<String, Mode>,
                HashMap<String, HashMap<String, Option<bool>>>, HashMap<String, Limits>,
                HashMap<u16, Value>, BTreeMap<String, Vec<Mode>>);
        }
    }

    /// A map of text holds every key below the prefix with its value, whatever they are.
    #[test]
    fn a_map_of_text_is_the_keyspace(
        keys in prop::collection::btree_map("[a-c./]{0,6}(\\.json|\\.toml)?", ".{0,4}", 0..8)
    ) {
        let pairs: Vec<(&str, &str)> = keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        prop_assert_eq!(below::<BTreeMap<String, String>>(&pairs).unwrap(), keys);
    }
}
