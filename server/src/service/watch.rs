//! `Watch`: decides how a stream starts, and opens it.

use std::time::Duration;

use bytes::Bytes;
use driftless_proto::digest::Digest;
use driftless_proto::{Epoch, Revision, v1};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;

use super::arrival::Arrived;
use super::body::{Due, WatchBody};
use super::dispatch::ATTEMPTS;
use super::refusals::{check_client, history_changed, no_permit, unavailable};
use super::report::check_outcome;
use super::resume::{Answer, Has, Have, answer};
use super::{Served, Service, grpc, patience};
use crate::encode::{self, SyncKind};
use crate::fanout::{RangeView, Subscriber};
use crate::ingest::REQUEST_TIMEOUT;
use crate::session::{CallKind, Connection, NewStream, StreamGuard, WatchId};

/// How long a client should wait that is ahead of the server, when the server did not catch up with
/// etcd in time.
const RETRY_BEHIND: Duration = Duration::from_secs(1);

impl Service {
    pub(super) async fn watch(
        &self,
        request: Request<Arrived>,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let token = grpc::bearer_token(&request);
        let patience = patience::of_watch(request.headers(), self.0.intervals.progress);
        let (request, held) = request.into_body().decode::<v1::WatchRequest>()?;
        check_client(request.client.as_ref())?;
        let (range, served) = self.find(request.range)?;
        let have = request.have.map(have).transpose()?;
        let features = common_features(&request.features);
        for _ in 0..ATTEMPTS {
            let subscriber = served
                .fanout
                .subscribe(range.clone())
                .map_err(unavailable)?;
            if features.contains(&v1::Feature::ValueDeltas.into()) {
                subscriber.take_patches();
            }
            let Some(view) = subscriber.view() else {
                continue;
            };
            if let Some(start) = start(served, &subscriber, view, have.as_ref()).await? {
                let new = NewStream {
                    kind: CallKind::Watch,
                    // Shares the bytes of its scope's.
                    range: subscriber.range().clone(),
                    client: request.client,
                    token,
                    resumed_from: have.map_or(Revision::NONE, |have| have.revision),
                    // Not kept when a report of it would be refused.
                    outcome: request
                        .outcome
                        .filter(|outcome| check_outcome(Some(outcome)).is_ok()),
                    held,
                };
                let stream = self.0.sessions.open(connection, new, subscriber);
                return self.stream(stream, start, features, patience);
            }
        }
        Err(history_changed())
    }

    fn stream(
        &self,
        mut stream: StreamGuard<Subscriber>,
        start: Start,
        features: Vec<i32>,
        patience: Duration,
    ) -> Result<Response<Body>, Status> {
        let subscriber = stream.subscription();
        let millis = |interval: Duration| u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        let hello = v1::Hello {
            epoch: start.view.root.epoch().as_bytes().clone(),
            watch_id: stream
                .stream()
                .watch_id()
                .map_or_else(Bytes::new, WatchId::to_bytes),
            progress_interval_ms: millis(self.0.intervals.progress),
            ping_interval_ms: millis(self.0.intervals.ping),
            report_interval_ms: millis(self.0.intervals.report),
            features,
            view: stream.stream().view().to_owned(),
            token: Bytes::new(),
            clock_ms: subscriber.clock_ms(),
        };
        let (peer, range) = (
            stream
                .stream()
                .connection()
                .peer()
                .map(tracing::field::display),
            subscriber.range(),
        );
        tracing::debug!(peer, %range, start = ?start.from, "stream opened");
        let root_revision = start.view.root.revision();
        let digest = start.view.digest;
        let mut first = vec![v1::watch_response::Frame::Hello(hello)];
        let metrics = &self.0.metrics;
        let (due, cursor) = match start.from {
            StartFrom::Current => {
                metrics.syncs_current.inc();
                let current = v1::Current {
                    revision: root_revision.get(),
                    digest: digest.to_bytes(),
                    contact_ms: start.view.contact_ms,
                };
                first.push(v1::watch_response::Frame::Current(current));
                (None, root_revision)
            }
            StartFrom::Replay(since) => {
                metrics.syncs_replay.inc();
                (None, since)
            }
            StartFrom::Sync(kind) => {
                match kind {
                    SyncKind::Snapshot { .. } => metrics.syncs_snapshot.inc(),
                    SyncKind::Diff { .. } => metrics.syncs_diff.inc(),
                };
                let permit = stream.request_permit(patience);
                permit.map_err(|refused| no_permit(refused, metrics))?;
                let held = start.held;
                (Some(Due { kind, held }), held)
            }
        };
        // In one piece, which travels in one frame.
        let first = first
            .into_iter()
            .flat_map(|frame| encode::unary(&v1::WatchResponse { frame: Some(frame) }))
            .collect();
        let body = WatchBody::new(stream, first, due, cursor, patience);
        Ok(grpc::streaming(Body::new(body)))
    }
}

