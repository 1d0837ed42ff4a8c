//! A server that hands every call to the test, which answers it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use driftless_client::{Client, ClientBuilder, Connecting, Endpoint, Io};
use driftless_proto::v1::config_server::{Config, ConfigServer};
use driftless_proto::v1::{self, watch_response::Frame};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response, Status};

use crate::etcd_model::EtcdModel;

/// The longest that a test waits for something that should happen at once.
const SOON: Duration = Duration::from_secs(5);

/// The capacity of a pipe, in bytes: less than a burst of changes, so that tests exercise flow control.
const PIPE_CAPACITY: usize = 16 * 1024;

/// A host whose connections are refused.
const DEAD_HOST: &str = "dead";

type Responses<M> = mpsc::Sender<Result<M, Status>>;
type ResponseStream<M> = Pin<Box<dyn tokio_stream::Stream<Item = Result<M, Status>> + Send>>;

/// A `Watch` call that the test answers.
pub(crate) struct Call {
    pub(crate) request: v1::WatchRequest,
    /// The request's `authorization` header.
    pub(crate) authorization: Option<String>,
    responses: Responses<v1::WatchResponse>,
}

impl Call {
    pub(crate) async fn send(&self, frame: Frame) {
        assert!(self.try_send(frame).await, "the client has ended the call");
    }

    /// Sends a frame. Returns whether the client still receives.
    pub(crate) async fn try_send(&self, frame: Frame) -> bool {
        let response = v1::WatchResponse { frame: Some(frame) };
        self.responses.send(Ok(response)).await.is_ok()
    }

    /// Sends a frame of a kind that the client does not know.
    pub(crate) async fn send_unknown(&self) {
        let response = v1::WatchResponse { frame: None };
        self.responses.send(Ok(response)).await.expect("a client");
    }

    /// Sends a hello and the whole state, as a server does for a new client.
    pub(crate) async fn send_state(&self, etcd: &EtcdModel) {
        self.send(EtcdModel::hello()).await;
        self.send(etcd.snapshot()).await;
    }

    pub(crate) async fn fail(self, status: Status) {
        // A client that has ended the call needs no error.
        let _ = self.responses.send(Err(status)).await;
    }

    /// Waits until the client has ended the call.
    pub(crate) async fn wait_until_ended(&self) {
        soon(self.responses.closed()).await;
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.responses.is_closed()
    }

    /// The revision that the client resumes from.
    pub(crate) fn resume_revision(&self) -> Option<i64> {
        self.request.have.as_ref().map(|have| have.revision)
    }
}

/// A `Get` call that the test answers.
pub(crate) struct GetCall {
    pub(crate) authorization: Option<String>,
    pub(crate) responses: Responses<v1::GetResponse>,
}

struct Service {
    watches: mpsc::UnboundedSender<Call>,
    gets: mpsc::UnboundedSender<GetCall>,
    reports: mpsc::UnboundedSender<v1::ReportRequest>,
    report_authorizations: mpsc::UnboundedSender<String>,
}

/// The `authorization` header of a request.
fn authorization<M>(request: &Request<M>) -> Option<String> {
    let value = request.metadata().get("authorization")?;
    Some(value.to_str().unwrap().to_owned())
}

#[tonic::async_trait]
impl Config for Service {
    type WatchStream = ResponseStream<v1::WatchResponse>;
    type GetStream = ResponseStream<v1::GetResponse>;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (responses, stream) = mpsc::channel(1);
        let call = Call {
            authorization: authorization(&request),
            request: request.into_inner(),
            responses,
        };
        self.watches.send(call).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let (responses, stream) = mpsc::channel(1);
        let call = GetCall {
            authorization: authorization(&request),
            responses,
        };
        self.gets.send(call).unwrap();
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn report(
        &self,
        request: Request<v1::ReportRequest>,
    ) -> Result<Response<v1::ReportResponse>, Status> {
        if let Some(authorization) = authorization(&request) {
            self.report_authorizations.send(authorization).unwrap();
        }
        self.reports.send(request.into_inner()).unwrap();
        Ok(Response::new(v1::ReportResponse::default()))
    }
}

/// The test's side of the server.
pub(crate) struct Server {
    watches: mpsc::UnboundedReceiver<Call>,
    gets: mpsc::UnboundedReceiver<GetCall>,
    pub(crate) reports: mpsc::UnboundedReceiver<v1::ReportRequest>,
    /// The `authorization` headers of reports that have one.
    pub(crate) report_authorizations: mpsc::UnboundedReceiver<String>,
    connections: mpsc::UnboundedSender<Result<DuplexStream, std::io::Error>>,
    dials: Arc<AtomicUsize>,
    /// Tasks of the runtime before any connection.
    idle_tasks: usize,
    runtime: Option<Runtime>,
    _accept: AbortOnDropHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Server {
    /// Starts a server that clients reach over in-memory pipes.
    pub(crate) fn start() -> Self {
        let (connections, incoming) = mpsc::unbounded_channel();
        let incoming = UnboundedReceiverStream::new(incoming);
        Self::over(connections, incoming)
    }

    /// Starts a server on a loopback socket, in a runtime of its own: dropping it closes its sockets, as if
    /// a process was killed.
    pub(crate) fn listen(address: SocketAddr) -> (Self, SocketAddr) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = {
            let _inside = runtime.enter();
            let listener = TcpListener::from_std(listener).unwrap();
            let (unused, _) = mpsc::unbounded_channel();
            Self::over(unused, TcpListenerStream::new(listener))
        };
        server.idle_tasks = tasks();
        server.runtime = Some(runtime);
        (server, address)
    }

