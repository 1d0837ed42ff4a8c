//! `driftless dev`: an etcd and a server on this machine, with nothing to configure.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_server::settings::{DEFAULT_ADMIN, DEFAULT_LISTEN, Setting};
use driftless_server::{Server, Settings};
use tempfile::TempDir;

use crate::etcd_process::{EtcdError, EtcdProcess, is_free};
use crate::exit::Failure;
use crate::http;
use crate::limits;
use crate::output::{self, Reader};
use crate::serve::{announcement, display_prefixes, run_until_stopped};
use crate::signals::StopSignals;

/// What is served unless told otherwise.
const DEFAULT_PREFIX: &str = "/config/";

/// How often to ask whether the server is in sync with etcd: short beside what a start takes.
const READY_POLL: Duration = Duration::from_millis(25);

/// Start an etcd and a server on this machine, to try things out
///
/// Starts the etcd that is on PATH, on loopback, and serves from it. Takes the usual ports (etcd
/// 2379 and 2380, the server 7400 and 7401), or free ones where they are in use, and prints what to
/// type next. Ctrl-C and SIGTERM stop both.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  driftless dev
  driftless dev --data-dir ./dev-data --prefix /config/ /flags/")]
pub(crate) struct Args {
    /// Where to keep etcd's data and log [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Prefixes to serve, none inside another [default: /config/]
    #[arg(long, value_name = "PREFIX", num_args = 1..)]
    prefix: Vec<String>,
}

/// Runs until a signal stops it, or etcd ends by itself.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let mut prefixes = args.prefix;
    if prefixes.is_empty() {
        prefixes.push(DEFAULT_PREFIX.to_owned());
    }
    // Before anything is started: what is wrong with them is known without it.
    settings(&prefixes, "http://127.0.0.1:2379", Ports::Free)?;
    limits::raise_descriptors();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    // On this, the main thread: etcd lives as long as the thread that starts it.
    let result = runtime.block_on(dev(args.data_dir, &prefixes));
    runtime.shutdown_background();
    result
}

async fn dev(data_dir: Option<PathBuf>, prefixes: &[String]) -> Result<(), Failure> {
    let mut signals = StopSignals::install_with_hangup()?;
    let dir = DataDir::open(data_dir)?;
    let mut etcd = match EtcdProcess::start(dir.path(), signals.next()).await {
        Ok(Some(etcd)) => etcd,
        Ok(None) => return Ok(()),
        Err(error) => return Err(dir.keep_for(error)),
    };
    let url = etcd.url();
    let served = tokio::select! {
        served = serve(prefixes, &url, dir.path(), &mut signals) => served,
        error = etcd.ended() => return Err(dir.keep_for(error)),
    };
    let again = tokio::select! {
        () = etcd.stop() => None,
        again = signals.next() => Some(again.at_once()),
    };
    if let Some(again) = again {
        etcd.kill().await;
        return Err(again);
    }
    served
}

/// Which ports a server takes.
#[derive(Clone, Copy)]
enum Ports {
    /// The usual ones, where nobody has them.
    Usual,
    Free,
}

fn settings(prefixes: &[String], etcd: &str, ports: Ports) -> Result<Settings, Failure> {
    let choose = |mut usual: SocketAddr| {
        if matches!(ports, Ports::Free) || !is_free(usual.port()) {
            usual.set_port(0);
        }
        usual
    };
    let settings = Settings::builder()
        .etcd(etcd)
        .flag(Setting::Prefix, prefixes.iter().cloned())?
        .listen(choose(DEFAULT_LISTEN))
        .admin(choose(DEFAULT_ADMIN))
        .build()?;
    Ok(settings)
}

/// Serves until a signal comes.
async fn serve(
    prefixes: &[String],
    etcd: &str,
    dir: &Path,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let usual = settings(prefixes, etcd, Ports::Usual)?;
    let served = display_prefixes(&usual);
    let server = match Server::bind(usual).await {
        Ok(server) => server,
        // Somebody else may have taken a port meanwhile.
        Err(_) => Server::bind(settings(prefixes, etcd, Ports::Free)?)
            .await
            .map_err(Failure::failed)?,
    };
    let admin = server.admin_addr();
    let mut text = announcement(&server, &served);
    text.push_str(&advice(&server, &prefixes[0], etcd, dir));
    // What it says to try works only when the server is in sync.
    let ready = async {
        while let Some(admin) = admin
            && !http::is_ok(admin, "/readyz").await
        {
            tokio::time::sleep(READY_POLL).await;
        }
        let (Reader::There | Reader::Gone) = output::write(text.as_bytes())?;
        std::future::pending::<Result<(), Failure>>().await
    };
    tokio::select! {
        failed = ready => failed,
        ended = run_until_stopped(server, signals) => ended,
    }
}

/// What to type next.
fn advice(server: &Server, prefix: &str, etcd: &str, dir: &Path) -> String {
    let driftless = std::env::args().next();
    let driftless = quoted(driftless.as_deref().unwrap_or("driftless"));
    let key = quoted(&format!("{prefix}greeting"));
    let prefix = quoted(prefix);
    let server = server.local_addr();
    let dir = dir.display();
    format!(
        "etcd on {etcd}, data and log in {dir}\n\
         \n\
         In other terminals:\n\
         \n\
         \x20 export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={etcd} DRIFTLESS_SERVER=http://{server}\n\
         \x20 {driftless} watch --prefix {prefix}\n\
         \x20 etcdctl put {key} hello\n\
         \x20 etcdctl del {key}\n\
         \n\
         Ctrl-C here stops both.\n"
    )
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", output::escaped(word).replace('\'', r"'\''"))
    }
}

/// Where etcd's data and log are.
enum DataDir {
    /// Removed at the end.
    Temporary(TempDir),
    /// The user's, and locked, so that two runs do not share it.
    Given { path: PathBuf, _lock: File },
}

impl DataDir {
    fn open(given: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = given else {
            return tempfile::Builder::new()
                .prefix("driftless-dev-")
                .tempdir()
                .map(Self::Temporary)
                .map_err(|error| Failure::system("make a temporary folder", &error));
        };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format_args!(
                "--data-dir: cannot use {}: {error}",
                path.display()
            ))
        };
        fs::create_dir_all(&path).map_err(|error| failed(&error))?;
        let lock = File::create(path.join("lock")).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self::Given { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(failed(
                &"another driftless dev uses it; stop that, or name another folder",
            )),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Given { path, .. } => path,
        }
    }

    /// Leaves it where it is when the error refers to the log in it.
    fn keep_for(self, error: EtcdError) -> Failure {
        if let Self::Temporary(dir) = self
            && error.has_log()
        {
            let _kept = dir.keep();
        }
        Failure::failed(error)
    }
}
