//! A connection to one server, and the calls on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use driftless_proto::v1::config_client::ConfigClient;
use driftless_proto::{KeyRange, MAX_CHUNK_BYTES, v1};
use tonic::{Request, Status, Streaming};

use super::error::CallError;
use super::requests::Requests;
use super::tasks::Tasks;
use crate::connect::Endpoint;
use crate::inventory::Holding;
use crate::report::Reports;
use crate::token::TokenFile;

/// The largest message that is taken, in bytes: the values that one may hold, and room for their
/// keys and whatever else it says.
const MAX_MESSAGE: usize = MAX_CHUNK_BYTES + 4 * 1024 * 1024;

/// The header that says who is calling.
const AUTHORIZATION: &str = "authorization";

/// What a connection is told when it is made.
pub(super) struct Options {
    pub(super) reports: Reports,
    pub(super) token: Option<TokenFile>,
    /// Which of the transport's endpoints it leads to.
    pub(super) index: usize,
    /// Where retiring it is noted.
    pub(super) avoid: Arc<AtomicUsize>,
    pub(super) held: Holding,
}

/// A connection to one server. Dropping the last reference closes it and ends its tasks.
pub(crate) struct Connection {
    endpoint: Endpoint,
    caller: Caller,
    reports: Reports,
    retired: AtomicBool,
    index: usize,
    avoid: Arc<AtomicUsize>,
    // Before what says that the connection is gone: dropped in this order.
    tasks: Tasks,
    _held: Holding,
}

impl Connection {
    /// Over an HTTP/2 connection that `tasks` drive.
    pub(super) fn new(
        endpoint: &Endpoint,
        requests: Requests,
        tasks: Tasks,
        options: Options,
    ) -> Self {
        let client = ConfigClient::with_origin(requests.clone(), endpoint.uri().clone())
            .max_decoding_message_size(MAX_MESSAGE);
        Self {
            endpoint: endpoint.clone(),
            caller: Caller {
                requests,
                client,
                token: options.token,
            },
            reports: options.reports,
            retired: AtomicBool::new(false),
            index: options.index,
            avoid: options.avoid,
            tasks,
            _held: options.held,
        }
    }

    pub(crate) const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether new calls may be made on it.
    pub(crate) fn is_usable(&self) -> bool {
        !self.retired.load(Ordering::Relaxed) && !self.caller.requests.is_closed()
    }

    /// No new calls are to be made on it, and its endpoint is the last to be tried next. Calls that
    /// are under way go on.
    pub(crate) fn retire(&self) {
        self.avoid.store(self.index, Ordering::Relaxed);
        self.retired.store(true, Ordering::Relaxed);
    }

    /// Begins a watch. The call ends when the frames are dropped.
    pub(crate) async fn watch(&self, request: v1::WatchRequest) -> Result<Frames, CallError> {
        self.tell_of("watch", request.range.as_ref());
        let request = self.caller.signed(request).await?;
        let mut client = self.caller.client.clone();
        match client.watch(request).await {
            Ok(response) => Ok(Messages(response.into_inner())),
            Err(status) => Err(self.caller.failed(&status)),
        }
    }

    /// Asks for the state of a range, now.
    pub(crate) async fn get(&self, request: v1::GetRequest) -> Result<Chunks, CallError> {
        self.tell_of("get", request.range.as_ref());
        let request = self.caller.signed(request).await?;
        let mut client = self.caller.client.clone();
        match client.get(request).await {
            Ok(response) => Ok(Messages(response.into_inner())),
            Err(status) => Err(self.caller.failed(&status)),
        }
    }

    /// Logs that a call begins.
    fn tell_of(&self, call: &str, range: Option<&v1::Range>) {
        if let Ok(range) = KeyRange::try_from(range.cloned()) {
            tracing::debug!(endpoint = %self.endpoint, call, %range, "a call begins");
        }
    }

    /// The reports of all the watches on this connection. Its task is started with the first.
    pub(crate) fn reports(&self) -> &Reports {
        self.reports
            .start_once(|reporter| self.tasks.spawn(reporter.run(self.caller.clone())));
        &self.reports
    }
}

/// Makes calls; does not keep the connection open.
#[derive(Clone)]
pub(crate) struct Caller {
    requests: Requests,
    client: ConfigClient<Requests>,
    token: Option<TokenFile>,
}

impl Caller {
    /// The request, with the token that is in its file now.
    async fn signed<M>(&self, message: M) -> Result<Request<M>, CallError> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = token.authorization().await.map_err(CallError::here)?;
            request.metadata_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    pub(crate) async fn report(&self, request: v1::ReportRequest) -> Result<(), CallError> {
        let request = self.signed(request).await?;
        match self.client.clone().report(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(self.failed(&status)),
        }
    }

    fn failed(&self, status: &Status) -> CallError {
        let mut error = CallError::from(status);
        error.lost |= self.requests.is_closed();
        error
    }
}

/// What a server streams. Dropping it ends the call, which the server sees at once.
pub(crate) struct Messages<M>(Streaming<M>);

/// The frames of a watch.
pub(crate) type Frames = Messages<v1::WatchResponse>;

/// The chunks of an answer to `get`.
pub(crate) type Chunks = Messages<v1::GetResponse>;

impl<M> Messages<M> {
    /// The next one; `None` when the server ended the stream well.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<M>, CallError> {
        self.0
            .message()
            .await
            .map_err(|status| CallError::from(&status))
    }
}
