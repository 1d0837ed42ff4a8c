//! `driftless serve` as a process whose surroundings are against it: few descriptors, outputs that nobody
//! reads, clients that cause log lines.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;

use driftless_proto::{KeyRange, v1};
use driftless_test_support::frames::{self, Frame, PREFACE, message};
use driftless_test_support::{
    Driftless, Etcd, Process, ServerProcess, add_serve, free_port, guarded_on_path, http,
    wait_until,
};
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

/// The program under test.
const DRIFTLESS: Driftless = Driftless::at(env!("CARGO_BIN_EXE_driftless"));

/// What a write to a pipe is not cut into, in bytes. A pipe takes no byte more once it has no room for it.
const PIECE: usize = 4096;

/// A pipe that is full.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    let has_room = |writer: &PipeWriter| {
        let now = Timespec::default();
        poll(&mut [PollFd::new(writer, PollFlags::OUT)], Some(&now)).unwrap() > 0
    };
    while has_room(&writer) {
        writer.write_all(&[b'.'; PIECE]).unwrap();
    }
    (reader, writer)
}

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

/// Waits until a watch prints this value.
fn sees(watch: &mut Process, value: &str) {
    watch.lines_to(value);
}

#[test]
fn unread_log_does_not_delay_changes() {
    let mut etcd = Etcd::started_blocking();
    let (mut reader, writer) = full_pipe();
    let mut command = DRIFTLESS.command();
    add_serve(&mut command, &etcd.url(), &["/config/"], 0, &[]);
    let mut server = ServerProcess::of(Process::spawn_with_stderr(&mut command, writer));
    drop(command);
    server.wait_ready();
    let mut watch = watch(&server);
    etcd.put("/config/a", "first");
    sees(&mut watch, "first");
    // It says that it lost etcd, which nobody reads.
    etcd.kill();
    wait_until("it notices", || {
        let page = http::get(server.admin(), "/metrics").map(|(_, page)| page);
        page.and_then(|page| http::metric(&page, "driftless_etcd_lost_total")) == Some(1.0)
    });
    etcd.start_blocking();
    etcd.put("/config/a", "second");
    sees(&mut watch, "second");
    // What has waited is written once somebody reads.
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("etcd cannot be reached") {
        let mut piece = [0; PIECE];
        let len = reader.read(&mut piece).unwrap();
        assert!(len > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..len]);
    }
    server.process.signal(Signal::TERM);
    assert!(server.process.wait().success());
}

#[test]
fn standard_output_does_not_prevent_the_start() {
    let etcd = Etcd::started_blocking();
    let (_reader, full) = full_pipe();
    let (_, closed) = pipe().unwrap();
    let nowhere = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let outputs: [(&str, Stdio); 3] = [
        ("full", full.into()),
        ("closed", closed.into()),
        ("no space", nowhere.into()),
    ];
    for (what, stdout) in outputs {
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut command = DRIFTLESS.command();
        command
            .args(["serve", "--etcd", &etcd.url(), "--prefix", "/config/"])
            .args(["--listen", "127.0.0.1:0", "--admin", &admin.to_string()]);
        let mut server = Process::spawn_onto(&mut command, stdout, Stdio::piped());
        wait_until(what, || {
            matches!(http::get(admin, "/readyz"), Some((200, _)))
        });
        server.signal(Signal::TERM);
        assert!(server.wait().success(), "{what}");
    }
}

#[test]
fn hangup_does_not_end_the_server() {
    let etcd = Etcd::started_blocking();
    let server = DRIFTLESS.serve(&etcd, &["/config/"]);
    let mut watch = watch(&server);
    server.process.signal(Signal::HUP);
    wait_until("it says so", || server.process.stderr().contains("SIGHUP"));
    etcd.put("/config/a", "after it");
    sees(&mut watch, "after it");
    assert!(server.stop().status.success());
}

