//! A real etcd for a test: a process of its own on loopback, gone with the test.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use etcd_client::Client;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// For anything that a test waits for: a busy machine fails no test.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// One etcd process, or none while it is killed; its data and ports stay the same.
pub(crate) struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    client_port: u16,
    peer_port: u16,
}

/// A port that was free just now.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Waits until it is so.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let start = Instant::now();
    while !is_so().await {
        assert!(
            start.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        tokio::time::sleep(POLL).await;
    }
}

impl Etcd {
    /// Not started, with everything it needs.
    pub(crate) fn prepared() -> Self {
        Self {
            child: None,
            dir: tempfile::tempdir().unwrap(),
            client_port: free_port(),
            peer_port: free_port(),
        }
    }

    /// Started and ready.
    pub(crate) async fn started() -> Self {
        let mut etcd = Self::prepared();
        etcd.start().await;
        etcd
    }

    /// Starts it (again), on the data that it has.
    pub(crate) async fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let start = Instant::now();
        loop {
            self.spawn();
            loop {
                let child = self.child.as_mut().unwrap();
                if child.try_wait().unwrap().is_some() {
                    break; // Somebody else took a port meanwhile.
                }
                if self.healthy().await {
                    return;
                }
                assert!(
                    start.elapsed() < DEADLINE,
                    "etcd does not become healthy: {}",
                    self.log()
                );
                tokio::time::sleep(POLL).await;
            }
            assert!(
                start.elapsed() < DEADLINE,
                "etcd does not start: {}",
                self.log()
            );
            self.child = None;
            if !self.data().exists() {
                self.client_port = free_port();
                self.peer_port = free_port();
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn spawn(&mut self) {
        let binary = std::env::var_os("DRIFTLESS_ETCD").unwrap_or_else(|| "etcd".into());
        let client = self.endpoint();
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        let child = Command::new(binary)
            .arg("--data-dir")
            .arg(self.data())
            .args(["--listen-client-urls", &client])
            .args(["--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            // A leader at once: there are no others to wait for.
            .args(["--heartbeat-interval", "10", "--election-timeout", "100"])
            // It holds what came after the last one in memory, and reads it when it starts again.
            .args(["--snapshot-count", "100"])
            // Nothing here has to outlive the machine.
            .arg("--unsafe-no-fsync")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("etcd is on PATH, or DRIFTLESS_ETCD names it");
        self.child = Some(child);
    }

    /// Where its clients connect.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// The port of its clients.
    pub(crate) fn port(&self) -> u16 {
        self.client_port
    }

    /// A client of it.
    pub(crate) async fn client(&self) -> Client {
        Client::connect([self.endpoint()], None).await.unwrap()
    }

    /// Where its data is.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops it without ending it: its connections stay open.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Puts this data in place of its own. It must not run.
    pub(crate) fn replace_data(&mut self, with: &Path) {
        assert!(self.child.is_none(), "it must not run");
        std::fs::remove_dir_all(self.data()).unwrap();
        copy_dir(with, &self.data());
    }

    /// A copy of its data. It must not run.
    pub(crate) fn backup(&self) -> TempDir {
        assert!(self.child.is_none(), "it must not run");
        let backup = tempfile::tempdir().unwrap();
        copy_dir(&self.data(), &backup.path().join("data"));
        backup
    }

    /// One of its metrics, without labels.
    pub(crate) async fn metric(&self, name: &str) -> i64 {
        let metrics = self.get("/metrics").await.expect("etcd serves its metrics");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value: f64 = line
            .unwrap_or_else(|| panic!("there is no {name}"))
            .parse()
            .unwrap();
        #[expect(clippy::cast_possible_truncation, reason = "a count")]
        let value = value as i64;
        value
    }

    /// How many watches it has, and how many streams of them.
    pub(crate) async fn watches(&self) -> (i64, i64) {
        (
            self.metric("etcd_debugging_mvcc_watcher_total").await,
            self.metric("etcd_debugging_mvcc_watch_stream_total").await,
        )
    }

    async fn healthy(&self) -> bool {
        self.get("/health")
            .await
            .is_some_and(|health| health.contains("\"true\""))
    }

    async fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.client_port))
            .await
            .ok()?;
        let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await.ok()?;
        Some(response)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
