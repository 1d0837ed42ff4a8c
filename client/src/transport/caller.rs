//! Makes calls on a connection, each with the token that its file holds at that moment.

use driftless_proto::v1::config_client::ConfigClient;
use driftless_proto::{MAX_MESSAGE_BYTES, v1};
use tonic::{Request, Status, Streaming};

use super::error::CallError;
use super::requests::Requests;
use super::token::TokenFile;
use crate::net::Endpoint;

/// The largest answer to a report that is accepted, in bytes: the longest ids of as many watches as a report
/// may have, and some more.
const MAX_REPORT_ANSWER: usize = 128 * 1024;

/// The header that identifies the caller.
const AUTHORIZATION: &str = "authorization";

/// The error of a call on a connection that has ended.
const ENDED: &str = "the connection ended before a call could be made; what is there may not speak HTTP/2, or break it";

/// Makes calls; does not keep the connection open. Cheap to clone.
#[derive(Clone)]
pub(super) struct Caller {
    requests: Requests,
    client: ConfigClient<Requests>,
    token: Option<TokenFile>,
}

impl Caller {
    pub(super) fn new(endpoint: &Endpoint, requests: Requests, token: Option<TokenFile>) -> Self {
        let client = ConfigClient::with_origin(requests.clone(), endpoint.uri().clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        Self {
            requests,
            client,
            token,
        }
    }

    /// Whether the connection accepts no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }

    pub(super) async fn watch(
        &self,
        request: v1::WatchRequest,
    ) -> Result<Streaming<v1::WatchResponse>, CallError> {
        let request = self.authorized(request).await?;
        self.still_open()?;
        let response = self.client.clone().watch(request).await;
        self.answer(response.map(tonic::Response::into_inner))
    }

    pub(super) async fn get(
        &self,
        request: v1::GetRequest,
    ) -> Result<Streaming<v1::GetResponse>, CallError> {
        let request = self.authorized(request).await?;
        self.still_open()?;
        let response = self.client.clone().get(request).await;
        self.answer(response.map(tonic::Response::into_inner))
    }

    pub(super) async fn report(&self, request: v1::ReportRequest) -> Result<(), CallError> {
        let request = self.authorized(request).await?;
        self.still_open()?;
        let client = self.client.clone();
        let mut client = client.max_decoding_message_size(MAX_REPORT_ANSWER);
        let response = client.report(request).await;
        self.answer(response.map(drop))
    }

    /// Adds the token, read from its file now.
    async fn authorized<M>(&self, message: M) -> Result<Request<M>, CallError> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            let value = token.authorization().await.map_err(CallError::local)?;
            request.metadata_mut().insert(AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// A connection may end right after it was opened; the library below would say only that a channel closed.
    fn still_open(&self) -> Result<(), CallError> {
        if self.is_closed() {
            Err(CallError::lost(ENDED.to_owned()))
        } else {
            Ok(())
        }
    }

    fn answer<T>(&self, answer: Result<T, Status>) -> Result<T, CallError> {
        answer.map_err(|status| {
            let mut error = CallError::from(&status);
            error.lost |= self.is_closed();
            error
        })
    }
}
