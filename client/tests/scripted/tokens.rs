//! The bearer token: sent with every call, as its file is at that moment.

use std::path::PathBuf;
use std::time::Duration;

use driftless_client::{GetError, State};

use crate::server::{Server, soon};
use crate::world::World;

/// A file that goes with the test.
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
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn it_is_sent_with_every_call_and_rotates() {
    let file = TokenFile::holding("one\n");
    let mut server = Server::start();
    let world = World::of(&[("/a", "1")]);
    let client = server.builder_at_localhost().token_file(&file.0);
    let client = client.build().unwrap();
    let (watcher, call) = tokio::join!(client.watch::<u32>("/a").into_future(), async {
        let call = server.call().await;
        // Reports are asked for soon.
        let driftless_proto::v1::watch_response::Frame::Hello(mut hello) = World::hello() else {
            unreachable!()
        };
        hello.report_interval_ms = 100;
        call.send(driftless_proto::v1::watch_response::Frame::Hello(hello))
            .await;
        call.send(world.snapshot()).await;
        call
    });
    let watcher = watcher.unwrap();
    assert_eq!(call.authorization.as_deref(), Some("Bearer one"));
    let signed = soon(server.signed_reports.recv()).await;
    assert_eq!(signed.as_deref(), Some("Bearer one"));

    file.write("two");
    let (answer, ()) = tokio::join!(client.get("/a").into_future(), async {
        let call = server.get_call().await;
        assert_eq!(call.authorization.as_deref(), Some("Bearer two"));
        drop(call);
    });
    assert!(matches!(answer, Err(GetError::Unavailable { .. })));

    file.write("three");
    drop(call);
    let call = server.call().await;
    assert_eq!(call.authorization.as_deref(), Some("Bearer three"));
    assert_eq!(server.dials(), 1, "the connection need not be a new one");
    assert_eq!(*watcher.load(), 1);
}

#[tokio::test]
async fn one_that_cannot_be_used_is_named_and_mended() {
    let file = TokenFile::holding(" ");
    let mut server = Server::start();
    let world = World::of(&[("/a", "1")]);
    // The same server twice: that there is another one is no reason to go there.
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
        assert!(error.contains("something else than one token"), "{error}");
        assert!(!error.contains("CANARY"), "{error}");
        file.write("mended");
        let call = server.call().await;
        call.serve(&world).await;
        call
    });
    assert_eq!(call.authorization.as_deref(), Some("Bearer mended"));
    assert_eq!(watcher.unwrap().status().state, State::Live);
    // One for the single read, and one for the watch.
    assert_eq!(server.dials(), 2);
}

/// A file that nobody writes to is read for as long as that is so, and the call is not made before.
#[tokio::test]
async fn a_shutdown_ends_a_read_whose_token_is_still_being_read() {
    let file = TokenFile::holding("one");
    std::fs::remove_file(&file.0).unwrap();
    let mkfifo = std::process::Command::new("mkfifo").arg(&file.0).status();
    assert!(mkfifo.unwrap().success());
    let server = Server::start();
    let client = server.builder_at_localhost().token_file(&file.0);
    let client = client.build().unwrap();
    let quiescence = client.quiescence();
    let mut get = Box::pin(client.get("/a").into_future());
    let path = file.0.display().to_string();
    let is_read = async {
        while !quiescence
            .held()
            .iter()
            .any(|held| held.to_string().contains(&path))
        {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        answer = &mut get => panic!("{answer:?}"),
        () = soon(is_read) => {}
    }
    let shutdown = client.shutdown().within(Duration::ZERO).into_future();
    let answer = tokio::time::timeout(Duration::from_secs(5), get);
    let (answer, left) = tokio::join!(answer, shutdown);
    std::fs::write(&file.0, "one").unwrap();
    assert!(matches!(answer, Ok(Err(GetError::Closed(_)))), "{answer:?}");
    assert!(left.is_err(), "a thread cannot be stopped");
    soon(quiescence.reached()).await;
}
