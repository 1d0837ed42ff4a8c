//! `Report`: what clients did with what they got, kept for as long as their streams live.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use driftless_proto::{KeyRange, v1};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::connection::Connection;
use super::{Service, check_client, grpc, short};

/// How many watches one report may speak of.
const WATCHES_A_REPORT: usize = 1024;

type Id = [u8; 16];

/// The open streams by the ids that they were given, with the latest report on each.
#[derive(Clone, Debug, Default)]
pub struct Watches(Arc<Mutex<HashMap<Id, Reported>>>);

#[derive(Debug, Default)]
struct Reported {
    sequence: u64,
    outcome: Option<v1::Outcome>,
}

/// One stream's entry; dropping it removes the entry.
#[derive(Debug)]
pub(super) struct Registered {
    watches: Watches,
    id: Id,
}

impl Watches {
    fn lock(&self) -> MutexGuard<'_, HashMap<Id, Reported>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new stream, under a random id.
    pub(super) fn register(&self) -> Registered {
        let id: Id = rand::random();
        self.lock().insert(id, Reported::default());
        Registered {
            watches: self.clone(),
            id,
        }
    }

    /// Takes one report; whether the stream is known.
    fn take(&self, report: &v1::WatchReport) -> bool {
        let Ok(id) = Id::try_from(&report.watch_id[..]) else {
            return false;
        };
        let mut watches = self.lock();
        let Some(reported) = watches.get_mut(&id) else {
            return false;
        };
        if report.sequence > reported.sequence {
            reported.sequence = report.sequence;
            reported.outcome.clone_from(&report.outcome);
        }
        true
    }
}

impl Registered {
    pub(super) fn id(&self) -> Bytes {
        Bytes::copy_from_slice(&self.id)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.watches.lock().remove(&self.id);
    }
}

/// Refuses what is too much to keep for a stream.
fn check(report: &v1::WatchReport) -> Result<(), Status> {
    let rejection = report
        .outcome
        .as_ref()
        .and_then(|outcome| outcome.rejection.as_ref());
    match rejection {
        Some(rejection)
            if !short(&rejection.kind)
                || rejection.path.len() > KeyRange::MAX_LEN
                || rejection.key.len() > KeyRange::MAX_LEN =>
        {
            Err(Status::invalid_argument(
                "a rejection's kind is longer than 256 bytes, or its key or path longer than 4096",
            ))
        }
        _ => Ok(()),
    }
}

impl Service {
    pub(super) async fn report(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let request: v1::ReportRequest =
            grpc::request(request, connection, grpc::MAX_REPORT).await?;
        check_client(request.client.as_ref())?;
        if request.watches.len() > WATCHES_A_REPORT {
            let count = request.watches.len();
            return Err(Status::invalid_argument(format!(
                "a report speaks of {count} watches; at most {WATCHES_A_REPORT} are allowed in one"
            )));
        }
        request.watches.iter().try_for_each(check)?;
        self.0.metrics.reports.inc();
        let unknown = request
            .watches
            .into_iter()
            .filter(|report| !self.0.watches.take(report));
        let unknown_watch_ids = unknown.map(|report| report.watch_id).collect();
        Ok(grpc::unary(&v1::ReportResponse { unknown_watch_ids }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_kept_while_its_stream_lives_and_never_goes_back() {
        let watches = Watches::default();
        let stream = watches.register();
        let report = |sequence, applied_revision| v1::WatchReport {
            watch_id: stream.id(),
            sequence,
            outcome: Some(v1::Outcome {
                applied_revision,
                ..Default::default()
            }),
        };
        let applied = |watches: &Watches| {
            watches.lock()[&stream.id]
                .outcome
                .as_ref()
                .map(|outcome| outcome.applied_revision)
        };
        assert!(watches.take(&report(2, 20)));
        assert!(
            watches.take(&report(1, 10)),
            "an older one is known, and ignored"
        );
        assert_eq!(applied(&watches), Some(20));
        assert!(!watches.take(&v1::WatchReport {
            watch_id: Bytes::from_static(b"short"),
            ..Default::default()
        }));
        let last = report(3, 30);
        drop(stream);
        assert!(!watches.take(&last));
        assert!(watches.lock().is_empty());
    }
}
