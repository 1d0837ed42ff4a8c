//! A service whose code quotes values wherever it can, and values that make it do so.

use std::collections::BTreeMap;

use serde::de::{Deserializer, Error, Unexpected};
use serde::{Deserialize, de::DeserializeOwned};

/// The canary in all values.
pub(crate) const CANARY: &str = "cAnArYfIvE7oNe";

/// The canary as a number.
pub(crate) const NUMBER: &str = "98765432123456789";

/// A value of a service.
pub(crate) trait Config: DeserializeOwned + Send + Sync + 'static {
    /// The service's validation.
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Config for u32 {}
impl Config for bool {}
impl Config for char {}
impl Config for String {}
impl Config for Mode {}
impl Config for Quoting {}
impl Config for Panicking {}
impl Config for std::net::IpAddr {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only read as a whole")]
pub(crate) struct Document {
    #[serde(default)]
    n: u32,
    #[serde(default)]
    fine: String,
    #[serde(default)]
    map: BTreeMap<String, u32>,
    #[serde(default)]
    list: Vec<(u8, u8)>,
    mode: Option<Mode>,
    any: Option<Any>,
    tagged: Option<Tagged>,
    quoting: Option<Quoting>,
    panicking: Option<Panicking>,
    /// Its validation quotes it.
    refused: Option<String>,
    /// Its validation panics, and quotes it.
    exploding: Option<String>,
}

impl Config for Document {
    fn check(&self) -> Result<(), String> {
        if let Some(text) = &self.exploding {
            panic!("the validation panics over {text}");
        }
        match &self.refused {
            Some(text) => Err(format!("the validation refuses {text}")),
            None => Ok(()),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only read as a whole")]
pub(crate) enum Mode {
    Fast,
    Custom { n: u32 },
    Pair(u8, u8),
}

#[derive(Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "only read as a whole")]
enum Any {
    Number(u32),
    List(Vec<u8>),
}

#[derive(Deserialize)]
#[serde(tag = "type")]
#[allow(dead_code, reason = "only read as a whole")]
enum Tagged {
    A { n: u32 },
}

/// Quotes its input, with each of serde's visitor methods.
pub(crate) struct Quoting;

impl<'de> Deserialize<'de> for Quoting {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Err(match text.as_bytes().last() {
            Some(b'1') => D::Error::invalid_value(Unexpected::Str(&text), &&*text),
            Some(b'2') => D::Error::invalid_type(Unexpected::Other(&text), &&*text),
            Some(b'3') => D::Error::unknown_variant(&text, &["a"]),
            Some(b'4') => D::Error::unknown_field(&text, &["a"]),
            Some(b'5') => D::Error::invalid_length(5, &&*text),
            _ => D::Error::custom(format!("not {text}")),
        })
    }
}

/// Panics with its input.
pub(crate) struct Panicking;

impl<'de> Deserialize<'de> for Panicking {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        panic!("over {text}");
    }
}

/// The type that a key is read as.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Document,
    Number,
    Flag,
    Letter,
    Text,
    Mode,
    Quoting,
    Panicking,
    Address,
}

/// A key, and values that are rejected there.
pub(crate) struct Case {
    pub(crate) target: Target,
    /// Without the dot.
    pub(crate) suffix: &'static str,
    /// One that is not refused, where there is one. It holds the canary where it can.
    pub(crate) good: Option<String>,
    pub(crate) bad: Vec<u8>,
}

/// Every kind of rejection, in every format.
pub(crate) fn cases() -> Vec<Case> {
    let fill = |text: &str| text.replace("CANARY", CANARY).replace("NUMBER", NUMBER);
    let mut cases = Vec::new();
    let mut add = |target, suffix, good: Option<&str>, bad: &str| {
        cases.push(Case {
            target,
            suffix,
            good: good.map(fill),
            bad: fill(bad).into_bytes(),
        });
    };
    for (target, good) in [
        (Target::Number, Some("7")),
        (Target::Flag, Some("true")),
        (Target::Letter, Some("x")),
        (Target::Mode, Some("fast")),
        (Target::Mode, Some(r#"{"custom": {"n": 1}}"#)),
        (Target::Address, Some("::1")),
        (Target::Quoting, None),
        (Target::Panicking, None),
    ] {
        add(target, "", good, "CANARY");
        add(target, "json", good, "NUMBER CANARY");
    }
    add(Target::Number, "", Some("1"), "NUMBER");
    for (bad, suffix) in JSON.iter().zip(["", "json"].iter().cycle()) {
        add(Target::Document, suffix, Some(r#"{"fine": "CANARY"}"#), bad);
    }
    for bad in TOML {
        add(Target::Document, "toml", Some("fine = 'CANARY'"), bad);
    }
    for (bad, suffix) in YAML.iter().zip(["yaml", "yml"].iter().cycle()) {
        add(Target::Document, suffix, Some("fine: CANARY"), bad);
    }
    // Not text.
    let binary = [b"\xff", CANARY.as_bytes(), b"\xfe"].concat();
    for (target, good) in [
        (Target::Text, "CANARY"),
        (Target::Document, r#"{"fine": "CANARY"}"#),
    ] {
        cases.push(Case {
            target,
            suffix: "",
            good: Some(fill(good)),
            bad: binary.clone(),
        });
    }
    cases
}

const JSON: [&str; 29] = [
    r#""CANARY""#,
    "CANARY",
    r#"["CANARY"]"#,
    r#"{"n": "CANARY"}"#,
    r#"{"n": NUMBER}"#,
    r#"{"n": -NUMBER.5}"#,
    r#"{"CANARY": 1}"#,
    r#"{"map": {"CANARY": "CANARY"}}"#,
    r#"{"map": {"CANARY": {"CANARY": 1}}}"#,
    r#"{"list": [[1, "CANARY"]]}"#,
    r#"{"mode": "CANARY"}"#,
    r#"{"mode": {"CANARY": 1}}"#,
    r#"{"mode": {"custom": {"n": "CANARY"}}}"#,
    r#"{"mode": {"pair": ["CANARY"]}}"#,
    r#"{"any": "CANARY"}"#,
    r#"{"tagged": {"type": "CANARY"}}"#,
    r#"{"tagged": {"type": "A", "n": "CANARY"}}"#,
    r#"{"quoting": "CANARY"}"#,
    r#"{"quoting": "CANARY1"}"#,
    r#"{"quoting": "CANARY2"}"#,
    r#"{"quoting": "CANARY3"}"#,
    r#"{"quoting": "CANARY4"}"#,
    r#"{"quoting": "CANARY5"}"#,
    r#"{"panicking": "CANARY"}"#,
    r#"{"refused": "CANARY"}"#,
    r#"{"exploding": "CANARY"}"#,
    r#"{"n": CANARY}"#,
    r#"{"fine": "CANARY"#,
    r#"{"fine": "CANARY", "fine": "CANARY"}"#,
];

const TOML: [&str; 24] = [
    "CANARY",
    "'CANARY'",
    "n = 'CANARY'",
    "n = NUMBER",
    "n = -NUMBER.5",
    "CANARY = 1",
    "map.CANARY = 'CANARY'",
    "[map.CANARY]\nCANARY = 1",
    "list = [[1, 'CANARY']]",
    "mode = 'CANARY'",
    "mode.CANARY = 1",
    "mode.custom.n = 'CANARY'",
    "mode.pair = ['CANARY']",
    "any = 'CANARY'",
    "tagged.type = 'CANARY'",
    "quoting = 'CANARY'",
    "quoting = 'CANARY1'",
    "quoting = 'CANARY3'",
    "panicking = 'CANARY'",
    "refused = 'CANARY'",
    "exploding = 'CANARY'",
    "n = CANARY",
    "fine = 'CANARY",
    "fine = 'CANARY'\nfine = 'CANARY'",
];

const YAML: [&str; 27] = [
    "CANARY",
    "- CANARY",
    "n: CANARY",
    "n: NUMBER",
    "n: !CANARY [1]",
    "CANARY: 1",
    "map: {CANARY: CANARY}",
    "map:\n  CANARY:\n    CANARY: 1",
    "list: [[1, CANARY]]",
    "mode: CANARY",
    "mode: !CANARY 1",
    "mode: !custom {n: CANARY}",
    "mode: {pair: [CANARY]}",
    "any: CANARY",
    "tagged: {type: CANARY}",
    "quoting: CANARY",
    "quoting: |\n  CANARY1",
    "quoting: CANARY3",
    "panicking: CANARY",
    "refused: CANARY",
    "exploding: CANARY",
    "n: *CANARY",
    "n: &CANARY CANARY",
    "fine: 'CANARY",
    "fine: CANARY\n\tfine: CANARY",
    "fine: CANARY\nfine: CANARY",
    "fine: CANARY\n---\nfine: CANARY",
];
