//! Servers that break HTTP/2, or use it to do harm.

use crate::raw::{
    self, CONTINUATION, DATA, END_HEADERS, GOAWAY, HEADERS, PING, PUSH_PROMISE, Raw, frame, header,
    setting, settings,
};
use crate::stage::{Act, Play, SLACK, alone};

/// How many frames a flood has.
const FLOOD: usize = 20_000;

/// Frames in one write.
const AT_ONCE: usize = 100;

/// Settings, then this frame over and over, once there is a request if it is for its stream.
fn floods(on_stream: bool, made: fn(u32) -> Vec<u8>) -> Act {
    raw::act(move |mut raw: Raw| async move {
        raw.bytes(&settings()).await;
        let stream = if on_stream { raw.request().await } else { 0 };
        let frames = made(stream).repeat(AT_ONCE);
        for _ in 0..FLOOD / AT_ONCE {
            if !raw.bytes(&frames).await {
                return;
            }
        }
        raw.hold().await;
    })
}

/// `:status: 200`, of HTTP/2's table of headers.
const STATUS_200: u8 = 0x88;

fn grpc_head(stream: u32) -> Vec<u8> {
    let head = [vec![STATUS_200], header("content-type", "application/grpc")].concat();
    frame(HEADERS, END_HEADERS, stream, &head)
}

/// These frames once there is a request, and nothing more.
fn answers(made: fn(u32) -> Vec<u8>) -> Act {
    raw::act(move |mut raw: Raw| async move {
        raw.bytes(&settings()).await;
        while {
            let stream = raw.request().await;
            raw.bytes(&made(stream)).await
        } {}
    })
}

#[test]
fn floods_of_small_frames_are_bounded() {
    let alone = alone();
    let any = "hostile";
    let floods = [
        ("flood of settings", floods(false, |_| settings())),
        (
            "flood of pings",
            floods(false, |_| frame(PING, 0, 0, &[7; 8])),
        ),
        (
            "flood of unknown frames",
            floods(false, |_| frame(77, 0, 0, &[7; 8])),
        ),
        (
            "flood of empty data",
            floods(true, |stream| frame(DATA, 0, stream, &[])),
        ),
        (
            "flood of 1xx",
            floods(true, |stream| {
                let head = header(":status", "103");
                frame(HEADERS, END_HEADERS, stream, &head)
            }),
        ),
        (
            "flood of window updates",
            floods(false, |_| frame(8, 0, 0, &[0, 0, 0, 1])),
        ),
    ];
    let tiny = crate::sizes::endless(0, 0);
    let floods = floods.into_iter().chain([("flood of tiny chunks", tiny)]);
    for (name, act) in floods {
        // Each connection may be fed some of the flood before its end.
        let play_it = Play::new(name, act, any).bytes(8 * SLACK);
        alone.play(&play_it);
    }
}

#[test]
fn headers_without_end_are_refused() {
    let alone = alone();
    let act = raw::act(|mut raw: Raw| async move {
        raw.bytes(&settings()).await;
        let stream = raw.request().await;
        let more = header("x-name", &"v".repeat(100)).repeat(100);
        raw.bytes(&frame(HEADERS, 0, stream, &[STATUS_200])).await;
        let frame = frame(CONTINUATION, 0, stream, &more);
        for _ in 0..FLOOD {
            if !raw.bytes(&frame).await {
                return;
            }
        }
        raw.hold().await;
    });
    let play_it = Play::new("endless continuation", act, "hostile");
    alone.play(&play_it.bytes(2 * SLACK));
    // Hardly anything on the wire: one header, in the table, a thousand times.
    let act = answers(|stream| {
        let mut head = vec![STATUS_200, 0x40];
        head.extend_from_slice(&[6]);
        head.extend_from_slice(b"x-name");
        head.push(120);
        head.extend_from_slice(&[b'v'; 120]);
        head.extend_from_slice(&[0xbe; 10_000]);
        frame(HEADERS, END_HEADERS, stream, &head)
    });
    let play_it = Play::new("header that is repeated", act, "hostile");
    alone.play(&play_it.bytes(4 * SLACK));
}

#[test]
fn requests_that_cannot_be_sent_end_in_time() {
    let alone = alone();
    let silent = "the server sent nothing for too long";
    let holds = |first: fn() -> Vec<u8>| {
        raw::act(move |mut raw: Raw| async move {
            raw.bytes(&first()).await;
            raw.hold().await;
        })
    };
    let act = holds(|| setting(4, 0));
    alone.play(
        &Play::new("window that stays shut", act, silent)
            .dials(7)
            .calls(7),
    );
    let act = holds(|| setting(3, 0));
    alone.play(
        &Play::new("no streams allowed", act, silent)
            .dials(7)
            .calls(7),
    );
    let act = holds(|| setting(4, u32::MAX));
    alone.play(&Play::new("window beyond any", act, "hostile"));
    let act = holds(|| setting(5, 1));
    alone.play(&Play::new("frames of one byte", act, "hostile"));
    let act = holds(|| setting(1, u32::MAX));
    alone.play(
        &Play::new("table without end", act, silent)
            .dials(7)
            .calls(7),
    );
}

#[test]
fn breaches_of_http2_end_the_connection() {
    let alone = alone();
    let any = "hostile";
    let breaches: [(&str, Act); 8] = [
        (
            "going away at once",
            answers(|_| frame(GOAWAY, 0, 0, &[0; 8])),
        ),
        (
            "going away with megabytes",
            answers(|_| {
                let text = [&[0, 0, 0, 0, 0, 0, 0, 11][..], &[b'\x1b'; 16_000]].concat();
                frame(GOAWAY, 0, 0, &text)
            }),
        ),
        (
            "push promise",
            answers(|stream| {
                let promise = [&[0, 0, 0, 2][..], &[STATUS_200]].concat();
                frame(PUSH_PROMISE, END_HEADERS, stream, &promise)
            }),
        ),
        (
            "frame of 16 MiB",
            answers(|stream| {
                let mut head = frame(DATA, 0, stream, &[]);
                head[..3].fill(0xff);
                head
            }),
        ),
        (
            "data before headers",
            answers(|stream| frame(DATA, 0, stream, b"x")),
        ),
        (
            "data of another stream",
            answers(|stream| frame(DATA, 0, stream + 8, b"x")),
        ),
        (
            "headers that cannot be read",
            answers(|stream| frame(HEADERS, END_HEADERS, stream, &[0xff; 9])),
        ),
        (
            "more data than the window holds",
            answers(|stream| {
                let data = frame(DATA, 0, stream, &[0; 16 * 1024]);
                [grpc_head(stream), data.repeat(100)].concat()
            }),
        ),
    ];
    for (name, act) in breaches {
        alone.play(&Play::new(name, act, any).bytes(6 * SLACK));
    }
}
