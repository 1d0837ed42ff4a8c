//! `driftless serve`: settings from flags, environment and file, then a server until it is stopped.

use std::path::PathBuf;
use std::pin::pin;

use driftless_server::settings::{DEFAULT_ADMIN, Setting};
use driftless_server::{ServeError, Server, Settings, SettingsError};
use tokio_util::sync::CancellationToken;

use crate::exit::Failure;
use crate::limits;
use crate::output::{self, Reader};
use crate::signals::StopSignals;

/// Watch etcd prefixes and push what changes to clients
///
/// Each setting can be given as a flag, as an environment variable (DRIFTLESS_LOG_BYTES for
/// --log-bytes; lists separated by commas) and in a TOML file (log_bytes). Flags beat the
/// environment, which beats the file, which beats the default. It keeps trying while etcd cannot be
/// reached, also at the start. SIGTERM and Ctrl-C end it within 10 s; a second one at once.
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

    /// URLs of the members of one etcd cluster
    #[arg(long, value_name = "URL", num_args = 1..)]
    etcd: Vec<String>,

    /// Prefixes to serve, none inside another
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    prefix: Vec<String>,

    /// Where to serve gRPC; port 0 takes a free one [default: 127.0.0.1:7400]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// Where to serve /healthz, /readyz and /metrics, or "off" [default: 127.0.0.1:7401]
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,

    /// Serve gRPC over TLS only, with this certificate (PEM); read anew when it changes [default: no TLS]
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,

    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,

    /// Let in only clients with a certificate of a CA in this file (PEM) [default: anybody]
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<String>,

    /// Change it on all servers after etcd was restored from a backup [default: empty]
    #[arg(long, value_name = "TEXT")]
    generation: Option<String>,

    /// Memory for recent changes, for clients that were away [default: 64MiB]
    #[arg(long, value_name = "BYTES")]
    log_bytes: Option<String>,

    /// How often an idle stream says that it is alive [default: 10s]
    #[arg(long, value_name = "TIME")]
    progress_interval: Option<String>,

    /// How often a connection is checked [default: 20s]
    #[arg(long, value_name = "TIME")]
    ping_interval: Option<String>,

    /// How often clients report what became of what they got [default: 10s]
    #[arg(long, value_name = "TIME")]
    report_interval: Option<String>,

    /// How often the state is compared with what etcd holds, on average; or "off" [default: 10m]
    #[arg(long, value_name = "TIME")]
    audit_interval: Option<String>,

    /// How long a client may leave unread what it asked for [default: 2m]
    #[arg(long, value_name = "TIME")]
    stall_timeout: Option<String>,

    /// How long a shutdown waits for streams to end [default: 8s]
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,

    /// Connections at a time; more wait [default: 65536]
    #[arg(long, value_name = "NUMBER")]
    max_connections: Option<String>,
}

impl Args {
    fn settings(self) -> Result<Settings, SettingsError> {
        let mut builder = Settings::builder().admin(DEFAULT_ADMIN);
        if let Some(path) = &self.config {
            builder = builder.file(path)?;
        }
        builder
            .environment(std::env::vars_os())?
            .flag(Setting::Etcd, self.etcd)?
            .flag(Setting::Prefix, self.prefix)?
            .flag(Setting::Listen, self.listen)?
            .flag(Setting::Admin, self.admin)?
            .flag(Setting::TlsCert, self.tls_cert)?
            .flag(Setting::TlsKey, self.tls_key)?
            .flag(Setting::TlsClientCa, self.tls_client_ca)?
            .flag(Setting::Generation, self.generation)?
            .flag(Setting::LogBytes, self.log_bytes)?
            .flag(Setting::ProgressInterval, self.progress_interval)?
            .flag(Setting::PingInterval, self.ping_interval)?
            .flag(Setting::ReportInterval, self.report_interval)?
            .flag(Setting::AuditInterval, self.audit_interval)?
            .flag(Setting::StallTimeout, self.stall_timeout)?
            .flag(Setting::DrainTimeout, self.drain_timeout)?
            .flag(Setting::MaxConnections, self.max_connections)?
            .build()
    }
}

/// Runs until a signal stops it.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let settings = args.settings()?;
    limits::raise_descriptors();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    let result = runtime.block_on(serve(settings));
    runtime.shutdown_background();
    result
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    let mut signals = StopSignals::install()?;
    let served = display_prefixes(&settings);
    let server = tokio::select! {
        server = Server::bind(settings) => server.map_err(Failure::failed)?,
        _ = signals.next() => return Ok(()),
    };
    // Nobody has to read it.
    let (Reader::There | Reader::Gone) = output::write(announcement(&server, &served).as_bytes())?;
    run_until_stopped(server, &mut signals).await
}

/// Serves until a signal comes, and then for as long as streams take to end; a second signal ends
/// it at once.
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

/// Says where the server listens, with the real ports.
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
