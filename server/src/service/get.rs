//! `Get`: one range, now, from memory.

use std::sync::Arc;

use driftless_proto::v1;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::body::GetBody;
use super::connection::Connection;
use super::{ATTEMPTS, Service, check_client, grpc, history_changed, unavailable};
use crate::encode::{SyncKind, SyncReader};

impl Service {
    pub(super) async fn get(
        &self,
        request: Request<Incoming>,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let request: v1::GetRequest =
            grpc::request(request, connection, grpc::MAX_QUESTION).await?;
        check_client(request.client.as_ref())?;
        let (range, served) = self.find(request.range)?;
        for _ in 0..ATTEMPTS {
            // As a watcher for a moment, so that a range that is watched has its digest already.
            let subscriber = served
                .fanout
                .subscribe(range.clone())
                .map_err(unavailable)?;
            let Some(view) = subscriber.view().await else {
                continue;
            };
            let turn = self.0.admission.enter();
            let turn = turn.map_err(|refused| refused.status(&self.0.metrics))?;
            // Of its own: what is asked for is the state now.
            let answer = subscriber.own_answer(SyncKind::Snapshot { reset: false }, view);
            return Ok(grpc::streaming(Body::new(GetBody::new(
                SyncReader::new(Arc::new(answer)),
                turn,
                self.0.stalls.watch(connection),
                self.0.metrics.clone(),
            ))));
        }
        Err(history_changed())
    }
}
