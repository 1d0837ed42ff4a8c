//! The bodies of `Watch` and `Get` responses. The connection polls them when it has room.
//!
//! A body is a cursor and, while a frame is being sent, that frame's remaining segments, which all
//! streams of the scope share. Nothing is queued for a stream: a connection without room does not
//! poll, and a late poll gets what is true then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::{Revision, v1};
use http_body::{Body, Frame};
use tonic::Status;

use super::grpc::{self, ok_trailers, trailers};
use super::refusals::{history_changed, no_permit};
use crate::encode::{self, Chunk, SyncKind, SyncReader};
use crate::fanout::{Ending, Next, Subscriber};
use crate::metrics::Metrics;
use crate::session::{Refused, StreamGuard};

/// How long a client should wait that did not read its snapshot or diff in time, or not as fast as others
/// who wait would: it gets it from the start again, and whatever kept it from reading may take a while.
const RETRY_STALLED: Duration = Duration::from_secs(5);

/// The response to `Watch`.
#[derive(Debug)]
pub(super) struct WatchBody {
    /// What the stream waits for a permit to read, if it does.
    due: Option<Due>,
    /// The revision that the client is at when it has read all that was handed over.
    cursor: Revision,
    /// Number of the latest progress that was sent.
    progress: u64,
    /// How long the client waits for a snapshot or conflated diff.
    patience: Duration,
    sending: Sending<Subscriber>,
    /// Whether the goodbye is on its way.
    ending: bool,
}

/// A snapshot or conflated diff that the stream waits for a permit to read. It is begun only then, so
/// that a waiting stream costs a place in the queue and pins nothing.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) kind: SyncKind,
    /// The revision that the client holds, and that the answer may not fall behind.
    pub(super) held: Revision,
}

impl WatchBody {
    /// Sends `first`, which is whole messages, then the answer that is `due` if there is one, for which
    /// the stream has asked for a permit, then what changes after `cursor`.
    pub(super) fn new(
        stream: StreamGuard<Subscriber>,
        first: Bytes,
        due: Option<Due>,
        cursor: Revision,
        patience: Duration,
    ) -> Self {
        let subscriber = stream.subscription();
        let metrics = subscriber.metrics().clone();
        let progress = subscriber.progress_number();
        stream.set_cursor(cursor);
        Self {
            due,
            cursor,
            progress,
            patience,
            sending: Sending::new(VecDeque::from([first]), stream, metrics),
            ending: false,
        }
    }

    fn move_to(&mut self, cursor: Revision) {
        self.cursor = cursor;
        self.sending.stream.set_cursor(cursor);
    }

    /// Asks for one conflated diff, because the changes cannot be sent one by one any more.
    fn catch_up(&mut self) {
        self.sending.metrics.conflated.inc();
        match self.sending.stream.request_permit(self.patience) {
            Ok(()) => {
                self.due = Some(Due {
                    kind: SyncKind::Diff { since: self.cursor },
                    held: self.cursor,
                });
            }
            Err(refused) => self.refuse(refused),
        }
    }

    /// The stream has its permit.
    fn begin(&mut self, due: &Due) {
        let subscriber = self.sending.stream.subscription();
        // None when the history has just ended, which the scope reports at the next poll.
        let Some(view) = subscriber.view() else {
            self.sending.stream.end_sync();
            return;
        };
        let kind = match due.kind {
            // The tombstones since the client's revision are gone: a diff would miss deletes.
            SyncKind::Diff { since } if since < view.root.floor() => {
                SyncKind::Snapshot { reset: false }
            }
            kind => kind,
        };
        let response = subscriber.sync_response(kind, due.held, view);
        self.move_to(response.revision());
        self.sending.begin(SyncReader::new(response));
    }

