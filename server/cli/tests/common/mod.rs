//! What tests of the real binary share: processes that end with the test, and waiting for conditions.
//!
//! Each test has processes of its own, on free ports of loopback, so that tests run in parallel.
//! Everything is ended on drop, also while a panic unwinds; and should the test's own process be
//! killed, the kernel ends them: they are started through the hidden subcommand that `dev` starts
//! etcd with. It follows the thread that starts them, so a process must not outlive its test's
//! thread.

// Each test binary uses a part of it.
#![allow(dead_code)]

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long anything may take before a test fails: far more than it does on a busy machine, because
/// reaching it is the only way for a test to be wrong about a process that works.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition that nothing announces.
const POLL: Duration = Duration::from_millis(20);

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until `look` finds something, and returns it.
///
/// # Panics
/// When it does not within [`PATIENCE`].
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// A free port of loopback; somebody else may take it before it is used.
///
/// One below those that the kernel picks for outgoing connections: nothing gets it by chance while
/// what listened there is restarted.
pub(crate) fn free_port() -> u16 {
    /// Linux's default for the lowest of them.
    const EPHEMERAL: u16 = 32_768;
    const LOWEST: u16 = 10_000;
    wait_for("loopback has a free port", || {
        let random = RandomState::new().build_hasher().finish();
        let offset = u16::try_from(random % u64::from(EPHEMERAL - LOWEST)).ok()?;
        let port = LOWEST + offset;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}

/// The binary under test, with nothing of the environment that it would listen to.
pub(crate) fn driftless() -> Command {
    guarded(env!("CARGO_BIN_EXE_driftless"))
}

/// A program that the kernel kills together with the thread that starts it.
pub(crate) fn guarded(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_driftless"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if ["DRIFTLESS_", "ETCD", "RUST_LOG", "NO_COLOR"]
            .iter()
            .any(|start| name_text.starts_with(start))
        {
            command.env_remove(name);
        }
    }
    command
        .arg("__with-parent")
        .arg(std::process::id().to_string())
        .arg(program);
    command
}

/// Runs to the end.
///
/// # Panics
/// When that takes longer than [`PATIENCE`].
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Finished {
    Process::spawn(command).finish()
}

/// What a process said and how it ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A running process, whose output is read all the time.
pub(crate) struct Process {
    child: Child,
    lines: Receiver<String>,
    errors: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts it without input.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let mut process = Self::spawn_unread(command);
        let stdout = process.child.stdout.take().expect("it is piped");
        let (send, lines) = mpsc::channel();
        process.lines = lines;
        process.readers.push(std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line);
                let text = text.strip_suffix('\n').unwrap_or(&text);
                if send.send(text.to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        }));
        process
    }

    /// Starts it and leaves its output unread, for [`take_stdout`](Self::take_stdout).
    pub(crate) fn spawn_unread(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut stderr = child.stderr.take().expect("it is piped");
        let errors = Arc::new(Mutex::new(String::new()));
        let sink = Arc::clone(&errors);
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..n]);
                sink.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        Self {
            child,
            lines: mpsc::channel().1,
            errors,
            readers: vec![reader],
        }
    }

    /// The end of the pipe that nobody reads yet.
    pub(crate) fn take_stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().expect("it was not taken")
    }

    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id is an int")
    }

    /// The next line of the standard output.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(why) => panic!("no line ({why}); standard error:\n{}", self.stderr()),
        }
    }

    /// Reads lines up to one that holds `text`, and returns them all.
    #[track_caller]
    pub(crate) fn lines_to(&mut self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            lines.push(self.line());
            if lines.last().is_some_and(|line| line.contains(text)) {
                return lines;
            }
        }
    }

    /// The next line, parsed as JSON.
    #[track_caller]
    pub(crate) fn json(&mut self) -> serde_json::Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Whether no line has come that was not read.
    pub(crate) fn is_quiet(&self) -> bool {
        match self.lines.recv_timeout(Duration::ZERO) {
            Ok(line) => panic!("a line too many: {line}"),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => true,
        }
    }

    /// All that it said on the standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.errors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("not zero");
        kill_process(pid, signal).expect("it is there until it was waited for");
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is a child") {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "it does not end; standard error:\n{}",
                self.stderr()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits for its end and takes the rest of what it said.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        let status = self.wait();
        let mut stdout = String::new();
        for line in self.lines.iter() {
            stdout.push_str(&line);
            stdout.push('\n');
        }
        for reader in self.readers.drain(..) {
            reader.join().expect("readers do not panic");
        }
        Finished {
            status,
            stdout,
            stderr: self.stderr(),
        }
    }
}

