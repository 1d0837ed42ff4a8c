//! `driftless watch`, against a real server on a real etcd.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use driftless_test_support::{Driftless, Etcd, Process, ServerProcess, free_port, run, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

fn watch(server: &str, arguments: &[&str]) -> Command {
    let mut command = DRIFTLESS.command();
    command.args(["watch", "--server", server]).args(arguments);
    command
}

fn watch_json(server: &ServerProcess, arguments: &[&str]) -> Process {
    Process::spawn(watch(&server.url(), arguments).arg("--json"))
}

#[test]
fn json_lines_follow_the_protocol() {
    let etcd = Etcd::started_blocking();
    etcd.put("/config/b", "two");
    etcd.put("/config/a", "ü\u{9b}\"\n");
    etcd.put("/other", "not watched");
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let mut all = watch_json(&server, &["--prefix", "/config/"]);
    let mut one = watch_json(&server, &["/config/b"]);
    assert_eq!(
        all.json(),
        json!({"type": "init", "key": "/config/a", "value": "ü\u{9b}\"\n", "mod_revision": 3})
    );
    assert_eq!(
        all.json(),
        json!({"type": "init", "key": "/config/b", "value": "two", "mod_revision": 2})
    );
    let synced = all.json();
    assert_eq!(synced["type"], "synced");
    assert_eq!(synced["keys"], 2);
    assert!(synced["revision"].as_i64() >= Some(3), "{synced}");
    assert_eq!(one.json()["key"], "/config/b");
    assert_eq!(one.json()["keys"], 1);

    // A value that is not text, and a key that is not.
    etcd.ctl_with([OsStr::new("put"), OsStr::new("/config/c")], b"\xff\x00");
    assert_eq!(
        all.json(),
        json!({"type": "put", "key": "/config/c", "value_base64": "/wA=", "mod_revision": 5, "revision": 5})
    );
    let key = OsStr::from_bytes(b"/config/\xff");
    etcd.ctl([OsStr::new("put"), key, OsStr::new("")]);
    assert_eq!(
        all.json(),
        json!({"type": "put", "key_base64": "L2NvbmZpZy//", "value": "", "mod_revision": 6, "revision": 6})
    );
    etcd.ctl([OsStr::new("del"), key]);
    assert_eq!(
        all.json(),
        json!({"type": "delete", "key_base64": "L2NvbmZpZy//", "revision": 7})
    );

    // One transaction: one revision.
    etcd.ctl_with(
        ["txn"],
        b"\nput /config/a 1\nput /config/d 4\ndel /config/b\n\n\n",
    );
    assert_eq!(
        [all.json(), all.json(), all.json()],
        [
            json!({"type": "put", "key": "/config/a", "value": "1", "mod_revision": 8, "revision": 8}),
            json!({"type": "delete", "key": "/config/b", "revision": 8}),
            json!({"type": "put", "key": "/config/d", "value": "4", "mod_revision": 8, "revision": 8}),
        ]
    );
    // The watch of one key saw nothing but that key.
    assert_eq!(
        one.json(),
        json!({"type": "delete", "key": "/config/b", "revision": 8})
    );
    etcd.put("/config/b", "again");
    assert_eq!(one.json()["value"], "again");
    assert_eq!(all.json()["mod_revision"], 9);
    assert_eq!(all.stderr(), "");
}

#[test]
fn watch_of_a_missing_key_shows_its_creation() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let mut process = watch_json(&server, &["/config/new"]);
    assert_eq!(process.json()["keys"], 0);
    etcd.put("/config/new", "v");
    assert_eq!(process.json()["value"], "v");
}

#[test]
fn text_output_is_the_state_then_diffs() {
    let etcd = Etcd::started_blocking();
    etcd.put("/config/list", "one\ntwo\nthree\n");
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let mut plain = Process::spawn(&mut watch(&server.url(), &["--prefix", "/config/"]));
    let lines = plain.lines_to("watching");
    assert_eq!(
        lines[..4],
        ["/config/list  (revision 2)", "one", "two", "three"]
    );
    assert!(
        lines[4].starts_with("1 key in /config/* at revision "),
        "{lines:?}"
    );

    etcd.put("/config/list", "one\n2\nthree\n");
    let expected = [
        "--- /config/list  (revision 2)",
        "+++ /config/list  (revision 3)",
        "@@ -1,3 +1,3 @@",
        " one",
        "-two",
        "+2",
        " three",
    ];
    assert_eq!(expected.map(|_| plain.line()), expected);

    let mut colored = Process::spawn(&mut watch(
        &server.url(),
        &["--prefix", "/config/", "--color", "always"],
    ));
    colored.lines_to("watching");
    etcd.put("/config/list", "one\x1b]0;title\x07\n2\nthree\n");
    let lines = colored.lines_to("+one");
    assert_eq!(
        lines.last().expect("there is one"),
        "\x1b[32m+one\\u{1b}]0;title\\u{7}\x1b[0m"
    );
    let lines = plain.lines_to("+one");
    assert!(!lines.concat().contains('\x1b'), "{lines:?}");

    etcd.ctl(["del", "/config/list"]);
    let lines = plain.lines_to("+++");
    assert!(
        lines
            .last()
            .is_some_and(|line| line == "+++ /config/list  (deleted, revision 5)"),
        "{lines:?}"
    );
}

