//! A stream's response: what it sends next, asked for by the connection when there is room.
//!
//! It is a cursor and, while a frame is on its way, that frame's remaining segments, which all
//! streams of the scope share. Nothing is queued for a stream: a connection that has no room does
//! not ask, and whoever asks late gets what is true then.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use driftless_proto::{Revision, v1};
use http_body::{Body, Frame};
use tonic::Status;

use super::admission::{Admission, Refused, Turn};
use super::grpc::{self, ok_trailers, trailers};
use super::report::Registered;
use super::stalls::{ANSWER_PINNED_AT_MOST, Stall};
use crate::encode::{self, Chunk, SyncKind, SyncReader};
use crate::fanout::{Ending, Next, Subscriber};
use crate::metrics::{Held, Metrics};

/// How long a client is told to wait that did not take its answer in time: it would get it from the
/// start again, and whatever kept it from reading may take a while.
const RETRY_STALLED: Duration = Duration::from_secs(5);

/// The response to `Watch`.
#[derive(Debug)]
pub(super) struct WatchBody {
    subscriber: Subscriber,
    admission: Admission,
    /// What the stream waits for, if it does.
    due: Option<Due>,
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

/// An answer that the stream waits for its turn to read. It is begun only then, so that who waits
/// costs a place in the queue and pins nothing.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) turn: Turn,
    pub(super) kind: SyncKind,
    /// The revision that the client holds, and that the answer may not fall behind.
    pub(super) held: Revision,
}

impl WatchBody {
    /// Sends `first`, which is whole messages, then the answer that is `due` if there is one, then
    /// what changes after `cursor`.
    pub(super) fn new(
        subscriber: Subscriber,
        admission: Admission,
        first: Bytes,
        due: Option<Due>,
        cursor: Revision,
        registered: Registered,
        stall: Stall,
    ) -> Self {
        let metrics = subscriber.metrics().clone();
        let counted = Held::new(&metrics.streams);
        let progress = subscriber.progress_number();
        Self {
            subscriber,
            admission,
            due,
            cursor,
            progress,
            sending: Sending::new(VecDeque::from([first]), stall, metrics),
            ending: false,
            _registered: registered,
            _counted: counted,
        }
    }

    /// The cheapest way to bring a stream up to date that cannot be told the changes one by one.
    fn catch_up(&mut self) {
        self.sending.metrics.conflated.inc();
        match self.admission.enter() {
            Ok(turn) => {
                self.due = Some(Due {
                    turn,
                    kind: SyncKind::Diff { since: self.cursor },
                    held: self.cursor,
                });
            }
            Err(refused) => self.refuse(refused),
        }
    }

    /// It is the stream's turn.
    fn begin(&mut self, due: Due) {
        // None when the history has just ended, which the scope says when it is asked again.
        let Some(view) = self.subscriber.view_now() else {
            return;
        };
        let kind = match due.kind {
            // So much was deleted meanwhile that nobody knows what to tell the client of it.
            SyncKind::Diff { since } if since < view.root.floor() => {
                SyncKind::Snapshot { reset: false }
            }
            kind => kind,
        };
        let answer = self.subscriber.answer(kind, due.held, view);
        self.cursor = answer.revision();
        self.sending.begin(SyncReader::new(answer), due.turn);
    }

    fn refuse(&mut self, refused: Refused) {
        match refused {
            Refused::Closed => self.end(Ending::Drain.goodbye()),
            Refused::Later(after) => {
                self.sending.metrics.answers_deferred.inc();
                self.leave(v1::goodbye::Reason::Rebalance, after);
            }
        }
    }

    /// Ends the stream for a while.
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
        loop {
            if let Some(sent) = this.sending.poll(cx, this.ending) {
                return sent;
            }
            if std::mem::take(&mut this.sending.cut_off) {
                this.leave(v1::goodbye::Reason::Stalled, RETRY_STALLED);
                continue;
            }
            if let Some(due) = this.due.take() {
                match due.turn.poll(cx) {
                    Poll::Pending => {
                        this.due = Some(due);
                        this.sending.stall.waiting();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(())) => this.begin(due),
                    Poll::Ready(Err(refused)) => this.refuse(refused),
                }
                continue;
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
                Next::Ending(ending) => this.end(ending.goodbye()),
                Next::Nothing => {
                    this.sending.stall.waiting();
                    return Poll::Pending;
                }
            }
        }
    }
}

