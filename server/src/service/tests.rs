//! The service as a client of its own kind meets it: HTTP/2 over in-memory pipes, on a paused clock.

mod sessions;
mod stalls;

use std::future::Future;
use std::task::Context;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use driftless_proto::apply::ApplyError;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, Revision};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep, timeout};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response};
use tonic_reflection::pb::v1 as reflection;
use v1::watch_response::Frame;

use super::*;
use crate::net::listen;
use crate::source::scripted::{Op, Script, ScriptedEtcd, ScriptedSource};
use crate::source::{REQUEST_TIMEOUT, SourceHandle, Update};
use crate::store::{History, State};
use crate::testing::{Replica, entry, prefix, take_messages};
use crate::{Engine, Settings};

/// HTTP/2's own windows (of a stream, of a connection), and those of hyper's and tonic's clients.
const WINDOWS: [(u32, u32); 2] = [(65_535, 65_535), (2 * 1024 * 1024, 5 * 1024 * 1024)];

const WATCH: &str = "/driftless.v1.Config/Watch";
const GET: &str = "/driftless.v1.Config/Get";
const REPORT: &str = "/driftless.v1.Config/Report";
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

fn settings() -> Settings {
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .log_bytes(1024 * 1024)
        // Those who do not read are put up with, where a test is not about that.
        .stall_timeout(Duration::from_secs(24 * 3600));
    settings.build().unwrap()
}

fn engine(etcd: &ScriptedEtcd) -> Engine {
    engine_of(etcd, &settings())
}

fn engine_of(etcd: &ScriptedEtcd, settings: &Settings) -> Engine {
    let (handle, requests) = SourceHandle::channel();
    let source = etcd.source(prefix("/c/"), requests);
    Engine::start(settings, Metrics::new(), [(prefix("/c/"), source, handle)])
}

/// An engine whose source says what the script says.
fn scripted_engine() -> (Engine, Script) {
    let (handle, requests) = SourceHandle::channel();
    let (script, source) = ScriptedSource::new(requests);
    let engine = Engine::start(
        &settings(),
        Metrics::new(),
        [(prefix("/c/"), source, handle)],
    );
    (engine, script)
}

fn state(revision: i64, entries: Vec<Entry>, history: History) -> Update {
    Update::State(State {
        epoch: Epoch::of_cluster(1, ""),
        revision: Revision::new(revision),
        entries,
        history,
    })
}

/// One connection of a client. It ends when this is dropped.
struct Client {
    sender: SendRequest<Bytes>,
    connection: JoinSet<Result<(), h2::Error>>,
}

/// The response to one call.
struct Call {
    http_status: http::StatusCode,
    headers: HeaderMap,
    body: RecvStream,
    buffer: BytesMut,
    /// Keeps a request open that was not ended.
    _request: SendStream<Bytes>,
}

fn framed(message: &impl Message) -> Bytes {
    crate::encode::unary(message)
}

impl Client {
    async fn connect(engine: &Engine, windows: (u32, u32)) -> Self {
        let (client, server) = duplex(64 * 1024);
        engine.serve(server);
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(windows.0)
            .initial_connection_window_size(windows.1);
        let (sender, connection) = builder.handshake(client).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Self {
            sender,
            connection: tasks,
        }
    }

    async fn new(engine: &Engine) -> Self {
        Self::connect(engine, WINDOWS[0]).await
    }

    fn is_alive(&mut self) -> bool {
        self.connection.try_join_next().is_none()
    }

    /// Any request: of this content type, with this body or, for none, one that does not end.
    async fn request(&self, path: &str, kind: Option<&str>, body: Option<Bytes>) -> Call {
        let end = body.is_some();
        self.send(path, kind, body.unwrap_or_default(), end).await
    }

    /// A request that ends after what is sent of it, or does not.
    async fn send(&self, path: &str, kind: Option<&str>, body: Bytes, end: bool) -> Call {
        let mut request =
            http::Request::post(format!("http://server{path}")).header("te", "trailers");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        self.send_request(request.body(()).unwrap(), body, end)
            .await
    }

    async fn send_request(&self, request: Request<()>, body: Bytes, end: bool) -> Call {
        let mut sender = self.sender.clone().ready().await.unwrap();
        let (response, mut sending) = sender
            .send_request(request, end && body.is_empty())
            .unwrap();
        if !body.is_empty() {
            sending.send_data(body, end).unwrap();
        }
        let (head, body) = response.await.unwrap().into_parts();
        Call {
            http_status: head.status,
            headers: head.headers,
            body,
            buffer: BytesMut::new(),
            _request: sending,
        }
    }

    async fn call(&self, path: &str, message: &impl Message) -> Call {
        let body = framed(message);
        self.request(path, Some("application/grpc"), Some(body))
            .await
    }

    async fn watch(&self, range: &KeyRange, have: Option<v1::Have>) -> Call {
        let request = v1::WatchRequest {
            range: Some(range.into()),
            have,
            ..Default::default()
        };
        self.call(WATCH, &request).await
    }

