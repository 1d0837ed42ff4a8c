//! `driftless get`, against a real server on a real etcd.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

use driftless_test_support::{Driftless, Etcd, Process, free_port, run, wait_for};
use serde_json::json;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

fn get(server: &str) -> Command {
    let mut command = DRIFTLESS.command();
    command.args(["get", "--server", server]);
    command
}

#[test]
fn get_prints_like_etcdctl() {
    let etcd = Etcd::started_blocking();
    let binary_key = OsStr::from_bytes(b"/config/\xff");
    etcd.put("/config/a", "one");
    etcd.put("/config/b", "");
    etcd.ctl_with([OsStr::new("put"), OsStr::new("/config/c")], b"\x00\xfe\n");
    etcd.ctl([OsStr::new("put"), binary_key, OsStr::new("v")]);
    let server = DRIFTLESS.serve(&etcd, &["/config/", "/empty/"]);
    let url = server.url();
    let bytes = |command: &mut Command| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stderr, b"");
        output.stdout
    };

    assert_eq!(bytes(get(&url).arg("/config/a")), b"/config/a\none\n");
    assert_eq!(
        bytes(get(&url).args(["/config/c", "--print-value-only"])),
        b"\x00\xfe\n\n"
    );
    assert_eq!(
        bytes(get(&url).args(["--prefix", "/config/"])),
        b"/config/a\none\n/config/b\n\n/config/c\n\x00\xfe\n\n/config/\xff\nv\n"
    );
    assert_eq!(bytes(get(&url).arg(binary_key)), b"/config/\xff\nv\n");
    let empty = run(get(&url).args(["--prefix", "/empty/"]));
    assert!(empty.status.success() && empty.stdout.is_empty());
    assert_eq!(empty.stderr, "driftless: there is no key under /empty/*\n");

    let lines: Vec<serde_json::Value> = bytes(get(&url).args(["--prefix", "/config/", "--json"]))
        .split_inclusive(|byte| *byte == b'\n')
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            json!({"key": "/config/a", "value": "one", "mod_revision": 2}),
            json!({"key": "/config/b", "value": "", "mod_revision": 3}),
            json!({"key": "/config/c", "value_base64": "AP4K", "mod_revision": 4}),
            json!({"key_base64": "L2NvbmZpZy//", "value": "v", "mod_revision": 5}),
        ]
    );
}

#[test]
fn missing_and_unserved_keys_have_their_own_status() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let absent = run(get(&server.url()).arg("/config/none\x1b"));
    assert_eq!(absent.status.code(), Some(1), "{absent:?}");
    assert_eq!(absent.stdout, "");
    assert_eq!(
        absent.stderr,
        "driftless: /config/none\\u{1b} does not exist\n"
    );

    let refused = run(get(&server.url()).arg("/other/key"));
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    assert!(refused.stderr.contains("/config/"), "{refused:?}");
}

#[test]
fn unreachable_and_silent_servers_time_out() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let finished = run(get(&nobody).arg("/a"));
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    assert!(finished.stderr.contains(&nobody), "{finished:?}");
    assert!(finished.stderr.contains("refused"), "{finished:?}");

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = Instant::now();
    let finished = run(
        get(&format!("http://{}", silent.local_addr().unwrap())).args(["/a", "--timeout", "200ms"]),
    );
    assert_eq!(finished.status.code(), Some(4), "{finished:?}");
    assert!(start.elapsed() >= Duration::from_millis(200));
    assert!(
        finished.stderr.contains("no answer within 200ms"),
        "{finished:?}"
    );
}

#[test]
fn closed_output_is_not_an_error() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    // More than a pipe holds.
    etcd.put("/config/large", &"v".repeat(100_000));
    wait_for("the server has it", || {
        run(get(&server.url()).arg("/config/large"))
            .status
            .success()
            .then_some(())
    });
    let mut process = Process::spawn_unread(get(&server.url()).arg("/config/large"));
    drop(process.take_stdout());
    let finished = process.finish();
    assert!(finished.status.success(), "{finished:?}");
    assert_eq!(finished.stderr, "");
}
