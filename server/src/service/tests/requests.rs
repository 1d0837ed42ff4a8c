//! Requests that are malformed, too large or never complete.

use driftless_test_support::frames;

use super::*;

#[tokio::test(start_paused = true)]
async fn bad_requests_are_refused_with_what_is_wrong() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let watch = |range: Option<v1::Range>| v1::WatchRequest {
        range,
        ..Default::default()
    };
    let of = |kind| Some(v1::Range { kind: Some(kind) });
    let good = || Some(v1::Range::from(&prefix("/c/")));
    let labels = |count: usize, len: usize| v1::WatchRequest {
        client: Some(v1::ClientInfo {
            labels: (0..count)
                .map(|n| (format!("{n}"), "v".repeat(len)))
                .collect(),
            ..Default::default()
        }),
        ..watch(good())
    };
    let short_digest = v1::WatchRequest {
        have: Some(v1::Have {
            digest: Bytes::from_static(b"short"),
            ..Default::default()
        }),
        ..watch(good())
    };
    let long = Bytes::from(vec![b'k'; KeyRange::MAX_LEN + 1]);
    let cases = [
        (watch(None), Code::InvalidArgument, "range is empty"),
        (
            watch(Some(v1::Range { kind: None })),
            Code::InvalidArgument,
            "range is empty",
        ),
        (
            watch(of(v1::range::Kind::Key(Bytes::new()))),
            Code::InvalidArgument,
            "key is empty",
        ),
        (
            watch(of(v1::range::Kind::Prefix(long))),
            Code::InvalidArgument,
            "4097 bytes long",
        ),
        (
            watch(of(v1::range::Kind::Prefix(Bytes::from_static(b"/c")))),
            Code::NotFound,
            "only what starts with /c/",
        ),
        (
            watch(of(v1::range::Kind::Key(Bytes::from_static(b"/d/x")))),
            Code::NotFound,
            "/d/x is not served",
        ),
        (
            labels(33, 1),
            Code::InvalidArgument,
            "33 labels of the client",
        ),
        (labels(1, 257), Code::InvalidArgument, "256 bytes"),
        (short_digest, Code::InvalidArgument, "16 bytes"),
    ];
    for (request, code, text) in cases {
        let (found, message, _) = client.call(WATCH, &request).await.status().await;
        assert_eq!(found, code, "{message}");
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    }
    assert_eq!(
        client
            .call(WATCH, &labels(32, 256))
            .await
            .headers
            .get("grpc-status"),
        None
    );

    let too_many = v1::ReportRequest {
        client: None,
        watches: vec![v1::WatchReport::default(); 1025],
    };
    let (code, message, _) = client.call(REPORT, &too_many).await.status().await;
    assert_eq!(code, Code::InvalidArgument, "{message}");
    assert!(client.is_alive());
    assert_eq!(client.get(&prefix("/c/")).await, etcd.state(&prefix("/c/")));
    assert!(engine.metrics().refused.get() >= 10);
}

#[tokio::test(start_paused = true)]
async fn malformed_requests_are_refused_and_harm_nobody() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let good = framed(&v1::WatchRequest {
        range: Some((&prefix("/c/")).into()),
        ..Default::default()
    });
    let mut compressed = BytesMut::from(&good[..]);
    compressed[0] = 1;
    let mut twice = BytesMut::from(&good[..]);
    twice.put(good.clone());
    let grpc = Some("application/grpc");
    let invalid = Code::InvalidArgument;
    let cases: [(&str, Bytes, Code); 7] = [
        ("no body", Bytes::new(), invalid),
        ("half a prefix", good.slice(..3), invalid),
        ("half a message", good.slice(..7), invalid),
        ("two messages", twice.freeze(), invalid),
        ("compressed", compressed.freeze(), Code::Unimplemented),
        (
            "garbage",
            Bytes::from_static(b"\0\0\0\0\x03\xff\xff\xff"),
            invalid,
        ),
        (
            "a length beyond all",
            Bytes::from_static(b"\0\xff\xff\xff\xffx"),
            invalid,
        ),
    ];
    let refused = engine.metrics().refused.get();
    for path in [WATCH, GET, REPORT] {
        for (what, body, code) in cases.clone() {
            let answered = client.request(path, grpc, Some(body));
            let (found, message, _) = answered.await.status().await;
            assert_eq!(found, code, "{what} to {path}: {message}");
        }
        // Clients that send another type do not read gRPC's status.
        for kind in [None, Some("application/json"), Some("application/grpc-web")] {
            let call = client.request(path, kind, Some(good.clone())).await;
            assert_eq!(call.http_status, 415, "{kind:?} to {path}");
        }
    }
    assert_eq!(engine.metrics().refused.get() - refused, 3 * 10);
    for path in [
        "/driftless.v1.Config/Nothing",
        "/",
        "/driftless.v1.Other/Watch",
    ] {
        let (code, ..) = client
            .request(path, grpc, Some(good.clone()))
            .await
            .status()
            .await;
        assert_eq!(code, Code::Unimplemented, "{path}");
    }
    assert!(client.is_alive());
    assert_eq!(client.get(&prefix("/c/")).await, []);
    until(|| engine.metrics().scopes.get() == 0).await;
}

