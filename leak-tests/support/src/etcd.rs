//! A real etcd: a process of its own on loopback, with a data folder of its own.

use std::ffi::OsStr;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

use etcd_client::Client;
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::guarded_on_path;
use crate::wait::{PATIENCE, POLL, free_port, in_time};
use crate::{files, http, proc};

/// For tests. A leader at once: there are no other members to wait for. And a small log of what came
/// after the last snapshot, which etcd holds in memory, and reads when it starts again.
const QUICK: [&str; 6] = [
    "--heartbeat-interval",
    "10",
    "--election-timeout",
    "100",
    "--snapshot-count",
    "100",
];

/// One etcd process, or none while it is killed; its data and ports stay the same. Dropping it kills
/// the process.
#[derive(Debug)]
pub struct Etcd {
    child: Option<Child>,
    folder: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    flags: &'static [&'static str],
}

impl Default for Etcd {
    fn default() -> Self {
        Self::new()
    }
}

impl Etcd {
    /// One that does not run yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with(&QUICK)
    }

    fn with(flags: &'static [&'static str]) -> Self {
        Self {
            child: None,
            folder: files::folder(),
            client: free_address(),
            peer: free_address(),
            flags,
        }
    }

    /// One that runs and answers.
    ///
    /// # Panics
    /// When it does not within [`PATIENCE`].
    ///
    /// # Cancel safety
    /// Dropping the future kills what was started.
    pub async fn started() -> Self {
        let mut etcd = Self::new();
        etcd.start().await;
        etcd
    }

    /// As [`started`](Self::started). Blocks the thread.
    ///
    /// # Panics
    /// When it does not answer within [`PATIENCE`].
    #[must_use]
    #[track_caller]
    pub fn started_blocking() -> Self {
        let mut etcd = Self::new();
        etcd.start_blocking();
        etcd
    }

    /// As [`started_blocking`](Self::started_blocking), with etcd's own defaults for everything that
    /// may cost something: for benchmarks.
    ///
    /// # Panics
    /// When it does not answer within [`PATIENCE`].
    #[must_use]
    #[track_caller]
    pub fn started_for_a_benchmark() -> Self {
        let mut etcd = Self::with(&[]);
        etcd.start_blocking();
        etcd
    }

    /// Starts it, on the data that it has, and waits until it answers.
    ///
    /// # Panics
    /// When it runs already, or does not answer within [`PATIENCE`].
    ///
    /// # Cancel safety
    /// It may have been started. Then [`kill`](Self::kill) comes before another start.
    pub async fn start(&mut self) {
        let begun = self.begin();
        while !self.is_up(begun, http::get_async(self.client, "/health").await) {
            tokio::time::sleep(POLL).await;
        }
    }

    /// As [`start`](Self::start). Blocks the thread.
    ///
    /// # Panics
    /// When it runs already, or does not answer within [`PATIENCE`].
    #[track_caller]
    pub fn start_blocking(&mut self) {
        let begun = self.begin();
        while !self.is_up(begun, http::get(self.client, "/health")) {
            std::thread::sleep(POLL);
        }
    }

    #[track_caller]
    fn begin(&mut self) -> Instant {
        assert!(self.child.is_none(), "it runs already");
        self.spawn();
        Instant::now()
    }

    /// Whether a start has come to its end, by the health that etcd tells. Where etcd ended, because
    /// somebody took a port meanwhile, another one is started.
    #[track_caller]
    fn is_up(&mut self, begun: Instant, health: Option<(u16, String)>) -> bool {
        let child = self.child.as_mut().expect("it was started");
        if child.try_wait().expect("it is a child").is_some() {
            // Its data knows the ports that it began with.
            if !self.data().exists() {
                self.client = free_address();
                self.peer = free_address();
            }
            self.spawn();
        } else if health.is_some_and(|(status, _)| status == 200) {
            return true;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "etcd does not start: {}",
            self.log()
        );
        false
    }

    fn spawn(&mut self) {
        let client = self.url();
        let peer = format!("http://{}", self.peer);
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let child = guarded_on_path("etcd")
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
            .args(["--initial-cluster", &format!("test={peer}")])
            .args(self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd starts");
        self.child = Some(child);
    }

    /// Where its clients connect, as `http://127.0.0.1:2379`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.client)
    }

    /// The same as an address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.client
    }

    /// The same as a port on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.client.port()
    }

    /// The id of its process.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("it runs");
        i32::try_from(child.id()).expect("a process id is an int")
    }

    /// A client of it.
    ///
    /// # Panics
    /// When it cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }

    /// Kills it; its data stays.
    ///
    /// # Panics
    /// When that does not work.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it without ending it: its connections stay open.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn pause(&self) {
        proc::pause(self.pid());
    }

    /// Lets it go on after a [`pause`](Self::pause).
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn resume(&self) {
        proc::signal(self.pid(), Signal::CONT);
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A copy of its data.
    ///
    /// # Panics
    /// When it runs.
    #[must_use]
    #[track_caller]
    pub fn backup(&self) -> TempDir {
        assert!(self.child.is_none(), "it must not run");
        let backup = files::folder();
        files::copy(&self.data(), &backup.path().join("data"));
        backup
    }

    /// Puts a backup in place of its data.
    ///
    /// # Panics
    /// When it runs, or has no data.
    #[track_caller]
    pub fn restore(&mut self, backup: &Path) {
        assert!(self.child.is_none(), "it must not run");
        std::fs::remove_dir_all(self.data()).expect("it has data");
        files::copy(&backup.join("data"), &self.data());
    }

    /// The value of one of its metrics, without labels. Blocks the thread.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, page) = http::get(self.client, "/metrics")?;
        http::metric(&page, name)
    }

    /// How many watches it has, and how many streams of them.
    ///
    /// # Panics
    /// When it does not answer.
    ///
    /// # Cancel safety
    /// Dropping the future closes what was opened.
    pub async fn watches(&self) -> (i64, i64) {
        let page = in_time("etcd's metrics", http::get_async(self.client, "/metrics")).await;
        let (_, page) = page.expect("etcd serves its metrics");
        let count = |name| -> i64 {
            let value = http::metric(&page, name).unwrap_or_else(|| panic!("there is no {name}"));
            #[expect(clippy::cast_possible_truncation, reason = "a count")]
            let value = value as i64;
            value
        };
        (
            count("etcd_debugging_mvcc_watcher_total"),
            count("etcd_debugging_mvcc_watch_stream_total"),
        )
    }

    /// Runs etcdctl and returns what it printed. Blocks the thread.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ctl<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> String {
        self.ctl_with(arguments, b"")
    }

    /// As [`ctl`](Self::ctl), with input, such as a value that is not text.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn ctl_with<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
        input: &[u8],
    ) -> String {
        etcdctl(&self.url(), arguments, input)
    }

    /// Puts a key with etcdctl. Blocks the thread.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        self.ctl(["put", "--", key, value]);
    }

    /// Deletes a key, which must be there, with etcdctl. Blocks the thread.
    ///
    /// # Panics
    /// When that fails.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        let deleted = self.ctl(["del", "--", key]);
        assert_eq!(deleted.trim(), "1", "{key} was there");
    }

    /// The revision now. Blocks the thread.
    ///
    /// # Panics
    /// When etcdctl fails.
    #[must_use]
    #[track_caller]
    pub fn revision(&self) -> i64 {
        let text = self.ctl(["get", "/", "--write-out=json"]);
        let answer: serde_json::Value = serde_json::from_str(&text).expect("etcdctl prints JSON");
        answer["header"]["revision"].as_i64().expect("a revision")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Etcd {
    #[allow(
        clippy::print_stderr,
        reason = "output is how a failed test explains itself"
    )]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- log of etcd:\n{}", self.log());
        }
    }
}

fn free_address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

/// Runs etcdctl against the etcd at `url` and returns what it printed. Blocks the thread.
///
/// # Panics
/// When it fails.
#[track_caller]
pub fn etcdctl<A: AsRef<OsStr>>(
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
