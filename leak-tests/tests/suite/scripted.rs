//! A server that sends what a scenario sets, and counts its open streams.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use driftless_proto::digest::Digest;
use driftless_proto::v1::config_server::{Config, ConfigServer};
use driftless_proto::v1::{self, watch_response::Frame};
use futures_core::Stream;
use leak_tests::{Witnesses, gauge};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// More frames than any scenario sends on a stream.
const MOST_FRAMES: usize = 4;

/// The response to a call of `Watch`. The stream stays open, except after an error.
#[derive(Clone, Copy)]
pub(crate) enum Reply {
    /// An empty state.
    State,
    /// A goodbye that revokes the client's right and makes it purge its state.
    Purge,
    /// The error "unavailable".
    Error,
    /// A change to a state that the server did not send.
    DiffFirst,
    /// A hello, and nothing after it.
    HelloOnly,
    /// The first part of a state, and nothing after it.
    SnapshotWithoutEnd,
    /// A state with the digest of another.
    WrongDigest,
}

impl Reply {
    fn frames(self) -> Vec<Result<Frame, Status>> {
        let hello = Frame::Hello(v1::Hello {
            epoch: "epoch".into(),
            watch_id: "0123456789abcdef".into(),
            progress_interval_ms: 10_000,
            report_interval_ms: 10_000,
            ..Default::default()
        });
        let state = |digest: Digest, more| {
            Frame::Snapshot(v1::Snapshot {
                revision: 1,
                digest: digest.to_bytes(),
                more,
                ..Default::default()
            })
        };
        let mut wrong = Digest::EMPTY.to_bytes().to_vec();
        wrong[0] ^= 1;
        match self {
            Self::State => vec![Ok(hello), Ok(state(Digest::EMPTY, false))],
            Self::Purge => vec![Ok(hello), Ok(purge())],
            Self::Error => vec![Err(Status::unavailable("not now"))],
            Self::DiffFirst => vec![
                Ok(hello),
                Ok(Frame::Diff(v1::Diff {
                    from: 7,
                    to: 8,
                    ..Default::default()
                })),
            ],
            Self::HelloOnly => vec![Ok(hello)],
            Self::SnapshotWithoutEnd => vec![Ok(hello), Ok(state(Digest::EMPTY, true))],
            Self::WrongDigest => vec![
                Ok(hello),
                Ok(Frame::Snapshot(v1::Snapshot {
                    revision: 1,
                    digest: wrong.into(),
                    ..Default::default()
                })),
            ],
        }
    }
}

fn purge() -> Frame {
    Frame::Goodbye(v1::Goodbye {
        reason: v1::goodbye::Reason::Revoked.into(),
        purge: true,
        ..Default::default()
    })
}

/// The server. Dropping it ends it.
pub(crate) struct ScriptedServer {
    address: SocketAddr,
    script: Arc<Script>,
    _serving: JoinSet<()>,
}

struct Script {
    reply: Mutex<Reply>,
    open_streams: Arc<AtomicI64>,
    /// How many calls of `Watch` there have been.
    calls: watch::Sender<u64>,
    /// The stream of the last call.
    last: Mutex<Option<Frames>>,
}

type Frames = mpsc::Sender<Result<v1::WatchResponse, Status>>;

impl ScriptedServer {
    /// Listens on a free port.
    pub(crate) async fn start() -> Self {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let incoming = incoming.with_nodelay(Some(true));
        let address = incoming.local_addr().unwrap();
        let script = Arc::new(Script {
            reply: Mutex::new(Reply::HelloOnly),
            open_streams: Arc::default(),
            calls: watch::Sender::new(0),
            last: Mutex::default(),
        });
        let service = ConfigServer::from_arc(Arc::clone(&script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            script,
            _serving: serving,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets the reply to all later calls.
    pub(crate) fn set_reply(&self, reply: Reply) {
        *self.script.reply.lock().unwrap() = reply;
    }

    /// Sends a goodbye that revokes the client's right, on the stream of the last call.
    pub(crate) fn send_purge(&self) {
        let last = self.script.last.lock().unwrap();
        let purge = v1::WatchResponse {
            frame: Some(purge()),
        };
        last.as_ref().unwrap().try_send(Ok(purge)).unwrap();
    }

    /// Resolves at the next call of `Watch` after this one.
    pub(crate) fn next_call(&self) -> impl Future<Output = ()> {
        let mut calls = self.script.calls.subscribe();
        async move {
            // Cannot fail while the server is there, which owns the sender.
            let _ = calls.changed().await;
        }
    }

    /// The number of open streams.
    pub(crate) fn gauges(&self) -> Witnesses {
        let open_streams = Arc::clone(&self.script.open_streams);
        let count = move || open_streams.load(Ordering::Acquire);
        Witnesses::new().and(gauge("streams", count))
    }
}

/// The stream of a call. It ends when the client drops it, or at the next call.
pub(crate) struct FrameStream<M> {
    frames: mpsc::Receiver<Result<M, Status>>,
    open_streams: Arc<AtomicI64>,
}

impl<M> Drop for FrameStream<M> {
    fn drop(&mut self) {
        self.open_streams.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<M: Unpin> Stream for FrameStream<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_recv(context)
    }
}

#[tonic::async_trait]
impl Config for Script {
    type WatchStream = FrameStream<v1::WatchResponse>;
    type GetStream = FrameStream<v1::GetResponse>;

    async fn watch(
        &self,
        _request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let reply = *self.reply.lock().unwrap();
        let (last, frames) = mpsc::channel(MOST_FRAMES);
        for frame in reply.frames() {
            let response = frame.map(|frame| v1::WatchResponse { frame: Some(frame) });
            last.try_send(response).unwrap();
        }
        let before = self.last.lock().unwrap().replace(last);
        drop(before);
        self.calls.send_modify(|calls| *calls += 1);
        let open_streams = Arc::clone(&self.open_streams);
        open_streams.fetch_add(1, Ordering::AcqRel);
        Ok(Response::new(FrameStream {
            frames,
            open_streams,
        }))
    }

    async fn get(
        &self,
        _request: Request<v1::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("no scenario reads"))
    }

    async fn report(
        &self,
        _request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        Ok(Response::new(v1::ReportResponse::default()))
    }
}
