//! `driftless dev`: an etcd and a server on this machine, without configuration.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use driftless_server::settings::{DEFAULT_ADMIN, DEFAULT_LISTEN, Setting};
use driftless_server::{Server, Settings};
use tempfile::TempDir;

use crate::allocator;
use crate::etcd_process::{self, EtcdError, EtcdProcess, is_free};
use crate::exit::Failure;
use crate::http;
use crate::limits;
use crate::output::{self, Reader};
use crate::serve::{announcement, display_prefixes, run_until_stopped};
use crate::signals::StopSignals;

/// The prefix that is served by default.
const DEFAULT_PREFIX: &str = "/config/";

/// The start of the names of temporary folders.
const TEMPORARY: &str = "driftless-dev-";

/// The file that a run keeps locked while it uses the folder.
const LOCK: &str = "lock";

/// How often to ask whether the server is in sync with etcd. Short compared with a start.
const READY_POLL: Duration = Duration::from_millis(25);

/// Start an etcd and a server on this machine, to try things out
///
/// Starts the etcd on PATH, on loopback, and serves from it. Uses the default ports (etcd 2379 and
/// 2380, the server 7400 and 7401), or free ones if those are in use, and prints what to type next.
/// Ctrl-C and SIGTERM stop both.
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
    // Checked before anything is started.
    settings(&prefixes, "http://127.0.0.1:2379", Ports::Free)?;
    limits::raise_descriptors();
    allocator::return_freed_memory();
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| Failure::system("start the runtime", &error))?;
    // On the main thread: the system ends etcd with the thread that started it.
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
        served = serve(prefixes, &url, &dir, &mut signals) => served,
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
    /// The default ports, if they are free.
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
    dir: &DataDir,
    signals: &mut StopSignals,
) -> Result<(), Failure> {
    let usual = settings(prefixes, etcd, Ports::Usual)?;
    let served = display_prefixes(&usual);
    let server = match Server::bind(usual).await {
        Ok(server) => server,
        // Another process may have taken a port meanwhile.
        Err(_) => Server::bind(settings(prefixes, etcd, Ports::Free)?)
            .await
            .map_err(Failure::failed)?,
    };
    let admin = server.admin_addr();
    let mut text = announcement(&server, &served);
    text.push_str(&advice(&server, &prefixes[0], etcd, dir));
    // The commands that it prints work only once the server is in sync.
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

/// Which default ports are in use, and which ports replace them.
fn moved(server: &Server, etcd: &str) -> String {
    let etcd = etcd
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    [
        ("etcd", Some(etcd_process::CLIENT_PORT), etcd),
        (
            "the server",
            Some(DEFAULT_LISTEN.port()),
            Some(server.local_addr().port()),
        ),
        (
            "admin",
            Some(DEFAULT_ADMIN.port()),
            server.admin_addr().map(|address| address.port()),
        ),
    ]
    .into_iter()
    .filter_map(|(who, usual, taken)| Some((who, usual?, taken?)))
    .filter(|(_, usual, taken)| usual != taken)
    .map(|(who, usual, taken)| format!("port {usual} is in use: {who} uses {taken} instead\n"))
    .collect()
}

/// What to type next.
fn advice(server: &Server, prefix: &str, etcd: &str, dir: &DataDir) -> String {
    let driftless = std::env::args().next();
    let driftless = quoted(driftless.as_deref().unwrap_or("driftless"));
    let key = quoted(&format!("{prefix}greeting"));
    let prefix = quoted(prefix);
    let moved = moved(server, etcd);
    let server = server.local_addr();
    let keys = match dir {
        DataDir::Temporary { .. } => "this deletes the keys, and --data-dir DIR keeps them",
        DataDir::Given { .. } => "the keys stay",
    };
    let dir = dir.path().display();
    format!(
        "etcd on {etcd}, data and log in {dir}\n\
         {moved}\
         \n\
         In other terminals:\n\
         \n\
         \x20 export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={etcd} DRIFTLESS_SERVER=http://{server}\n\
         \x20 {driftless} watch --prefix {prefix}\n\
         \x20 etcdctl put {key} hello\n\
         \x20 etcdctl del {key}\n\
         \n\
         Ctrl-C here stops both; {keys}.\n"
    )
}

/// Quoted for a shell, as one word.
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
    /// Removed at the end. If this run is killed, the system releases the lock, and the next run removes
    /// the folder.
    Temporary { dir: TempDir, _lock: File },
    /// The user's folder, locked so that two runs do not share it.
    Given { path: PathBuf, _lock: File },
}

impl DataDir {
    fn open(given: Option<PathBuf>) -> Result<Self, Failure> {
        let Some(path) = given else {
            let all = std::env::temp_dir();
            remove_abandoned(&all);
            return Self::temporary(&all)
                .map_err(|error| Failure::system("make a temporary folder", &error));
        };
        let failed = |error: &dyn std::fmt::Display| {
            Failure::failed(format_args!(
                "--data-dir: cannot use {}: {error}",
                path.display()
            ))
        };
        fs::create_dir_all(&path).map_err(|error| {
            if path.exists() {
                failed(&"it is not a folder; name another")
            } else {
                failed(&error)
            }
        })?;
        let lock = File::create(path.join(LOCK)).map_err(|error| failed(&error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self::Given { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(failed(
                &"another driftless dev uses it; stop that, or name another folder",
            )),
            Err(TryLockError::Error(error)) => Err(failed(&error)),
        }
    }

    fn temporary(all: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(all)?;
        // Renamed only once it is locked: another run removes a folder whose lock is free.
        let unlocked = dir.path().join("unlocked");
        let lock = File::create(&unlocked)?;
        lock.try_lock()?;
        fs::rename(unlocked, dir.path().join(LOCK))?;
        Ok(Self::Temporary { dir, _lock: lock })
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary { dir, .. } => dir.path(),
            Self::Given { path, .. } => path,
        }
    }

    /// Keeps the folder if the error refers to the log in it.
    fn keep_for(self, error: EtcdError) -> Failure {
        if let Self::Temporary { dir, .. } = self
            && error.has_log()
        {
            // Without a lock file, no run takes it for abandoned.
            let _ = fs::remove_file(dir.path().join(LOCK));
            let _kept = dir.keep();
        }
        Failure::failed(error)
    }
}

/// Removes the folders of runs that were killed. A folder that cannot be removed yet, for example
/// because its etcd is still ending, is left to the next run.
fn remove_abandoned(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes())
            && let Some(_lock) = lock_abandoned(&entry.path())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::debug!(folder = %entry.path().display(), %error, "cannot remove");
        }
    }
}

/// The lock of a temporary folder that belongs to this user and that no process uses.
fn lock_abandoned(folder: &Path) -> Option<File> {
    // Does not follow links.
    let found = fs::symlink_metadata(folder).ok()?;
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return None;
    }
    let lock = File::open(folder.join(LOCK)).ok()?;
    lock.try_lock().ok()?;
    Some(lock)
}
