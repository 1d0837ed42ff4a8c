//! A server that speaks HTTP/2, and says whatever a test makes it say on it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use driftless_proto::v1::{self, watch_response::Frame};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use prost::Message;
use tokio::task::JoinSet;

use crate::etcd_model::EtcdModel;
use crate::stage::{Act, Playing};

/// How much is sent at a time.
const STEP: usize = 16 * 1024;

/// A call that a test answers.
pub(crate) struct Call {
    path: String,
    message: Bytes,
    respond: SendResponse<Bytes>,
}

/// A server that answers each call so.
pub(crate) fn act(answer: impl Fn(Call) -> Playing + Send + Sync + 'static) -> Act {
    let answer = Arc::new(answer);
    Arc::new(move |io, seen| {
        let answer = Arc::clone(&answer);
        Box::pin(async move {
            let Ok(mut connection) = h2::server::handshake(io).await else {
                return;
            };
            let mut calls = JoinSet::new();
            loop {
                let (request, respond) = tokio::select! {
                    accepted = connection.accept() => match accepted {
                        Some(Ok(accepted)) => accepted,
                        _ => return,
                    },
                    Some(_) = calls.join_next() => continue,
                };
                let answer = Arc::clone(&answer);
                let path = request.uri().path().to_owned();
                if path.ends_with("/Watch") {
                    seen.calls.fetch_add(1, Ordering::Relaxed);
                }
                calls.spawn(async move {
                    let mut body = request.into_body();
                    let mut message = BytesMut::new();
                    while let Some(Ok(bytes)) = body.data().await {
                        let _ = body.flow_control().release_capacity(bytes.len());
                        message.extend_from_slice(&bytes);
                    }
                    answer(Call {
                        path,
                        message: message.freeze(),
                        respond,
                    })
                    .await;
                });
            }
        })
    })
}

/// A server that answers each `Watch` so, and each other call as a good one does.
pub(crate) fn on_watch<F>(answer: impl Fn(Talk) -> F + Send + Sync + 'static) -> Act
where
    F: Future<Output = ()> + Send + 'static,
{
    let answer = Arc::new(answer);
    act(move |call| {
        let answer = Arc::clone(&answer);
        Box::pin(async move {
            if call.is_watch() {
                answer(call.talk()).await;
            } else {
                call.serve(&EtcdModel::default()).await;
            }
        })
    })
}

impl Call {
    pub(crate) fn is_watch(&self) -> bool {
        self.path.ends_with("/Watch")
    }

    /// Answers as a good server does.
    pub(crate) async fn serve(self, model: &EtcdModel) {
        if !self.is_watch() {
            let mut talk = self.talk();
            talk.bytes(message(&v1::ReportResponse::default())).await;
            talk.end("0", "");
            return;
        }
        let mut talk = self.talk();
        talk.frame(EtcdModel::hello()).await;
        let mut state = model.snapshot();
        if let Frame::Snapshot(snapshot) = &mut state {
            // etcd never reached what the client claims to have.
            snapshot.reset = talk.have_revision() > model.revision;
        }
        talk.frame(state).await;
        talk.hold().await;
    }

    /// Begins a gRPC answer.
    pub(crate) fn talk(self) -> Talk {
        let response = http::Response::builder().header("content-type", "application/grpc");
        self.respond_with(response.body(()).unwrap())
    }

    /// Begins an answer.
    pub(crate) fn respond_with(mut self, response: http::Response<()>) -> Talk {
        let request = self.message.get(5..).unwrap_or_default();
        Talk {
            request: v1::WatchRequest::decode(request).unwrap_or_default(),
            // A client that has left needs no answer.
            stream: self.respond.send_response(response, false).ok(),
        }
    }

    /// Answers with a header alone.
    pub(crate) fn refuse(mut self, response: http::Response<()>) {
        let _ = self.respond.send_response(response, true);
    }

    pub(crate) fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }
}

/// An answer that goes on.
pub(crate) struct Talk {
    request: v1::WatchRequest,
    stream: Option<SendStream<Bytes>>,
}

impl Talk {
    fn have_revision(&self) -> i64 {
        self.request.have.as_ref().map_or(0, |have| have.revision)
    }

    /// Sends a frame; false when the client has left.
    pub(crate) async fn frame(&mut self, frame: Frame) -> bool {
        let response = v1::WatchResponse { frame: Some(frame) };
        self.bytes(message(&response)).await
    }

    /// Sends bytes as fast as the client takes them; false when it has left.
    pub(crate) async fn bytes(&mut self, mut bytes: Bytes) -> bool {
        let Some(stream) = &mut self.stream else {
            return false;
        };
        while !bytes.is_empty() {
            stream.reserve_capacity(bytes.len().min(STEP));
            match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => {
                    let piece = bytes.split_to(room.min(bytes.len()));
                    if stream.send_data(piece, false).is_err() {
                        return false;
                    }
                }
                _ => return false,
            }
        }
        true
    }

    /// Sends nothing more, and waits until the client has left.
    pub(crate) async fn hold(mut self) {
        if let Some(stream) = &mut self.stream {
            let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
        }
    }

    /// Ends with a status.
    pub(crate) fn end(mut self, code: &'static str, text: &str) {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        trailers.insert("grpc-message", text.parse().unwrap());
        if let Some(stream) = &mut self.stream {
            let _ = stream.send_trailers(trailers);
        }
    }
}

/// A message as gRPC sends it.
pub(crate) fn message(message: &impl Message) -> Bytes {
    prefixed(message.encoded_len(), &message.encode_to_vec())
}

/// Bytes behind a prefix that says that they are this long.
pub(crate) fn prefixed(claimed: usize, bytes: &[u8]) -> Bytes {
    let mut sent = BytesMut::with_capacity(5 + bytes.len());
    sent.put_u8(0);
    sent.put_u32(u32::try_from(claimed).unwrap());
    sent.extend_from_slice(bytes);
    sent.freeze()
}

/// The same message with a field that no client knows, which is this long.
pub(crate) fn padded(response: &v1::WatchResponse, padding: usize) -> Bytes {
    let mut bytes = response.encode_to_vec();
    // Field 15, which the contract reserves for that.
    bytes.push(15 << 3 | 2);
    prost::encoding::encode_varint(padding as u64, &mut bytes);
    bytes.resize(bytes.len() + padding, b'p');
    prefixed(bytes.len(), &bytes)
}