#[test]
fn watch_survives_server_restart_without_repeats() {
    let etcd = Etcd::started_blocking();
    for key in ["gone", "same", "changed"] {
        etcd.put(&format!("/config/{key}"), "before");
    }
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let (url, port) = (server.url(), server.addr().port());
    let mut process = watch_json(&server, &["--prefix", "/config/"]);
    while process.json()["type"] != "synced" {}

    // A restart without changes prints nothing on the standard output.
    let stopped = server.stop();
    assert!(stopped.status.success(), "{stopped:?}");
    wait_until("the loss is said", || {
        process.stderr().contains("lost http://")
    });
    let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], port, &[]);
    wait_until("the return is said", || {
        process
            .stderr()
            .contains(&format!("connected to {url} again"))
    });
    assert!(process.is_quiet());

    // A restart with changes.
    server.stop();
    wait_until("the loss is said", || {
        process.stderr().matches("lost http://").count() >= 2
    });
    etcd.ctl(["del", "/config/gone"]);
    etcd.put("/config/changed", "between");
    etcd.put("/config/changed", "after");
    etcd.put("/config/brief", "");
    etcd.ctl(["del", "/config/brief"]);
    etcd.put("/config/new", "new");
    let _server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], port, &[]);
    // Single or combined changes, each only once and in order, and nothing else.
    let mut told = std::collections::BTreeMap::new();
    let mut last = 0;
    while !told.contains_key("/config/new") {
        let change = process.json();
        let revision = change["revision"].as_i64().unwrap();
        assert!(revision > 4 && revision >= last, "{change} after {last}");
        last = revision;
        let key = change["key"].as_str().unwrap().to_owned();
        told.insert(key, change["value"].as_str().map(ToOwned::to_owned));
    }
    assert_eq!(last, 10);
    if let Some(brief) = told.remove("/config/brief") {
        assert_eq!(brief, None, "it is gone again");
    }
    let expected = [
        ("/config/changed", Some("after")),
        ("/config/gone", None),
        ("/config/new", Some("new")),
    ];
    let told: Vec<_> = told
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_deref()))
        .collect();
    assert_eq!(told, expected);
    // One line for each change of state, not one for each attempt.
    let said = process.stderr();
    assert!(
        said.lines().all(|line| line.starts_with("driftless: ")),
        "{said}"
    );
    assert!(said.lines().count() < 12, "{said}");
}

#[test]
fn watch_says_that_it_waits_for_the_server() {
    let etcd = Etcd::started_blocking();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut process = Process::spawn(&mut watch(&url, &["/config/a", "--json"]));
    wait_until("it says that nobody is there", || {
        let said = process.stderr();
        said.contains(&url) && said.contains("refused")
    });
    etcd.put("/config/a", "1");
    let _server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], port, &[]);
    assert_eq!(process.json()["value"], "1");
}

#[test]
fn refused_watch_ends_with_the_servers_message() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/", "/flags/"]);
    let refused = run(&mut watch(&server.url(), &["--prefix", "/other/"]));
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    assert_eq!(refused.stdout, "");
    assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    for named in ["/config/", "/flags/"] {
        assert!(refused.stderr.contains(named), "{refused:?}");
    }

    // Also one that comes later: the same port, other prefixes.
    let port = server.addr().port();
    let mut live = watch_json(&server, &["/flags/a"]);
    assert_eq!(live.json()["type"], "synced");
    server.stop();
    let _server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], port, &[]);
    let finished = live.finish();
    assert_eq!(finished.status.code(), Some(3), "{finished:?}");
    assert!(
        finished
            .stderr
            .lines()
            .last()
            .is_some_and(|line| line.contains("/config/")),
        "{finished:?}"
    );
}

#[test]
fn closed_output_ends_watch_quietly() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    for change_follows in [false, true] {
        let mut process = Process::spawn_unread(&mut watch(
            &server.url(),
            &["--prefix", "/config/", "--json"],
        ));
        let mut reader = BufReader::new(process.take_stdout());
        let mut line = String::new();
        while !line.contains("synced") {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0);
        }
        drop(reader);
        if change_follows {
            etcd.put("/config/a", "1");
        }
        let finished = process.finish();
        assert!(finished.status.success(), "{finished:?}");
        assert_eq!(finished.stderr, "");
    }
}

#[test]
fn slow_reader_gets_conflated_changes() {
    const CHANGES: usize = 40;
    // Two of them are more than a pipe holds.
    let value = |n: usize| format!("{n} {}", "v".repeat(50_000));
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let mut process = Process::spawn_unread(&mut watch(
        &server.url(),
        &["--prefix", "/config/", "--json"],
    ));
    let mut reader = BufReader::new(process.take_stdout());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("synced"), "{line}");
    for n in 1..=CHANGES {
        etcd.put("/config/a", &value(n));
    }
    let mut lines = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        lines += 1;
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["value"].as_str() == Some(&value(CHANGES)) {
            break;
        }
    }
    assert!(lines < CHANGES / 2, "{lines} lines for {CHANGES} changes");

    // A reader that does not read at all delays no exit.
    process.signal(Signal::TERM);
    process.wait();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
}
