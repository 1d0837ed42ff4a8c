//! `driftless serve` as a process: its start without etcd, and its end.

use std::time::{Duration, Instant};

use driftless_test_support::{
    Driftless, Etcd, Process, ServerProcess, free_port, http, proc, wait_for, wait_until,
};
use rustix::process::Signal;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// The limit that service managers set, and that `--help` promises.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

fn watch(server: &ServerProcess) -> Process {
    let mut process = Process::spawn(
        DRIFTLESS
            .command()
            .args(["watch", "--prefix", "/config/", "--json", "--server"])
            .arg(server.url()),
    );
    while process.json()["type"] != "synced" {}
    process
}

#[test]
fn signals_end_serve_in_time_with_open_streams() {
    let etcd = Etcd::started_blocking();
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = DRIFTLESS.serve(&etcd, &["/config/"]);
        let watch = watch(&server);
        let start = Instant::now();
        server.process.signal(signal);
        let status = server.process.wait();
        assert!(status.success(), "{status}");
        assert!(start.elapsed() < ENDS_WITHIN, "{:?}", start.elapsed());
        wait_until("the client is told why", || {
            watch.stderr().contains("shutting down")
        });
    }
}

#[test]
fn shutdown_waits_for_clients_only_until_its_limit() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let watch = watch(&server);
    proc::pause(watch.pid());
    let start = Instant::now();
    let finished = server.stop();
    assert!(start.elapsed() < ENDS_WITHIN, "{:?}", start.elapsed());
    assert!(finished.status.success(), "{finished:?}");
    assert!(finished.stderr.contains("cut off"), "{finished:?}");
}

#[test]
fn second_signal_ends_serve_at_once() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve_at(
        &etcd.url(),
        &["/config/"],
        0,
        // Longer than the test waits.
        &["--drain-timeout", "60s"],
    );
    server.wait_ready();
    let watch = watch(&server);
    proc::pause(watch.pid());
    server.process.signal(Signal::TERM);
    wait_until("it stops", || server.process.stderr().contains("stopping"));
    server.process.signal(Signal::INT);
    let finished = server.process.finish();
    assert_eq!(finished.status.code(), Some(128 + 2), "{finished:?}");
}

#[test]
fn serve_becomes_ready_when_etcd_appears() {
    let mut etcd = Etcd::started_blocking();
    etcd.put("/config/a", "1");
    etcd.kill();
    let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], 0, &[]);
    let (status, why) = wait_for("it answers", || http::get(server.admin(), "/readyz"));
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("/config/"), "{why}");
    assert!(matches!(
        http::get(server.admin(), "/healthz"),
        Some((200, _))
    ));
    etcd.start_blocking();
    server.wait_ready();
    let finished = server.stop();
    assert!(finished.status.success(), "{finished:?}");
    // One log line for each reason, not one for each attempt.
    let refused = finished.stderr.matches("Connection refused").count();
    assert!(refused <= 1, "{finished:?}");
}

#[test]
fn signal_ends_serve_without_etcd_at_once() {
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let server = DRIFTLESS.serve_at(&nobody, &["/config/"], 0, &[]);
    let finished = server.stop();
    assert!(finished.status.success(), "{finished:?}");
}
