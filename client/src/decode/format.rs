//! What values are written in: the formats that this build reads, and the suffixes that name them.
//!
//! Each format has a module of its own that is the only user of its decoder.

/// What a document is written in.
///
/// Formats that this build does not read are not there to be named: `Toml` needs the feature `toml`,
/// `Yaml` the feature `yaml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JSON, as `.json` says.
    Json,
    /// TOML, as `.toml` says.
    #[cfg(feature = "toml")]
    Toml,
    /// YAML, as `.yaml` or `.yml` says.
    #[cfg(feature = "yaml")]
    Yaml,
}

/// What a key's suffix says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    /// The value is in this format.
    Named(Format),
    /// It is in one that this build does not read; what to say about it.
    #[cfg_attr(all(feature = "toml", feature = "yaml"), allow(dead_code))]
    Unread(&'static str),
}

#[cfg(feature = "toml")]
const TOML: Suffix = Suffix::Named(Format::Toml);
#[cfg(not(feature = "toml"))]
const TOML: Suffix = Suffix::Unread(
    "this build does not read TOML: enable the feature `toml` of driftless-client, or use .json",
);
#[cfg(feature = "yaml")]
const YAML: Suffix = Suffix::Named(Format::Yaml);
#[cfg(not(feature = "yaml"))]
const YAML: Suffix = Suffix::Unread(
    "this build does not read YAML: enable the feature `yaml` of driftless-client, or use .json",
);

/// Every suffix that is one.
const SUFFIXES: [(&str, Suffix); 4] = [
    (".json", Suffix::Named(Format::Json)),
    (".toml", TOML),
    (".yaml", YAML),
    (".yml", YAML),
];

impl Suffix {
    /// Splits the suffix off a key's text, when there is one and it leaves a name.
    pub(super) fn split(key: &str) -> (&str, Option<Self>) {
        SUFFIXES
            .iter()
            .find_map(|(text, suffix)| {
                let name = key.strip_suffix(text)?;
                let named = !name.is_empty() && !name.ends_with('/');
                named.then_some((name, Some(*suffix)))
            })
            .unwrap_or((key, None))
    }
}
