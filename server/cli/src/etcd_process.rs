//! Runs etcd as a child process, for `dev`: on loopback, in its own process group, and never left
//! behind.
//!
//! Ctrl-C on a terminal reaches a whole process group. In its own group, etcd runs until the server has
//! stopped. If this process is killed, the kernel kills etcd: the child is this program again, which
//! asks the kernel for that and then becomes etcd ([`guard`]). The kernel ties the child to the thread
//! that started it, so call [`EtcdProcess::start`] on the main thread, which ends with the process.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::exit::Failure;
use crate::http;

/// The hidden subcommand that becomes another program.
pub(crate) const GUARD_COMMAND: &str = "__with-parent";

/// etcd's usual port for clients.
pub(crate) const CLIENT_PORT: u16 = 2379;

/// etcd's usual port for other members.
const PEER_PORT: u16 = 2380;

/// How long a start may take. Usually it takes less than a second, but more to replay a large log from
/// a slow disk.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// How often to ask whether etcd is ready. Short compared with a start.
const READY_POLL: Duration = Duration::from_millis(25);

/// How long a stop may take before etcd is killed.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// How many times to try other ports if another process took the free ones. One more try usually
/// succeeds; if all fail, the cause is another.
const PORT_ATTEMPTS: usize = 5;

/// How much of etcd's log is read to learn why it ended.
const LOG_END_BYTES: u64 = 4096;

/// Why there is no running etcd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum EtcdError {
    /// There is no such program.
    #[error(
        "etcd is not on PATH: apt-get install etcd-server (Debian, Ubuntu), brew install etcd (macOS), or https://github.com/etcd-io/etcd/releases"
    )]
    NotOnPath,
    /// The system could not start it.
    #[error("cannot start etcd: {0}")]
    Start(#[source] io::Error),
    /// It ended by itself.
    #[error("etcd ended by itself ({status}); its log is {}", log.display())]
    Ended { status: ExitStatus, log: PathBuf },
    /// It runs but does not answer.
    #[error("etcd was not ready within {READY_WITHIN:?}; its log is {}", log.display())]
    NotReady { log: PathBuf },
}

impl EtcdError {
    /// True if the message refers to the log.
    pub(crate) const fn has_log(&self) -> bool {
        matches!(self, Self::Ended { .. } | Self::NotReady { .. })
    }
}

/// A running etcd. Dropping it kills etcd without waiting; [`EtcdProcess::stop`] stops it in order.
#[derive(Debug)]
pub(crate) struct EtcdProcess {
    child: Child,
    client: SocketAddr,
    log: PathBuf,
}

impl EtcdProcess {
    /// Starts etcd with its data and log in `dir`, on the default ports, or on free ones if those are in
    /// use. Returns when etcd answers. If `interrupted` completes first, stops etcd and returns `None`.
    /// Call it on the main thread.
    ///
    /// # Errors
    /// When there is no etcd, or it does not start.
    ///
    /// # Cancel safety
    /// Dropping the future kills etcd without waiting.
    pub(crate) async fn start<T>(
        dir: &Path,
        interrupted: impl Future<Output = T>,
    ) -> Result<Option<Self>, EtcdError> {
        debug_assert_eq!(
            rustix::thread::gettid(),
            rustix::process::getpid(),
            "the child dies with the thread that starts it"
        );
        let program = find_on_path("etcd").ok_or(EtcdError::NotOnPath)?;
        let mut interrupted = pin!(interrupted);
        let mut attempt = 1;
        loop {
            let mut etcd = Self::spawn(&program, dir).map_err(EtcdError::Start)?;
            let ready = tokio::select! {
                ready = etcd.ready() => ready,
                _ = &mut interrupted => {
                    etcd.kill().await;
                    return Ok(None);
                }
            };
            match ready {
                Err(EtcdError::Ended { log, .. })
                    if attempt < PORT_ATTEMPTS && says_address_in_use(&log) =>
                {
                    attempt += 1;
                }
                Err(error) => {
                    etcd.kill().await;
                    return Err(error);
                }
                Ok(()) => return Ok(Some(etcd)),
            }
        }
    }

