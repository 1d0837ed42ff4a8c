//! The contenders: for each, the processes between putter and subscriber.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use driftless_test_support::proc::{self, Usage};
use driftless_test_support::{
    Etcd, PATIENCE, Process, ServerProcess, addresses, free_port, guarded, guarded_on_path, http,
    wait_until,
};

use crate::DRIFTLESS;
use crate::plan::{PREFIX, Put, Speaks};
use crate::scenarios::Scenario;
use crate::{Failure, floor, seed};

/// A way for a change to reach its subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contender {
    /// etcd and a driftless server.
    Driftless,
    /// The same, with the client library as subscribers.
    Library,
    /// etcd alone, watched by everybody.
    Etcd,
    /// etcd and its own proxy.
    GrpcProxy,
    /// A bare TCP broadcast.
    Floor,
}

impl Contender {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Driftless => "driftless",
            Self::Library => "driftless-client",
            Self::Etcd => "etcd",
            Self::GrpcProxy => "grpc-proxy",
            Self::Floor => "floor",
        }
    }

    pub(crate) const fn speaks(self) -> Speaks {
        match self {
            Self::Driftless => Speaks::Driftless,
            Self::Library => Speaks::Library,
            Self::Etcd | Self::GrpcProxy => Speaks::Etcd,
            Self::Floor => Speaks::Floor,
        }
    }
}

/// The running processes of one contender; they end when it is dropped.
pub(crate) struct World {
    /// The processes that subscribers connect to are first, and end first.
    front: Front,
    etcd: Option<Etcd>,
}

enum Front {
    Driftless(ServerProcess),
    Proxy {
        process: Process,
        at: SocketAddr,
        _data: tempfile::TempDir,
    },
    Floor {
        process: Process,
        subscribe: SocketAddr,
        source: SocketAddr,
    },
    /// etcd itself.
    None,
}

impl World {
    /// Starts fresh processes, with what the scenario wants to be in etcd.
    pub(crate) fn start(contender: Contender, scenario: &Scenario) -> Result<Self, Failure> {
        if contender == Contender::Floor {
            let mut command = guarded(std::env::current_exe()?);
            let mut process = Process::spawn(command.arg(floor::COMMAND));
            let line = process.line();
            let [subscribe, source] = addresses(&line)[..] else {
                return Err(format!("the floor says: {line}").into());
            };
            let front = Front::Floor {
                process,
                subscribe,
                source,
            };
            return Ok(Self { front, etcd: None });
        }
        let etcd = Etcd::started_for_a_benchmark();
        seed::seed(&etcd.url(), scenario.payload, scenario.filler)?;
        let front = match contender {
            Contender::Driftless | Contender::Library => Front::Driftless(server_of(&etcd, 0)?),
            Contender::GrpcProxy => proxy(&etcd)?,
            Contender::Etcd | Contender::Floor => Front::None,
        };
        Ok(Self {
            front,
            etcd: Some(etcd),
        })
    }

    /// Stops the server in an orderly way and starts another on the same port.
    pub(crate) fn restart_server(self) -> Result<Self, Failure> {
        let Self {
            front: Front::Driftless(server),
            etcd: Some(etcd),
        } = self
        else {
            return Err("only a driftless server is restarted".into());
        };
        let port = server.addr().port();
        server.stop();
        Ok(Self {
            front: Front::Driftless(server_of(&etcd, port)?),
            etcd: Some(etcd),
        })
    }

    /// Where subscribers connect.
    pub(crate) fn subscribe(&self) -> Result<SocketAddr, Failure> {
        match (&self.front, &self.etcd) {
            (Front::Driftless(server), _) => Ok(server.addr()),
            (Front::Proxy { at, .. }, _) => Ok(*at),
            (Front::Floor { subscribe, .. }, _) => Ok(*subscribe),
            (Front::None, Some(etcd)) => Ok(etcd.addr()),
            (Front::None, None) => Err("nothing runs".into()),
        }
    }

