//! A subscriber that watches etcd itself, or its proxy.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;

use super::board::Board;
use super::connection::Place;
use super::grpc::{Call, Requests};
use crate::Failure;

const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// The parts of etcd's messages that are used here. etcd-client does not export its requests, and copies
/// values instead of sharing them.
mod wire {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WatchRequest {
        #[prost(message, optional, tag = "1")]
        pub(super) create: Option<WatchCreateRequest>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WatchCreateRequest {
        #[prost(bytes = "bytes", tag = "1")]
        pub(super) key: Bytes,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct WatchResponse {
        #[prost(bool, tag = "3")]
        pub(super) created: bool,
        #[prost(bool, tag = "4")]
        pub(super) canceled: bool,
        #[prost(message, repeated, tag = "11")]
        pub(super) events: Vec<Event>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Event {
        #[prost(message, optional, tag = "2")]
        pub(super) kv: Option<KeyValue>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct KeyValue {
        #[prost(bytes = "bytes", tag = "5")]
        pub(super) value: Bytes,
    }
}

/// Sees every change of one key arrive.
pub(super) async fn follow(
    send: SendRequest<Bytes>,
    to: SocketAddr,
    key: String,
    board: Arc<Board>,
    place: Place,
) -> Result<(), Failure> {
    let request = wire::WatchRequest {
        create: Some(wire::WatchCreateRequest { key: key.into() }),
    };
    // A request that ends would end the watch.
    let mut call = Call::start(send, to, WATCH, &request, Requests::Open).await?;
    let mut place = Some(place);
    loop {
        let (message, at) = call.next().await?;
        let response = wire::WatchResponse::decode(message)?;
        if response.canceled {
            return Err("the watch was canceled".into());
        }
        if response.created && place.take().is_some() {
            board.is_live();
        }
        for event in response.events {
            let kv = event.kv.ok_or("an event without a key")?;
            board.arrived(&kv.value, at)?;
        }
    }
}
