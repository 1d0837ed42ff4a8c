//! What an example runs against: an etcd of its own, and a server of this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::time::Duration;

use driftless_server::{ServeError, Server, Settings};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::etcd::{DEADLINE, Etcd};

/// Short, so that progress frames come within a test.
const PROGRESS: Duration = Duration::from_millis(200);

pub(crate) struct World {
    etcd: Etcd,
    address: SocketAddr,
    server: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    task: AbortOnDropHandle<Result<(), ServeError>>,
}

impl World {
    /// An etcd that holds these keys, one revision each, and a server of `/config/`.
    pub(crate) async fn holding(keys: &[(&str, &str)]) -> Self {
        let etcd = Etcd::started().await;
        let mut world = Self {
            etcd,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            server: None,
        };
        for (key, value) in keys {
            world.put(key, value).await;
        }
        world.start_server().await;
        world
    }

    /// Starts it, where it was before if it was.
    pub(crate) async fn start_server(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let settings = Settings::builder()
            .etcd(self.etcd.endpoint())
            .prefix("/config/")
            .listen(self.address)
            .progress_interval(PROGRESS)
            .build()
            .unwrap();
        let server = Server::bind(settings).await.unwrap();
        self.address = server.local_addr();
        let stop = CancellationToken::new();
        let task = AbortOnDropHandle::new(tokio::spawn(server.run(stop.clone())));
        self.server = Some(Running { stop, task });
    }

    /// Stops it as SIGTERM would.
    pub(crate) async fn stop_server(&mut self) {
        let Running { stop, task } = self.server.take().expect("it runs");
        stop.cancel();
        let ended = timeout(DEADLINE, task).await.expect("it stops in time");
        ended.unwrap().unwrap();
    }

    /// The port of the server, on loopback.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// Where the server is, as `http://127.0.0.1:7400`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn put(&self, key: &str, value: &str) {
        self.etcdctl(&["put", "--", key, value], b"").await;
    }

    /// For values that are not text, or too long for an argument. Not for an empty one.
    pub(crate) async fn put_bytes(&self, key: &str, value: &[u8]) {
        self.etcdctl(&["put", "--", key], value).await;
    }

    pub(crate) async fn delete(&self, key: &str) {
        let deleted = self.etcdctl(&["del", "--", key], b"").await;
        assert_eq!(deleted.trim(), "1", "{key} was there");
    }

    /// Puts several keys in one transaction.
    pub(crate) async fn put_all(&self, puts: &[(&str, &str)]) {
        // No conditions, these operations, no others.
        let mut script = "\n".to_owned();
        for (key, value) in puts {
            script += &format!("put {key} {value:?}\n");
        }
        script += "\n\n";
        let done = self.etcdctl(&["txn"], script.as_bytes()).await;
        assert!(done.starts_with("SUCCESS"), "etcdctl txn: {done}");
    }

    async fn etcdctl(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut command = Command::new("etcdctl");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCDCTL_") {
                command.env_remove(name);
            }
        }
        let mut child = command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.etcd.endpoint()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("etcdctl is on PATH");
        let mut stdin = child.stdin.take().unwrap();
        let run = async {
            // What needs no input may have ended before it came.
            let _ = stdin.write_all(input).await;
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        let output = timeout(DEADLINE, run).await.expect("etcdctl ends in time");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "etcdctl {arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }
}