/// The response to `Get`: a snapshot, and that is all.
#[derive(Debug)]
pub(super) struct GetBody {
    due: Option<(SyncReader, Turn)>,
    sending: Sending,
}

impl GetBody {
    pub(super) const fn new(
        answer: SyncReader,
        turn: Turn,
        stall: Stall,
        metrics: Metrics,
    ) -> Self {
        Self {
            due: Some((answer, turn)),
            sending: Sending::new(VecDeque::new(), stall, metrics),
        }
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
        if let Some((answer, turn)) = this.due.take() {
            match turn.poll(cx) {
                Poll::Pending => {
                    this.due = Some((answer, turn));
                    this.sending.stall.waiting();
                    return Poll::Pending;
                }
                Poll::Ready(Ok(())) => this.sending.begin(answer, turn),
                Poll::Ready(Err(refused)) => {
                    this.sending.done = true;
                    let trailers = trailers(&refused.status(&this.sending.metrics));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
        }
        this.sending.poll(cx, true).unwrap_or(Poll::Ready(None))
    }
}

/// What is on its way already.
#[derive(Debug)]
struct Sending {
    /// What remains of the messages at hand.
    segments: VecDeque<Bytes>,
    /// Its way through an answer that is encoded as it is sent.
    answer: Option<(SyncReader, Turn)>,
    /// The answer was not taken in time, and is not gone on with.
    cut_off: bool,
    /// Whether the trailers were sent.
    done: bool,
    stall: Stall,
    metrics: Metrics,
}

impl Sending {
    const fn new(segments: VecDeque<Bytes>, stall: Stall, metrics: Metrics) -> Self {
        Self {
            segments,
            answer: None,
            cut_off: false,
            done: false,
            stall,
            metrics,
        }
    }

    fn begin(&mut self, answer: SyncReader, turn: Turn) {
        self.stall.answer_began();
        self.answer = Some((answer, turn));
    }

    /// The next piece; `None` when nothing is on its way. `last`: nothing comes after that, so the
    /// trailers do.
    #[allow(clippy::type_complexity)]
    fn poll(
        &mut self,
        cx: &Context<'_>,
        last: bool,
    ) -> Option<Poll<Option<Result<Frame<Bytes>, Status>>>> {
        if let Some((_, turn)) = &self.answer {
            turn.taken();
        }
        loop {
            if let Some(segment) = self.segments.pop_front() {
                if let Some((_, turn)) = &self.answer {
                    turn.handed();
                }
                self.stall.handed();
                self.metrics.sent_bytes.inc_by(segment.len() as u64);
                return Some(Poll::Ready(Some(Ok(Frame::data(segment)))));
            }
            if self.answer.is_some() && self.stall.is_overdue() {
                self.answer = None;
                self.stall.answer_done();
                self.cut_off = true;
            }
            let answer = self.answer.as_mut();
            let next = answer.map(|(answer, _)| answer.next(&self.metrics));
            match next {
                Some(Chunk::Ready(chunk)) => self.segments.extend(chunk.alone().iter().cloned()),
                Some(Chunk::Scanning) => {
                    self.stall.handed();
                    cx.waker().wake_by_ref();
                    return Some(Poll::Pending);
                }
                Some(Chunk::Done) => {
                    self.answer = None;
                    self.stall.answer_done();
                }
                None if !last => return None,
                None if self.done => return Some(Poll::Ready(None)),
                None => {
                    self.done = true;
                    let trailers = if self.cut_off {
                        trailers(&too_slow())
                    } else {
                        ok_trailers()
                    };
                    return Some(Poll::Ready(Some(Ok(Frame::trailers(trailers)))));
                }
            }
        }
    }
}

/// How a call ends that did not take its answer in time.
fn too_slow() -> Status {
    let status = Status::deadline_exceeded(format!(
        "the answer was not read within {ANSWER_PINNED_AT_MOST:?}; retry, or ask for a smaller range"
    ));
    grpc::retry_after(RETRY_STALLED, status)
}
