//! One etcd watch on a stream of its own: of live changes or of past ones.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::pin;
use std::task::{Context, Waker};

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use etcd_client::proto::{PbEvent, PbKeyValue};
use etcd_client::{
    EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};

use super::connection::{
    Bounds, Connection, Error, READ_TIMEOUT, entry, key, log_not_served, within,
};
use super::transactions::{Event, Keyed};
use crate::store::PastChange;

/// The watch id that etcd puts in the answer to a manual progress request.
const NO_WATCH: i64 = -1;

/// A change as a watch reports it: [`Edit`], or [`PastChange`] with the previous entry.
pub(super) trait WatchedChange: Keyed + Sized {
    /// True if etcd has to send the previous entry.
    const PREVIOUS: bool;

    fn new(edit: Edit, previous: Previous) -> Result<Self, Error>;

    /// Logs that an entry cannot be served.
    fn log_not_served(kv: &PbKeyValue);
}

/// The entry before an event.
pub(super) struct Previous {
    /// True if the key existed before the event.
    existed: bool,
    kv: Option<PbKeyValue>,
}

impl WatchedChange for Edit {
    const PREVIOUS: bool = false;

    fn new(edit: Edit, _: Previous) -> Result<Self, Error> {
        Ok(edit)
    }

    fn log_not_served(kv: &PbKeyValue) {
        log_not_served(kv);
    }
}

impl WatchedChange for PastChange {
    const PREVIOUS: bool = true;

    fn new(edit: Edit, previous: Previous) -> Result<Self, Error> {
        // etcd omits it, without an error, when it was compacted after the watch began.
        if previous.existed && previous.kv.is_none() {
            return Err(Error::Compacted { at: None });
        }
        let previous = previous.kv.and_then(|kv| entry(kv).ok());
        Ok(Self { edit, previous })
    }

    // Only the live watch logs: a past entry needs no attention.
    fn log_not_served(_: &PbKeyValue) {}
}

/// A watch that etcd has created. Dropping it ends it at etcd too: both halves of its stream are
/// dropped, which resets it. Half-closing would not end it, and a cancel request before the reset
/// would do nothing, because the reset is faster.
#[derive(Debug)]
pub(super) struct Watch<C> {
    responses: WatchResponseStream,
    requests: WatchRequestSender,
    cluster: u64,
    change: PhantomData<fn() -> C>,
}

/// What a watch delivered.
#[derive(Debug)]
pub(super) enum WatchEvent<C> {
    /// Changes.
    Changes {
        events: Vec<Event<C>>,
        /// True if the next response continues this one.
        fragment: bool,
    },
    /// etcd's revision.
    Progress {
        revision: Revision,
        /// True for an answer to [`Watch::request_progress`]; false for a notification that etcd sends
        /// by itself. Those are ordered after the events in every version.
        manual: bool,
    },
}

impl<C: WatchedChange> Watch<C> {
    /// Opens a watch of the range, from this revision on.
    pub(super) async fn open(
        connection: &mut Connection,
        bounds: &Bounds,
        from: Revision,
    ) -> Result<Self, Error> {
        let options = WatchOptions::new()
            .with_start_revision(from.get())
            .with_progress_notify()
            .with_fragment();
        let options = if C::PREVIOUS {
            options.with_prev_key()
        } else {
            options
        };
        let options = match &bounds.end {
            Some(end) => options.with_range(end.as_slice()),
            None => options,
        };
        let opening = async {
            let stream = connection
                .watch
                .watch(bounds.start.as_slice(), Some(options))
                .await?;
            let (requests, responses) = stream.split();
            let mut watch = Self {
                responses,
                requests,
                cluster: connection.cluster,
                change: PhantomData,
            };
            // etcd sends nothing else on a stream before this.
            let response = watch.response().await?;
            if !response.created() {
                return Err(Error::Malformed("a watch began without its creation"));
            }
            Ok(watch)
        };
        within(READ_TIMEOUT, "watch", opening).await
    }

    /// The next event.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is taken from the stream before it is returned.
    pub(super) async fn next(&mut self) -> Result<WatchEvent<C>, Error> {
        let response = self.response().await?.0;
        if response.events.is_empty() && !response.fragment {
            let revision = response.header.map_or(0, |header| header.revision);
            return Ok(WatchEvent::Progress {
                revision: Revision::new(revision),
                manual: response.watch_id == NO_WATCH,
            });
        }
        let events: Result<_, _> = response.events.into_iter().map(event).collect();
        Ok(WatchEvent::Changes {
            events: events?,
            fragment: response.fragment,
        })
    }

    /// The next response. A cancelled watch is an error.
    async fn response(&mut self) -> Result<WatchResponse, Error> {
        let response = self.responses.message().await?;
        let response = response.ok_or_else(|| Error::Ended("the stream is over".to_owned()))?;
        if response.canceled() {
            // etcd may give no reason in words for a compacted revision.
            return Err(if response.compact_revision() > 0 {
                Error::Compacted {
                    at: Some(Revision::new(response.compact_revision())),
                }
            } else if response.cancel_reason().is_empty() {
                Error::Ended("etcd gave no reason".to_owned())
            } else {
                Error::Ended(response.cancel_reason().to_owned())
            });
        }
        match response.header() {
            Some(header) if header.cluster_id() != self.cluster => Err(Error::OtherCluster),
            _ => Ok(response),
        }
    }

    /// Requests progress. Does not wait: when requests pile up, etcd does not answer, and the silence
    /// ends the watch.
    pub(super) fn request_progress(&mut self) {
        now_or_never(self.requests.request_progress());
    }
}

/// Puts a request into the stream's queue, or drops it when the queue is full.
fn now_or_never<T>(sending: impl Future<Output = T>) {
    let _ = pin!(sending).poll(&mut Context::from_waker(Waker::noop()));
}

/// Converts an event to the protocol's types.
fn event<C: WatchedChange>(event: PbEvent) -> Result<Event<C>, Error> {
    let kv = event.kv.ok_or(Error::Malformed("an event has no key"))?;
    let revision = Revision::new(kv.mod_revision);
    let gone = |key| Edit::Delete {
        key,
        mod_revision: revision,
    };
    let deleted = event.r#type == EventType::Delete as i32;
    let created = !deleted && kv.version == 1;
    let previous = Previous {
        existed: !created,
        kv: event.prev_kv,
    };
    let edit = if deleted {
        key(kv.key).map(gone)
    } else {
        match entry(kv) {
            Ok(entry) => Some(Edit::Put(entry)),
            Err(kv) => {
                C::log_not_served(&kv);
                // The key's previous entry must not stay.
                key(kv.key).map(gone)
            }
        }
    };
    Ok(Event {
        revision,
        keys: i64::from(created) - i64::from(deleted),
        change: edit.map(|edit| C::new(edit, previous)).transpose()?,
    })
}
