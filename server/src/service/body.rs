//! A stream's response: what it sends next, asked for by the connection when there is room.
//!
//! It is a cursor and, while a frame is on its way, that frame's remaining segments, which all
//! streams of the scope share. Nothing is queued for a stream: a connection that has no room does
//! not ask, and whoever asks late gets what is true then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use driftless_proto::{Revision, v1};
use http_body::{Body, Frame};
use tonic::Status;

use super::grpc::ok_trailers;
use super::report::Registered;
use crate::encode::{self, Chunk, Kind, Lazy};
use crate::fanout::{Next, Subscriber};
use crate::metrics::{Held, Metrics};

/// The response to `Watch`.
#[derive(Debug)]
pub(super) struct WatchBody {
    subscriber: Subscriber,
    /// The revision that the client is at when it has read all that was handed over.
    cursor: Revision,
    /// Number of the latest progress that was sent.
    progress: u64,
    sending: Sending,
    /// Whether the goodbye is on its way.
    ending: bool,
    _registered: Registered,
    _counted: Held,
}

impl WatchBody {
    /// Sends `first`, which is whole messages, then `lazy` if there is one, then what changes after
    /// `cursor`.
    pub(super) fn new(
        subscriber: Subscriber,
        first: Bytes,
        lazy: Option<Lazy>,
        cursor: Revision,
        registered: Registered,
    ) -> Self {
        let metrics = subscriber.metrics().clone();
        let counted = Held::new(&metrics.streams);
        let progress = subscriber.progress_number();
        let sending = Sending {
            segments: VecDeque::from([first]),
            lazy,
            done: false,
            metrics,
        };
        Self {
            subscriber,
            cursor,
            progress,
            sending,
            ending: false,
            _registered: registered,
            _counted: counted,
        }
    }

    /// The cheapest way to bring a stream up to date that cannot be told the changes one by one.
    fn catch_up(&mut self) {
        // None when the history has just ended, which the scope says when it is asked again.
        let Some(view) = self.subscriber.view_now() else {
            return;
        };
        self.sending.metrics.conflated.inc();
        let kind = if view.root.floor() <= self.cursor {
            Kind::Diff { since: self.cursor }
        } else {
            Kind::Snapshot { reset: false }
        };
        let (_, contact_ms) = self.subscriber.clock();
        let range = self.subscriber.range().clone();
        self.cursor = view.root.revision();
        self.sending.lazy = Some(Lazy::new(view.root, range, kind, view.digest, contact_ms));
    }
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some(sent) = this.sending.poll(cx, this.ending) {
                return sent;
            }
            match this.subscriber.next(this.cursor, this.progress, cx) {
                Next::Frame { frame, to } => {
                    this.sending.segments.extend(frame.alone().iter().cloned());
                    this.cursor = to;
                }
                Next::Joined { bytes, to } => {
                    this.sending.segments.push_back(bytes);
                    this.cursor = to;
                }
                Next::Progress { bytes, number, to } => {
                    this.sending
                        .segments
                        .extend((!bytes.is_empty()).then_some(bytes));
                    this.progress = number;
                    this.cursor = to;
                }
                Next::Behind => this.catch_up(),
                Next::Ending(ending) => {
                    let goodbye = v1::watch_response::Frame::Goodbye(ending.goodbye());
                    this.sending
                        .segments
                        .push_back(encode::unary(&v1::WatchResponse {
                            frame: Some(goodbye),
                        }));
                    this.ending = true;
                }
                Next::Nothing => return Poll::Pending,
            }
        }
    }
}

/// The response to `Get`: a snapshot, and that is all.
#[derive(Debug)]
pub(super) struct GetBody(Sending);

impl GetBody {
    pub(super) const fn new(lazy: Lazy, metrics: Metrics) -> Self {
        Self(Sending {
            segments: VecDeque::new(),
            lazy: Some(lazy),
            done: false,
            metrics,
        })
    }
}

impl Body for GetBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.get_mut().0.poll(cx, true).unwrap_or(Poll::Ready(None))
    }
}

/// What is on its way already.
#[derive(Debug)]
struct Sending {
    /// What remains of the messages at hand.
    segments: VecDeque<Bytes>,
    /// An answer that is encoded as it is sent.
    lazy: Option<Lazy>,
    /// Whether the trailers were sent.
    done: bool,
    metrics: Metrics,
}

impl Sending {
    /// The next piece; `None` when nothing is on its way. `last`: nothing comes after that, so the
    /// trailers do.
    #[allow(clippy::type_complexity)]
    fn poll(
        &mut self,
        cx: &Context<'_>,
        last: bool,
    ) -> Option<Poll<Option<Result<Frame<Bytes>, Status>>>> {
        loop {
            if let Some(segment) = self.segments.pop_front() {
                self.metrics.sent_bytes.inc_by(segment.len() as u64);
                return Some(Poll::Ready(Some(Ok(Frame::data(segment)))));
            }
            match self.lazy.as_mut().map(|lazy| lazy.next(&self.metrics)) {
                Some(Chunk::Ready(chunk)) => self.segments.extend(chunk.alone().iter().cloned()),
                Some(Chunk::Scanning) => {
                    cx.waker().wake_by_ref();
                    return Some(Poll::Pending);
                }
                Some(Chunk::Done) => self.lazy = None,
                None if !last => return None,
                None if self.done => return Some(Poll::Ready(None)),
                None => {
                    self.done = true;
                    return Some(Poll::Ready(Some(Ok(Frame::trailers(ok_trailers())))));
                }
            }
        }
    }
}
