//! The names of settings in each place that they can be given in, and what is shown about them.

use super::declare::{Bound, Fallback};
use super::table::Setting;

/// The prefix of the environment variables that hold settings.
pub const ENVIRONMENT_PREFIX: &str = "DRIFTLESS_";

/// Variables with this prefix that are not settings: the command line tools read them.
const OTHER_VARIABLES: [&str; 8] = [
    "DRIFTLESS_CONFIG",
    "DRIFTLESS_LOG",
    "DRIFTLESS_SERVER",
    "DRIFTLESS_CA",
    "DRIFTLESS_CERT",
    "DRIFTLESS_KEY",
    "DRIFTLESS_SERVER_NAME",
    "DRIFTLESS_TOKEN_FILE",
];

impl Setting {
    /// As a file spells it.
    pub const fn name(self) -> &'static str {
        self.declaration().name
    }

    /// The environment variable.
    pub fn variable(self) -> String {
        format!("{ENVIRONMENT_PREFIX}{}", self.name().to_uppercase())
    }

    /// The flag, with its dashes.
    pub fn flag(self) -> String {
        format!("--{}", self.name().replace('_', "-"))
    }

    /// The ways to give it, for a message.
    pub(super) fn how_to_give(self) -> String {
        format!(
            "give {}, set {}, or write {} in the settings file",
            self.flag(),
            self.variable(),
            self.name()
        )
    }

    /// Whether it takes several values.
    pub const fn is_list(self) -> bool {
        self.declaration().is_list
    }

    /// What it takes, as `--help` shows it, such as `TIME`.
    pub const fn placeholder(self) -> &'static str {
        self.declaration().placeholder
    }

    /// What it does, in one line, without Markdown.
    pub fn summary(self) -> String {
        let summary = self.paragraphs().next().unwrap_or_default();
        summary.trim_end_matches('.').replace('`', "")
    }

    /// The default of `driftless serve`, as a flag would give it or in words. `None`: it is
    /// required.
    pub fn default_text(self) -> Option<&'static str> {
        let declaration = self.declaration();
        match declaration.default {
            Fallback::Required(_) => None,
            Fallback::Value(text) | Fallback::Unset(text) => {
                Some(declaration.command_default.unwrap_or(text))
            }
        }
    }

    /// Its row in the table of `server/README.md`.
    pub fn readme_row(self) -> String {
        let declaration = self.declaration();
        let default = match (declaration.command_default, declaration.default) {
            (Some(value), _) | (None, Fallback::Value(value)) => format!("`{value}`"),
            (None, Fallback::Required(_)) => "required".to_owned(),
            (None, Fallback::Unset(meaning)) => meaning.to_owned(),
        };
        let bounds = match (declaration.min, declaration.max) {
            (None, None) => String::new(),
            (Some(Bound { value: min, .. }), None) => format!(" At least `{min}`."),
            (None, Some(Bound { value: max, .. })) => format!(" At most `{max}`."),
            (Some(min), Some(max)) => format!(" From `{}` to `{}`.", min.value, max.value),
        };
        format!(
            "| `{}` | `{}` | `{}` | {default} | {}{bounds} |",
            self.name(),
            self.flag(),
            self.variable(),
            self.paragraphs().collect::<Vec<_>>().join(" ")
        )
    }

    /// Its documentation, a line for each paragraph.
    fn paragraphs(self) -> impl Iterator<Item = String> {
        let lines = self.declaration().docs;
        let paragraphs = lines.split(|line| line.trim().is_empty());
        paragraphs.map(|lines| {
            let lines: Vec<_> = lines.iter().map(|line| line.trim()).collect();
            lines.join(" ")
        })
    }
}

/// All variables that something reads, the tools' included.
pub(super) fn known_variables() -> Vec<String> {
    let others = OTHER_VARIABLES.into_iter().map(str::to_owned);
    let settings = Setting::ALL.into_iter().map(Setting::variable);
    settings.chain(others).collect()
}

/// The setting that `spell` spells like this.
pub(super) fn find<S: AsRef<str>>(name: &str, spell: impl Fn(Setting) -> S) -> Option<Setting> {
    Setting::ALL
        .into_iter()
        .find(|setting| spell(*setting).as_ref() == name)
}

/// The one of `known` that resembles `name` most, if any does.
pub(super) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let lower = name.to_lowercase();
    known
        .into_iter()
        .map(|known| (edits(&lower, &known.to_lowercase()), known))
        .min_by_key(|(edits, _)| *edits)
        // With more than a third of it different, it is another word.
        .filter(|(edits, known)| {
            *edits * 3 <= known.trim_start_matches(ENVIRONMENT_PREFIX).len().max(3)
        })
        .map(|(_, known)| known)
}

/// The edit distance: how many bytes to insert, remove or replace to get from one to the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.bytes().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (diagonal + usize::from(a != b))
                .min(above + 1)
                .min(row[j] + 1);
            diagonal = above;
        }
    }
    row[to.len()]
}

/// True for a variable that holds no setting.
pub(super) fn is_foreign(name: &str) -> bool {
    !name.starts_with(ENVIRONMENT_PREFIX)
        || OTHER_VARIABLES.contains(&name)
        || is_service_link(name)
}

/// True for a variable that Kubernetes makes for a service called `driftless` or `driftless-…`:
/// `…_SERVICE_HOST`, `…_SERVICE_PORT…`, `…_PORT`, `…_PORT_7400_TCP…`. A server that refused these
/// could not run there.
fn is_service_link(name: &str) -> bool {
    if name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") {
        return true;
    }
    name.match_indices("_PORT").any(|(at, found)| {
        let rest = &name[at + found.len()..];
        rest.is_empty()
            || rest
                .strip_prefix('_')
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    })
}
