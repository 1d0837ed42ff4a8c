//! What is not JSON: suffixes, TOML, YAML, and a format that the caller names.

use super::super::format::Suffix;
use super::super::leaf::Leaf;
use super::*;

#[test]
fn unsupported_format_names_its_feature() {
    let entry = entry(b"/a.ini", b"CANARY");
    let unread = Suffix::Unread("enable the feature `ini`");
    let leaf = Leaf::in_tree(&entry, Some(unread), None);
    let failure = Limits::deserialize(leaf).unwrap_err();
    assert_eq!(failure.facts().kind, RejectionKind::Format);
    assert_eq!(failure.to_string(), "enable the feature `ini`");
    let text = String::deserialize(leaf).unwrap();
    assert_eq!(text, "CANARY", "a string takes text");
    for (suffix, feature, on) in [
        ("toml", "toml", cfg!(feature = "toml")),
        ("yaml", "yaml", cfg!(feature = "yaml")),
        ("yml", "yaml", cfg!(feature = "yaml")),
    ] {
        let key = format!("limits.{suffix}");
        let rejection = below::<HashMap<String, Limits>>(&[(&key, "")]).unwrap_err();
        assert_eq!(rejection.kind() == RejectionKind::Format, !on);
        let (_, named, path) = told(&rejection);
        assert_eq!(named, format!("{PREFIX}{key}"));
        assert!(path.starts_with("limits"));
        if !on {
            let message = rejection.to_string();
            assert!(
                message.contains(&format!("feature `{feature}`")),
                "{message}"
            );
        }
    }
}

#[test]
fn suffix_leaves_a_name() {
    for (key, name, is) in [
        ("a.json", "a", true),
        ("a.toml", "a", true),
        ("a.yaml", "a", true),
        ("a.yml", "a", true),
        ("a/b.yml", "a/b", true),
        ("a.yml.json", "a.yml", true),
        (".yml", ".yml", false),
        ("a/.yml", "a/.yml", false),
        ("a.YML", "a.YML", false),
        ("yml", "yml", false),
    ] {
        let (found, suffix) = Suffix::split(key);
        assert_eq!((found, suffix.is_some()), (name, is), "{key}");
    }
}

/// What a document is that says the same in every format.
#[cfg(any(feature = "toml", feature = "yaml"))]
#[derive(Debug, Deserialize, PartialEq)]
struct Doc {
    name: String,
    limits: Limits,
    modes: Vec<Mode>,
    regions: BTreeMap<String, Limits>,
    #[serde(default)]
    any: Option<Untagged>,
    #[serde(default)]
    ratio: f64,
    #[serde(default)]
    on: bool,
}

#[cfg(any(feature = "toml", feature = "yaml"))]
fn doc() -> Doc {
    let limits = |rps| Limits { rps, burst: None };
    Doc {
        name: "shop".into(),
        limits: limits(1),
        modes: vec![
            Mode::Fast,
            Mode::Custom { rps: 7 },
            Mode::Pair(1, 2),
            Mode::Same(limits(3)),
        ],
        regions: BTreeMap::from([("eu".into(), limits(2)), ("us".into(), limits(2))]),
        any: Some(Untagged::Number(5)),
        ratio: 0.5,
        on: true,
    }
}

/// One key with a suffix that holds `value`.
#[cfg(any(feature = "toml", feature = "yaml"))]
fn file<T: DeserializeOwned>(suffix: &str, value: &str) -> Result<T, Rejection> {
    let key = format!("{KEY}.{suffix}");
    let entries = [entry(key.as_bytes(), value.as_bytes())];
    let decoded = decode_entries(&KeyRange::key(key).unwrap(), &entries);
    decoded.map(|value| value.expect("the key exists"))
}

/// A document that is no [`Doc`]: kind, path, line and column, and a part of the message.
#[cfg(any(feature = "toml", feature = "yaml"))]
type Case<'a> = (
    &'a str,
    RejectionKind,
    &'a str,
    Option<(usize, usize)>,
    &'a str,
);