/// The features that both the client and this server know, each once.
fn common_features(offered: &[i32]) -> Vec<i32> {
    let known = [v1::Feature::ValueDeltas as i32];
    known
        .into_iter()
        .filter(|feature| offered.contains(feature))
        .collect()
}

/// Validates what a client says that it has.
fn have(have: v1::Have) -> Result<Have, Status> {
    let digest = Digest::from_bytes(&have.digest);
    let digest = digest.ok_or_else(|| {
        Status::invalid_argument("the digest of what the client has is not 16 bytes long")
    })?;
    Ok(Have {
        epoch: Epoch::new(have.epoch),
        revision: Revision::new(have.revision),
        digest,
    })
}

/// How a stream starts, and the state that this was decided by.
struct Start {
    from: StartFrom,
    view: RangeView,
    /// The revision that a snapshot or diff may not be older than.
    held: Revision,
}

#[derive(Debug)]
enum StartFrom {
    /// The client has it all.
    Current,
    /// The changes after this revision, one by one.
    Replay(Revision),
    /// A snapshot or conflated diff.
    Sync(SyncKind),
}

/// Decides how to start. `None` when the history ended meanwhile.
async fn start(
    served: &Served,
    subscriber: &Subscriber,
    mut view: RangeView,
    have: Option<&Have>,
) -> Result<Option<Start>, Status> {
    if let Some(have) = have
        && is_before_the_log(have, &view, subscriber).await
    {
        // Nothing is pinned meanwhile.
        drop(view);
        // Whether it came in time or not, the log as it is then decides.
        let backfill = served.ingest.backfill(have.revision);
        let _ = tokio::time::timeout(REQUEST_TIMEOUT, backfill).await;
        match subscriber.view() {
            Some(now) => view = now,
            None => return Ok(None),
        }
    }
    // etcd is asked once about a client that is ahead; after that the server has caught up or refuses.
    for attempt in 0..2 {
        let has = Has {
            epoch: view.root.epoch(),
            revision: view.root.revision(),
            digest: view.digest,
            floor: view.root.floor(),
        };
        let past = match have {
            Some(have) if have.is_of_the_past(&has) => {
                subscriber.digest_at(have.revision, &view).await
            }
            _ => None,
        };
        let answer = answer(have, &has, past);
        let since = have.map_or(Revision::NONE, |have| have.revision);
        let from = match answer {
            Answer::Current => StartFrom::Current,
            Answer::Changes if subscriber.replays(since, &view) => StartFrom::Replay(since),
            Answer::Changes => StartFrom::Sync(SyncKind::Diff { since }),
            Answer::Snapshot { reset } => StartFrom::Sync(SyncKind::Snapshot { reset }),
            Answer::Ahead if attempt == 0 => {
                let reached = served.ingest.revision().await.ok_or_else(behind)?;
                if reached < since {
                    // Not even etcd has that revision: it is of another history.
                    StartFrom::Sync(SyncKind::Snapshot { reset: true })
                } else if have.is_some_and(|have| have.digest == view.digest) {
                    // One history, and nothing in the range changed in between.
                    StartFrom::Current
                } else {
                    let caught_up =
                        tokio::time::timeout(REQUEST_TIMEOUT, served.fanout.reached(since)).await;
                    caught_up.map_err(|_| behind())?;
                    match subscriber.view() {
                        Some(now) => view = now,
                        None => return Ok(None),
                    }
                    continue;
                }
            }
            Answer::Ahead => return Err(behind()),
        };
        // Only a reset may lower a client's revision.
        let held = match from {
            StartFrom::Sync(SyncKind::Snapshot { reset: true }) => Revision::NONE,
            _ => since,
        };
        return Ok(Some(Start { from, view, held }));
    }
    Err(behind())
}

/// Whether the log does not reach back to what the client has, which is not the state now.
async fn is_before_the_log(have: &Have, view: &RangeView, subscriber: &Subscriber) -> bool {
    have.epoch == *view.root.epoch()
        && have.revision < view.log.floor()
        && have.digest != view.digest
        && subscriber.digest_at(have.revision, view).await.is_none()
}

fn behind() -> Status {
    grpc::retry_after(
        RETRY_BEHIND,
        Status::unavailable("the server has not caught up with the client's revision yet; retry"),
    )
}