    /// Where changes are put.
    pub(crate) fn put(&self) -> Result<Put, Failure> {
        match (&self.front, &self.etcd) {
            (Front::Floor { source, .. }, _) => Ok(Put::Floor(*source)),
            (_, Some(etcd)) => Ok(Put::Etcd(etcd.url())),
            (_, None) => Err("nothing runs".into()),
        }
    }

    /// Every process between putter and subscriber, by name; the one that subscribers are connected
    /// to is called "server".
    pub(crate) fn processes(&self) -> Vec<(&'static str, i32)> {
        let front = match &self.front {
            Front::Driftless(server) => Some(server.process.pid()),
            Front::Proxy { process, .. } | Front::Floor { process, .. } => Some(process.pid()),
            Front::None => None,
        };
        let name = if front.is_some() { "etcd" } else { "server" };
        let etcd = self.etcd.as_ref().map(|etcd| (name, etcd.pid()));
        front
            .map(|pid| ("server", pid))
            .into_iter()
            .chain(etcd)
            .collect()
    }

    /// What each of them has cost so far.
    pub(crate) fn usage(&self) -> Result<BTreeMap<&'static str, Usage>, Failure> {
        self.processes()
            .into_iter()
            .map(|(name, pid)| Ok((name, proc::usage(pid)?)))
            .collect()
    }

    /// What they count themselves, by name.
    pub(crate) fn counters(&self) -> BTreeMap<String, f64> {
        let mut counters = BTreeMap::new();
        if let Front::Driftless(server) = &self.front
            && let Some((200, text)) = http::get(server.admin(), "/metrics")
        {
            for line in text.lines() {
                if let Some((name, value)) = line.split_once(' ')
                    && let Some(name) = name.strip_prefix("driftless_")
                    && let Ok(value) = value.parse()
                {
                    let name = name.strip_suffix("_total").unwrap_or(name);
                    counters.insert(name.to_owned(), value);
                }
            }
        }
        if let Some(etcd) = &self.etcd
            && let Some(watchers) = etcd.metric("etcd_debugging_mvcc_watcher_total")
        {
            counters.insert(ETCD_WATCHERS.to_owned(), watchers);
        }
        counters
    }
}

/// A driftless server on this port (0: a free one), once it has read everything.
fn server_of(etcd: &Etcd, port: u16) -> Result<ServerProcess, Failure> {
    let server = DRIFTLESS.serve_at(&etcd.url(), &[PREFIX], port, &[]);
    let deadline = Instant::now() + READ_WITHIN;
    while !matches!(http::get(server.admin(), "/readyz"), Some((200, _))) {
        if Instant::now() > deadline {
            return Err(
                format!("the server has not read everything within {READ_WITHIN:?}").into(),
            );
        }
        std::thread::sleep(POLL);
    }
    Ok(server)
}

/// How long a server may take to read a million keys from etcd on a busy machine.
const READ_WITHIN: Duration = Duration::from_secs(180);

/// Between two looks at whether it has.
const POLL: Duration = Duration::from_millis(50);

/// The gauge of watches that etcd holds.
pub(crate) const ETCD_WATCHERS: &str = "etcd_watchers";

/// etcd's proxy, once it answers.
fn proxy(etcd: &Etcd) -> Result<Front, Failure> {
    let at = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let data = tempfile::tempdir()?;
    let mut command = guarded_on_path("etcd");
    command
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .args([
            "grpc-proxy",
            "start",
            "--endpoints",
            &etcd.addr().to_string(),
        ])
        .args(["--listen-addr", &at.to_string()])
        .arg("--data-dir")
        .arg(data.path());
    let process = Process::spawn(&mut command);
    wait_until(&format!("etcd's proxy answers within {PATIENCE:?}"), || {
        matches!(http::get(at, "/metrics"), Some((200, _)))
    });
    Ok(Front::Proxy {
        process,
        at,
        _data: data,
    })
}
