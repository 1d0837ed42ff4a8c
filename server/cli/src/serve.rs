//! `driftless serve`: settings from flags, environment and file, then a server until it is stopped.

use std::path::PathBuf;
use std::pin::pin;

use clap::{Arg, ArgAction};
use driftless_server::settings::{DEFAULT_ADMIN, MemoryLimit, Setting};
use driftless_server::{ServeError, Server, Settings, SettingsError};
use tokio_util::sync::CancellationToken;

use crate::allocator;
use crate::exit::Failure;
use crate::limits;
use crate::output;
use crate::signals::StopSignals;

/// Watch etcd prefixes and push what changes to clients
///
/// Each setting can be given as a flag, as an environment variable (DRIFTLESS_LOG_BYTES for
/// --log-bytes; lists separated by commas) and in a TOML file (log_bytes). Flags override the
/// environment, which overrides the file. While etcd cannot be reached, at the start too, the server
/// keeps trying. SIGTERM and Ctrl-C end it within 10 s; a second one ends it at once. SIGHUP has no
/// effect.
#[derive(Debug, clap::Args)]
#[command(
    allow_negative_numbers = true,
    after_long_help = "\
Examples:
  driftless serve --etcd http://127.0.0.1:2379 --prefix /config/
  driftless serve --config /etc/driftless.toml --listen 0.0.0.0:7400
  driftless serve --etcd http://127.0.0.1:2379 --prefix /config/ --listen 0.0.0.0:7400 \\
    --tls-cert server.pem --tls-key server.key --tls-client-ca ca.pem

A settings file:
  etcd = [\"http://10.0.0.1:2379\", \"http://10.0.0.2:2379\"]
  prefix = [\"/config/\", \"/flags/\"]
  listen = \"0.0.0.0:7400\""
)]
pub(crate) struct Args {
    /// A TOML file with settings
    #[arg(long, value_name = "FILE", env = "DRIFTLESS_CONFIG")]
    config: Option<PathBuf>,

    #[command(flatten)]
    flags: SettingFlags,
}

/// One flag for each setting, with the help of its declaration.
#[derive(Debug)]
struct SettingFlags(Vec<(Setting, Vec<String>)>);

impl clap::Args for SettingFlags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(Setting::ALL.map(flag))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let given = Setting::ALL.map(|setting| {
            let texts = matches.get_many(setting.name());
            (setting, texts.into_iter().flatten().cloned().collect())
        });
        Ok(Self(given.into()))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn flag(setting: Setting) -> Arg {
    let mut help = setting.summary();
    if let Some(default) = setting.default_text() {
        help.push_str(&format!(" [default: {default}]"));
    }
    let arg = Arg::new(setting.name())
        .long(setting.name().replace('_', "-"))
        .value_name(setting.placeholder())
        .help(help);
    if setting.is_list() {
        arg.action(ArgAction::Append).num_args(1..)
    } else {
        arg.action(ArgAction::Set)
    }
}

impl Args {
    fn settings(self) -> Result<Settings, SettingsError> {
        let mut builder = Settings::builder()
            .admin(DEFAULT_ADMIN)
            .memory_limit(MemoryLimit::Cgroup);
        if let Some(path) = &self.config {
            builder = builder.file(path)?;
        }
        builder = builder.environment(std::env::vars_os())?;
        for (setting, texts) in self.flags.0 {
            builder = builder.flag(setting, texts)?;
        }
        builder.build()
    }
}

/// While the limit on open descriptors allows so many connections, nothing is said about it to who did
/// not set `max_connections`: its default is more than most servers need.
const ENOUGH_CONNECTIONS: usize = 1000;

/// Runs until a signal stops it.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let settings = args.settings()?;
    allocator::return_freed_memory();
    let descriptors = limits::raise_descriptors();
    let most = limits::connections(descriptors, settings.prefixes().len())?;
    let wanted = settings.max_connections();
    let is_default = Setting::MaxConnections.default_text() == Some(&wanted.to_string());
    if most < wanted && !(is_default && most >= ENOUGH_CONNECTIONS) {
        tracing::warn!(
            connections = most,
            max_connections = wanted,
            "the limit on open descriptors allows fewer connections than max_connections"
        );
    }
    let settings = settings.with_connections_at_most(most);
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    let result = runtime.block_on(serve(settings));
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    let mut signals = StopSignals::install_without_hangup()?;
    let served = display_prefixes(&settings);
    let server = tokio::select! {
        server = Server::bind(settings) => server.map_err(Failure::failed)?,
        _ = signals.next() => return Ok(()),
    };
    output::announce(announcement(&server, &served));
    run_until_stopped(server, &mut signals).await
}

/// Serves until a signal comes, then waits for streams to end. A second signal ends it at once.
pub(crate) async fn run_until_stopped(
    server: Server,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let shutdown = CancellationToken::new();
    let mut running = pin!(server.run(shutdown.clone()));
    let stop = tokio::select! {
        ended = &mut running => return ended.map_err(Failure::failed),
        stop = signals.next() => stop,
    };
    tracing::info!(signal = stop.name, "stopping");
    shutdown.cancel();
    let ended = tokio::select! {
        ended = &mut running => ended,
        again = signals.next() => return Err(again.at_once()),
    };
    match ended {
        // A client that did not go is not a failure to stop.
        Err(error @ ServeError::CutOff { .. }) => {
            tracing::warn!("{error}");
            Ok(())
        }
        ended => ended.map_err(Failure::failed),
    }
}

/// The line that says where the server listens, with the real ports.
pub(crate) fn announcement(server: &Server, served: &str) -> String {
    let admin = server
        .admin_addr()
        .map(|admin| format!(", admin on http://{admin}"))
        .unwrap_or_default();
    let scheme = if server.is_tls() { "https" } else { "http" };
    format!(
        "serving {served} on {scheme}://{}{admin}\n",
        server.local_addr()
    )
}

/// The served prefixes, for people.
pub(crate) fn display_prefixes(settings: &Settings) -> String {
    let prefixes: Vec<_> = settings
        .prefixes()
        .iter()
        .map(|prefix| prefix.start().to_string())
        .collect();
    prefixes.join(", ")
}