#[cfg(any(feature = "toml", feature = "yaml"))]
fn check_places(suffix: &str, cases: &[Case<'_>]) {
    let mut wrong = Vec::new();
    for case in cases {
        let rejection = file::<Doc>(suffix, case.0).unwrap_err();
        let position = rejection.line().zip(rejection.column());
        let shown = rejection.to_string();
        if (rejection.kind(), rejection.path(), position) != (case.1, case.2, case.3)
            || !shown.contains(case.4)
        {
            wrong.push(format!("{case:?}\n  {rejection:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// None of these documents shows what it holds, whatever it is taken for.
#[cfg(any(feature = "toml", feature = "yaml"))]
fn check_secrets(suffix: &str, documents: &[&str]) {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Secret {
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
        custom: Option<Quoting<0>>,
        value: Option<Quoting<1>>,
        sort: Option<Quoting<2>>,
        variant: Option<Quoting<3>>,
        field: Option<Quoting<4>>,
        length: Option<Quoting<5>>,
    }
    let key = format!("k.{suffix}");
    for document in documents {
        let mut refused = 0;
        macro_rules! check {
            ($($type:ty),*) => {$(
                for rejection in [
                    below::<HashMap<String, $type>>(&[(&key, document)]).err(),
                    file::<$type>(suffix, document).err(),
                ].into_iter().flatten() {
                    refused += 1;
                    let shown = format!(
                        "{rejection} {rejection:?} {rejection:#?} {}", rejection.path()
                    );
                    assert!(!shown.contains(CANARY), "{document}: {shown}");
                    assert!(!shown.contains(CANARY_NUMBER), "{document}: {shown}");
                    assert!(std::error::Error::source(&rejection).is_none());
                }
            )*};
        }
        check!(
            Secret,
            Mode,
            Tagged,
            Vec<Secret>,
            HashMap<String, u8>,
            HashMap<u8, Mode>,
            (u8, u8),
            ()
        );
        assert!(refused > 0, "{document}");
        assert!(
            file::<Secret>(suffix, document).is_err(),
            "{document} is fine"
        );
    }
}

#[cfg(feature = "toml")]
mod toml {
    use super::*;

    const DOC: &str = r#"
name = "shop"
modes = ["fast", { custom = { rps = 7 } }, { pair = [1, 2] }, { same = { rps = 3 } }]
any = 5
ratio = 0.5
on = true
[limits]
rps = 1
[regions]
eu.rps = 2
us = { rps = 2 }
"#;

    #[test]
    fn a_document() {
        assert_eq!(file::<Doc>("toml", DOC).unwrap(), doc());
        assert_eq!(file::<Mode>("toml", " fast\n").unwrap(), Mode::Fast);
        let custom = file::<Mode>("toml", "[custom]\nrps = 1").unwrap();
        assert_eq!(custom, Mode::Custom { rps: 1 });
        assert_eq!(file::<u32>("toml", "7").unwrap(), 7, "read from text");
        assert_eq!(file::<Value>("toml", "a = 1").unwrap(), json!({"a": 1}));
        let shop: HashMap<String, Limits> =
            below(&[("eu.toml", "rps = 1"), ("us/rps", "2")]).unwrap();
        assert_eq!(shop.len(), 2);
        let tree: Value = below(&[("a.toml", "b = 1"), ("c", "1")]).unwrap();
        assert_eq!(tree, json!({"a": {"b": 1}, "c": "1"}));
    }

    #[test]
    fn place_in_the_document_is_named() {
        use RejectionKind::{MissingField, Syntax, Type};
        check_places(
            "toml",
            &[
                (
                    "name = 5",
                    Type,
                    "name",
                    Some((1, 8)),
                    "expected a string, found an integer",
                ),
                (
                    "name = \"x\"\n\nlimits = { \"\u{fc}\" = 1, rps = \"\" }",
                    Type,
                    "limits.rps",
                    Some((3, 28)),
                    "expected an integer (u32), found a string",
                ),
                (
                    "name = \"x\"\n[limits]\nrps = -1",
                    Type,
                    "limits.rps",
                    Some((3, 7)),
                    "found a negative number",
                ),
                (
                    "name = \"x\"\n[limits]",
                    MissingField,
                    "limits.rps",
                    Some((2, 1)),
                    "missing",
                ),
                ("\u{fc} = 1", Syntax, "", Some((1, 1)), "not TOML"),
                (
                    "name = \"x\"\nname = \"y\"",
                    Syntax,
                    "",
                    Some((2, 1)),
                    "not TOML",
                ),
                ("name = \"x", Syntax, "", Some((1, 10)), "not TOML"),
                (
                    "modes = [{ custom = { rps = [] } }]",
                    Type,
                    "modes[0].custom.rps",
                    Some((1, 29)),
                    "expected an integer (u32), found a list",
                ),
                (
                    "modes = [\"fats\"]",
                    Type,
                    "modes[0]",
                    Some((1, 10)),
                    "expected one of fast, slow",
                ),
                (
                    "[regions.eu]\nrps = 1.5",
                    Type,
                    "regions.*.rps",
                    Some((2, 7)),
                    "found a number with a fraction",
                ),
            ],
        );
        let rejection = file::<Vec<u8>>("toml", "a = 1").unwrap_err();
        let shown = rejection.to_string();
        assert!(shown.contains("expected a list, found a map"), "{shown}");
    }

    #[test]
    fn nesting_is_bounded() {
        for deep in [
            format!("a = {}", "[".repeat(100_000)),
            format!("a = {}", "{a=".repeat(100_000)),
            format!("{}b = 1", "a.".repeat(100_000)),
            format!("[{}b]", "a.".repeat(100_000)),
        ] {
            let rejection = file::<Value>("toml", &deep).unwrap_err();
            assert_eq!(rejection.kind(), RejectionKind::Syntax);
        }
        let fine = format!("a = {}{}", "[".repeat(70), "]".repeat(70));
        assert!(file::<Value>("toml", &fine).is_ok());
    }

    #[test]
    fn no_error_reveals_the_value() {
        check_secrets(
            "toml",
            &[
                "n = \"CANARY\"",
                "n = -987654321",
                "small = 987654321",
                "small = 987654321.5",
                "b = 'CANARY'",
                "CANARY = 1",
                "list = [[\"CANARY\"]]",
                "[map.CANARY.CANARY]\nCANARY = 1",
                "map.CANARY.1 = \"CANARY\"",
                "map.CANARY = 'CANARY'",
                "ports.CANARY = 1",
                "ports.987654321 = 1",
                "mode = 'CANARY'",
                "mode.CANARY = 1",
                "mode.custom.rps = 'CANARY'",
                "mode.pair = ['CANARY']",
                "mode.fast = 'CANARY'",
                "mode.fast.CANARY = 'CANARY'",
                "untagged.CANARY = 1",
                "tagged.type = 'CANARY'",
                "tagged = {type = 'A', n = 'CANARY'}",
                "custom = 'CANARY'",
                "value = 'CANARY'",
                "sort = 'CANARY'",
                "variant = 'CANARY'",
                "field = 'CANARY'",
                "length = 'CANARY'",
                "custom = \"\"\"\nCANARY\"\"\"",
                "n = CANARY",
                "n = \"CANARY",
                "CANARY",
                "CANARY = ",
                "[CANARY",
                "n = 1\nn = 'CANARY'",
                "n = 1979-05-27T07:32:00Z # CANARY",
                "n = { CANARY = 1 }",
                "\u{1}CANARY",
            ],
        );
    }
}

#[cfg(feature = "yaml")]
mod yaml {
    use super::*;

    const DOC: &str = r#"
# A comment.
name: shop
limits: &limits
  rps: 1
modes: [fast, {custom: {rps: 7}}, {pair: [1, 2]}, same: {rps: 3}]
regions:
  eu: &eu {<<: *limits, rps: 2}
  us: *eu
any: 5
ratio: .5
on: true
"#;

    #[test]
    fn a_document() {
        for suffix in ["yaml", "yml"] {
            assert_eq!(file::<Doc>(suffix, DOC).unwrap(), doc());
        }
        assert_eq!(file::<Mode>("yaml", "fast # it is\n").unwrap(), Mode::Fast);
        let custom = file::<Mode>("yaml", "custom:\n  rps: 1").unwrap();
        assert_eq!(custom, Mode::Custom { rps: 1 });
        assert_eq!(file::<u32>("yaml", "7").unwrap(), 7, "read from text");
        assert_eq!(file::<String>("yaml", "a: 1").unwrap(), "a: 1", "the text");
        assert_eq!(file::<Vec<u8>>("yaml", "- 1\n- 2").unwrap(), [1, 2]);
        let any = file::<Value>("yaml", "a: 1\nb: no\nc: ~\nd: true\ne: 1.5").unwrap();
        let expected = json!({"a": 1, "b": "no", "c": null, "d": true, "e": 1.5});
        assert_eq!(any, expected);
        let shop: HashMap<String, Limits> =
            below(&[("eu.yaml", "rps: 1"), ("us.yml", "rps: 2")]).unwrap();
        assert_eq!(shop.len(), 2);
        let both = below::<HashMap<String, Limits>>(&[("a.yaml", ""), ("a.yml", "")]);
        assert_eq!(both.unwrap_err().kind(), RejectionKind::Conflict);
    }

    #[test]
    fn place_in_the_document_is_named() {
        use RejectionKind::{Conflict, MissingField, Syntax, Type};
        check_places(
            "yaml",
            &[
                ("name: []", Type, "name", Some((1, 7)), "expected a string"),
                (
                    "name: x\n\nlimits: {\u{fc}: 1, rps: x}",
                    Type,
                    "limits.rps",
                    Some((3, 22)),
                    "expected an integer (u32), found text that is no number",
                ),
                (
                    "name: x\nlimits:\n  rps: -1",
                    Type,
                    "limits.rps",
                    Some((3, 8)),
                    "expected an integer (u32), found a negative number",
                ),
                (
                    "name: x\nlimits: {}",
                    MissingField,
                    "limits.rps",
                    Some((2, 9)),
                    "missing",
                ),
                ("name: 'x", Syntax, "name", Some((1, 7)), "not YAML"),
                (
                    "name: x\nname: y",
                    Conflict,
                    "",
                    Some((2, 1)),
                    "given twice",
                ),
                ("", MissingField, "name", Some((1, 1)), "missing"),
                (
                    "modes:\n- custom: {rps: []}",
                    Type,
                    "modes[0].custom.rps",
                    Some((2, 17)),
                    "expected an integer (u32)",
                ),
                (
                    "modes: [fats]",
                    Type,
                    "modes[0]",
                    Some((1, 9)),
                    "expected one of fast, slow",
                ),
                ("on: yes", Type, "on", Some((1, 5)), "expected a boolean"),
                (
                    "name: *none",
                    Syntax,
                    "name",
                    Some((1, 7)),
                    "an alias has no anchor",
                ),
            ],
        );
        for (value, found) in [
            (
                "5000000000",
                "an integer out of its range (0 to 4294967295)",
            ),
            ("6.5", "a number with a fraction"),
            ("'x'", "quoted text"),
        ] {
            let rejection = file::<Limits>("yaml", &format!("{{rps: {value}}}")).unwrap_err();
            assert!(rejection.to_string().ends_with(found), "{rejection}");
        }
        let two = file::<Limits>("yaml", "rps: 1\n---\nrps: 2").unwrap_err();
        assert_eq!(two.kind(), Syntax);
        assert!(two.to_string().contains("another one follows"), "{two}");
    }

    #[test]
    fn document_expansion_is_limited() {
        // Each line refers to the one before nine times.
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..20 {
            let before = format!("*a{}, ", n - 1).repeat(9);
            bomb += &format!("a{n}: &a{n} [{before}]\n");
        }
        let text = format!(
            "a: &a {}\nb:\n{}",
            "x".repeat(1 << 20),
            "- *a\n".repeat(100)
        );
        let fields: String = (0..1000).map(|n| format!("k{n}: 1, ")).collect();
        let merged = format!("a: &a {{{fields}}}\nb:\n{}", "- <<: *a\n".repeat(1000));
        let anchors = "&a0 [".repeat(50) + &"x, ".repeat(5_000);
        for large in [
            bomb,
            text,
            merged,
            anchors,
            "- ".repeat(100_000),
            "? ".repeat(100_000),
        ] {
            let rejection = file::<Value>("yaml", &large).unwrap_err();
            assert_eq!(
                rejection.kind(),
                RejectionKind::TooLarge,
                "{rejection} {}",
                &large[..20]
            );
        }
        for odd in [
            "a: &a [*a]",
            &*"[".repeat(100_000),
            &*"{a: ".repeat(100_000),
            &*"!!x ".repeat(100_000),
            &*"&a ".repeat(100_000),
            &*"? ".repeat(1_000),
            &*"'".repeat(99_999),
        ] {
            assert!(file::<Value>("yaml", odd).is_err(), "{}", &odd[..10]);
        }
        let fine = format!("{}{}", "[".repeat(60), "]".repeat(60));
        assert!(file::<Value>("yaml", &fine).is_ok());
        let shared = format!("a: &a {{rps: 1}}\nb:\n{}", "- *a\n".repeat(10_000));
        assert!(file::<Value>("yaml", &shared).is_ok());
    }

    #[test]
    fn no_error_reveals_the_value() {
        check_secrets(
            "yaml",
            &[
                "n: CANARY",
                "n: -987654321",
                "small: 987654321",
                "small: 987654321.5",
                "b: CANARY",
                "CANARY: 1",
                "list: [[CANARY]]",
                "map: {CANARY: {CANARY: 1}}",
                "map: {CANARY: {1: CANARY}}",
                "map: {CANARY: CANARY}",
                "ports: {CANARY: 1}",
                "ports: {987654321: 1}",
                "mode: CANARY",
                "mode: !CANARY 1",
                "mode: {CANARY: 1}",
                "mode: {custom: {rps: CANARY}}",
                "mode: !custom {rps: CANARY}",
                "mode: !pair [CANARY]",
                "mode: {fast: CANARY}",
                "untagged: {CANARY: 1}",
                "tagged: {type: CANARY}",
                "tagged: {type: A, n: CANARY}",
                "custom: CANARY",
                "value: CANARY",
                "sort: CANARY",
                "variant: CANARY",
                "field: CANARY",
                "length: CANARY",
                "custom: |\n  CANARY",
                "custom: !!binary CANARY",
                "n: *CANARY",
                "n: &CANARY CANARY",
                "n: &CANARY [*CANARY]",
                "n: !CANARY [1]",
                "<<: CANARY",
                "n: 1\nn: CANARY",
                "{CANARY: 1, CANARY: 2}",
                "map: {CANARY: {}, CANARY: {}}",
                "n: 'CANARY",
                "n: \"CANARY\\CANARY\"",
                "[CANARY",
                "%CANARY\n---\nCANARY: 1",
                "n: 1\n---\nCANARY",
                "n: 1\n\tCANARY: 1",
                "n: @CANARY",
                "? CANARY\n: 1",
                "- CANARY",
                "CANARY",
                "\u{1}CANARY",
            ],
        );
    }
}

#[cfg(all(feature = "toml", feature = "yaml"))]
#[test]
fn caller_sets_the_format_of_keys_without_a_suffix() {
    use super::super::Format;

    let limits = Limits {
        rps: 1,
        burst: None,
    };
    let one = |format, value: &str| {
        let entries = [entry(KEY.as_bytes(), value.as_bytes())];
        let range = KeyRange::key(KEY).unwrap();
        decode::<Limits>(&range, &mut entries.iter(), Some(format))
    };
    for (format, value) in [
        (Format::Json, "{\"rps\": 1}"),
        (Format::Toml, "rps = 1"),
        (Format::Yaml, "rps: 1"),
    ] {
        assert_eq!(one(format, value).unwrap(), Some(Limits { ..limits }));
    }
    let other = one(Format::Toml, "rps: 1").unwrap_err();
    assert_eq!(other.kind(), RejectionKind::Syntax);
    // Below a prefix, where suffixes beat it; and names are not cut.
    let entries = [
        ("a", "x: 1"),
        ("b.json", "{\"x\": 2}"),
        ("c.conf", "{x: 3}"),
        ("d.toml", "x = 4"),
    ]
    .map(|(key, value)| entry(format!("{PREFIX}{key}").as_bytes(), value.as_bytes()));
    let range = KeyRange::prefix(PREFIX).unwrap();
    let found: Option<Value> = decode(&range, &mut entries.iter(), Some(Format::Yaml)).unwrap();
    assert_eq!(
        found,
        Some(json!({"a": {"x": 1}, "b": {"x": 2}, "c.conf": {"x": 3}, "d": {"x": 4}}))
    );
}
