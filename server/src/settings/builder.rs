//! Collects settings layer by layer, and checks the whole.

use std::time::Duration;

use super::check::{
    check_etcd_url, check_generation, check_memory_limit, check_prefixes, tls_files,
};
use super::declare::Fallback;
use super::error::{Given, Origin, SettingsError};
use super::settings::Settings;
use super::table::{COUNT, Setting, Values};

/// Collects settings, layer by layer; what comes later replaces what came before.
///
/// ```
/// use driftless_server::Settings;
///
/// let settings = Settings::builder()
///     .etcd("http://127.0.0.1:2379")
///     .prefix("/config/")
///     .listen(([127, 0, 0, 1], 0).into())
///     .build()?;
/// assert_eq!(settings.etcd(), ["http://127.0.0.1:2379"]);
/// # Ok::<(), driftless_server::SettingsError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct SettingsBuilder {
    pub(super) values: Values,
    /// Where each value was given, in the order of the settings.
    origins: [Origin; COUNT],
    client_timeouts: Option<Duration>,
}

impl Default for SettingsBuilder {
    fn default() -> Self {
        Self {
            values: Values::defaults(),
            origins: [const { Origin::Code }; COUNT],
            client_timeouts: None,
        }
    }
}

impl SettingsBuilder {
    /// One timeout in place of all that clients have: for the TLS handshake, the first call, the next
    /// one, the answer to a ping, and before an idle connection gives way. For tests of what the server
    /// ends by itself. Default: 10 s, 30 s, 5 min, 20 s and 5 s.
    #[cfg(feature = "test-util")]
    pub fn client_timeouts(mut self, timeout: Duration) -> Self {
        self.client_timeouts = Some(timeout);
        self
    }

    /// Checks the whole.
    ///
    /// # Errors
    /// When a setting is missing, out of its bounds, or contradicts another.
    pub fn build(self) -> Result<Settings, SettingsError> {
        let values = &self.values;
        if values.etcd.is_empty() {
            return Err(missing(Setting::Etcd));
        }
        for url in &values.etcd {
            check_etcd_url(url).map_err(|problem| self.refuse(Setting::Etcd, problem))?;
        }
        if values.prefix.is_empty() {
            return Err(missing(Setting::Prefix));
        }
        let prefixes = check_prefixes(&values.prefix, || self.given(Setting::Prefix))?;
        check_generation(&values.generation)
            .map_err(|problem| self.refuse(Setting::Generation, problem))?;
        values
            .check_bounds()
            .map_err(|(setting, problem)| self.refuse(setting, problem))?;
        check_memory_limit(values.memory_limit, values.log_bytes)
            .map_err(|problem| self.refuse(Setting::MemoryLimit, problem))?;
        if values.listen.port() != 0 && values.admin == Some(values.listen) {
            let problem = format!(
                "{} is the address of gRPC; choose another port, or \"off\"",
                values.listen
            );
            return Err(self.refuse(Setting::Admin, problem));
        }
        let tls = tls_files(values).map_err(|(setting, problem)| self.refuse(setting, problem))?;
        Ok(Settings {
            values: self.values,
            prefixes,
            tls,
            client_timeouts: self.client_timeouts,
        })
    }

    /// Replaces a value by what `texts` say. There is at least one.
    pub(super) fn set(
        &mut self,
        setting: Setting,
        texts: &[String],
        origin: Origin,
    ) -> Result<(), SettingsError> {
        self.set_origin(setting, origin);
        self.values
            .read(setting, texts)
            .map_err(|problem| self.refuse(setting, problem))
    }

    pub(super) fn set_origin(&mut self, setting: Setting, origin: Origin) {
        self.origins[setting as usize] = origin;
    }

    fn given(&self, setting: Setting) -> Given {
        Given {
            setting,
            origin: self.origins[setting as usize].clone(),
        }
    }

    fn refuse(&self, setting: Setting, problem: String) -> SettingsError {
        SettingsError::Invalid {
            given: self.given(setting),
            problem,
        }
    }
}

/// The error for a required setting that was not given.
fn missing(setting: Setting) -> SettingsError {
    let what = match setting.declaration().default {
        Fallback::Required(what) | Fallback::Unset(what) | Fallback::Value(what) => what,
    };
    SettingsError::Missing { setting, what }
}