    /// What is in the range, by a `Get`.
    async fn get(&self, range: &KeyRange) -> Vec<Entry> {
        let request = v1::GetRequest {
            range: Some(range.into()),
            client: None,
        };
        let mut call = self.call(GET, &request).await;
        let mut replica = Replica::new(range.clone());
        let mut begun = false;
        while let Some(response) = call.message::<v1::GetResponse>().await {
            let snapshot = response.snapshot.unwrap();
            if !begun {
                begun = true;
                // The epoch comes with the last chunk.
                replica.applier.begin(Epoch::of_cluster(1, ""));
            }
            replica.take(Frame::Snapshot(snapshot)).unwrap();
        }
        assert_eq!(call.status().await.0, Code::Ok);
        replica.entries()
    }
}

impl Call {
    /// The next message; `None` at the end of the stream.
    async fn message<M: Message + Default>(&mut self) -> Option<M> {
        loop {
            if self.buffer.len() >= 5 {
                let len = u32::from_be_bytes(self.buffer[1..5].try_into().unwrap()) as usize;
                if self.buffer.len() >= 5 + len {
                    let mut bytes = self.buffer.split_to(5 + len).freeze();
                    return take_messages(&mut bytes).pop();
                }
            }
            let data = self.body.data().await?.expect("the connection lives");
            self.body
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            self.buffer.put(data);
        }
    }

    async fn frame(&mut self) -> Option<Frame> {
        let message: v1::WatchResponse = self.message().await?;
        Some(message.frame.unwrap())
    }

    /// Applies what comes until the replica is at `revision`.
    async fn read_to(
        &mut self,
        replica: &mut Replica,
        revision: Revision,
    ) -> Result<(), ApplyError> {
        while replica.revision() < revision {
            let frame = self.frame().await.expect("the stream goes on");
            replica.take(frame)?;
        }
        Ok(())
    }

    /// How the call ended: code, message, and when to come back in milliseconds.
    async fn status(&mut self) -> (Code, String, Option<u64>) {
        assert_eq!(self.http_status, 200, "gRPC's errors are in the trailers");
        let mut ending = self.headers.clone();
        if !ending.contains_key("grpc-status") {
            while let Some(data) = self.body.data().await {
                let data = data.unwrap();
                self.body
                    .flow_control()
                    .release_capacity(data.len())
                    .unwrap();
            }
            ending = self.body.trailers().await.unwrap().expect("trailers");
        }
        let text = |name: &str| {
            ending
                .get(name)
                .map(|value| value.to_str().unwrap().to_owned())
        };
        let code = text("grpc-status")
            .expect("a status")
            .parse::<i32>()
            .unwrap();
        let message = text("grpc-message").unwrap_or_default().replace("%20", " ");
        let pushback = text("grpc-retry-pushback-ms").map(|millis| millis.parse().unwrap());
        (Code::from(code), message, pushback)
    }
}

/// Waits, on the paused clock, for something that other tasks bring about.
async fn until(mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting)
        .await
        .expect("it comes about");
}

