//! `driftless dev` with a real etcd: what it starts, prints and leaves behind.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use driftless_test_support::{
    Driftless, PATIENCE, Process, addresses, etcdctl, files, proc, run, wait_for, wait_until,
};
use rustix::process::{Pid, Signal, kill_process};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// A running `driftless dev`, ready.
struct Dev {
    process: Process,
    server: String,
    etcd: String,
    etcd_pid: i32,
    /// What it printed.
    lines: Vec<String>,
}

impl Dev {
    #[track_caller]
    fn start(temporary: &Path, arguments: &[&str]) -> Self {
        let mut command = DRIFTLESS.command();
        command
            .arg("dev")
            .args(arguments)
            .env("TMPDIR", temporary)
            // Settings of the user's environment for another etcd.
            .env("ETCD_NAME", "another")
            .env("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1");
        let mut process = Process::spawn(&mut command);
        let lines = process.lines_to("Ctrl-C");
        let url = |line: &str| format!("http://{}", addresses(line)[0]);
        let etcd_pid = wait_for("etcd is a child", || {
            proc::children_of(process.pid()).first().copied()
        });
        Self {
            server: url(&lines[0]),
            etcd: url(&lines[1]),
            etcd_pid,
            process,
            lines,
        }
    }

    #[track_caller]
    fn ctl(&self, arguments: &[&str]) -> String {
        etcdctl(&self.etcd, arguments, b"")
    }
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is a folder for temporary files")
}

#[test]
fn printed_commands_work_and_ctrl_c_leaves_nothing() {
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &[]);
    assert!(
        dev.lines[0].starts_with("serving /config/ on "),
        "{:?}",
        dev.lines
    );
    let text = dev.lines.join("\n");
    for phrase in [
        format!(
            "export ETCDCTL_API=3 ETCDCTL_ENDPOINTS={} DRIFTLESS_SERVER={}",
            dev.etcd, dev.server
        ),
        "watch --prefix /config/".to_owned(),
        "etcdctl put /config/greeting hello".to_owned(),
    ] {
        assert!(text.contains(&phrase), "{phrase}\n{text}");
    }

    let mut watch = Process::spawn(
        DRIFTLESS
            .command()
            .args(["watch", "--prefix", "/config/", "--json"])
            .env("DRIFTLESS_SERVER", &dev.server),
    );
    assert_eq!(watch.json()["type"], "synced");
    dev.ctl(&["put", "/config/greeting", "hello"]);
    let line = watch.json();
    assert_eq!(line["type"], "put");
    assert_eq!(line["value"], "hello");
    dev.ctl(&["del", "/config/greeting"]);
    assert_eq!(watch.json()["type"], "delete");

    let Dev {
        process, etcd_pid, ..
    } = dev;
    process.signal(Signal::INT);
    let finished = process.finish();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stderr, "");
    assert!(!proc::is_running(etcd_pid));
    assert!(files::is_empty(temporary.path()));
}

#[test]
fn data_dir_survives_sigterm_for_the_next_run() {
    let dir = temporary();
    let data = dir.path().join("new/data");
    let flags = [
        "--data-dir",
        data.to_str().expect("UTF-8"),
        "--prefix",
        "/a/",
        "/b/",
    ];
    for (round, expected) in [("first", ""), ("second", "/a/kept\nfirst\n")] {
        let dev = Dev::start(dir.path(), &flags);
        assert!(
            dev.lines[0].starts_with("serving /a/, /b/ on "),
            "{:?}",
            dev.lines
        );
        assert_eq!(dev.ctl(&["get", "/a/kept"]), expected);
        dev.ctl(&["put", "/a/kept", round]);

        let another = run(DRIFTLESS.command().arg("dev").args(flags));
        assert_eq!(another.status.code(), Some(1));
        assert!(
            another.stderr.contains("another driftless dev uses it"),
            "{another:?}"
        );

        dev.process.signal(Signal::TERM);
        let finished = dev.process.finish();
        assert!(finished.status.success(), "{finished:?}");
        assert!(!proc::is_running(dev.etcd_pid));
    }
}

#[test]
fn sigkill_leaves_no_etcd() {
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &[]);
    assert!(proc::is_running(dev.etcd_pid));
    dev.process.signal(Signal::KILL);
    wait_until("etcd ends with its parent", || {
        !proc::is_running(dev.etcd_pid)
    });
}

#[test]
fn next_run_removes_folders_of_killed_runs() {
    let temporary = temporary();
    let folder = |dev: &Dev| -> PathBuf {
        let (_, path) = dev.lines[1].split_once("log in ").expect("it names it");
        path.into()
    };
    // Has the name, but must not be removed: it was never locked, or is elsewhere.
    let unlocked = temporary.path().join("driftless-dev-unlocked");
    std::fs::create_dir(&unlocked).unwrap();
    let elsewhere = temporary.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    std::fs::write(elsewhere.join("lock"), "").unwrap();
    std::os::unix::fs::symlink(&elsewhere, temporary.path().join("driftless-dev-link")).unwrap();

    let killed = Dev::start(temporary.path(), &[]);
    let running = Dev::start(temporary.path(), &[]);
    killed.process.signal(Signal::KILL);
    wait_until("etcd ends with its parent", || {
        !proc::is_running(killed.etcd_pid)
    });
    assert!(folder(&killed).is_dir());
    let next = Dev::start(temporary.path(), &[]);
    assert!(!folder(&killed).exists());
    for kept in [
        &folder(&running),
        &folder(&next),
        &unlocked,
        &elsewhere.join("lock"),
    ] {
        assert!(kept.exists(), "{}", kept.display());
    }
}

