//! The place in which the page's commands run: an etcd, a server, an empty folder, and the addresses that
//! the page shows for them.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use driftless_test_support::wrong_inputs::{CANARY, Row, check_output};
use driftless_test_support::{
    Etcd, Finished, Process, ServerProcess, find_on_path, guarded, http, run, wait_until,
};

use crate::DRIFTLESS;

/// What the page shows for the addresses of etcd, the server and its admin endpoint.
const ETCD: &str = "127.0.0.1:2379";
const SERVER: &str = "127.0.0.1:7400";
const ADMIN: &str = "127.0.0.1:7401";

pub(crate) struct Place {
    pub(crate) etcd: Etcd,
    pub(crate) server: ServerProcess,
    /// Holds the program under its name.
    bin: tempfile::TempDir,
}

impl Place {
    /// With keys whose values must not be shown.
    #[track_caller]
    pub(crate) fn start() -> Self {
        let etcd = Etcd::started_blocking();
        etcd.put("/config/a", CANARY);
        let server = DRIFTLESS.serve(&etcd, &["/config/", "/flags/"]);
        Self {
            etcd,
            server,
            bin: bin(),
        }
    }

    /// Runs a command to its end. What it says is one line at most, and nothing goes to the standard
    /// output.
    #[track_caller]
    pub(crate) fn row(&self, wrong: &str, command: &str) -> Row {
        self.row_of(wrong, command, &mut self.bash(command))
    }

    /// The same, run in another way than the page can show.
    #[track_caller]
    pub(crate) fn row_of(&self, wrong: &str, shown: &str, command: &mut Command) -> Row {
        let dir = tempfile::tempdir().unwrap();
        let Finished {
            status,
            stdout,
            stderr,
        } = run(command.current_dir(dir.path()));
        check_output(&stderr);
        assert_eq!(stdout, "", "{shown}: {stderr}");
        assert!(stderr.lines().count() <= 1, "{shown}: {stderr}");
        let status = status.code().unwrap_or_else(|| panic!("{shown}: {status}"));
        Row::new(wrong, shown, status, self.shown(&stderr).lines())
    }

    /// A bash that runs `command` as it stands on the page, with `driftless` on its PATH.
    pub(crate) fn bash(&self, command: &str) -> Command {
        let path = std::env::var_os("PATH").unwrap();
        let paths = [self.bin.path().to_owned()];
        let paths = paths.into_iter().chain(std::env::split_paths(&path));
        let mut bash = guarded(find_on_path("bash").expect("bash is on PATH"));
        bash.env("PATH", std::env::join_paths(paths).unwrap())
            .env("DRIFTLESS_SERVER", self.server.url())
            .args(["-o", "pipefail", "-c", &self.real(command)]);
        bash
    }

    /// A PATH with nothing else than the program and what starts it.
    pub(crate) fn bare_path(&self) -> &Path {
        let sh = self.bin.path().join("sh");
        if !sh.exists() {
            std::os::unix::fs::symlink(find_on_path("sh").expect("it is on PATH"), sh).unwrap();
        }
        self.bin.path()
    }

    /// Starts a command that goes on.
    #[track_caller]
    pub(crate) fn start_command(&self, command: &str) -> Process {
        let mut bash = self.bash(&format!("exec {command}"));
        Process::spawn(bash.env("DRIFTLESS_LOG", "driftless_client=debug"))
    }

    fn addresses(&self) -> [(&'static str, SocketAddr); 3] {
        [
            (ETCD, self.etcd.addr()),
            (SERVER, self.server.addr()),
            (ADMIN, self.server.admin()),
        ]
    }

    fn real(&self, shown: &str) -> String {
        self.addresses()
            .iter()
            .fold(shown.to_owned(), |text, (shown, real)| {
                text.replace(shown, &real.to_string())
            })
    }

    /// With the addresses of the page in place of the real ones.
    pub(crate) fn shown(&self, real: &str) -> String {
        self.addresses()
            .iter()
            .fold(real.to_owned(), |text, (shown, real)| {
                text.replace(&real.to_string(), shown)
            })
    }

    /// The lines of the log that a process wrote so far, with and above `info`, without their times.
    pub(crate) fn log(&self, stderr: &str) -> Vec<String> {
        check_output(stderr);
        let lines = stderr.lines().filter_map(|line| {
            let (_, line) = line.split_once(' ')?;
            Some(self.shown(line.trim_start()))
        });
        lines.collect()
    }

    /// The value of a counter of the server.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let (_, text) = http::get(self.server.admin(), "/metrics").expect("it runs");
        let value = text.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse().ok()).unwrap()
    }

    /// What the admin endpoint answers.
    #[track_caller]
    pub(crate) fn ask(&self, wrong: &str, path: &str) -> Row {
        let (status, body) = http::get(self.server.admin(), path).expect("it runs");
        let body = self.shown(&body);
        let body = body.lines().map(without_seconds);
        Row::new(wrong, &format!("curl http://{ADMIN}{path}"), status, body)
    }

    #[track_caller]
    pub(crate) fn wait_for_status(&self, path: &str, status: u16, text: &str) {
        wait_until(text, || {
            http::get(self.server.admin(), path)
                .is_some_and(|(code, body)| code == status && body.contains(text))
        });
    }
}

/// "3 s ago" is "N s ago" on the page.
fn without_seconds(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').collect();
    let shown = words.iter().enumerate().map(|(at, word)| {
        let ago = words.get(at + 1..at + 3);
        match ago {
            Some(["s", "ago:"]) => "N",
            _ => word,
        }
    });
    shown.collect::<Vec<_>>().join(" ")
}

/// A folder with the program under its name.
fn bin() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let program = DRIFTLESS.path();
    std::os::unix::fs::symlink(program, dir.path().join("driftless")).unwrap();
    dir
}
