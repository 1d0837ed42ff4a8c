//! The places that settings are given in besides code: a file, the environment, flags.

use std::ffi::OsStr;
use std::io;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::builder::SettingsBuilder;
use super::error::{Given, Origin, SettingsError};
use super::name::{find, is_foreign, known_variables, nearest};
use super::table::Setting;

impl SettingsBuilder {
    /// Adds what a TOML file says, such as `prefix = ["/config/"]`. Blocks while it reads.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, names an unknown setting, or a value cannot be read.
    pub fn file(mut self, path: &Path) -> Result<Self, SettingsError> {
        let unreadable = |source| SettingsError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let not_utf8 = || io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8");
        let bytes = std::fs::read(path).map_err(unreadable)?;
        let text = String::from_utf8(bytes).map_err(|_| unreadable(not_utf8()))?;
        let line_of = |offset| {
            let before = text.bytes().take(offset);
            1 + before.filter(|byte| *byte == b'\n').count()
        };
        let table = DeTable::parse(&text).map_err(|error| SettingsError::Syntax {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| line_of(span.start)),
            problem: error.message().to_owned(),
        })?;
        for (name, value) in table.get_ref() {
            let line = line_of(name.span().start);
            let Some(setting) = find(name.get_ref(), Setting::name) else {
                let known = Setting::ALL.map(|known| known.name().to_owned());
                return Err(SettingsError::Unknown {
                    place: format!("{}, line {line}", path.display()),
                    name: name.get_ref().to_string(),
                    nearest: nearest(name.get_ref(), known),
                });
            };
            let origin = Origin::File {
                path: path.to_owned(),
                line,
            };
            match toml_texts(setting, value.get_ref()) {
                Ok(texts) => self.set(setting, &texts, origin)?,
                Err(problem) => return Err(refuse(setting, origin, problem)),
            }
        }
        Ok(self)
    }

    /// Adds what environment variables say: those that start with `DRIFTLESS_`, lists separated by
    /// commas. Pass [`std::env::vars_os`].
    ///
    /// Ignores variables with an empty value, those of the command line tools, and those that
    /// Kubernetes makes for a service called `driftless`.
    ///
    /// # Errors
    /// When one names an unknown setting, or its value cannot be read.
    pub fn environment<N, V>(
        mut self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, SettingsError>
    where
        N: AsRef<OsStr>,
        V: AsRef<OsStr>,
    {
        for (name, value) in variables {
            let Some(name) = name.as_ref().to_str() else {
                continue;
            };
            let Some(setting) = setting_of_variable(name)? else {
                continue;
            };
            let Some(value) = value.as_ref().to_str() else {
                let problem = "the value is not UTF-8".to_owned();
                return Err(refuse(setting, Origin::Environment, problem));
            };
            if value.is_empty() {
                continue;
            }
            let texts: Vec<_> = if setting.is_list() {
                value.split(',').map(str::to_owned).collect()
            } else {
                vec![value.to_owned()]
            };
            self.set(setting, &texts, Origin::Environment)?;
        }
        Ok(self)
    }

    /// Adds what a flag says; nothing when there are no values.
    ///
    /// # Errors
    /// When a value cannot be read, or a setting that is no list gets several.
    pub fn flag(
        mut self,
        setting: Setting,
        values: impl IntoIterator<Item = String>,
    ) -> Result<Self, SettingsError> {
        let texts: Vec<_> = values.into_iter().collect();
        if !texts.is_empty() {
            self.set(setting, &texts, Origin::Flag)?;
        }
        Ok(self)
    }
}

/// Refuses unknown `DRIFTLESS_` variables, as [`SettingsBuilder::environment`] does, for commands that
/// use none of the server's settings: a mistyped name would go unnoticed.
///
/// # Errors
/// When a variable starts with `DRIFTLESS_` and nothing reads it.
pub fn check_variables<N: AsRef<OsStr>>(
    names: impl IntoIterator<Item = N>,
) -> Result<(), SettingsError> {
    names
        .into_iter()
        .filter_map(|name| name.as_ref().to_str().map(setting_of_variable))
        .try_for_each(|setting| setting.map(drop))
}

/// The setting that a variable holds; `None` for a variable that belongs to something else.
fn setting_of_variable(name: &str) -> Result<Option<Setting>, SettingsError> {
    if is_foreign(name) {
        return Ok(None);
    }
    find(name, Setting::variable)
        .map(Some)
        .ok_or_else(|| SettingsError::Unknown {
            place: "environment".to_owned(),
            name: name.to_owned(),
            nearest: nearest(name, known_variables()),
        })
}

fn refuse(setting: Setting, origin: Origin, problem: String) -> SettingsError {
    SettingsError::Invalid {
        given: Given { setting, origin },
        problem,
    }
}

/// The texts of a value in a file. An integer is as good as its text.
fn toml_texts(setting: Setting, value: &DeValue<'_>) -> Result<Vec<String>, String> {
    match value {
        DeValue::Array(items) if setting.is_list() => {
            if items.is_empty() {
                return Err("the list is empty; name at least one, or remove the line".to_owned());
            }
            items
                .iter()
                .map(|item| toml_text(setting, item.get_ref()))
                .collect()
        }
        one => toml_text(setting, one).map(|text| vec![text]),
    }
}

fn toml_text(setting: Setting, value: &DeValue<'_>) -> Result<String, String> {
    let found = match value {
        DeValue::String(text) => return Ok(text.to_string()),
        DeValue::Integer(number) => return Ok(number.to_string()),
        DeValue::Array(_) => "a list",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Float(_) => "a fraction",
        DeValue::Datetime(_) => "a date",
        DeValue::Table(_) => "a table",
    };
    let expected = if setting.is_list() {
        "a list of strings"
    } else {
        "a string or an integer"
    };
    Err(format!("expected {expected}, found {found}"))
}