#[test]
fn etcd_that_ends_is_reported_and_its_log_kept() {
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &[]);
    kill(dev.etcd_pid, Signal::KILL);
    let finished = dev.process.finish();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    // Nor does the next run remove it.
    drop(Dev::start(temporary.path(), &[]));
    // The server logs it too: before, or on a busy machine afterwards.
    let mut lines = finished.stderr.lines();
    let named = lines.find_map(|line| line.split_once("; its log is "));
    let (message, log) = named.unwrap_or_else(|| panic!("it names no log: {finished:?}"));
    assert!(
        message.starts_with("driftless: etcd ended by itself (signal: 9"),
        "{message}"
    );
    assert!(Path::new(log).is_file(), "{log}");
}

#[test]
fn etcd_that_does_not_start_is_reported() {
    let temporary = temporary();
    let bin = temporary.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/bin/false", bin.join("etcd")).unwrap();
    let finished = run(DRIFTLESS
        .command()
        .arg("dev")
        .env("PATH", &bin)
        .env("TMPDIR", temporary.path()));
    assert_eq!(finished.status.code(), Some(1));
    assert!(
        finished
            .stderr
            .starts_with("driftless: etcd ended by itself (exit status: 1); its log is "),
        "{finished:?}"
    );
}

#[test]
fn missing_etcd_gets_install_advice() {
    let temporary = temporary();
    let finished = run(DRIFTLESS
        .command()
        .arg("dev")
        .env("PATH", temporary.path())
        .env("TMPDIR", temporary.path()));
    assert_eq!(finished.status.code(), Some(1));
    assert_eq!(finished.stderr.lines().count(), 1, "{finished:?}");
    assert!(
        finished
            .stderr
            .starts_with("driftless: etcd is not on PATH: apt-get install etcd-server"),
        "{finished:?}"
    );
    assert!(files::is_empty(temporary.path()));
}

#[test]
fn used_ports_are_replaced_by_free_ones() {
    // The other tests here hold them for a while; one that does not become free within that while
    // is in use by somebody who stays, which is as good.
    let _taken: Vec<_> = [2379, 2380, 7400, 7401]
        .iter()
        .map(|port| taken(*port))
        .collect();
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &[]);
    let text = dev.lines.join("\n");
    for usual in [":2379", ":2380", ":7400", ":7401"] {
        assert!(!text.contains(usual), "{text}");
    }
    for said in [
        "port 2379 is in use: etcd uses ",
        "port 7400 is in use: the server uses ",
    ] {
        assert!(text.contains(said), "{text}");
    }
    dev.ctl(&["put", "/config/a", "1"]);
    wait_until("the server has it", || {
        let got = run(DRIFTLESS
            .command()
            .args(["get", "/config/a", "--print-value-only", "--server"])
            .arg(&dev.server));
        got.stdout == "1\n"
    });
}

#[test]
fn second_signal_ends_dev_at_once() {
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &["--log", "info"]);
    // It cannot end while it is stopped, so it is waited for.
    proc::pause(dev.etcd_pid);
    dev.process.signal(Signal::TERM);
    wait_until("it stops", || dev.process.stderr().contains("stopping"));
    dev.process.signal(Signal::TERM);
    let finished = dev.process.finish();
    assert_eq!(finished.status.code(), Some(128 + 15), "{finished:?}");
    assert!(finished.stderr.contains("SIGTERM again"), "{finished:?}");
    assert!(!proc::is_running(dev.etcd_pid));
    assert!(files::is_empty(temporary.path()));
}

#[test]
fn signal_during_etcd_start_leaves_nothing() {
    let temporary = temporary();
    let process = Process::spawn(
        DRIFTLESS
            .command()
            .arg("dev")
            .env("TMPDIR", temporary.path()),
    );
    let etcd = wait_for("etcd is a child", || {
        proc::children_of(process.pid()).first().copied()
    });
    process.signal(Signal::TERM);
    let finished = process.finish();
    assert!(finished.status.success(), "{finished:?}");
    assert!(!proc::is_running(etcd));
    assert!(files::is_empty(temporary.path()));
}

#[test]
fn prefix_is_quoted_for_the_shell() {
    let temporary = temporary();
    let dev = Dev::start(temporary.path(), &["--prefix", "/it's/"]);
    assert!(
        dev.lines.join("\n").contains(r"watch --prefix '/it'\''s/'"),
        "{:?}",
        dev.lines
    );
    dev.ctl(&["put", "/it's/a", "1"]);
    wait_until("the server has it", || {
        let got = run(DRIFTLESS
            .command()
            .args([
                "get",
                "--prefix",
                "/it's/",
                "--print-value-only",
                "--server",
            ])
            .arg(&dev.server));
        got.stdout == "1\n"
    });
}

/// Listens on a port, unless another process does.
fn taken(port: u16) -> Option<TcpListener> {
    let deadline = Instant::now() + PATIENCE / 2;
    while Instant::now() < deadline {
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return Some(listener);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    None
}

fn kill(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("not zero"), signal).expect("it runs");
}