impl Drop for Process {
    // Output is how a failed test explains itself.
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of {}:\n{}", self.pid(), self.stderr());
        }
    }
}

/// Stops a process as a debugger would: from then on it reads and answers nothing.
///
/// # Panics
/// When it does not stop.
#[track_caller]
pub(crate) fn pause(pid: i32) {
    kill_process(Pid::from_raw(pid).expect("not zero"), Signal::STOP).expect("it runs");
    // The signal is not yet the deed, and each thread stops by itself.
    wait_until("all of its threads stop", || {
        std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| {
            threads
                .flatten()
                .all(|thread| state(&thread.path().join("stat")) == Some('T'))
        })
    });
}

/// Whether a process runs: it exists and is no zombie that nobody has waited for.
pub(crate) fn is_running(pid: i32) -> bool {
    let state = state(Path::new(&format!("/proc/{pid}/stat")));
    !matches!(state, None | Some('Z' | 'X'))
}

/// The state of a process or thread, as the kernel abbreviates it.
fn state(stat: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(stat).ok()?;
    // "pid (name) state …", and the name may hold anything.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// The processes whose parent is `pid`.
pub(crate) fn children_of(pid: i32) -> Vec<i32> {
    let parent = |candidate: &i32| -> Option<i32> {
        let stat = std::fs::read_to_string(format!("/proc/{candidate}/stat")).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.split_whitespace().nth(1)?.parse().ok()
    };
    std::fs::read_dir("/proc")
        .expect("it is Linux")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|candidate| parent(candidate) == Some(pid))
        .collect()
}

/// Asks over HTTP; the status and the body, or `None` when there is no answer.
pub(crate) fn http_get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// A real etcd with a data folder of its own.
pub(crate) struct EtcdProcess {
    process: Option<Process>,
    dir: tempfile::TempDir,
    client: SocketAddr,
    peer: SocketAddr,
}

impl EtcdProcess {
    /// Starts one and waits until it answers.
    #[track_caller]
    pub(crate) fn start() -> Self {
        // Somebody may take a port between our looking and etcd's binding.
        for _ in 0..5 {
            let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
            let mut etcd = Self {
                process: None,
                dir: tempfile::tempdir().expect("there is a folder for temporary files"),
                client: address(free_port()),
                peer: address(free_port()),
            };
            if etcd.try_resume() {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.client
    }

    /// Its process. It must run.
    pub(crate) fn pid(&self) -> i32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// What etcd itself counts: the value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = http_get(self.client, "/metrics")?;
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    /// Kills it; its data stays.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again, on the same ports and data.
    #[track_caller]
    pub(crate) fn resume(&mut self) {
        wait_until("etcd starts again", || self.try_resume());
    }

    /// Runs etcdctl and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub(crate) fn ctl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        self.ctl_with(arguments, b"")
    }

    /// Runs etcdctl with input, such as a value that is not text.
    #[track_caller]
    pub(crate) fn ctl_with<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> String {
        etcdctl(&self.url(), arguments, input)
    }

    #[track_caller]
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.ctl(["put", "--", key, value]);
    }

    #[track_caller]
    pub(crate) fn delete(&self, key: &str) {
        self.ctl(["del", "--", key]);
    }

