//! The statuses that calls are refused with, and the limits on what a stream keeps.

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

/// The same when etcd's history changed again and again during the call.
const RETRY_HISTORY: Duration = Duration::from_secs(1);

/// Refuses a call whose prefix has nothing to serve.
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

/// Refuses a call because etcd's history changed each time that it was about to be answered.
pub(super) fn history_changed() -> Status {
    grpc::retry_after(
        RETRY_HISTORY,
        Status::unavailable("etcd's history changed during the call; retry"),
    )
}

/// Whether `text` is short enough to be kept, as labels are.
pub(super) fn is_short(text: &str) -> bool {
    text.len() <= 256
}

/// Refuses client info with texts that are too long to be kept.
pub(super) fn check_client(client: Option<&v1::ClientInfo>) -> Result<(), Status> {
    let Some(client) = client else { return Ok(()) };
    let texts = client.labels.iter().flat_map(|(name, value)| [name, value]);
    match texts
        .chain([&client.instance, &client.library])
        .all(|text| is_short(text))
    {
        true => Ok(()),
        false => Err(Status::invalid_argument(
            "a client's instance, library, label or label's value is longer than 256 bytes",
        )),
    }
}

/// Refuses a call that gets no permit and has no stream yet to say goodbye on. Counts it.
pub(super) fn no_permit(refused: Refused, metrics: &Metrics) -> Status {
    match refused {
        Refused::Closed => unavailable(Unavailable::Draining),
        Refused::Memory(after) => {
            metrics.memory_refused.inc();
            let status = Status::resource_exhausted(
                "the server is short of memory; retry after the time given, or use another server",
            );
            grpc::retry_after(after, status)
        }
        Refused::Later(after) => {
            metrics.syncs_deferred.inc();
            let status = Status::resource_exhausted(
                "too many clients wait for a snapshot; retry after the time given",
            );
            grpc::retry_after(after, status)
        }
    }
}
