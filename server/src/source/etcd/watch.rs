//! One watch of etcd, on a stream of its own.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use driftless_proto::Revision;
use driftless_proto::apply::Edit;
use etcd_client::proto::PbEvent;
use etcd_client::{
    EventType, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream,
};

use super::connection::{ANSWER_WITHIN, Bounds, Connection, Error, entry, key, not_served, within};
use super::transactions::Event;

/// What etcd uses for "no watch in particular": the answer to a manual progress request.
const NO_WATCH: i64 = -1;

/// A watch that etcd has made. Dropping it ends it at etcd too: half-closing a stream would not.
#[derive(Debug)]
pub(super) struct Watch {
    id: i64,
    responses: WatchResponseStream,
    requests: WatchRequestSender,
    cluster: u64,
}

/// What etcd said on a watch.
#[derive(Debug)]
pub(super) enum Heard {
    /// Something changed.
    Events {
        events: Vec<Event>,
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

impl Watch {
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
                id: NO_WATCH,
                responses,
                requests,
                cluster: connection.cluster,
            };
            // etcd says nothing else on a stream before this.
            let response = watch.response().await?;
            if !response.created() {
                return Err(Error::Malformed("a watch began without its creation"));
            }
            watch.id = response.watch_id();
            Ok(watch)
        };
        within(ANSWER_WITHIN, "watch", opening).await
    }

    /// What etcd says next.
    ///
    /// # Cancel safety
    /// Cancel-safe: nothing is taken from the stream before it is returned.
    pub(super) async fn next(&mut self) -> Result<Heard, Error> {
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
                Error::Compacted
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

impl Drop for Watch {
    fn drop(&mut self) {
        // The streams that go with it end the watch as well; the request is what ends it when
        // something between here and etcd keeps the stream open.
        if self.id != NO_WATCH {
            now_or_never(self.requests.cancel(self.id));
        }
    }
}

/// Puts a request into the stream's queue, unless that is full.
fn now_or_never<T>(sending: impl Future<Output = T>) {
    let _ = pin!(sending).poll(&mut Context::from_waker(Waker::noop()));
}

/// As the protocol names it.
fn event(event: PbEvent) -> Result<Event, Error> {
    let kv = event.kv.ok_or(Error::Malformed("an event has no key"))?;
    let revision = Revision::new(kv.mod_revision);
    if event.r#type == EventType::Delete as i32 {
        return Ok(Event {
            revision,
            keys: -1,
            edit: key(kv.key).map(|key| Edit::Delete {
                key,
                mod_revision: revision,
            }),
        });
    }
    Ok(Event {
        revision,
        keys: i64::from(kv.version == 1),
        edit: match entry(kv) {
            Ok(entry) => Some(Edit::Put(entry)),
            Err(kv) => {
                not_served(&kv);
                // What was under the key before must not stay.
                key(kv.key).map(|key| Edit::Delete {
                    key,
                    mod_revision: revision,
                })
            }
        },
    })
}
