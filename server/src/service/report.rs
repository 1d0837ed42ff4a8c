//! `Report`: what clients did with what they got.

use driftless_proto::{KeyRange, v1};
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::refusals::{check_client, is_short};
use super::{Service, grpc};
use crate::session::Connection;

/// How many watches one report may name.
const WATCHES_A_REPORT: usize = 1024;

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
                "a report names {count} watches; at most {WATCHES_A_REPORT} are allowed"
            )));
        }
        let mut watches = request.watches.iter();
        watches.try_for_each(|report| check_outcome(report.outcome.as_ref()))?;
        self.0.metrics.reports.inc();
        let unknown = request
            .watches
            .into_iter()
            .filter(|report| !self.0.sessions.report(report, request.client.as_ref()));
        let unknown_watch_ids = unknown.map(|report| report.watch_id).collect();
        Ok(grpc::unary(&v1::ReportResponse { unknown_watch_ids }))
    }
}
