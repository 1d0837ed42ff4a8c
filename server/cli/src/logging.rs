//! Logs to the standard error.
//!
//! No crate logs values at any level, so no target is filtered out. `tests/secrets` checks this build
//! with a canary. If an update of a dependency starts to log values, cap its target here.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::color;
use crate::exit::{Failure, Kind};

/// What to log.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log to the standard error, such as "debug" or "warn,driftless_server=trace"; beats
    /// RUST_LOG [default: info for serve, warn for dev, error otherwise]
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        env = "DRIFTLESS_LOG",
        hide_env_values = true
    )]
    log: Option<String>,
}

impl LogArgs {
    /// Starts logging with the filter of the flag, else of RUST_LOG, else `default`.
    ///
    /// # Errors
    /// When the filter is not valid.
    pub(crate) fn init(&self, default: &str) -> Result<(), Failure> {
        let from_environment = || {
            std::env::var("RUST_LOG")
                .ok()
                .filter(|text| !text.is_empty())
        };
        let (name, text) = match (&self.log, from_environment()) {
            (Some(text), _) => ("--log", text.clone()),
            (None, Some(text)) => ("RUST_LOG", text),
            (None, None) => ("--log", default.to_owned()),
        };
        let filter = EnvFilter::try_new(&text).map_err(|_| {
            Failure::new(
                Kind::Usage,
                format_args!("{name}: {text:?} is not a log filter; use off, error, warn, info, debug or trace, or one for each target, such as warn,driftless_server=debug"),
            )
        })?;
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal() && color::wanted())
            // It would panic if the standard error is closed.
            .log_internal_errors(false)
            .init();
        Ok(())
    }
}