    /// Its URL for clients.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Waits until etcd ends by itself, which is an error.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn ended(&mut self) -> EtcdError {
        match self.child.wait().await {
            Ok(status) => EtcdError::Ended {
                status,
                log: self.log.clone(),
            },
            Err(error) => EtcdError::Start(error),
        }
    }

    /// Asks etcd to stop, kills it if it does not, and waits for its end.
    ///
    /// # Cancel safety
    /// Cancel-safe: it has been told, and can be told again.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::TERM);
        if tokio::time::timeout(STOP_WITHIN, self.child.wait())
            .await
            .is_err()
        {
            tracing::warn!("etcd does not stop, killing it");
            self.kill().await;
        }
    }

    /// Kills it and waits for its end, which follows at once.
    ///
    /// # Cancel safety
    /// Cancel-safe: it will have been killed.
    pub(crate) async fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Err(error) = self.child.wait().await {
            tracing::warn!(%error, "cannot wait for etcd's end");
        }
    }

    fn spawn(program: &Path, dir: &Path) -> io::Result<Self> {
        let client = free_address(CLIENT_PORT)?;
        let mut peer = free_address(PEER_PORT)?;
        while peer == client {
            peer = free_address(0)?;
        }
        let log_path = dir.join("etcd.log");
        let log = File::create(&log_path)?;
        let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
        let name = "driftless-dev";
        // What `current_exe` names may have been replaced by a build meanwhile; this cannot.
        let mut command = Command::new(if cfg!(target_os = "linux") {
            PathBuf::from("/proc/self/exe")
        } else {
            std::env::current_exe()?
        });
        command
            .arg(GUARD_COMMAND)
            .arg(rustix::process::getpid().as_raw_nonzero().to_string())
            .arg(program)
            .args(["--name", name])
            .arg("--data-dir")
            .arg(dir.join("etcd"))
            .args(["--listen-client-urls", &client_url])
            .args(["--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url])
            .args(["--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("{name}={peer_url}")])
            .args(["--logger", "zap"]);
        // Settings of another etcd, for which the user's environment has them.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("ETCD_") {
                command.env_remove(variable);
            }
        }
        let child = command
            // etcd 3.4 starts on 64-bit ARM only when told that this is meant.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(Self {
            child,
            client,
            log: log_path,
        })
    }

    /// Waits until it answers.
    async fn ready(&mut self) -> Result<(), EtcdError> {
        let client = self.client;
        let answers = async {
            while !http::is_ok(client, "/health").await {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        tokio::select! {
            biased;
            error = self.ended() => Err(error),
            answers = tokio::time::timeout(READY_WITHIN, answers) => {
                answers.map_err(|_| EtcdError::NotReady { log: self.log.clone() })
            }
        }
    }

    /// To its process group, which is named by its id, unless it has ended already.
    fn signal(&self, signal: Signal) {
        let group = self
            .child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw);
        if let Some(group) = group
            && let Err(error) = kill_process_group(group, signal)
        {
            tracing::debug!(%error, "cannot signal etcd");
        }
    }
}

/// What the hidden subcommand is told.
#[derive(Debug, clap::Args)]
pub(crate) struct GuardArgs {
    /// The process to die with
    parent: i32,

    /// The program to become, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    program: Vec<OsString>,
}

/// Asks the kernel for an end of this process together with its parent's, and becomes the program.
/// Returns only when that fails.
pub(crate) fn guard(args: &GuardArgs) -> Failure {
    // SIGKILL and not SIGTERM: it works on a stopped process too, and etcd is made to survive it.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return Failure::system("tie etcd to its parent", &error.into());
    }
    // The parent may have died before that.
    if rustix::process::getppid() != Pid::from_raw(args.parent) {
        return Failure::failed("the parent is gone");
    }
    let Some((program, arguments)) = args.program.split_first() else {
        return Failure::failed("no program");
    };
    let error = std::process::Command::new(program).args(arguments).exec();
    Failure::system("run etcd", &error)
}

/// The usual port on loopback, or where that is in use a free one.
fn free_address(usual: u16) -> io::Result<SocketAddr> {
    let port = if is_free(usual) { usual } else { 0 };
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))?.local_addr()
}

/// Whether nobody listens on a port of loopback.
pub(crate) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn find_on_path(program: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;

    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

fn says_address_in_use(log: &Path) -> bool {
    let read = || {
        let mut file = OpenOptions::new().read(true).open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))?;
        let mut end = Vec::new();
        file.take(LOG_END_BYTES).read_to_end(&mut end)?;
        Ok::<_, io::Error>(end)
    };
    read().is_ok_and(|end| String::from_utf8_lossy(&end).contains("address already in use"))
}