#[tokio::test(start_paused = true)]
async fn watch_get_and_report() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    assert_eq!(client.get(&range).await, etcd.state(&range));
    let none = KeyRange::key("/c/none").unwrap();
    assert_eq!(client.get(&none).await, []);

    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    let Some(Frame::Hello(hello)) = watch.frame().await else {
        panic!("hello comes first");
    };
    assert_eq!(hello.watch_id.len(), 16);
    let report = |watch_id: &Bytes| v1::ReportRequest {
        client: None,
        watches: vec![v1::WatchReport {
            watch_id: watch_id.clone(),
            sequence: 1,
            outcome: Some(v1::Outcome::default()),
        }],
    };
    let known = report(&hello.watch_id);
    let unknown = report(&Bytes::from_static(b"sixteen bytes ..."));
    for (request, expected) in [(&known, 0), (&unknown, 1)] {
        let mut call = client.call(REPORT, request).await;
        let response: v1::ReportResponse = call.message().await.unwrap();
        assert_eq!(response.unknown_watch_ids.len(), expected);
        assert_eq!(call.status().await.0, Code::Ok);
    }
    replica.take(Frame::Hello(hello)).unwrap();
    for n in 0..3 {
        let last = etcd.txn([Op::put("/c/a", [n]), Op::put("/c/b", [n])]);
        watch.read_to(&mut replica, last).await.unwrap();
        assert_eq!(replica.entries(), etcd.state(&range));
    }
    assert_eq!(engine.metrics().streams.get(), 1);

    // Dropping the call unsubscribes, and its id with it.
    drop(watch);
    let metrics = engine.metrics().clone();
    until(|| metrics.streams.get() == 0 && metrics.scopes.get() == 0).await;
    let mut call = client.call(REPORT, &known).await;
    let response: v1::ReportResponse = call.message().await.unwrap();
    assert_eq!(response.unknown_watch_ids.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_request_is_said() {
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
        (labels(33, 1), Code::InvalidArgument, "33 labels"),
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
async fn what_is_no_request_is_answered_and_harms_nobody() {
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
        // Those who send another type do not look for gRPC's status.
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
fn a_request_that_is_kept_keeps_nothing_else_alive() {
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
    let read: v1::WatchRequest = grpc::message(body.clone()).unwrap();
    assert_eq!(read, request);
    let Some(v1::range::Kind::Prefix(prefix)) = read.range.unwrap().kind else {
        panic!("a prefix");
    };
    assert!(!memory.contains(&prefix.as_ptr()));
}

#[tokio::test(start_paused = true)]
async fn a_request_is_as_large_as_its_contract_allows_and_no_larger() {
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
            vec![0; 1024 * 1024 + 1].into(),
            Code::InvalidArgument,
            "1048576 bytes",
        ),
        (
            WATCH,
            vec![0; 64 * 1024 + 1].into(),
            Code::InvalidArgument,
            "65536 bytes",
        ),
        (
            GET,
            vec![0; 64 * 1024 + 1].into(),
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
async fn requests_that_do_not_arrive_hold_no_more_than_a_connection_may() {
    const EACH: usize = 60 * 1024;
    const HELD: usize = 2 * 1024 * 1024 / EACH;
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
            let half = vec![0; EACH].into();
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
async fn a_client_that_stalls_after_its_headers_is_told_so() {
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

#[tokio::test(start_paused = true)]
async fn before_the_first_state_clients_are_told_when_to_come_back() {
    let (engine, script) = scripted_engine();
    let client = Client::new(&engine).await;
    let watch = v1::WatchRequest {
        range: Some((&prefix("/c/")).into()),
        ..Default::default()
    };
    let get = v1::GetRequest {
        range: Some((&prefix("/c/")).into()),
        client: None,
    };
    let (watched, got) = (
        client.call(WATCH, &watch).await.status().await,
        client.call(GET, &get).await.status().await,
    );
    for (code, message, pushback) in [watched, got] {
        assert_eq!(
            (code, pushback),
            (Code::Unavailable, Some(1000)),
            "{message}"
        );
    }
    assert!(
        script
            .send(state(5, vec![entry("/c/a", "1", 5)], History::Continues))
            .await
    );
    engine.ready().await;
    assert_eq!(client.get(&prefix("/c/")).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_server_shuts_down_clients_are_told_when_to_come_back() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    // Connections that are not told yet.
    engine.service().drain();
    let range = Some(v1::Range::from(&prefix("/c/")));
    let watch = v1::WatchRequest {
        range: range.clone(),
        ..Default::default()
    };
    let get = v1::GetRequest {
        range,
        client: None,
    };
    let health = HealthCheckRequest::default();
    for mut call in [
        client.call(WATCH, &watch).await,
        client.call(GET, &get).await,
        client.call(HEALTH_WATCH, &health).await,
    ] {
        let told = timeout(Duration::from_secs(1), call.status()).await;
        let (code, message, pushback) = told.expect("at once");
        assert_eq!(
            (code, pushback),
            (Code::Unavailable, Some(100)),
            "{message}"
        );
    }
}

/// A `Get` that met the end of a history was told that the server had no state.
#[tokio::test(start_paused = true)]
async fn a_get_survives_a_change_of_the_history() {
    let (engine, script) = scripted_engine();
    const ENTRIES: usize = 40_000;
    // Ten times what is added up in one go: the history ends while that is under way.
    let entries = |revision: i64| -> Vec<Entry> {
        let key = |n| entry(&format!("/c/{n:05}"), "v", revision);
        (0..ENTRIES).map(key).collect()
    };
    assert!(script.send(state(5, entries(5), History::Continues)).await);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let replaced = state(3, entries(3), History::Replaced);
    let replace = async {
        while engine.metrics().scopes.get() == 0 {
            tokio::task::yield_now().await;
        }
        assert!(script.send(replaced).await);
    };
    let (got, ()) = tokio::join!(client.get(&range), replace);
    assert_eq!(got, entries(3));
}

async fn health(client: &Client, service: &str) -> health_check_response::ServingStatus {
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let mut call = client.call(HEALTH_CHECK, &request).await;
    let response: HealthCheckResponse = call.message().await.unwrap();
    response.status()
}

#[tokio::test(start_paused = true)]
async fn health_is_the_truth() {
    use health_check_response::ServingStatus;
    let (engine, script) = scripted_engine();
    let client = Client::new(&engine).await;
    for service in ["", "driftless.v1.Config"] {
        assert_eq!(health(&client, service).await, ServingStatus::NotServing);
    }
    let mut watch = client
        .call(HEALTH_WATCH, &HealthCheckRequest::default())
        .await;
    let now: HealthCheckResponse = watch.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::NotServing);
    assert!(script.send(state(5, Vec::new(), History::Continues)).await);
    let now: HealthCheckResponse = watch.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::Serving);
    for service in ["", "driftless.v1.Config"] {
        assert_eq!(health(&client, service).await, ServingStatus::Serving);
    }
}

#[tokio::test(start_paused = true)]
async fn the_service_describes_itself() {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let engine = engine(&ScriptedEtcd::default());
    let client = Client::new(&engine).await;
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut call = client.call(REFLECTION, &request).await;
    let response: reflection::ServerReflectionResponse = call.message().await.unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = response.message_response else {
        panic!("{response:?}");
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in ["driftless.v1.Config", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{names:?}");
    }
}

/// Reads until the other end closes; how long that took, and how many bytes came.
async fn closed(io: &mut DuplexStream) -> Duration {
    let start = Instant::now();
    let mut bytes = Vec::new();
    // Being reset is being closed.
    let _ = io.read_to_end(&mut bytes).await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn what_does_not_speak_http2_is_let_go() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let garbage = [&preface[..], &[0xff; 64]].concat();
    let cases: [&[u8]; 6] = [
        b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n",
        &preface[..10],
        preface,
        &garbage,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"",
    ];
    for bytes in cases {
        let (mut client, server) = duplex(1024);
        engine.serve(server);
        client.write_all(bytes).await.unwrap();
        let took = closed(&mut client).await;
        assert!(took <= Duration::from_secs(30), "{bytes:?}: {took:?}");
        until(|| engine.metrics().connections.get() == 0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_a_call_is_let_go_and_one_with_a_call_is_not() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut idle = Client::new(&engine).await;
    let mut used = Client::new(&engine).await;
    let mut watching = Client::new(&engine).await;
    used.get(&prefix("/c/")).await;
    let mut watch = watching.watch(&prefix("/c/"), None).await;
    let connected = Instant::now();
    idle.connection.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(connected.elapsed(), Duration::from_secs(30));
    let mut replica = Replica::new(prefix("/c/"));
    for _ in 0..60 {
        sleep(Duration::from_secs(1)).await;
        let last = etcd.put("/c/a", "v");
        watch.read_to(&mut replica, last).await.unwrap();
    }
    assert!(used.is_alive() && watching.is_alive());
    assert_eq!(engine.metrics().connections.get(), 2);
}

#[tokio::test]
async fn no_more_connections_are_served_than_allowed() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), 2);
    let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let accepting = connections.clone();
    let mut accept = JoinSet::new();
    accept.spawn(async move { accepting.accept(listener).await });
    let connect = || async move {
        let io = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Client {
            sender,
            connection: tasks,
        }
    };
    let (first, second, third) = (connect().await, connect().await, connect().await);
    let range = prefix("/c/");
    assert_eq!(first.get(&range).await.len(), 1);
    assert_eq!(second.get(&range).await.len(), 1);
    let mut waiting = Box::pin(third.get(&range));
    for _ in 0..20 {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        first.get(&range).await;
        assert_eq!(engine.metrics().connections.get(), 2);
    }
    drop(second);
    let served = timeout(Duration::from_secs(20), waiting).await;
    assert_eq!(served.expect("its turn has come").len(), 1);
    drop((first, third));
    assert_eq!(
        connections.shut_down(sleep(Duration::from_secs(20))).await,
        0
    );
    accept.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_says_goodbye_on_every_stream_and_ends() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let mut streams = Vec::new();
    for range in [
        prefix("/c/"),
        prefix("/c/a"),
        KeyRange::key("/c/a").unwrap(),
    ] {
        let mut watch = client.watch(&range, None).await;
        let mut replica = Replica::new(range);
        watch.read_to(&mut replica, etcd.revision()).await.unwrap();
        streams.push(watch);
    }
    let mut idle = Client::new(&engine).await;
    let metrics = engine.metrics().clone();
    let start = Instant::now();
    let read = async {
        for mut watch in streams {
            let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
                panic!("goodbye");
            };
            assert_eq!(goodbye.reason(), v1::goodbye::Reason::Drain);
            assert!(watch.frame().await.is_none(), "the last");
            assert_eq!(watch.status().await.0, Code::Ok);
        }
        client
            .connection
            .join_next()
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        idle.connection.join_next().await.unwrap().unwrap().unwrap();
    };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
    assert_eq!((metrics.connections.get(), metrics.streams.get()), (0, 0));
    assert_eq!(metrics.scopes.get(), 0);
}

/// A client that watches the server's health, as gRPC's own clients do, held up every shutdown until
/// it was cut off.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_those_who_watch_its_health() {
    use health_check_response::ServingStatus;
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    let mut calls = Vec::new();
    for service in ["", "driftless.v1.Config"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let mut call = client.call(HEALTH_WATCH, &request).await;
        while call
            .message::<HealthCheckResponse>()
            .await
            .unwrap()
            .status()
            != ServingStatus::Serving
        {}
        calls.push(call);
    }
    let start = Instant::now();
    let read = async {
        for mut call in calls {
            let last: HealthCheckResponse = call.message().await.unwrap();
            assert_eq!(last.status(), ServingStatus::NotServing);
            assert!(call.message::<HealthCheckResponse>().await.is_none());
        }
    };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// It is not serving yet, and may never be: those who wait for it to serve are let go all the same.
#[tokio::test(start_paused = true)]
async fn a_shutdown_before_the_first_state_does_not_wait_for_those_who_watch_its_health() {
    use health_check_response::ServingStatus;
    let (engine, _script) = scripted_engine();
    let client = Client::new(&engine).await;
    let mut call = client
        .call(HEALTH_WATCH, &HealthCheckRequest::default())
        .await;
    let now: HealthCheckResponse = call.message().await.unwrap();
    assert_eq!(now.status(), ServingStatus::NotServing);
    let start = Instant::now();
    let read = async { while call.message::<HealthCheckResponse>().await.is_some() {} };
    let (cut_off, ()) = tokio::join!(engine.shut_down(Duration::from_secs(8)), read);
    assert_eq!(cut_off, 0);
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// Tools that look at what a server offers keep their call open, and held up every shutdown.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_those_who_look_around() {
    use reflection::server_reflection_request::MessageRequest;
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let client = Client::new(&engine).await;
    let request = framed(&reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    });
    let open = client.send(REFLECTION, Some("application/grpc"), request, false);
    let mut call = open.await;
    let answer: reflection::ServerReflectionResponse = call.message().await.unwrap();
    assert!(answer.message_response.is_some());
    let start = Instant::now();
    let (cut_off, status) = tokio::join!(
        engine.shut_down(Duration::from_secs(8)),
        timeout(Duration::from_secs(60), call.status())
    );
    assert_eq!(cut_off, 0);
    assert_eq!(status.unwrap().0, Code::Ok);
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// What was accepted at the moment of a shutdown lived on after it.
#[tokio::test]
async fn a_shutdown_waits_for_the_accept_loop() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), 1);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let accepting = connections.clone();
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let mut shut_down = Box::pin(connections.shut_down(std::future::pending()));
    assert!(
        shut_down.as_mut().poll(&mut cx).is_pending(),
        "it may accept one more"
    );
    accept.await;
    assert_eq!(shut_down.await, 0);
}

/// Those that have their turn read on until the deadline; a crowd behind them would wait with them.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_a_turn() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let _busy = engine.service().sessions().admission().keep_busy();
    let client = Client::new(&engine).await;
    let request = v1::GetRequest {
        range: Some((&prefix("/c/")).into()),
        client: None,
    };
    let mut call = client.call(GET, &request).await;
    assert!(timeout(Duration::from_secs(1), call.frame()).await.is_err());
    let start = Instant::now();
    let (cut_off, status) = tokio::join!(engine.shut_down(Duration::from_secs(8)), call.status());
    assert_eq!((cut_off, status.0), (0, Code::Unavailable));
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// A connection that was accepted at that moment is told to take no calls, as all others are.
#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_wait_for_who_came_in_the_last_moment() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), 1);
    let (accepting, late) = (connections.clone(), connections.clone());
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let start = Instant::now();
    let mut shut_down = Box::pin(connections.shut_down(std::future::pending()));
    assert!(shut_down.as_mut().poll(&mut cx).is_pending());
    // As the accept loop does before it sees that it is over.
    let (client, server) = duplex(64 * 1024);
    late.serve(server);
    accept.await;
    let (_sender, connection) = h2::client::handshake(client).await.unwrap();
    let (cut_off, ended) = tokio::join!(shut_down, connection);
    assert_eq!(cut_off, 0);
    ended.unwrap();
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// The same where there is no time left.
#[tokio::test(start_paused = true)]
async fn a_shutdown_at_its_deadline_cuts_off_who_came_in_the_last_moment() {
    let engine = engine(&ScriptedEtcd::default());
    engine.ready().await;
    let connections = Connections::new(engine.service().clone(), 1);
    let (accepting, late) = (connections.clone(), connections.clone());
    let mut accept = Box::pin(async move {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        accepting.accept(listener).await;
    });
    let mut cx = Context::from_waker(std::task::Waker::noop());
    assert!(accept.as_mut().poll(&mut cx).is_pending());
    let start = Instant::now();
    let mut shut_down = Box::pin(connections.shut_down(std::future::ready(())));
    assert!(shut_down.as_mut().poll(&mut cx).is_pending());
    let (_silent, server) = duplex(64 * 1024);
    late.serve(server);
    accept.await;
    shut_down.await;
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_cuts_off_at_its_deadline_who_does_not_read() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", vec![b'v'; 1024 * 1024]);
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let watch = client.watch(&prefix("/c/"), None).await;
    let metrics = engine.metrics().clone();
    let start = Instant::now();
    assert_eq!(engine.shut_down(Duration::from_secs(8)).await, 1);
    assert_eq!(start.elapsed(), Duration::from_secs(8));
    assert_eq!((metrics.connections.get(), metrics.streams.get()), (0, 0));
    assert_eq!(metrics.scopes.get(), 0);
    client.connection.join_next().await.unwrap().unwrap().ok();
    drop(watch);
}

#[tokio::test(start_paused = true)]
async fn another_history_ends_streams_with_a_goodbye() {
    let etcd = ScriptedEtcd::default();
    let first = etcd.put("/c/a", "1");
    let last = etcd.put("/c/a", "2");
    let engine = engine(&etcd);
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    watch.read_to(&mut replica, last).await.unwrap();
    etcd.restore(first);
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("goodbye");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::History);
    assert_eq!(watch.status().await.0, Code::Ok);
    // The client is ahead of this history; etcd says that it never was there.
    let have = replica.applier.have(Bytes::new());
    let mut watch = client.watch(&range, have).await;
    loop {
        let frame = watch.frame().await.unwrap();
        let is_snapshot = matches!(&frame, Frame::Snapshot(snapshot) if snapshot.reset);
        replica.take(frame).unwrap();
        if is_snapshot {
            break;
        }
    }
    assert_eq!(
        (replica.revision(), replica.entries()),
        (first, etcd.state(&range))
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_ahead_waits_for_the_server_to_catch_up() {
    let (engine, script) = scripted_engine();
    let entries = |value: &'static str, at| vec![entry("/c/a", value, at)];
    assert!(
        script
            .send(state(50, entries("1", 50), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let epoch = Epoch::of_cluster(1, "");
    let have = |revision, entries: &[Entry]| v1::Have {
        epoch: epoch.as_bytes().clone(),
        revision,
        digest: entries.iter().collect::<Digest>().to_bytes(),
        token: Bytes::new(),
    };
    // etcd does not answer: the client is told to come back.
    let ahead = have(60, &entries("2", 60));
    let (code, message, pushback) = client
        .watch(&range, Some(ahead.clone()))
        .await
        .status()
        .await;
    assert_eq!(
        (code, pushback),
        (Code::Unavailable, Some(1000)),
        "{message}"
    );

    // etcd is there, and nothing changed in the range: the client has it all.
    script.answer(Some(Revision::new(60)));
    let same = have(60, &entries("1", 50));
    let mut watch = client.watch(&range, Some(same)).await;
    let mut replica = Replica::holding(range.clone(), &epoch, Revision::new(60), entries("1", 50));
    while replica.heard.last() != Some(&"current") {
        replica.take(watch.frame().await.unwrap()).unwrap();
    }

    // The server does not catch up in time.
    let (code, message, _) = client
        .watch(&range, Some(ahead.clone()))
        .await
        .status()
        .await;
    assert_eq!(code, Code::Unavailable, "{message}");

    // It does.
    let watching = client.watch(&range, Some(ahead));
    let say = async {
        let changes = vec![driftless_proto::apply::Edit::Put(entry("/c/a", "2", 60))];
        let revision = Revision::new(60);
        assert!(script.send(Update::Changes { revision, changes }).await);
    };
    let (mut watch, ()) = tokio::join!(watching, say);
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let Some(Frame::Current(current)) = watch.frame().await else {
        panic!("it has it all");
    };
    assert_eq!(current.revision, 60);
}

/// The script's source says nothing of the past, as one does that finds too much there.
#[tokio::test(start_paused = true)]
async fn who_is_from_a_time_that_etcd_does_not_tell_of_gets_a_snapshot() {
    let (engine, script) = scripted_engine();
    let now = vec![entry("/c/a", "new", 50), entry("/c/b", "same", 3)];
    assert!(
        script
            .send(state(50, now.clone(), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let held = vec![entry("/c/a", "old", 10), entry("/c/b", "same", 3)];
    let epoch = Epoch::of_cluster(1, "");
    let mut replica = Replica::holding(range.clone(), &epoch, Revision::new(40), held);
    let have = replica.applier.have(Bytes::new());
    let start = Instant::now();
    let mut watch = client.watch(&range, have).await;
    watch
        .read_to(&mut replica, Revision::new(50))
        .await
        .unwrap();
    assert!(
        start.elapsed() < REQUEST_TIMEOUT,
        "nobody waits for nothing"
    );
    assert_eq!(replica.heard, ["hello", "snapshot"]);
    assert_eq!(replica.entries(), now);
    assert_eq!(engine.metrics().answers_snapshot.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_needs_to_know_what_etcd_does_not_say_is_not_kept_waiting() {
    // Nobody answers, and nobody says so.
    let (handle, _requests) = SourceHandle::channel();
    let (script, source) = ScriptedSource::new(SourceHandle::channel().1);
    let served = [(prefix("/c/"), source, handle)];
    let engine = Engine::start(&settings(), Metrics::new(), served);
    let now = vec![entry("/c/a", "new", 50)];
    assert!(
        script
            .send(state(50, now.clone(), History::Continues))
            .await
    );
    engine.ready().await;
    let client = Client::new(&engine).await;
    let range = prefix("/c/");
    let replica = |value: &'static str, revision| {
        let held = vec![entry("/c/a", value, revision)];
        let epoch = Epoch::of_cluster(1, "");
        Replica::holding(range.clone(), &epoch, Revision::new(revision), held)
    };
    let soon = REQUEST_TIMEOUT + Duration::from_secs(1);

    // What is to come.
    let ahead = replica("newer", 60).applier.have(Bytes::new());
    let call = async { client.watch(&range, ahead).await.status().await };
    let (code, message, _) = timeout(soon, call).await.unwrap();
    assert_eq!(code, Code::Unavailable, "{message}");

    // What was before.
    let mut before = replica("old", 40);
    let have = before.applier.have(Bytes::new());
    let call = async {
        let mut watch = client.watch(&range, have).await;
        let read = watch.read_to(&mut before, Revision::new(50)).await;
        read.unwrap();
    };
    timeout(soon, call).await.unwrap();
    assert_eq!(before.heard, ["hello", "snapshot"]);
    assert_eq!(before.entries(), now);
}

/// Publishes while the clients do not read, then lets them; they are alive and come to the state.
async fn unread(changes: usize, every: Duration) {
    for windows in WINDOWS {
        let etcd = ScriptedEtcd::default();
        etcd.put("/c/k", "0");
        let engine = engine(&etcd);
        engine.ready().await;
        let mut client = Client::connect(&engine, windows).await;
        let range = prefix("/c/");
        let mut watch = client.watch(&range, None).await;
        for n in 0..changes {
            etcd.put("/c/k", n.to_string());
            if every > Duration::ZERO {
                advance(every).await;
            }
            tokio::task::yield_now().await;
        }
        let last = etcd.revision();
        let served = engine.service().served()[0].fanout.clone();
        served.reached(last).await;
        sleep(Duration::from_secs(1)).await;
        let metrics = engine.metrics();
        if let Some(ended) = client.connection.try_join_next() {
            panic!("with {windows:?}: {ended:?}");
        }
        assert_eq!((metrics.connections.get(), metrics.streams.get()), (1, 1));
        assert!(metrics.log_bytes.get() <= 1024 * 1024);
        // Nothing more than the window and what HTTP/2 buffers for a stream.
        let most = u64::from(windows.0) + 2 * 64 * 1024;
        assert!(
            metrics.sent_bytes.get() <= most,
            "{}",
            metrics.sent_bytes.get()
        );
        let mut replica = Replica::new(range.clone());
        watch.read_to(&mut replica, last).await.unwrap();
        assert_eq!(replica.entries(), etcd.state(&range));
        assert!(client.is_alive());
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_unread_changes_do_not_end_a_connection() {
    unread(10_000, Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn two_thousand_unread_changes_at_a_hundred_a_second_do_not_end_a_connection() {
    unread(2_000, Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn slow_unread_changes_do_not_end_a_connection() {
    unread(2_000, Duration::from_millis(500)).await;
}

#[tokio::test(start_paused = true)]
async fn unread_signs_of_life_do_not_end_a_connection() {
    let etcd = ScriptedEtcd::default();
    let engine = engine(&etcd);
    engine.ready().await;
    let mut client = Client::new(&engine).await;
    let range = prefix("/c/");
    let mut watch = client.watch(&range, None).await;
    sleep(Duration::from_secs(6 * 3600)).await;
    let last = etcd.put("/c/k", "v");
    let mut replica = Replica::new(range.clone());
    watch.read_to(&mut replica, last).await.unwrap();
    assert_eq!(replica.entries(), etcd.state(&range));
    assert!(client.is_alive());
}

/// A crowd starts with nothing while keys change, and some of it never reads: everybody else comes to
/// the right state, and what they read was encoded once.
#[tokio::test(start_paused = true)]
async fn a_crowd_reads_one_snapshot_and_waits_for_nobody_who_does_not() {
    const STALLED: usize = 40;
    const CROWD: usize = 200;
    let etcd = ScriptedEtcd::default();
    for key in 0..60 {
        etcd.put(format!("/c/{key:02}"), vec![key; 9_000]);
    }
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");

    let one = Client::new(&engine).await;
    let mut watch = one.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    let revision = etcd.revision();
    watch.read_to(&mut replica, revision).await.unwrap();
    let chunks = metrics.chunks_encoded.get();
    assert!(chunks > 8, "{chunks}");
    drop((one, watch));

    // None of them ever reads.
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let client = Client::new(&engine).await;
        let watch = client.watch(&range, None).await;
        stalled.push((client, watch));
    }
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let client = Client::new(&engine).await;
        let (theirs, range) = (etcd.clone(), range.clone());
        crowd.spawn(async move {
            let mut watch = client.watch(&range, None).await;
            let mut replica = Replica::new(range.clone());
            let last = loop {
                let now = theirs.revision();
                watch.read_to(&mut replica, now).await.unwrap();
                if now == theirs.revision() {
                    break now;
                }
            };
            assert_eq!(replica.revision(), last);
            replica.entries()
        });
        if crowd.len() % 20 == 0 {
            etcd.put("/c/07", vec![crowd.len() as u8; 9_000]);
        }
    }
    while let Some(entries) = crowd.join_next().await {
        assert_eq!(entries.unwrap().len(), 60);
    }
    assert_eq!(metrics.answers_deferred.get(), 0);
    // One more for those that come when nobody came for a while, two minutes later, or after more
    // changes than are replayed.
    let at_most = chunks * 2;
    assert!(
        metrics.chunks_encoded.get() <= at_most,
        "{} chunks encoded for {CROWD} clients, {chunks} for one",
        metrics.chunks_encoded.get()
    );
    drop(stalled);
    until(|| metrics.answers_reading.get() == 0 && metrics.scopes.get() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn who_waits_too_long_for_a_turn_is_told_when_to_come_back() {
    let etcd = ScriptedEtcd::default();
    etcd.put("/c/a", "1");
    let engine = engine(&etcd);
    engine.ready().await;
    let metrics = engine.metrics().clone();
    let range = prefix("/c/");
    let mut busy = engine.service().sessions().admission().keep_busy();
    let mut client = Client::new(&engine).await;

    let mut watch = client.watch(&range, None).await;
    assert!(matches!(watch.frame().await, Some(Frame::Hello(_))));
    let Some(Frame::Goodbye(goodbye)) = watch.frame().await else {
        panic!("there is no turn for it");
    };
    assert_eq!(goodbye.reason(), v1::goodbye::Reason::Rebalance);
    assert!(goodbye.retry_after_ms >= 1000 && !goodbye.purge);
    assert_eq!(watch.status().await.0, Code::Ok);
    assert_eq!(metrics.answers_deferred.get(), 1);

    let request = v1::GetRequest {
        range: Some((&range).into()),
        client: None,
    };
    let (code, message, pushback) = client.call(GET, &request).await.status().await;
    assert_eq!(code, Code::ResourceExhausted, "{message}");
    assert!(message.contains("retry"), "{message}");
    assert!(
        pushback.is_some_and(|millis| millis >= 1000),
        "{pushback:?}"
    );
    assert_eq!(metrics.answers_deferred.get(), 2);

    // One that is waiting still gets its turn, and so does whoever comes back.
    let mut watch = client.watch(&range, None).await;
    let mut replica = Replica::new(range.clone());
    replica.take(watch.frame().await.unwrap()).unwrap();
    busy.shutdown().await;
    watch.read_to(&mut replica, etcd.revision()).await.unwrap();
    assert_eq!(replica.heard, ["hello", "snapshot"]);
    assert_eq!(replica.entries(), etcd.state(&range));
    assert_eq!(client.get(&range).await, etcd.state(&range));
    assert_eq!(metrics.answers_deferred.get(), 2);
    assert!(client.is_alive());
    until(|| metrics.answers_reading.get() == 0).await;
}

/// A client that knows patches is sent what changed in a large value; one that does not, all of it.
#[tokio::test(start_paused = true)]
async fn a_line_of_a_large_value_travels_as_a_patch_to_those_who_know_them() {
    const FRAME_HEAD: usize = 9;
    let value = |limit: usize| {
        let line = |n: usize| format!("  \"limit_{n}\": {{ \"rate\": {n}, \"burst\": 10 }},\n");
        let before: String = (0..900).map(line).collect();
        let after: String = (900..1800).map(line).collect();
        format!("{{\n{before}  \"limit\": {limit},\n{after}  \"end\": true\n}}\n")
    };
    let etcd = ScriptedEtcd::default();
    assert!(value(0).len() > 64 * 1024);
    etcd.put("/c/a", value(0));
    let engine = engine(&etcd);
    engine.ready().await;
    let range = prefix("/c/");
    // Windows that one stream that is not being read does not use up.
    let client = Client::connect(&engine, WINDOWS[1]).await;
    let mut streams = Vec::new();
    for features in [
        vec![],
        vec![v1::Feature::ValueDeltas.into()],
        vec![77, v1::Feature::ValueDeltas.into()],
        vec![v1::Feature::Unspecified.into()],
    ] {
        let patched = features.contains(&v1::Feature::ValueDeltas.into());
        let request = v1::WatchRequest {
            range: Some((&range).into()),
            features,
            ..Default::default()
        };
        let mut call = client.call(WATCH, &request).await;
        let mut replica = Replica::new(range.clone());
        call.read_to(&mut replica, etcd.revision()).await.unwrap();
        streams.push((patched, call, replica));
    }
    let metrics = engine.metrics().clone();
    let frames = metrics.frames_encoded.get();
    for edit in 1..4 {
        etcd.put("/c/a", value(edit));
        for (patched, call, replica) in &mut streams {
            assert!(call.buffer.is_empty());
            // As it comes from the connection, to count it.
            let (mut len, mut bytes) = (0, BytesMut::new());
            let response: v1::WatchResponse = loop {
                let data = call.body.data().await.unwrap().unwrap();
                let mut flow = call.body.flow_control().clone();
                flow.release_capacity(data.len()).unwrap();
                len += FRAME_HEAD + data.len();
                bytes.put(data);
                let mut whole = bytes.clone().freeze();
                if let Some(message) = take_messages(&mut whole).pop() {
                    break message;
                }
            };
            replica.take(response.frame.unwrap()).unwrap();
            assert_eq!(replica.entries(), etcd.state(&range));
            match patched {
                true => assert!(len <= 300, "{len} bytes"),
                false => assert!(len > value(edit).len()),
            }
        }
        let encoded = (metrics.changes_encoded.get(), metrics.frames_encoded.get());
        let edits = edit as u64;
        assert_eq!(encoded, (2 * edits, frames + 2 * edits), "once a variant");
        assert_eq!(metrics.deltas_computed.get(), edits);
    }
    assert_eq!(metrics.deltas_dropped.get() + metrics.deltas_late.get(), 0);
    drop(streams);
    engine.shut_down(Duration::from_secs(5)).await;
    assert_eq!(metrics.delta_jobs.get(), 0);
}

/// A certificate of its own making, as a server would have it.
async fn tls() -> (tempfile::TempDir, crate::net::Tls) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("c.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(path("k.pem"), key.serialize_pem()).unwrap();
    let settings = Settings::builder()
        .etcd("http://127.0.0.1:2379")
        .prefix("/c/")
        .tls_cert(path("c.pem"))
        .tls_key(path("k.pem"))
        .build()
        .unwrap();
    let files = crate::server::tls_files(settings.tls().unwrap());
    let (tls, _) = crate::net::load_tls(files).await.unwrap();
    (dir, tls)
}

#[tokio::test(start_paused = true)]
async fn a_tls_handshake_that_does_not_end_is_ended_and_leaves_nothing() {
    let (_dir, tls) = tls().await;
    let (engine, _script) = scripted_engine();
    let metrics = engine.metrics().clone();
    let mut connections = Connections::new(engine.service().clone(), 10);
    connections.lay_tls(tls);
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let start = Instant::now();
    let (mut client, server) = duplex(1024);
    connections.serve(server);
    // The first bytes of a handshake, and then nothing.
    client.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    assert_eq!(metrics.connections.get(), 1);
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(10) && waited < Duration::from_secs(11));
    while metrics.connections.get() > 0 || tasks() > before {
        tokio::task::yield_now().await;
    }
    assert_eq!(metrics.tls_handshakes_failed.get(), 1);

    // A shutdown does not wait for one.
    let (_client, server) = duplex(1024);
    connections.serve(server);
    let start = Instant::now();
    let cut_off = connections.shut_down(sleep(Duration::from_secs(8))).await;
    assert_eq!((cut_off, start.elapsed()), (0, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn who_agrees_on_tls_is_cut_off_by_who_drops_the_engine() {
    let (_dir, tls) = tls().await;
    let (mut engine, _script) = scripted_engine();
    engine.lay_tls(tls);
    let (mut client, server) = duplex(1024);
    engine.serve(server);
    client.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    tokio::task::yield_now().await;
    let start = Instant::now();
    drop(engine);
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(start.elapsed(), Duration::ZERO);
}
