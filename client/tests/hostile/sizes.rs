//! Servers that send, or announce, more than anybody wants.

use driftless_client::{Client, RefusedReason, WatchState};
use driftless_proto::v1::{self, watch_response::Frame};

use crate::etcd_model::EtcdModel;
use crate::grpc::{self, Talk, message, on_watch, padded, prefixed};
use crate::stage::{LIMIT, Play, SLACK, alone, model};

const MIB: usize = 1024 * 1024;

/// Of a range whose limit is reached while it arrives: what is staged and the space that a growing list wastes,
/// one message, and the buffer that it is read into.
const STAGED: usize = 3 * LIMIT + 2 * MIB;

/// The chunks of a snapshot that never ends; this much padding in each.
pub(crate) fn endless(value: usize, padding: usize) -> crate::stage::Act {
    on_watch(move |mut talk: Talk| async move {
        talk.frame(EtcdModel::hello()).await;
        for n in 0_u64.. {
            let chunk = v1::Snapshot {
                revision: 99,
                entries: vec![v1::Entry {
                    key: format!("/c/{n:08}").into(),
                    value: vec![b'v'; value].into(),
                    create_revision: 7,
                    mod_revision: 7,
                    version: 1,
                    ..Default::default()
                }],
                more: true,
                ..Default::default()
            };
            let response = v1::WatchResponse {
                frame: Some(Frame::Snapshot(chunk)),
            };
            if !talk.bytes(padded(&response, padding)).await {
                return;
            }
        }
    })
}

#[test]
fn endless_snapshot_ends_at_the_limit() {
    let alone = alone();
    for (name, value, padding) in [
        ("endless values", 64 * 1024, 0),
        // Padded like a server's, or HTTP/2 itself takes them for an attack: see `http2.rs`.
        ("endless empty values", 0, 256),
        ("endless chunks that are padded", 1, 64 * 1024),
    ] {
        let act = endless(value, padding);
        let says = "holds more than 4194304 bytes";
        let played = alone.play(&Play::new(name, act, says).bytes(STAGED).calls(2));
        let refused = played.status.refused.unwrap();
        assert_eq!(refused.reason, RefusedReason::TooLarge);
        assert!(refused.message.contains("range_limit"), "{refused}");
        assert_eq!(played.status.state, WatchState::Refused);
    }
}

#[test]
fn value_in_endless_pieces_ends_at_the_limit() {
    let alone = alone();
    let act = on_watch(|mut talk: Talk| async move {
        talk.frame(EtcdModel::hello()).await;
        for n in 0_u64.. {
            let piece = 64 * 1024;
            let chunk = v1::Snapshot {
                revision: 99,
                entries: vec![v1::Entry {
                    key: "/c/a".into(),
                    value: vec![b'v'; 64 * 1024].into(),
                    create_revision: 7,
                    mod_revision: 7,
                    version: 1,
                    offset: n * piece,
                    total: 16 * 1024 * 1024,
                }],
                more: true,
                ..Default::default()
            };
            if !talk.frame(Frame::Snapshot(chunk)).await {
                return;
            }
        }
    });
    let play_it = Play::new("a value without end", act, "holds more than 4194304 bytes");
    alone.play(&play_it.bytes(STAGED).calls(2));
}

/// Sends these bytes after a hello, and then nothing.
fn sends(bytes: bytes::Bytes) -> crate::stage::Act {
    on_watch(move |mut talk: Talk| {
        let bytes = bytes.clone();
        async move {
            talk.frame(EtcdModel::hello()).await;
            talk.bytes(bytes).await;
            talk.hold().await;
        }
    })
}

