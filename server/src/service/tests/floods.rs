//! Frames that a client may not send as often as it likes.

use driftless_test_support::frames::{self, Frame, FrameReader, FrameWriter, types};
use tokio::io::{ReadHalf, WriteHalf};

use super::*;
use crate::service::flood::{IGNORED, PING_ACKS, PINGS, RESETS, SETTINGS, WINDOW, WINDOW_UPDATES};

/// A client that writes what it likes.
struct Bare {
    writer: FrameWriter<WriteHalf<DuplexStream>>,
    reader: FrameReader<ReadHalf<DuplexStream>>,
    pings: u64,
}

impl Bare {
    async fn connect(engine: &Engine) -> Self {
        let (client, server) = duplex(64 * 1024);
        engine.serve(server);
        let (writer, reader) = frames::connect(client, &[]).await.unwrap();
        let pings = 0;
        Self {
            writer,
            reader,
            pings,
        }
    }

    /// Sends these frames, and returns whether the connection is open after them.
    async fn survives(&mut self, frames: &[Frame]) -> bool {
        self.pings += 1;
        let ping = Frame::ping((u64::MAX - self.pings).to_be_bytes());
        let sent = [frames, std::slice::from_ref(&ping)].concat();
        let answered = async {
            while let Ok(Some(frame)) = self.reader.next().await {
                if frame.kind == types::PING && frame.payload == ping.payload {
                    return true;
                }
            }
            false
        };
        // Writing fails once the server has closed.
        tokio::join!(self.writer.write(&sent), answered).1
    }
}

/// Frames that begin a call and cancel it.
fn cancelled(stream: u32) -> [Frame; 2] {
    [Frame::call(stream, WATCH), Frame::rst_stream(stream, 8)]
}

/// So many frames of the kind that the metric names so.
fn flood(name: &str, count: u32, first_stream: &mut u32) -> Vec<Frame> {
    let one = match name {
        "settings" => Frame::settings(&[]),
        "ping_ack" => Frame::ping_ack([7; 8]),
        "ping" => Frame::ping([7; 8]),
        "window_update" => Frame::window_update(0, 1),
        "other" => Frame::new(types::PRIORITY, 1, [0, 0, 0, 0, 16]),
        "reset" => {
            let streams = (*first_stream..).step_by(2).take(count as usize);
            let frames = streams.flat_map(cancelled).collect();
            *first_stream += 2 * count;
            return frames;
        }
        name => panic!("{name}"),
    };
    vec![one; count as usize]
}

#[tokio::test(start_paused = true)]
async fn floods_end_only_the_connection_that_sends_them() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let healthy = Client::new(&engine).await;
    let mut watch = healthy.watch(&prefix("/c/"), None).await;
    let mut replica = Replica::new(prefix("/c/"));
    let kinds = [
        ("settings", SETTINGS),
        ("ping_ack", PING_ACKS),
        ("ping", PINGS),
        ("reset", 1024 + RESETS),
        ("window_update", WINDOW_UPDATES),
        ("other", IGNORED),
    ];
    for (name, limit) in kinds {
        let closed = || {
            let closed = &engine.metrics().floods_closed;
            closed.get_or_create(&[("frame", name)]).get()
        };
        let (mut bare, mut stream) = (Bare::connect(&engine).await, 1);
        // The connection's own SETTINGS and pings count, too.
        for _ in 0..3 {
            let frames = flood(name, limit - 5, &mut stream);
            assert!(bare.survives(&frames).await, "{name}");
            sleep(WINDOW).await;
        }
        assert_eq!(closed(), 0, "{name}");
        let frames = flood(name, 2 * limit + 2, &mut stream);
        assert!(!bare.survives(&frames).await, "{name}");
        assert_eq!(closed(), 1, "{name}");
        let last = etcd.put("/c/a", name);
        watch.read_to(&mut replica, last).await.unwrap();
    }
    until(|| engine.metrics().connections.get() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn calls_cancelled_at_once_leave_their_connection_open() {
    const CALLS: u32 = 300;
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut bare = Bare::connect(&engine).await;
    let range = prefix("/c/");
    let request = v1::WatchRequest {
        range: Some((&range).into()),
        ..Default::default()
    };
    let watch = [
        Frame::call(1, WATCH),
        Frame::data(1, framed(&request)).end(),
    ];
    assert!(bare.survives(&watch).await);
    assert_eq!(engine.metrics().streams.get(), 1);
    let streams = (3..).step_by(2).take(CALLS as usize);
    let cancelled: Vec<Frame> = streams.flat_map(cancelled).collect();
    assert!(bare.survives(&cancelled).await);
    etcd.put("/c/a", "after them");
    let changed = async {
        while let Ok(Some(frame)) = bare.reader.next().await {
            assert_ne!(frame.kind, types::GOAWAY, "{frame:?}");
            let text = String::from_utf8_lossy(&frame.payload).into_owned();
            if (frame.kind, frame.stream) == (types::DATA, 1) && text.contains("after them") {
                return;
            }
        }
        panic!("the connection ended");
    };
    timeout(Duration::from_secs(30), changed).await.unwrap();
    until(|| engine.metrics().streams.get() == 1).await;
}

/// What else the client wants waits, and is served when there is room.
#[tokio::test(start_paused = true)]
async fn calls_above_the_limit_of_a_connection_wait() {
    let etcd = ScriptedEtcd::default();
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .max_streams_per_connection(2)
        .build()
        .unwrap();
    let engine = engine_of(&etcd, &settings);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let first = client.watch(&range, None).await;
    let _second = client.watch(&range, None).await;
    let mut third = Box::pin(client.watch(&range, None));
    let early = timeout(Duration::from_secs(20), &mut third).await;
    assert!(early.is_err());
    assert_eq!(engine.metrics().streams.get(), 2);
    drop(first);
    timeout(Duration::from_secs(20), third).await.unwrap();
}
