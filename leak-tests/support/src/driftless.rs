//! The `driftless` program.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::etcd::Etcd;
use crate::http;
use crate::process::{Finished, Process, guarded};
use crate::wait::wait_until;

/// The program under test. Cargo tells only the package's own tests where it is:
/// `Driftless::at(env!("CARGO_BIN_EXE_driftless"))`.
#[derive(Clone, Copy, Debug)]
pub struct Driftless(&'static str);

impl Driftless {
    /// The program with this path.
    #[must_use]
    pub const fn at(path: &'static str) -> Self {
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(self) -> &'static Path {
        Path::new(self.0)
    }

    /// A command that runs it, without arguments yet.
    #[must_use]
    pub fn command(self) -> Command {
        guarded(self.0)
    }

    /// Starts `driftless serve` on free ports, and waits until it is in sync. Blocks the thread.
    ///
    /// # Panics
    /// When it does not get in sync.
    #[must_use]
    #[track_caller]
    pub fn serve(self, etcd: &Etcd, prefixes: &[&str]) -> ServerProcess {
        let server = self.serve_at(&etcd.url(), prefixes, 0, &[]);
        server.wait_ready();
        server
    }

    /// Starts `driftless serve` on a port (0: a free one) with more flags; it need not be in sync
    /// yet. Blocks the thread until it listens.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    #[track_caller]
    pub fn serve_at(
        self,
        etcd: &str,
        prefixes: &[&str],
        port: u16,
        flags: &[&str],
    ) -> ServerProcess {
        let mut command = self.command();
        add_serve(&mut command, etcd, prefixes, port, flags);
        ServerProcess::of(Process::spawn(&mut command))
    }
}

/// Adds the arguments of [`Driftless::serve_at`], for commands that run the program in another way.
pub fn add_serve(command: &mut Command, etcd: &str, prefixes: &[&str], port: u16, flags: &[&str]) {
    command
        .args(["serve", "--etcd", etcd, "--admin", "127.0.0.1:0"])
        .args(["--listen", &format!("127.0.0.1:{port}")])
        .args(flags);
    for prefix in prefixes {
        command.args(["--prefix", prefix]);
    }
}

/// A running `driftless serve`. Dropping it kills the process.
#[derive(Debug)]
pub struct ServerProcess {
    /// The process itself.
    pub process: Process,
    scheme: &'static str,
    listen: SocketAddr,
    admin: SocketAddr,
}

impl ServerProcess {
    /// The server that was started so. Blocks the thread until it listens.
    ///
    /// # Panics
    /// When it does not listen.
    #[must_use]
    #[track_caller]
    pub fn of(mut process: Process) -> Self {
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

    /// Waits until it is in sync with etcd. Blocks the thread.
    ///
    /// # Panics
    /// When it does not get in sync.
    #[track_caller]
    pub fn wait_ready(&self) {
        wait_until("the server is ready", || {
            matches!(http::get(self.admin, "/readyz"), Some((200, _)))
        });
    }

    /// Where its clients connect, as `http://127.0.0.1:7400`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.listen)
    }

    /// The same as an address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.listen
    }

    /// The address of its admin endpoint.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Tells it to stop and waits for its end. Blocks the thread.
    ///
    /// # Panics
    /// When it does not end.
    #[track_caller]
    pub fn stop(self) -> Finished {
        self.process.signal(Signal::TERM);
        self.process.finish()
    }
}

/// The addresses in a line that says `http://…` or `https://…` some times.
#[must_use]
pub fn addresses(line: &str) -> Vec<SocketAddr> {
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
