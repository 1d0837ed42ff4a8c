//! `Get`: one range, now, from memory.

use driftless_proto::v1;
use http::{Request, Response};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;

use super::body::GetBody;
use super::{Service, check_client, grpc, unavailable};
use crate::encode::{Kind, Lazy};
use crate::fanout::Unavailable;

impl Service {
    pub(super) async fn get(&self, request: Request<Incoming>) -> Result<Response<Body>, Status> {
        let request: v1::GetRequest = grpc::request(request).await?;
        check_client(request.client.as_ref())?;
        let (range, served) = self.find(request.range)?;
        // As a watcher for a moment, so that a range that is watched has its digest already.
        let subscriber = served
            .fanout
            .subscribe(range.clone())
            .map_err(unavailable)?;
        let view = subscriber
            .view()
            .await
            .ok_or_else(|| unavailable(Unavailable::NotSynced))?;
        let (_, contact_ms) = subscriber.clock();
        let lazy = Lazy::new(
            view.root,
            range,
            Kind::Snapshot { reset: false },
            view.digest,
            contact_ms,
        );
        Ok(grpc::streaming(Body::new(GetBody::new(
            lazy,
            self.0.metrics.clone(),
        ))))
    }
}
