//! Servers whose hello or goodbye is not what it should be.

use bytes::Bytes;
use driftless_client::{RefusedReason, WatchState};
use driftless_proto::v1::{self, watch_response::Frame};

use crate::etcd_model::EtcdModel;
use crate::grpc::{Talk, on_watch};
use crate::messages::frames;
use crate::stage::{Play, alone, model};

#[test]
fn hello_is_first_and_only_once() {
    let alone = alone();
    let act = on_watch(|mut talk: Talk| async move {
        talk.frame(model().snapshot()).await;
        talk.hold().await;
    });
    alone.play(&Play::new(
        "no hello",
        act,
        "the first frame is not a hello",
    ));
    let act = frames(vec![model().current(), EtcdModel::hello()]);
    alone.play(&Play::new("two hellos", act, "a second hello came"));
}

fn hello(edit: impl FnOnce(&mut v1::Hello)) -> Frame {
    let Frame::Hello(mut hello) = EtcdModel::hello() else {
        unreachable!()
    };
    edit(&mut hello);
    Frame::Hello(hello)
}

/// Sends this hello, and then nothing.
fn greets(hello: Frame, then: Option<Frame>) -> crate::stage::Act {
    on_watch(move |mut talk: Talk| {
        let (hello, then) = (hello.clone(), then.clone());
        async move {
            talk.frame(hello).await;
            if let Some(frame) = then {
                talk.frame(frame).await;
            }
            talk.hold().await;
        }
    })
}

/// The state that the client has, which was etcd's at this time of the server's.
fn confirmed(contact_ms: u64) -> Frame {
    let Frame::Current(mut current) = model().current() else {
        unreachable!()
    };
    current.contact_ms = contact_ms;
    Frame::Current(current)
}

#[test]
fn intervals_of_a_hello_are_bounded() {
    let alone = alone();
    let silent = "the server sent nothing for too long";
    let zero = hello(|hello| {
        hello.progress_interval_ms = 0;
        hello.report_interval_ms = 0;
        hello.clock_ms = 0;
    });
    let act = greets(zero, Some(confirmed(u64::MAX)));
    let played = alone.play(&Play::new("intervals of zero", act, silent).dials(3));
    assert!(played.calls >= 2, "{} calls", played.calls);
    let highest = hello(|hello| {
        hello.progress_interval_ms = u32::MAX;
        hello.ping_interval_ms = u32::MAX;
        hello.report_interval_ms = u32::MAX;
        hello.clock_ms = u64::MAX;
    });
    let act = greets(highest, Some(confirmed(1)));
    let played = alone.play(
        &Play::new("intervals of 49 days", act, silent)
            .lasts(620)
            .dials(2),
    );
    assert_eq!(played.calls, 2, "after ten minutes of silence");
}

#[test]
fn megabytes_in_a_hello_are_not_kept() {
    let alone = alone();
    let long = || Bytes::from(vec![b'x'; 2 * 1024 * 1024]);
    // The message, the buffer that it is read into, and what the server holds of it.
    let message = 10 * 1024 * 1024;
    for (name, frame, says) in [
        (
            "epoch of 2 MiB",
            hello(|hello| hello.epoch = long()),
            "Hello.epoch is 2097152 bytes long; at most 256",
        ),
        (
            "token of 2 MiB",
            hello(|hello| hello.token = long()),
            "Hello.token is 2097152 bytes long; at most 4096",
        ),
        (
            "watch id of 2 MiB",
            hello(|hello| hello.watch_id = long()),
            "Hello.watch_id is 2097152 bytes long; at most 64",
        ),
    ] {
        alone.play(&Play::new(name, greets(frame, None), says).bytes(message));
    }
    // Not used, so not an error.
    let view = hello(|hello| {
        hello.view = "v".repeat(2 * 1024 * 1024);
        hello.features = vec![i32::MAX, -1, 77];
    });
    let act = greets(view, Some(model().current()));
    alone.play(&Play::new("view of 2 MiB", act, "").lasts(20).bytes(message));
}

#[test]
fn goodbye_at_once_is_backed_off() {
    let alone = alone();
    let goodbye = |reason: i32, retry_after_ms| {
        on_watch(move |mut talk: Talk| async move {
            let goodbye = v1::Goodbye {
                reason,
                retry_after_ms,
                purge: false,
            };
            talk.frame(Frame::Goodbye(goodbye)).await;
            talk.hold().await;
        })
    };
    for reason in [0, 1, 3, i32::MAX] {
        let act = goodbye(reason, 0);
        let played = alone.play(&Play::new("goodbye at once", act, "the server"));
        assert!(played.calls >= 5, "it tries again: {}", played.calls);
    }
    let act = goodbye(1, u32::MAX);
    let played = alone.play(
        &Play::new("goodbye for 49 days", act, "shutting down")
            .calls(1)
            .dials(1),
    );
    assert_eq!(played.status.state, WatchState::Backoff);
    let act = goodbye(4, u32::MAX);
    let played = alone.play(
        &Play::new("revoked for 49 days", act, "revoked")
            .calls(1)
            .dials(1),
    );
    assert_eq!(played.status.refused.unwrap().reason, RefusedReason::Denied);
}
