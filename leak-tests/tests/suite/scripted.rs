//! A server that sends what a scenario wants, and counts its clients.

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

/// The most frames on a stream here.
const MOST_FRAMES: usize = 4;

/// The response to each call of `Watch`. Unless it is an error, the stream stays open.
#[derive(Clone, Copy)]
pub(crate) enum Says {
    /// An empty state.
    State,
    /// The client has no right to it.
    Purge,
    /// An internal error.
    Error,
    /// A change to a state that it did not send.
    DiffFirst,
    /// A hello, and no more.
    NothingButHello,
    /// The first part of a state.
    SnapshotWithoutEnd,
    /// A state with the digest of another.
    WrongDigest,
}

impl Says {
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
            Self::NothingButHello => vec![Ok(hello)],
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

/// The server.
pub(crate) struct Scripted {
    address: SocketAddr,
    script: Arc<Script>,
    _serving: JoinSet<()>,
}

struct Script {
    says: Mutex<Says>,
    listening: Arc<AtomicI64>,
    /// How many calls there have been.
    asked: watch::Sender<u64>,
    /// The stream of the last call.
    last: Mutex<Option<Frames>>,
}

type Frames = mpsc::Sender<Result<v1::WatchResponse, Status>>;

impl Scripted {
    /// On a port of its own.
    pub(crate) async fn start() -> Self {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let incoming = incoming.with_nodelay(Some(true));
        let address = incoming.local_addr().unwrap();
        let script = Arc::new(Script {
            says: Mutex::new(Says::NothingButHello),
            listening: Arc::default(),
            asked: watch::Sender::new(0),
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

    /// Sets what to send from now on.
    pub(crate) fn says(&self, says: Says) {
        *self.script.says.lock().unwrap() = says;
    }

    /// Tells the last call that the client's right was revoked.
    pub(crate) fn purges(&self) {
        let last = self.script.last.lock().unwrap();
        let purge = v1::WatchResponse {
            frame: Some(purge()),
        };
        last.as_ref().unwrap().try_send(Ok(purge)).unwrap();
    }

    /// Waits for a call, from now on.
    pub(crate) fn asked(&self) -> impl Future<Output = ()> {
        let mut asked = self.script.asked.subscribe();
        async move {
            // Its sender is held here.
            let _ = asked.changed().await;
        }
    }

    /// How many streams are open.
    pub(crate) fn gauges(&self) -> Witnesses {
        let listening = Arc::clone(&self.script.listening);
        let count = move || listening.load(Ordering::Acquire);
        Witnesses::new().and(gauge("streams", count))
    }
}

/// The stream of one client. It ends with the client, or when another one calls.
pub(crate) struct Said<M> {
    frames: mpsc::Receiver<Result<M, Status>>,
    listening: Arc<AtomicI64>,
}

impl<M> Drop for Said<M> {
    fn drop(&mut self) {
        self.listening.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<M: Unpin> Stream for Said<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.frames.poll_recv(context)
    }
}

#[tonic::async_trait]
impl Config for Script {
    type WatchStream = Said<v1::WatchResponse>;
    type GetStream = Said<v1::GetResponse>;

    async fn watch(
        &self,
        _request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let says = *self.says.lock().unwrap();
        let (last, frames) = mpsc::channel(MOST_FRAMES);
        for said in says.frames() {
            let said = said.map(|frame| v1::WatchResponse { frame: Some(frame) });
            last.try_send(said).unwrap();
        }
        let before = self.last.lock().unwrap().replace(last);
        drop(before);
        self.asked.send_modify(|asked| *asked += 1);
        let listening = Arc::clone(&self.listening);
        listening.fetch_add(1, Ordering::AcqRel);
        Ok(Response::new(Said { frames, listening }))
    }

    async fn get(
        &self,
        _request: Request<v1::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        Err(Status::unimplemented("nobody asks"))
    }

    async fn report(
        &self,
        _request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        Ok(Response::new(v1::ReportResponse::default()))
    }
}
