//! What an example runs against: an etcd of its own, and a server of this process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use driftless_server::{ServeError, Server, Settings};
use driftless_test_support::{Etcd, in_time};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

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
            world.put(key, value);
        }
        world.start_server().await;
        world
    }

    /// Starts it, where it was before if it was.
    pub(crate) async fn start_server(&mut self) {
        assert!(self.server.is_none(), "it runs already");
        let settings = Settings::builder()
            .etcd(self.etcd.url())
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
        let ended = in_time("it stops", task).await;
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

    /// Blocks the thread, as do the other edits: the server has threads of its own.
    pub(crate) fn put(&self, key: &str, value: &str) {
        self.etcd.put(key, value);
    }

    /// For values that are not text, or too long for an argument. Not for an empty one.
    pub(crate) fn put_bytes(&self, key: &str, value: &[u8]) {
        self.etcd.ctl_with(["put", "--", key], value);
    }

    pub(crate) fn delete(&self, key: &str) {
        self.etcd.delete(key);
    }

    /// Puts several keys in one transaction.
    pub(crate) fn put_all(&self, puts: &[(&str, &str)]) {
        // No conditions, these operations, no others.
        let mut script = "\n".to_owned();
        for (key, value) in puts {
            script += &format!("put {key} {value:?}\n");
        }
        script += "\n\n";
        let done = self.etcd.ctl_with(["txn"], script.as_bytes());
        assert!(done.starts_with("SUCCESS"), "etcdctl txn: {done}");
    }
}
