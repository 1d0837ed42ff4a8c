//! Servers that answer over HTTP/2, and not as gRPC does; and those that do not get that far.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use driftless_client::WatchState;
use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::grpc;
use crate::stage::{Act, Play, SLACK, alone};

fn answers(response: impl Fn() -> http::Response<()> + Send + Sync + Copy + 'static) -> Act {
    grpc::act(move |call| Box::pin(async move { call.refuse(response()) }))
}

fn head(status: u16, headers: &[(&str, &str)]) -> http::Response<()> {
    let mut response = http::Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[test]
fn status_texts_are_cut_and_escaped() {
    let alone = alone();
    let act = answers(|| {
        let text = "%1B[2J%0A".repeat(1500);
        head(200, &[GRPC, ("grpc-status", "14"), ("grpc-message", &text)])
    });
    alone.play(&Play::new("status of 13 KiB", act, "\\u{1b}[2J\\n"));
    let act = answers(|| {
        let text = "%FF%FE%".repeat(500);
        head(200, &[GRPC, ("grpc-status", "99"), ("grpc-message", &text)])
    });
    alone.play(&Play::new(
        "status that is unknown and no UTF-8",
        act,
        "hostile",
    ));
}

#[test]
fn pause_that_a_status_asks_for_is_bounded() {
    let alone = alone();
    let act = answers(|| {
        head(
            200,
            &[
                GRPC,
                ("grpc-status", "14"),
                ("grpc-message", "later"),
                ("grpc-retry-pushback-ms", "9223372036854775807"),
            ],
        )
    });
    alone.play(
        &Play::new("pause of millions of years", act, "later")
            .calls(2)
            .dials(2),
    );
}

#[test]
fn megabyte_of_headers_is_refused() {
    let alone = alone();
    let act = answers(|| {
        let value = "v".repeat(1000);
        let mut response = head(200, &[GRPC]);
        for n in 0..1000 {
            let name = format!("x-{n}").parse::<http::HeaderName>().unwrap();
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    });
    let play_it = Play::new("megabyte of headers", act, "hostile");
    alone.play(&play_it.bytes(6 * SLACK));
    let act = grpc::on_watch(|talk| async move {
        talk.end("14", &"m".repeat(1024 * 1024));
    });
    let play_it = Play::new("megabyte of trailers", act, "hostile");
    alone.play(&play_it.bytes(6 * SLACK));
}

#[test]
fn answers_that_are_not_grpc_are_named() {
    let alone = alone();
    for (name, status, says) in [
        ("page of a proxy", 200, "invalid compression flag: 60"),
        ("page of an error", 503, "status: 503"),
        ("page that is not found", 404, "status: 404"),
        ("redirect", 302, "status: 302"),
    ] {
        let act = grpc::act(move |call| {
            Box::pin(async move {
                let response = head(status, &[("content-type", "text/html")]);
                let mut talk = call.respond_with(response);
                talk.bytes(bytes::Bytes::from_static(b"<html>an error</html>"))
                    .await;
                talk.hold().await;
            })
        });
        alone.play(&Play::new(name, act, says));
    }
    let act = answers(|| head(200, &[("content-type", "text/plain")]));
    alone.play(&Play::new("empty answer", act, "hostile"));
}

#[test]
fn streams_that_are_reset_are_backed_off() {
    let alone = alone();
    for reason in [
        Reason::CANCEL,
        Reason::REFUSED_STREAM,
        Reason::ENHANCE_YOUR_CALM,
        Reason::NO_ERROR,
    ] {
        let act = grpc::act(move |call| Box::pin(async move { call.reset(reason) }));
        let played = alone.play(&Play::new("reset at once", act, "hostile"));
        assert!(played.calls >= 5, "it tries again: {}", played.calls);
    }
}

#[test]
fn call_without_an_answer_ends_in_time() {
    let alone = alone();
    let act = grpc::act(|call| {
        Box::pin(async move {
            let _held = call;
            std::future::pending::<()>().await;
        })
    });
    let says = "the server sent nothing for too long";
    let played = alone.play(&Play::new("no answer", act, says).calls(7).dials(7));
    assert!(played.calls >= 4, "{} calls", played.calls);
    // An answer that begins, and does not go on.
    let act = grpc::on_watch(|talk| talk.hold());
    alone.play(
        &Play::new("head of an answer alone", act, says)
            .calls(7)
            .dials(7),
    );
}

/// A server that does this with each connection, and nothing more.
fn connection<F>(script: impl Fn(tokio::io::DuplexStream) -> F + Send + Sync + 'static) -> Act
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |io, _| Box::pin(script(io)))
}

fn writes(bytes: &'static [u8]) -> Act {
    connection(move |mut io| async move {
        let _ = io.write_all(bytes).await;
        let _ = io.read_to_end(&mut Vec::new()).await;
    })
}

#[test]
fn server_that_closes_at_once_is_backed_off() {
    let alone = alone();
    let act = connection(|io| async move { drop(io) });
    let says = "closed the connection before it sent anything";
    let played = alone.play(&Play::new("close at once", act, says));
    assert!(played.dials >= 5, "it tries again: {}", played.dials);
    let act = connection(|mut io| async move {
        let _ = io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await;
    });
    alone.play(&Play::new("close after the first frame", act, "hostile"));
}

/// Each range backs off by itself, and they share the dials.
#[test]
fn dials_do_not_grow_with_the_number_of_ranges() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let dials = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&dials);
    let act = connection(move |io| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { drop(io) }
    });
    let client = crate::stage::client(act);
    runtime.block_on(async {
        let mut watchers = Vec::new();
        for n in 0..200 {
            let watch = client.watch::<u32>(format!("/{n}")).default_value(7);
            watchers.push(watch.first_value_within(Duration::ZERO).await.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(watchers);
        client.shutdown().await.unwrap();
    });
    let dials = dials.load(Ordering::Relaxed);
    println!("200 ranges: {dials} dials in a minute");
    assert!((100..=620).contains(&dials), "{dials} dials in a minute");
}

#[test]
fn server_that_is_silent_is_given_up() {
    let alone = alone();
    let act = connection(|mut io| async move {
        let _ = io.read_to_end(&mut Vec::new()).await;
    });
    let says = "the server sent nothing over HTTP/2 within 5s";
    alone.play(&Play::new("silence", act, says).dials(13));
    // It does not read either.
    let act = connection(|io| async move {
        std::future::pending::<()>().await;
        drop(io);
    });
    alone.play(&Play::new("deaf and silent", act, says).dials(13));
}

#[test]
fn other_protocols_are_named() {
    let alone = alone();
    for (name, bytes, says) in [
        (
            "HTTP/1.1",
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..],
            "the server speaks HTTP/1",
        ),
        (
            "TLS alert",
            &[0x15, 3, 3, 0, 2, 2, 50],
            "the server speaks TLS; write https://",
        ),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", "hostile"),
        ("garbage", &[0xff; 4096], "hostile"),
        ("zeros", &[0; 4096], "hostile"),
    ] {
        let played = alone.play(&Play::new(name, writes(bytes), says));
        assert_ne!(played.status.state, WatchState::Live, "{name}");
    }
}

#[cfg(feature = "tls")]
#[test]
fn broken_tls_is_named() {
    let alone = alone();
    for (name, bytes) in [
        ("TLS that is none", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..]),
        ("TLS alert over TLS", &[0x15, 3, 3, 0, 2, 2, 40]),
        ("record of 64 KiB", &[0x16, 3, 3, 0xff, 0xff]),
        (
            "garbage in a handshake",
            &[0x16, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff],
        ),
    ] {
        let act = writes(bytes);
        // The system's certificates are read for each connection.
        let play_it = Play::new(name, act, "hostile").url("https://hostile:7400");
        alone.play(&play_it.dials(100).bytes(16 * SLACK));
    }
}