/// A message's fields were slices of all that had been read with it: a watched range of ten bytes
/// kept the connection's read buffer alive.
#[test]
fn a_decoded_request_does_not_pin_the_read_buffer() {
    let request = v1::WatchRequest {
        range: Some((&prefix("/c/")).into()),
        have: Some(v1::Have {
            token: vec![0; 100_000].into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let body = framed(&request);
    let memory = body.as_ptr_range();
    let read: v1::WatchRequest = arrival::decode(&body[5..]).unwrap();
    assert_eq!(read, request);
    let Some(v1::range::Kind::Prefix(prefix)) = read.range.unwrap().kind else {
        panic!("a prefix");
    };
    assert!(!memory.contains(&prefix.as_ptr()));
}

#[tokio::test(start_paused = true)]
async fn requests_above_the_contracts_size_are_refused() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let key = "k".repeat(KeyRange::MAX_LEN);
    let outcome = |key: &str| v1::Outcome {
        rejection: Some(v1::Rejection {
            kind: "k".repeat(256),
            key: Bytes::copy_from_slice(key.as_bytes()),
            path: "p".repeat(4096),
            ..Default::default()
        }),
        ..Default::default()
    };
    let text = "t".repeat(256);
    let info = || v1::ClientInfo {
        instance: text.clone(),
        labels: (0..32)
            .map(|n| (format!("{n:0256}"), text.clone()))
            .collect(),
        library: text.clone(),
    };
    let largest = v1::WatchRequest {
        range: Some((&KeyRange::key(format!("/c/{}", &key[3..])).unwrap()).into()),
        have: Some(v1::Have {
            epoch: vec![0; 128].into(),
            digest: vec![0; 16].into(),
            token: vec![0; 4096].into(),
            revision: i64::MAX,
        }),
        client: Some(info()),
        features: vec![v1::Feature::ValueDeltas.into()],
        outcome: Some(outcome(&key)),
    };
    let call = client.call(WATCH, &largest).await;
    assert_eq!(call.headers.get("grpc-status"), None, "it is served");

    let report = |key: &str, count| v1::ReportRequest {
        client: Some(info()),
        watches: vec![
            v1::WatchReport {
                watch_id: vec![0; 16].into(),
                sequence: 1,
                outcome: Some(outcome(key)),
            };
            count
        ],
    };
    let long = format!("{key}k");
    // Of this length without its prefix, in a field that nobody knows.
    let long_request = |len: usize| v1::Entry {
        value: vec![0; len - 4].into(),
        ..Default::default()
    };
    let cases = [
        (REPORT, framed(&report(&key, 100)), Code::Ok, ""),
        (
            REPORT,
            framed(&report(&long, 1)),
            Code::InvalidArgument,
            "4096",
        ),
        (
            REPORT,
            framed(&long_request(1024 * 1024)),
            Code::InvalidArgument,
            "1048576 bytes",
        ),
        (
            WATCH,
            framed(&long_request(64 * 1024)),
            Code::InvalidArgument,
            "65536 bytes",
        ),
        (
            GET,
            framed(&long_request(64 * 1024)),
            Code::InvalidArgument,
            "65536 bytes",
        ),
    ];
    for (path, body, code, text) in cases {
        let call = client.request(path, Some("application/grpc"), Some(body));
        let (found, message, _) = call.await.status().await;
        assert_eq!(found, code, "{path}: {message}");
        assert!(message.contains(text), "{message:?} does not say {text:?}");
    }
    assert!(client.is_alive());
}

#[tokio::test(start_paused = true)]
async fn incomplete_requests_are_bounded_per_connection() {
    const EACH: usize = 60 * 1024;
    const HELD: usize = 1536 * 1024 / EACH;
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let (client, other) = (Client::new(&engine).await, Client::new(&engine).await);
    let mut calls = JoinSet::new();
    for _ in 0..2 * HELD {
        let client = Client {
            sender: client.sender.clone(),
            connection: JoinSet::new(),
        };
        calls.spawn(async move {
            // All but its last byte.
            let half = frames::message(EACH - 4, &[0; EACH - 5]).into();
            let call = client.send(WATCH, Some("application/grpc"), half, false);
            let (code, _, pushback) = call.await.status().await;
            (code, pushback)
        });
    }
    let start = Instant::now();
    let mut refused = 0;
    while calls.len() > HELD {
        let (code, pushback) = calls.join_next().await.unwrap().unwrap();
        assert_eq!((code, pushback), (Code::ResourceExhausted, Some(1000)));
        refused += 1;
    }
    assert_eq!(refused, HELD);
    assert_eq!(start.elapsed(), Duration::ZERO, "at once");
    let range = prefix("/c/");
    assert_eq!(other.get(&range).await, etcd.state(&range));
    while let Some(call) = calls.join_next().await {
        assert_eq!(call.unwrap().0, Code::DeadlineExceeded);
    }
    assert_eq!(
        client.get(&range).await,
        etcd.state(&range),
        "all is given back"
    );
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_body_times_out() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    let asked = Instant::now();
    for path in [WATCH, GET, REPORT] {
        let call = client.request(path, Some("application/grpc"), None);
        let (code, ..) = call.await.status().await;
        assert_eq!(code, Code::DeadlineExceeded);
    }
    assert!(asked.elapsed() <= Duration::from_secs(31));
}
