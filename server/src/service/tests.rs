//! Tests of the service through HTTP/2 over in-memory pipes, on a paused clock.

mod calls;
mod connections;
mod floods;
mod guards;
mod idle;
mod memory;
mod permits;
mod requests;
mod resume;
mod sessions;
mod shutdown;
mod slow_consumers;
mod unread;

use std::future::Future;
use std::task::Context;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use driftless_proto::apply::ApplyError;
use driftless_proto::digest::Digest;
use driftless_proto::{Entry, Epoch, KeyRange, Revision, v1};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinSet;
use tokio::time::{Instant, advance, sleep, timeout};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_check_response};
use tonic_reflection::pb::v1 as reflection;
use v1::watch_response::Frame;

use super::*;
use crate::metrics::Metrics;
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
        // Slow consumers stay connected, except where a test is about them.
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
        asked_at: Some(Instant::now()),
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

    async fn over_tcp(address: std::net::SocketAddr) -> Self {
        let io = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Self {
            sender,
            connection: tasks,
        }
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

/// So many connections, with the usual number of streams.
const fn limits(connections: usize) -> ConnectionLimits {
    ConnectionLimits {
        connections,
        streams: 1024,
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
