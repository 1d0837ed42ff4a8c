//! Reads a range once.

use std::fmt;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::apply::ApplyError;
use driftless_proto::v1::{self, watch_response::Frame};
use driftless_proto::{Epoch, KeyRange, RangeError};

use crate::error::{Closed, GetError, Refused, RefusedReason, too_large};
use crate::net::Endpoint;
use crate::resources::Resource;
use crate::subscription::{Applied, Replica};
use crate::transport::{CallError, Transport};
use crate::value::Entries;

/// The default of [`GetBuilder::timeout`]: a server answers from memory.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Options of a single read; await it.
///
/// # Cancel safety
/// Dropping it, or its future, at any point ends everything that it caused.
#[must_use = "nothing is read before it is awaited"]
pub struct GetBuilder {
    transport: Arc<Transport>,
    range: Result<KeyRange, RangeError>,
    limit: usize,
    timeout: Duration,
}

impl GetBuilder {
    pub(crate) const fn new(
        transport: Arc<Transport>,
        range: Result<KeyRange, RangeError>,
        limit: usize,
    ) -> Self {
        Self {
            transport,
            range,
            limit,
            timeout: DEFAULT_TIMEOUT,
        }
    }

    /// How long it may take in total, including connecting. Default: 10 s.
    pub const fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }
}

impl IntoFuture for GetBuilder {
    type Output = Result<Entries, GetError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    /// Sends one request, on the connection that the client's watchers use if there is one. A failure is
    /// returned at once and not retried.
    ///
    /// # Cancel safety
    /// Dropping the future ends the call.
    ///
    /// # Panics
    /// When it is polled outside of a tokio runtime.
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let range = self.range?;
            let after = self.timeout;
            let tracker = self.transport.tracker();
            let _guard = tracker.track(Resource::Get(range.to_string()));
            let answer = get(&self.transport, range.clone(), self.limit);
            // The end of the connection is not enough: reading the token, for one, goes on after that.
            let closed = self.transport.closed();
            let answer = async {
                tokio::select! {
                    answer = answer => answer,
                    () = closed => Err(GetError::Closed(Closed::Shutdown)),
                }
            };
            match tokio::time::timeout(after, answer).await {
                // Whatever the error was: a retry is of no use.
                Ok(Err(_)) | Err(_) if self.transport.is_closed() => {
                    Err(GetError::Closed(Closed::Shutdown))
                }
                Ok(answer) => answer,
                Err(_) => Err(GetError::TimedOut {
                    range,
                    endpoints: self.transport.endpoints(),
                    after,
                }),
            }
        })
    }
}

impl fmt::Debug for GetBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GetBuilder")
            .field("range", &self.range)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

async fn get(transport: &Transport, range: KeyRange, limit: usize) -> Result<Entries, GetError> {
    let connection = match transport.connection().await {
        Ok(connection) => connection,
        // The message names the endpoint.
        Err(CallError { message, .. }) => return Err(GetError::Unavailable { message }),
    };
    let endpoint = connection.endpoint();
    let request = v1::GetRequest {
        range: Some((&range).into()),
        client: Some(transport.info().clone()),
    };
    let answer = async {
        let mut chunks = connection.get(request).await?;
        let mut replica = Replica::new(range.clone(), limit);
        // A single state: the history that it belongs to makes no difference.
        replica.begin(Epoch::new(Bytes::new()), Bytes::new());
        while let Some(response) = chunks.next().await? {
            let chunk = response.snapshot.map(Frame::Snapshot);
            match chunk.map(|chunk| replica.apply(chunk)) {
                None | Some(Ok(Applied::Nothing)) => {}
                Some(Ok(Applied::Changed | Applied::Confirmed)) => {
                    return Ok(Ok(replica.entries().cloned().unwrap_or_default()));
                }
                Some(Err(error)) => return Ok(Err(refused(&error, &range, endpoint))),
            }
        }
        Ok::<_, CallError>(Err(GetError::Unavailable {
            message: format!("{endpoint}: the answer ended before it was complete"),
        }))
    };
    match answer.await {
        Ok(answer) => answer,
        Err(error) => {
            // So that the next call does not use it.
            if error.lost {
                connection.retire();
            }
            Err(failed(error, endpoint))
        }
    }
}

fn failed(error: CallError, endpoint: &Endpoint) -> GetError {
    let CallError {
        refused, message, ..
    } = error;
    match refused {
        Some(reason) => Refused {
            endpoint: endpoint.to_string(),
            reason,
            message,
        }
        .into(),
        None => GetError::Unavailable {
            message: format!("{endpoint}: {message}"),
        },
    }
}

fn refused(error: &ApplyError, range: &KeyRange, endpoint: &Endpoint) -> GetError {
    match error {
        ApplyError::TooLarge { limit } => Refused {
            endpoint: endpoint.to_string(),
            reason: RefusedReason::TooLarge,
            message: too_large(range, *limit),
        }
        .into(),
        _ => GetError::BadAnswer {
            message: format!("{endpoint}: {error}"),
        },
    }
}