    fn over<IO>(
        connections: mpsc::UnboundedSender<Result<DuplexStream, std::io::Error>>,
        incoming: impl tokio_stream::Stream<Item = Result<IO, std::io::Error>> + Send + 'static,
    ) -> Self
    where
        IO: tokio::io::AsyncRead
            + tokio::io::AsyncWrite
            + tonic::transport::server::Connected
            + Unpin
            + Send
            + 'static,
    {
        let (watches, received_watches) = mpsc::unbounded_channel();
        let (gets, received_gets) = mpsc::unbounded_channel();
        let (reports, received_reports) = mpsc::unbounded_channel();
        let (report_authorizations, received_authorizations) = mpsc::unbounded_channel();
        let service = Service {
            watches,
            gets,
            reports,
            report_authorizations,
        };
        let accept = tokio::runtime::Handle::current().spawn(async move {
            tonic::transport::Server::builder()
                .add_service(ConfigServer::new(service))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self {
            watches: received_watches,
            gets: received_gets,
            reports: received_reports,
            report_authorizations: received_authorizations,
            connections,
            dials: Arc::default(),
            idle_tasks: tasks(),
            runtime: None,
            _accept: AbortOnDropHandle::new(accept),
        }
    }

    /// A client that connects to this server.
    pub(crate) fn client(&self) -> Client {
        self.builder().build().unwrap()
    }

    /// A builder of such a client.
    pub(crate) fn builder(&self) -> ClientBuilder {
        builder(self.connector())
    }

    /// The same, with a host to which a client may send a token in clear text.
    pub(crate) fn builder_at_localhost(&self) -> ClientBuilder {
        Client::builder()
            .endpoint("http://localhost:7400")
            .connector(self.connector())
    }

    fn connector(&self) -> impl Fn(&Endpoint) -> Connecting + Send + Sync + 'static {
        let connections = self.connections.clone();
        let dials = Arc::clone(&self.dials);
        move |endpoint| {
            if endpoint.host() == DEAD_HOST {
                return Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) });
            }
            dials.fetch_add(1, Ordering::Relaxed);
            let (client, server) = tokio::io::duplex(PIPE_CAPACITY);
            let accepted = connections.send(Ok(server));
            Box::pin(async move {
                accepted.map_err(|_| std::io::ErrorKind::ConnectionRefused)?;
                Ok(Box::new(client) as Box<dyn Io>)
            })
        }
    }

    /// The same, with a second endpoint that refuses connections.
    pub(crate) fn builder_with_dead_endpoint(&self) -> ClientBuilder {
        self.builder().endpoint(format!("http://{DEAD_HOST}:7400"))
    }

    /// How many times clients connected.
    pub(crate) fn dials(&self) -> usize {
        self.dials.load(Ordering::Relaxed)
    }

    /// The next `Watch` call.
    pub(crate) async fn next_call(&mut self) -> Call {
        // Longer than the longest backoff, which counts under a paused clock.
        let call = tokio::time::timeout(Duration::from_secs(60), self.watches.recv());
        call.await.expect("a call in time").expect("a server")
    }

    /// The next `Get` call.
    pub(crate) async fn next_get_call(&mut self) -> GetCall {
        soon(self.gets.recv()).await.expect("a server")
    }

    /// Answers every call with the whole state, until it is dropped.
    pub(crate) async fn serve_all(&mut self, etcd: &EtcdModel) {
        let mut calls = Vec::new();
        loop {
            tokio::select! {
                call = self.watches.recv() => {
                    let call = call.expect("a server");
                    call.send_state(etcd).await;
                    calls.push(call);
                }
                call = self.gets.recv() => {
                    let Frame::Snapshot(snapshot) = etcd.snapshot() else {
                        unreachable!()
                    };
                    let snapshot = Some(snapshot);
                    let response = Ok(v1::GetResponse { snapshot });
                    call.expect("a server").responses.send(response).await.expect("a client");
                }
            }
        }
    }

    /// Takes a waiting `Watch` call, if there is one. Returns whether there was none.
    pub(crate) fn no_call(&mut self) -> bool {
        self.watches.try_recv().is_err()
    }

    /// Waits until the runtime has no more tasks than before the first connection. The loop is never idle, so
    /// a paused clock does not advance.
    pub(crate) async fn wait_until_idle(&self) {
        let start = std::time::Instant::now();
        while tasks() > self.idle_tasks {
            assert!(start.elapsed() < SOON, "{} tasks remain", tasks());
            tokio::task::yield_now().await;
        }
    }
}

/// A builder of a client with this connector.
pub(crate) fn builder(
    connect: impl Fn(&Endpoint) -> Connecting + Send + Sync + 'static,
) -> ClientBuilder {
    Client::builder()
        .endpoint("http://scripted:7400")
        .connector(connect)
}

/// Runs something that must end within [`SOON`].
pub(crate) async fn soon<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(SOON, work)
        .await
        .expect("within five seconds")
}

/// The number of the runtime's tasks.
fn tasks() -> usize {
    tokio::runtime::Handle::current()
        .metrics()
        .num_alive_tasks()
}

/// Polls a future this many times, and drops it. Returns its output if it resolved.
pub(crate) async fn poll_times<F: Future>(work: F, times: usize) -> Option<F::Output> {
    let mut work = std::pin::pin!(work);
    for _ in 0..times {
        let polled = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        // Lets other tasks run, whether or not they wake this one.
        tokio::task::yield_now().await;
    }
    None
}
