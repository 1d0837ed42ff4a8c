//! The formats that this build reads, and the key suffixes that name them.
//!
//! Each format has a module of its own, the only user of its library.

/// The format of a document. `Toml` exists with the feature `toml`, and `Yaml` with the feature `yaml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// JSON, suffix `.json`.
    Json,
    /// TOML, suffix `.toml`.
    #[cfg(feature = "toml")]
    Toml,
    /// YAML, suffix `.yaml` or `.yml`.
    #[cfg(feature = "yaml")]
    Yaml,
}

/// What a key's suffix means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    /// The value has this format.
    Named(Format),
    /// The value has a format that this build does not read; the error's text.
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

/// All suffixes.
const SUFFIXES: [(&str, Suffix); 4] = [
    (".json", Suffix::Named(Format::Json)),
    (".toml", TOML),
    (".yaml", YAML),
    (".yml", YAML),
];

impl Suffix {
    /// Splits the suffix off a key, if there is one and a name is left.
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