#[test]
fn announced_message_reserves_little() {
    let alone = alone();
    let silent = "the server sent nothing for too long";
    let most = driftless_proto::MAX_MESSAGE_BYTES;
    let act = sends(prefixed(u32::MAX as usize, b"x"));
    let says = "decoded message length too large: found 4294967295 bytes";
    alone.play(&Play::new("message of 4 GiB", act, says));
    let act = sends(prefixed(most + 1, b"x"));
    let says = "message length too large";
    alone.play(&Play::new("message over the limit", act, says));
    let act = sends(prefixed(most, b"x"));
    let play_it = Play::new("message that does not come", act, silent);
    alone.play(&play_it.bytes(most + SLACK).calls(3).dials(3));
    let act = sends(bytes::Bytes::from_static(b"\x01\0\0\0\x01x"));
    let says = "compressed-flag but no grpc-encoding";
    alone.play(&Play::new("compressed message", act, says));
    let act = sends(bytes::Bytes::from_static(b"\0\0\0\0\x03\x0a\x7fx"));
    let says = "a message is not valid protobuf";
    alone.play(&Play::new("no protobuf", act, says));
}

/// A message of 2 MiB, and a million structures of a hundred bytes.
#[test]
fn message_of_empty_elements_is_not_decoded() {
    let alone = alone();
    let many = 1_000_000;
    let empty = [&b"\x12\0"[..]; 1].concat().repeat(many);
    let mut snapshot = vec![2 << 3 | 2];
    prost::encoding::encode_varint(empty.len() as u64, &mut snapshot);
    snapshot.extend_from_slice(&empty);
    let act = sends(prefixed(snapshot.len(), &snapshot));
    drop((empty, snapshot));
    let says = "a message repeats more than 131072 elements";
    let play_it = Play::new("million empty entries", act, says);
    alone.play(&play_it.bytes(8 * MIB));
}

#[test]
fn hostile_answers_to_reports_are_bounded() {
    let alone = alone();
    let reporting = |answer: fn(Talk) -> crate::stage::Playing| {
        grpc::act(move |call| {
            Box::pin(async move {
                if !call.is_watch() {
                    return answer(call.talk()).await;
                }
                let mut talk = call.talk();
                talk.frame(EtcdModel::hello()).await;
                let mut model = model();
                talk.frame(model.current()).await;
                // Something that the client rejects, and then reports.
                let _ = talk.frame(model.put("/c/a", "no number")).await;
                while talk.frame(model.progress()).await {
                    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
                }
            })
        })
    };
    let ids = reporting(|mut talk| {
        Box::pin(async move {
            let answer = v1::ReportResponse {
                unknown_watch_ids: vec![bytes::Bytes::new(); 1_000_000],
            };
            talk.bytes(message(&answer)).await;
            talk.end("0", "");
        })
    });
    // The server's own list takes most of it.
    let play_it = Play::new("report with a million unknown ids", ids, "");
    alone.play(&play_it.bytes(48 * MIB));
    let never = reporting(|talk| Box::pin(talk.hold()));
    alone.play(&Play::new("report without an answer", never, ""));
}

/// What is true of a watch is true of a read.
#[test]
fn get_ends_at_the_limit_and_in_time() {
    let _alone = alone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let get = |act: crate::stage::Act| {
        let client: Client = crate::stage::client(act);
        runtime.block_on(async {
            let range = driftless_client::KeyRange::prefix("/c/").unwrap();
            let error = client.get(range).await.unwrap_err().to_string();
            client.shutdown().await.unwrap();
            error
        })
    };
    // A hello is of no kind that a read knows, so the chunks are what counts.
    let error = get(grpc::act(|call| {
        Box::pin(async move {
            let mut talk = call.talk();
            for n in 0_u64.. {
                let snapshot = v1::Snapshot {
                    revision: 99,
                    entries: vec![v1::Entry {
                        key: format!("/c/{n:08}").into(),
                        value: vec![b'v'; 64 * 1024].into(),
                        create_revision: 7,
                        mod_revision: 7,
                        version: 1,
                        ..Default::default()
                    }],
                    more: true,
                    ..Default::default()
                };
                let snapshot = Some(snapshot);
                if !talk.bytes(message(&v1::GetResponse { snapshot })).await {
                    return;
                }
            }
        })
    }));
    assert!(error.contains("holds more than 4194304 bytes"), "{error}");
    let error = get(grpc::act(|call| {
        Box::pin(async move {
            let mut talk = call.talk();
            while talk.bytes(message(&v1::GetResponse::default())).await {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
        })
    }));
    assert!(error.contains("within 10s"), "{error}");
}