    fn refuse(&mut self, refused: Refused) {
        self.sending.stream.end_sync();
        match refused {
            Refused::Closed => self.end(Ending::Drain.goodbye()),
            Refused::Memory(after) => {
                self.sending.metrics.memory_refused.inc();
                self.leave(v1::goodbye::Reason::Rebalance, after);
            }
            Refused::Later(after) => {
                self.sending.metrics.syncs_deferred.inc();
                self.leave(v1::goodbye::Reason::Rebalance, after);
            }
        }
    }

    /// Ends the stream; the client may come back after this time.
    fn leave(&mut self, reason: v1::goodbye::Reason, after: Duration) {
        self.end(v1::Goodbye {
            reason: reason.into(),
            retry_after_ms: u32::try_from(after.as_millis()).unwrap_or(u32::MAX),
            purge: false,
        });
    }

    fn end(&mut self, goodbye: v1::Goodbye) {
        let goodbye = v1::watch_response::Frame::Goodbye(goodbye);
        self.sending
            .segments
            .push_back(encode::unary(&v1::WatchResponse {
                frame: Some(goodbye),
            }));
        self.ending = true;
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
        this.sending.stream.polled_by(cx);
        loop {
            if let Some(sent) = this.sending.poll(cx, this.ending) {
                return sent;
            }
            let cut_off = std::mem::take(&mut this.sending.cut_off);
            if let Some(goodbye) = this.sending.stream.goodbye() {
                let goodbye = *goodbye;
                // It may wait for a permit, or have one.
                this.due = None;
                this.sending.stream.end_sync();
                this.end(goodbye);
                continue;
            }
            if cut_off {
                this.leave(v1::goodbye::Reason::Stalled, RETRY_STALLED);
                continue;
            }
            if let Some(due) = this.due.take() {
                match this.sending.stream.poll_permit(cx) {
                    Poll::Pending => {
                        this.due = Some(due);
                        this.sending.stream.idle();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => this.begin(&due),
                    Poll::Ready(Err(refused)) => this.refuse(refused),
                }
                continue;
            }
            let subscriber = this.sending.stream.subscription();
            match subscriber.next(this.cursor, this.progress, cx) {
                Next::Frame { frame, to } => {
                    this.sending.segments.extend(frame.alone().iter().cloned());
                    this.move_to(to);
                }
                Next::Coalesced { bytes, to } => {
                    this.sending.segments.push_back(bytes);
                    this.move_to(to);
                }
                Next::Progress { bytes, number, to } => {
                    this.sending
                        .segments
                        .extend((!bytes.is_empty()).then_some(bytes));
                    this.progress = number;
                    this.move_to(to);
                }
                Next::Behind => this.catch_up(),
                Next::Ending(ending) => this.end(ending.goodbye()),
                Next::Nothing => {
                    this.sending.stream.idle();
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The response to `Get`: a snapshot, and that is all.
#[derive(Debug)]
pub(super) struct GetBody {
    /// The range, until the stream has its permit. What is in it is looked up then, so that a waiting
    /// stream pins nothing.
    due: Option<Subscriber>,
    sending: Sending<()>,
}

impl GetBody {
    /// Sends what is in the range. The stream has asked for a permit.
    pub(super) const fn new(range: Subscriber, stream: StreamGuard<()>, metrics: Metrics) -> Self {
        Self {
            due: Some(range),
            sending: Sending::new(VecDeque::new(), stream, metrics),
        }
    }

    /// The stream has its permit.
    fn begin(&mut self, range: &Subscriber) -> Result<(), Status> {
        // None when the history has just ended.
        let view = range.view().ok_or_else(history_changed)?;
        self.sending.stream.set_cursor(view.root.revision());
        // Not shared: a `Get` asks for the state now.
        let answer = range.own_sync_response(SyncKind::Snapshot { reset: false }, view);
        self.sending.begin(SyncReader::new(answer));
        Ok(())
    }

    fn fail(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.sending.done = true;
        Poll::Ready(Some(Ok(Frame::trailers(trailers(status)))))
    }
}

impl Body for GetBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.sending.stream.polled_by(cx);
        if let Some(range) = this.due.take() {
            if this.sending.stream.goodbye().is_some() {
                return this.fail(&ended());
            }
            let begun = match this.sending.stream.poll_permit(cx) {
                Poll::Pending => {
                    this.due = Some(range);
                    this.sending.stream.idle();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => this.begin(&range),
                Poll::Ready(Err(refused)) => Err(no_permit(refused, &this.sending.metrics)),
            };
            if let Err(status) = begun {
                return this.fail(&status);
            }
        }
        this.sending.poll(cx, true).unwrap_or(Poll::Ready(None))
    }
}

/// The part of a response that is being sent.
#[derive(Debug)]
struct Sending<S> {
    /// What remains of the current messages.
    segments: VecDeque<Bytes>,
    /// A snapshot or conflated diff, which is encoded as it is sent.
    answer: Option<SyncReader>,
    /// Whether it was cut off: not read fast enough, or the stream was ended meanwhile.
    cut_off: bool,
    /// Whether the trailers were sent.
    done: bool,
    stream: StreamGuard<S>,
    metrics: Metrics,
}

impl<S> Sending<S> {
    const fn new(segments: VecDeque<Bytes>, stream: StreamGuard<S>, metrics: Metrics) -> Self {
        Self {
            segments,
            answer: None,
            cut_off: false,
            done: false,
            stream,
            metrics,
        }
    }

    fn begin(&mut self, answer: SyncReader) {
        self.stream.begin_sync();
        self.answer = Some(answer);
    }

    fn end_answer(&mut self) {
        self.answer = None;
        self.stream.end_sync();
    }

    fn cut_off(&mut self) {
        if self.stream.goodbye().is_none() {
            self.metrics.syncs_cut_off.inc();
        }
        self.end_answer();
        self.cut_off = true;
    }

    /// The next piece; `None` when nothing is being sent. With `last`, the trailers come after that.
    #[allow(clippy::type_complexity)]
    fn poll(
        &mut self,
        cx: &Context<'_>,
        last: bool,
    ) -> Option<Poll<Option<Result<Frame<Bytes>, Status>>>> {
        self.stream.piece_taken();
        loop {
            if let Some(segment) = self.segments.pop_front() {
                self.stream.piece_handed();
                self.metrics.sent_bytes.inc_by(segment.len() as u64);
                return Some(Poll::Ready(Some(Ok(Frame::data(segment)))));
            }
            if self.answer.is_some()
                && (self.stream.goodbye().is_some() || self.stream.is_sync_overdue())
            {
                self.cut_off();
            }
            let answer = self.answer.as_mut();
            let next = answer.map(|answer| answer.next(&self.metrics));
            match next {
                Some(Chunk::Ready(chunk)) => self.segments.extend(chunk.alone().iter().cloned()),
                Some(Chunk::Scanning) => {
                    self.stream.busy();
                    cx.waker().wake_by_ref();
                    return Some(Poll::Pending);
                }
                Some(Chunk::Done) => self.end_answer(),
                Some(Chunk::Revoked) => self.cut_off(),
                None if !last => return None,
                None if self.done => return Some(Poll::Ready(None)),
                None => {
                    self.done = true;
                    let trailers = match (self.cut_off, self.stream.goodbye()) {
                        (false, _) => ok_trailers(),
                        (true, None) => trailers(&too_slow()),
                        (true, Some(_)) => trailers(&ended()),
                    };
                    return Some(Poll::Ready(Some(Ok(Frame::trailers(trailers)))));
                }
            }
        }
    }
}

/// The status of a call whose client did not read its snapshot in time.
fn too_slow() -> Status {
    let status = Status::deadline_exceeded(
        "the answer was not read fast enough; retry, or ask for a smaller range",
    );
    grpc::retry_after(RETRY_STALLED, status)
}

/// The status of a `Get` that the server ended.
fn ended() -> Status {
    Status::aborted("the server ended the call; retry")
}