/// How many log lines hold `text`, and how many were left out of those by one place in the code.
fn logged(stderr: &str, text: &str, place: &str) -> (usize, usize) {
    let shown = stderr.lines().filter(|line| line.contains(text)).count();
    let left_out = stderr.lines().filter(|line| line.contains(place));
    let left_out = left_out.filter_map(|line| {
        let count = line.strip_prefix("driftless: left out ")?;
        count.split(' ').next()?.parse::<usize>().ok()
    });
    (shown, left_out.sum())
}

#[tokio::test]
async fn hostile_connections_cause_few_log_lines() {
    const CONNECTIONS: usize = 100;
    /// As many as a connection may send at once.
    const ACKS: usize = 50;
    let etcd = Etcd::started().await;
    for (filter, expected) in [("info", 0), ("info,h2=warn", CONNECTIONS * ACKS)] {
        let server = DRIFTLESS.serve_at(&etcd.url(), &["/config/"], 0, &["--log", filter]);
        server.wait_ready();
        for _ in 0..CONNECTIONS {
            let io = tokio::net::TcpStream::connect(server.addr()).await.unwrap();
            let (mut writer, mut reader) = frames::connect(io, &[]).await.unwrap();
            let mut sent = vec![Frame::ping_ack([7; 8]); ACKS];
            sent.push(Frame::ping([8; 8]));
            writer.write(&sent).await.unwrap();
            while reader.next().await.unwrap().unwrap().payload != [8; 8] {}
        }
        let finished = server.stop();
        assert!(finished.status.success(), "{finished:?}");
        let (shown, left_out) = logged(&finished.stderr, "PING ack", "h2::proto::ping_pong");
        assert_eq!(shown + left_out, expected, "{}", finished.stderr);
        // 50 in each window of 10 s; many windows for a slow machine.
        assert!(shown <= CONNECTIONS * ACKS / 10, "{shown}");
    }
}

#[tokio::test]
async fn etcd_and_admin_have_descriptors_when_clients_take_all() {
    /// More than the server can have open in all, and fewer than it keeps for the admin endpoint.
    const CLIENTS: usize = 140;
    let mut etcd = Etcd::started().await;
    let mut command = guarded_on_path("prlimit");
    command
        .args(["--nofile=128:128", "--"])
        .arg(DRIFTLESS.path());
    add_serve(&mut command, &etcd.url(), &["/config/"], 0, &[]);
    let server = ServerProcess::of(Process::spawn(&mut command));
    server.wait_ready();
    wait_until("it says how many it takes", || {
        server.process.stderr().contains("allows fewer connections")
    });
    // Each has a call, so none gives its place to another.
    let range = KeyRange::prefix("/config/").unwrap();
    let request = v1::WatchRequest {
        range: Some((&range).into()),
        ..Default::default()
    };
    let request = request.encode_to_vec();
    let call = [
        Frame::settings(&[]),
        Frame::call(1, "/driftless.v1.Config/Watch"),
        Frame::data(1, message(request.len(), &request)).end(),
    ];
    let call: Vec<u8> = call.iter().flat_map(Frame::to_bytes).collect();
    let call = [PREFACE, &call].concat();
    let mut clients = Vec::new();
    let mut silent = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = TcpStream::connect(server.addr()).unwrap();
        client.write_all(&call).unwrap();
        clients.push(client);
        silent.push(TcpStream::connect(server.admin()).unwrap());
    }
    wait_until("clients have all places", || {
        let page = http::get(server.admin(), "/metrics").map(|(_, page)| page);
        let streams = page.and_then(|page| http::metric(&page, "driftless_streams"));
        streams == Some(28.0)
    });
    etcd.kill();
    wait_until("it notices", || {
        server.process.stderr().contains("etcd cannot be reached")
    });
    etcd.start().await;
    etcd.put("/config/a", "1");
    wait_until("it finds etcd again", || {
        let page = http::get(server.admin(), "/metrics").map(|(_, page)| page);
        page.and_then(|page| http::metric(&page, "driftless_changes_total")) == Some(1.0)
    });
    drop((clients, silent));
    assert!(server.stop().status.success());
}
