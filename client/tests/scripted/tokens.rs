//! The bearer token: each call sends what its file holds at that moment.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use driftless_client::{GetError, Resource, Resources, WatchState};

use crate::etcd_model::EtcdModel;
use crate::server::{Server, soon};

/// A file that is removed with the test.
struct TokenFile(PathBuf);

impl TokenFile {
    fn holding(token: &str) -> Self {
        let name = format!("driftless-token-{:?}", std::thread::current().id());
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let name = format!("{name}-{}", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(token);
        file
    }

    fn write(&self, token: &str) {
        std::fs::write(&self.0, token).unwrap();
    }
}

impl Drop for TokenFile {
    fn drop(&mut self) {
        // Unblocks a read that still waits, or a failing test would never end.
        let _ = File::options().read(true).write(true).open(&self.0);
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn token_is_sent_with_every_call_and_rotates() {
    let file = TokenFile::holding("one\n");
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.builder_at_localhost().token_file(&file.0);
    let client = client.build().unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        // A short report interval.
        let driftless_proto::v1::watch_response::Frame::Hello(mut hello) = EtcdModel::hello()
        else {
            unreachable!()
        };
        hello.report_interval_ms = 100;
        call.send(driftless_proto::v1::watch_response::Frame::Hello(hello))
            .await;
        call.send(etcd.snapshot()).await;
        call
    });
    let watcher = watcher.unwrap();
    assert_eq!(call.authorization.as_deref(), Some("Bearer one"));
    let authorization = soon(server.report_authorizations.recv()).await;
    assert_eq!(authorization.as_deref(), Some("Bearer one"));

    file.write("two");
    let (answer, ()) = tokio::join!(client.get("/a").into_future(), async {
        let call = server.next_get_call().await;
        assert_eq!(call.authorization.as_deref(), Some("Bearer two"));
        drop(call);
    });
    assert!(matches!(answer, Err(GetError::Unavailable { .. })));

    file.write("three");
    drop(call);
    let call = server.next_call().await;
    assert_eq!(call.authorization.as_deref(), Some("Bearer three"));
    assert_eq!(server.dials(), 1, "the connection is kept");
    assert_eq!(*watcher.load(), 1);
}

#[tokio::test]
async fn bad_token_file_is_named_until_it_is_fixed() {
    let file = TokenFile::holding(" ");
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    // The same server twice: the error is local, so the other endpoint is not tried.
    let client = server
        .builder_at_localhost()
        .endpoint("http://127.0.0.1:7400");
    let client = client.token_file(&file.0).build().unwrap();
    let error = client.get("/a").await.unwrap_err().to_string();
    let named = format!("the token file {}: it is empty", file.0.display());
    assert!(error.contains(&named), "{error}");
    assert!(server.no_call());

    let watch = client.entries("/a").into_future();
    file.write("CANARY CANARY");
    let (watcher, call) = tokio::join!(watch, async {
        let status = client
            .entries("/a")
            .first_state_within(std::time::Duration::from_secs(1));
        let error = status.await.unwrap_err().to_string();
        assert!(error.contains("it must hold one token"), "{error}");
        assert!(!error.contains("CANARY"), "{error}");
        file.write("mended");
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    assert_eq!(call.authorization.as_deref(), Some("Bearer mended"));
    assert_eq!(watcher.unwrap().status().state, WatchState::Live);
    // One for the `get`, and one for the watch.
    assert_eq!(server.dials(), 2);
}

impl TokenFile {
    /// Makes it a file whose read blocks until somebody writes to it.
    fn hang(&self) {
        std::fs::remove_file(&self.0).unwrap();
        let mkfifo = std::process::Command::new("mkfifo").arg(&self.0).status();
        assert!(mkfifo.unwrap().success());
    }

    /// Ends the block after a while: paused time does not pass while a thread reads, so a failing test would
    /// never end.
    fn goes_on_at_last(&self) {
        let path = self.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(30));
            let _ = File::options().read(true).write(true).open(path);
        });
    }

    /// Waits until it is being read.
    async fn is_read(&self, resources: &Resources) {
        let path = self.0.display().to_string();
        let is_read = |held: &Resource| held.to_string().contains(&path);
        while !resources.active().iter().any(is_read) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn hanging_token_file_is_named_and_the_server_kept() {
    let file = TokenFile::holding("one");
    let mut server = Server::start();
    let etcd = EtcdModel::with(&[("/a", "1")]);
    let client = server.builder_at_localhost().token_file(&file.0);
    let client = client.build().unwrap();
    let resources = client.resources();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.next_call().await;
        call.send_state(&etcd).await;
        call
    });
    let mut watcher = watcher.unwrap();

    file.hang();
    drop(call);
    soon(file.is_read(&resources)).await;
    // Advanced by hand: paused time does not pass while a thread reads.
    file.goes_on_at_last();
    tokio::time::pause();
    let passes = tokio::time::advance(Duration::from_secs(4));
    let (answer, ()) = tokio::join!(client.get("/a").into_future(), passes);
    let named = format!(
        "the token file {}: it was not read within 3s",
        file.0.display()
    );
    let error = answer.unwrap_err().to_string();
    assert!(error.ends_with(&named), "{error}");
    let told = async {
        while watcher.status().state != WatchState::Backoff {
            watcher.status_changed().await;
        }
    };
    soon(told).await;
    let error = watcher.status().last_error.unwrap();
    assert!(error.ends_with(&named), "{error}");
    assert_eq!(*watcher.load(), 1);

    // The running read gets the token, and later calls read the file again.
    std::fs::write(&file.0, "two").unwrap();
    std::fs::remove_file(&file.0).unwrap();
    file.write("three");
    let call = server.next_call().await;
    let authorization = call.authorization.as_deref();
    assert!(matches!(authorization, Some("Bearer two" | "Bearer three")));
    assert_eq!(server.dials(), 1, "the connection is kept");
}

#[tokio::test]
async fn shutdown_ends_a_get_that_waits_for_its_token() {
    let file = TokenFile::holding("");
    file.hang();
    let server = Server::start();
    let client = server.builder_at_localhost().token_file(&file.0);
    let client = client.build().unwrap();
    let resources = client.resources();
    let mut get = Box::pin(client.get("/a").into_future());
    tokio::select! {
        answer = &mut get => panic!("{answer:?}"),
        () = soon(file.is_read(&resources)) => {}
    }
    let shutdown = client.shutdown().within(Duration::ZERO).into_future();
    // Before the read times out.
    let answer = tokio::time::timeout(Duration::from_secs(2), get);
    let (answer, left) = tokio::join!(answer, shutdown);
    std::fs::write(&file.0, "one").unwrap();
    assert!(matches!(answer, Ok(Err(GetError::Closed(_)))), "{answer:?}");
    assert!(left.is_err(), "a thread cannot be stopped");
    soon(resources.released()).await;
}