    /// The revision now.
    #[track_caller]
    pub(crate) fn revision(&self) -> i64 {
        let text = self.ctl(["get", "/", "--write-out=json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).expect("etcdctl prints JSON");
        answer["header"]["revision"].as_i64().expect("a revision")
    }

    /// A copy of its data. It must not run.
    #[track_caller]
    pub(crate) fn backup(&self) -> tempfile::TempDir {
        assert!(self.process.is_none(), "it must not run");
        let backup = tempfile::tempdir().expect("there is a folder for temporary files");
        copy(&self.data(), &backup.path().join("data"));
        backup
    }

    /// Puts a backup in place of its data. It must not run.
    #[track_caller]
    pub(crate) fn restore(&mut self, backup: &tempfile::TempDir) {
        assert!(self.process.is_none(), "it must not run");
        std::fs::remove_dir_all(self.data()).expect("it has data");
        copy(&backup.path().join("data"), &self.data());
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn try_resume(&mut self) -> bool {
        let (client, peer) = (self.url(), format!("http://{}", self.peer));
        let mut process = Process::spawn(
            guarded_on_path("etcd")
                // etcd 3.4 starts on 64-bit ARM only when told that this is meant.
                .env("ETCD_UNSUPPORTED_ARCH", "arm64")
                .args(["--name", "test", "--logger", "zap", "--log-level", "error"])
                .arg("--data-dir")
                .arg(self.data())
                // Nothing here has to outlive the machine.
                .arg("--unsafe-no-fsync")
                .args(["--listen-client-urls", &client])
                .args(["--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer])
                .args(["--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &format!("test={peer}")]),
        );
        let started = wait_for("etcd answers or ends", || {
            match http_get(self.client, "/health") {
                Some((200, _)) => Some(true),
                _ => process
                    .child
                    .try_wait()
                    .expect("it is a child")
                    .map(|_| false),
            }
        });
        if started {
            self.process = Some(process);
        }
        started
    }
}

#[track_caller]
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-r").args([from, to]).status();
    assert!(status.is_ok_and(|status| status.success()), "cp failed");
}

/// Runs etcdctl against the etcd at `url` and returns what it printed.
///
/// # Panics
/// When it fails.
#[track_caller]
pub(crate) fn etcdctl<A: AsRef<OsStr>>(
    url: &str,
    arguments: impl IntoIterator<Item = A>,
    input: &[u8],
) -> String {
    let mut child = guarded_on_path("etcdctl")
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", url)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl starts");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It need not read it.
    let _ = stdin.write_all(input);
    drop(stdin);
    let output = child.wait_with_output().expect("it is a child");
    assert!(
        output.status.success(),
        "etcdctl: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same, of a program that is looked for.
///
/// # Panics
/// When it is not on PATH.
pub(crate) fn guarded_on_path(program: &str) -> Command {
    guarded(find_on_path(program).unwrap_or_else(|| panic!("{program} is not on PATH")))
}

/// Where a program is.
pub(crate) fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// A running `driftless serve`.
pub(crate) struct ServerProcess {
    pub(crate) process: Process,
    scheme: &'static str,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl ServerProcess {
    /// Starts one on free ports, and waits until it is in sync.
    #[track_caller]
    pub(crate) fn start(etcd: &EtcdProcess, prefixes: &[&str]) -> Self {
        let server = Self::start_at(&etcd.url(), prefixes, 0, &[]);
        server.wait_ready();
        server
    }

    /// Starts one on a port (0: a free one) with more flags; it need not be in sync yet.
    #[track_caller]
    pub(crate) fn start_at(etcd: &str, prefixes: &[&str], port: u16, flags: &[&str]) -> Self {
        let mut command = driftless();
        command
            .args(["serve", "--etcd", etcd, "--admin", "127.0.0.1:0"])
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(flags);
        for prefix in prefixes {
            command.args(["--prefix", prefix]);
        }
        let mut process = Process::spawn(&mut command);
        let line = process.line();
        let [listen, admin] = addresses(&line)[..] else {
            panic!("not two addresses: {line}");
        };
        let is_tls = line.contains(" on https://");
        Self {
            process,
            scheme: if is_tls { "https" } else { "http" },
            listen,
            admin,
        }
    }

    /// Waits until it is in sync with etcd.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        wait_until("the server is ready", || {
            matches!(http_get(self.admin, "/readyz"), Some((200, _)))
        });
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.listen)
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listen
    }

    pub(crate) fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Tells it to stop and waits for its end.
    #[track_caller]
    pub(crate) fn stop(self) -> Finished {
        self.process.signal(Signal::TERM);
        self.process.finish()
    }
}

/// The addresses in a line that says `http://…` or `https://…` some times.
pub(crate) fn addresses(line: &str) -> Vec<SocketAddr> {
    line.split("://")
        .skip(1)
        .filter_map(|rest| {
            let end = rest
                .find(|c: char| !c.is_ascii_digit() && !".:".contains(c))
                .unwrap_or(rest.len());
            rest[..end].parse().ok()
        })
        .collect()
}

/// A file with this text, in a folder that goes with the guard.
pub(crate) fn file(name: &str, text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("there is a folder for temporary files");
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("it can be written to");
    (dir, path)
}

/// Whether a folder holds nothing.
pub(crate) fn is_empty_dir(path: &Path) -> bool {
    std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none())
}
