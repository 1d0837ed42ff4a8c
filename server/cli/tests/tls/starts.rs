//! Start orders of client, server and etcd, with TLS.

use std::time::Duration;

use driftless_client::{NoValue, WatchError};
use driftless_test_support::certificates::{Ca, Folder};
use driftless_test_support::free_port;
use tokio::task::JoinSet;

use super::logged;
use super::place::{etcd, start, trusting, until, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_client_waits_for_the_server_and_says_so() {
    logged::listen();
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let port = free_port();
    let url = format!("https://127.0.0.1:{port}");
    let client = trusting(&url, &files.path("ca.pem")).build().unwrap();
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { client.watch::<u32>("/c/a").await });
    until("the log says so", async || {
        !logged::lines(&["WARN", "/c/a", &url, "refused"]).is_empty()
    })
    .await;
    assert!(waiting.try_join_next().is_none());
    let _server = start(&etcd, &files, port, &[]);
    let watcher = waiting.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(*watcher.load(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_etcd_says_why_it_has_no_value() {
    logged::listen();
    let (mut etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    etcd.kill();
    let server = start(&etcd, &files, 0, &[]);
    let url = server.url();
    let client = trusting(&url, &files.path("ca.pem")).build().unwrap();
    let watch = client.watch::<u32>("/c/a");
    let error = watch.first_value_within(Duration::from_secs(3)).await;
    let Err(WatchError::NoFirstValue { why, .. }) = error else {
        panic!("{error:?}")
    };
    let NoValue::NotConnected { last_error } = why else {
        panic!("{why:?}")
    };
    let why = last_error.unwrap();
    assert!(why.starts_with(&format!("{url}: ")), "{why}");
    assert!(why.contains("etcd"), "{why}");
    until("the log says so", async || {
        !logged::lines(&["WARN", "/c/a", &why]).is_empty()
    })
    .await;

    // A default is there at once, and the value when there is one.
    let mut watcher = client
        .watch::<u32>("/c/a")
        .default_value(7)
        .first_value_within(Duration::from_millis(100))
        .await
        .unwrap();
    assert_eq!(*watcher.load(), 7);
    etcd.start_blocking();
    watcher.changed().await.unwrap();
    assert_eq!(*watcher.load(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_keys_are_never_logged() {
    const TOKEN: &str = "canary-5Zq8vT";
    logged::listen();
    let (etcd, ca) = (etcd(), Ca::new("ca"));
    let files = Folder::with(&ca, &ca.server());
    let server = super::place::strict_server(&etcd, &files);
    let pair = ca.client();
    let mine = Folder::with(&ca, &pair);
    mine.write("token", TOKEN);
    let builder = super::place::known(&server.url(), &mine).token_file(mine.path("token"));
    assert!(!format!("{builder:?}").contains(TOKEN));
    let client = builder.build().unwrap();
    assert_eq!(value(&client).await.unwrap(), "1");
    let watcher = client.watch::<u32>("/c/a").await.unwrap();
    assert!(!format!("{client:?} {watcher:?}").contains(TOKEN));
    // There is a log, at every level, and it does not hold them.
    let port = server.addr().port().to_string();
    assert!(!logged::lines(&["DEBUG", &port, "TLS handshake done"]).is_empty());
    assert_eq!(logged::lines(&[TOKEN]), [""; 0]);
    for line in pair.key.lines().filter(|line| !line.starts_with('-')) {
        assert_eq!(logged::lines(&[line]), [""; 0]);
    }
    // The longest that there may be is not too long for the server.
    mine.write("token", &TOKEN.repeat(16 * 1024 / TOKEN.len()));
    assert_eq!(value(&client).await.unwrap(), "1");
    let log = server.stop().stderr;
    assert!(!log.contains(TOKEN), "{log}");
}
