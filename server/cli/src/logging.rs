//! Logs to the standard error, without waiting for who reads it.
//!
//! No crate logs values at any level, so no target is filtered out. `tests/secrets` checks this build
//! with a canary. If an update of a dependency starts to log values, cap its target here.

use std::io::{self, IsTerminal};

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

use crate::color;
use crate::exit::{Failure, Kind};
use crate::rate_limit::RateLimitLayer;
use crate::stderr::LogLines;

/// What the filter begins with. h2 and hyper warn of what any client can do at will. A filter that
/// names them replaces this.
const QUIET: &str = "h2=error,hyper=error,";

/// The filter that logs nothing, not even what [`QUIET`] would.
const OFF: &str = "off";

/// What to log.
#[derive(Debug, clap::Args)]
pub(crate) struct LogArgs {
    /// What to log to the standard error, such as "debug" or "warn,driftless_server=trace"; beats
    /// RUST_LOG [default: info for serve, warn for dev, error otherwise]
    ///
    /// h2 and hyper log errors only, unless the filter names them. One place in the code logs at most
    /// 50 lines in 10 s, except at "trace", and what is left out is counted.
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
        let quiet = if text == OFF { "" } else { QUIET };
        let filter = EnvFilter::try_new(format!("{quiet}{text}")).map_err(|_| {
            Failure::new(
                Kind::Usage,
                format_args!("{name}: {text:?} is not a log filter; use off, error, warn, info, debug or trace, or one for each target, such as warn,driftless_server=debug"),
            )
        })?;
        let lines = fmt::layer()
            .with_writer(|| LogLines)
            .with_ansi(io::stderr().is_terminal() && color::wanted())
            .log_internal_errors(false);
        tracing_subscriber::registry()
            .with(filter)
            .with(RateLimitLayer)
            .with(lines)
            .init();
        Ok(())
    }
}
