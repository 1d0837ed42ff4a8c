//! `Get`: one range, now, from memory.

use driftless_proto::{Revision, v1};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;

use super::arrival::Arrived;
use super::body::GetBody;
use super::dispatch::ATTEMPTS;
use super::refusals::{check_client, history_changed, no_permit, unavailable};
use super::{Service, grpc, patience};
use crate::session::{CallKind, Connection, NewStream};

impl Service {
    pub(super) async fn get(
        &self,
        request: Request<Arrived>,
        connection: &Connection,
    ) -> Result<Response<Body>, Status> {
        let token = grpc::bearer_token(&request);
        let patience = patience::of_get(request.headers());
        let (request, held) = request.into_body().decode::<v1::GetRequest>()?;
        check_client(request.client.as_ref())?;
        let (range, served) = self.find(request.range)?;
        for _ in 0..ATTEMPTS {
            // A subscription until it is read: a range that is watched already has its digest.
            let subscriber = served
                .fanout
                .subscribe(range.clone())
                .map_err(unavailable)?;
            let Some(view) = subscriber.view() else {
                continue;
            };
            let new = NewStream {
                kind: CallKind::Get,
                range,
                client: request.client,
                token,
                resumed_from: Revision::NONE,
                outcome: None,
                held,
            };
            let mut stream = self.0.sessions.open(connection, new, ());
            let permit = stream.request_permit(patience);
            permit.map_err(|refused| no_permit(refused, &self.0.metrics))?;
            stream.set_cursor(view.root.revision());
            let body = GetBody::new(subscriber, stream, self.0.metrics.clone());
            return Ok(grpc::streaming(Body::new(body)));
        }
        Err(history_changed())
    }
}
