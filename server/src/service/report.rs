//! `Report`: what clients did with what they got.

use driftless_proto::{KeyRange, v1};
use http::Response;
use tonic::Status;
use tonic::body::Body;

use super::arrival::Arrived;
use super::refusals::{check_client, is_short};
use super::{Service, grpc};
use crate::session::WatchId;

/// Refuses an outcome that is too large to be kept.
pub(super) fn check_outcome(outcome: Option<&v1::Outcome>) -> Result<(), Status> {
    match outcome.and_then(|outcome| outcome.rejection.as_ref()) {
        Some(rejection)
            if !is_short(&rejection.kind)
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
    pub(super) fn report(&self, request: Arrived) -> Result<Response<Body>, Status> {
        let (request, _held) = request.decode::<v1::ReportRequest>()?;
        check_client(request.client.as_ref())?;
        let mut watches = request.watches.iter();
        watches.try_for_each(|report| check_outcome(report.outcome.as_ref()))?;
        self.0.metrics.reports.inc();
        // Anything else is no watch id, and would be sent back as it is.
        let watches = request.watches.into_iter();
        let watches = watches.filter(|report| report.watch_id.len() == WatchId::LEN);
        let unknown =
            watches.filter(|report| !self.0.sessions.report(report, request.client.as_ref()));
        let unknown_watch_ids = unknown.map(|report| report.watch_id).collect();
        Ok(grpc::unary(&v1::ReportResponse { unknown_watch_ids }))
    }
}
