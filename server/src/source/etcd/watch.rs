//! One watch of etcd, on a stream of its own: live, or of what happened earlier.

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

use super::connection::{ANSWER_WITHIN, Bounds, Connection, Error, entry, key, not_served, within};
use super::transactions::{Event, Keyed};
use crate::store::PastChange;

/// What etcd uses for "no watch in particular": the answer to a manual progress request.
const NO_WATCH: i64 = -1;

/// What a watch says of a key that changed: [`Edit`], or [`PastChange`] with what was before.
pub(super) trait Told: Keyed + Sized {
    /// Whether etcd is asked for what was before.
    const PREVIOUS: bool;

    fn of(edit: Edit, event: Before) -> Result<Self, Error>;

    /// Something cannot be served.
    fn not_served(kv: &PbKeyValue);
}

/// What was there before an event.
pub(super) struct Before {
    /// etcd should know of something.
    existed: bool,
    kv: Option<PbKeyValue>,
}

impl Told for Edit {
    const PREVIOUS: bool = false;

    fn of(edit: Edit, _: Before) -> Result<Self, Error> {
        Ok(edit)
    }

    fn not_served(kv: &PbKeyValue) {
        not_served(kv);
    }
}

impl Told for PastChange {
    const PREVIOUS: bool = true;

    fn of(edit: Edit, before: Before) -> Result<Self, Error> {
        // etcd leaves it out, without a word, where it was compacted after the watch began.
        if before.existed && before.kv.is_none() {
            return Err(Error::Compacted { at: None });
        }
        let previous = before.kv.and_then(|kv| entry(kv).ok());
        Ok(Self { edit, previous })
    }

    // Of what is past, nobody has to know.
    fn not_served(_: &PbKeyValue) {}
}

/// A watch that etcd has made. Dropping it ends it at etcd too: both halves of its stream go, so that
/// it is reset. Half-closing it would not, and to cancel the watch before that would do nothing: the
/// reset is quicker.
#[derive(Debug)]
pub(super) struct Watch<C> {
    responses: WatchResponseStream,
    requests: WatchRequestSender,
    cluster: u64,
    told: PhantomData<fn() -> C>,
}

/// What etcd said on a watch.
#[derive(Debug)]
pub(super) enum Heard<C> {
    /// Something changed.
    Events {
        events: Vec<Event<C>>,
        /// The next response goes on where this one ends.
        fragment: bool,
    },
    /// etcd is at this revision.
    Progress {
        revision: Revision,
        /// In answer to [`Watch::request_progress`], not by etcd's own clock. Its own are ordered
        /// after the events in every version.
        manual: bool,
    },
}

impl<C: Told> Watch<C> {
    /// Watches the range from this revision on.
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
                told: PhantomData,
            };
            // etcd says nothing else on a stream before this.
            let response = watch.response().await?;
            if !response.created() {
                return Err(Error::Malformed("a watch began without its creation"));
            }
            Ok(watch)
        };
        within(ANSWER_WITHIN, "watch", opening).await
    }

    /// What etcd says next.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is taken from the stream before it is returned.
    pub(super) async fn next(&mut self) -> Result<Heard<C>, Error> {
        let response = self.response().await?.0;
        if response.events.is_empty() && !response.fragment {
            let revision = response.header.map_or(0, |header| header.revision);
            return Ok(Heard::Progress {
                revision: Revision::new(revision),
                manual: response.watch_id == NO_WATCH,
            });
        }
        let events: Result<_, _> = response.events.into_iter().map(event).collect();
        Ok(Heard::Events {
            events: events?,
            fragment: response.fragment,
        })
    }

    /// The next response that is no end.
    async fn response(&mut self) -> Result<WatchResponse, Error> {
        let response = self.responses.message().await?;
        let response = response.ok_or_else(|| Error::Ended("the stream is over".to_owned()))?;
        if response.canceled() {
            // Of a revision that is compacted, etcd need not give a reason in words.
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

    /// Asks etcd to say something. Does not wait: where requests pile up, nothing is answered, and
    /// the silence is noticed elsewhere.
    pub(super) fn request_progress(&mut self) {
        now_or_never(self.requests.request_progress());
    }
}

/// Puts a request into the stream's queue, unless that is full.
fn now_or_never<T>(sending: impl Future<Output = T>) {
    let _ = pin!(sending).poll(&mut Context::from_waker(Waker::noop()));
}

/// As the protocol names it.
fn event<C: Told>(event: PbEvent) -> Result<Event<C>, Error> {
    let kv = event.kv.ok_or(Error::Malformed("an event has no key"))?;
    let revision = Revision::new(kv.mod_revision);
    let gone = |key| Edit::Delete {
        key,
        mod_revision: revision,
    };
    let deleted = event.r#type == EventType::Delete as i32;
    let created = !deleted && kv.version == 1;
    let before = Before {
        existed: !created,
        kv: event.prev_kv,
    };
    let edit = if deleted {
        key(kv.key).map(gone)
    } else {
        match entry(kv) {
            Ok(entry) => Some(Edit::Put(entry)),
            Err(kv) => {
                C::not_served(&kv);
                // What was under the key before must not stay.
                key(kv.key).map(gone)
            }
        }
    };
    Ok(Event {
        revision,
        keys: i64::from(created) - i64::from(deleted),
        change: edit.map(|edit| C::of(edit, before)).transpose()?,
    })
}
