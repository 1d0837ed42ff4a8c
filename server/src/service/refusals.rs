//! What calls are refused with, and what is too much to keep for a stream.

use std::time::Duration;

use driftless_proto::v1;
use tonic::Status;

use super::grpc;
use crate::fanout::Unavailable;
use crate::metrics::Metrics;
use crate::session::Refused;

/// How long a client should wait before it asks again while the server has nothing to serve yet.
const RETRY_UNSYNCED: Duration = Duration::from_secs(1);

/// The same for one that asked while the server shuts down: another server, or the next process, may
/// well be there already.
const RETRY_DRAINING: Duration = Duration::from_millis(100);

/// The same when the history of etcd changed again and again while the call was answered.
const RETRY_HISTORY: Duration = Duration::from_secs(1);

/// What a call is told when its prefix has nothing to serve.
pub(super) fn unavailable(why: Unavailable) -> Status {
    match why {
        Unavailable::NotSynced => grpc::retry_after(
            RETRY_UNSYNCED,
            Status::unavailable(
                "the server has not read its state from etcd yet; its /readyz says why",
            ),
        ),
        Unavailable::Draining => grpc::retry_after(
            RETRY_DRAINING,
            Status::unavailable("the server is shutting down"),
        ),
    }
}

/// What a call is told when no history lasted for long enough to answer it.
pub(super) fn history_changed() -> Status {
    grpc::retry_after(
        RETRY_HISTORY,
        Status::unavailable("the history of etcd changed while the call was answered; retry"),
    )
}

/// Whether `text` is short enough for what people write in a label.
pub(super) fn short(text: &str) -> bool {
    text.len() <= 256
}

/// Refuses what is too much to keep for a stream.
pub(super) fn check_client(client: Option<&v1::ClientInfo>) -> Result<(), Status> {
    const LABELS: usize = 32;
    let Some(client) = client else { return Ok(()) };
    if client.labels.len() > LABELS {
        let count = client.labels.len();
        return Err(Status::invalid_argument(format!(
            "a client has {count} labels; at most {LABELS} are allowed"
        )));
    }
    let texts = client.labels.iter().flat_map(|(name, value)| [name, value]);
    match texts
        .chain([&client.instance, &client.library])
        .all(|text| short(text))
    {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "a client's instance, library, label or label's value is longer than 256 bytes",
        )),
    }
}

/// Refuses a call that gets no permit, where there is no stream yet to say it on. Counts it.
pub(super) fn no_permit(refused: Refused, metrics: &Metrics) -> Status {
    match refused {
        Refused::Closed => unavailable(Unavailable::Draining),
        Refused::Later(after) => {
            metrics.syncs_deferred.inc();
            let status = Status::resource_exhausted(
                "too many clients wait for a snapshot; retry after the time given",
            );
            grpc::retry_after(after, status)
        }
    }
}
