//! A subscriber that follows driftless's contract: it applies every frame to its state and checks the
//! digest, as the client library does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use driftless_proto::apply::{Action, Applier, Edit};
use driftless_proto::v1::watch_response::Frame;
use driftless_proto::{Entry, Epoch, Key, KeyRange, Revision, v1};
use h2::client::SendRequest;
use prost::Message;

use super::board::Board;
use super::connection::Place;
use super::grpc::{Call, Requests};
use crate::Failure;

/// The call.
pub(super) const WATCH: &str = "/driftless.v1.Config/Watch";

/// What one range may hold, in bytes: more than any does here.
const LIMIT: usize = 64 * 1024 * 1024;

/// What a client holds. Cheap to clone: clients that hold the same share it until it changes.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) epoch: Epoch,
    pub(super) revision: Revision,
    pub(super) entries: Arc<BTreeMap<Key, Entry>>,
}

/// A stream of one range, and the state that it leads to.
pub(super) struct Watch {
    call: Call,
    applier: Applier,
    epoch: Option<Epoch>,
    entries: Arc<BTreeMap<Key, Entry>>,
}

/// What a message did to the state.
pub(super) enum Moved {
    /// Nothing, or not yet.
    No,
    /// Its digest equals the server's.
    Confirmed,
    /// Everything was replaced.
    Replaced,
    /// These keys have new entries or are gone.
    Edited(Vec<Edit>),
}

impl Watch {
    /// Watches `range`, and tells the server which state is held.
    pub(super) async fn start(
        send: SendRequest<Bytes>,
        to: SocketAddr,
        range: KeyRange,
        held: Option<Held>,
    ) -> Result<Self, Failure> {
        let mut applier = Applier::new(range.clone(), LIMIT);
        let mut entries = Arc::default();
        if let Some(held) = held {
            applier.resume(held.epoch, held.revision, held.entries.values());
            entries = held.entries;
        }
        let request = v1::WatchRequest {
            range: Some(v1::Range::from(&range)),
            have: applier.have(Bytes::new()),
            features: vec![v1::Feature::ValueDeltas as i32],
            ..Default::default()
        };
        Ok(Self {
            call: Call::start(send, to, WATCH, &request, Requests::One).await?,
            applier,
            epoch: None,
            entries,
        })
    }

    /// Reads and applies the next message. Returns when it arrived, too.
    pub(super) async fn next(&mut self) -> Result<(Moved, std::time::Instant), Failure> {
        let (message, at) = self.call.next().await?;
        let frame = v1::WatchResponse::decode(message)?.frame;
        let action = match frame.ok_or("a message of an unknown kind")? {
            Frame::Hello(hello) => {
                let epoch = Epoch::new(hello.epoch);
                self.applier.begin(epoch.clone());
                self.epoch = Some(epoch);
                return Ok((Moved::No, at));
            }
            Frame::Snapshot(chunk) => self.applier.snapshot(chunk)?,
            Frame::Diff(chunk) => self.applier.diff(chunk, &*self.entries)?,
            Frame::Current(current) => self.applier.current(&current)?,
            Frame::Progress(progress) => {
                let (Action::Confirm { .. } | Action::Skipped) =
                    self.applier.progress(&progress)?
                else {
                    return Err("a progress that changes something".into());
                };
                return Ok((Moved::No, at));
            }
            Frame::Goodbye(goodbye) => {
                return Err(format!("the server said goodbye: {:?}", goodbye.reason()).into());
            }
        };
        let moved = match action {
            Action::Incomplete | Action::Skipped => Moved::No,
            Action::Confirm { .. } => Moved::Confirmed,
            Action::Replace { entries, .. } => {
                let keyed = entries.into_iter().map(|entry| (entry.key.clone(), entry));
                self.entries = Arc::new(keyed.collect());
                Moved::Replaced
            }
            Action::Edit { edits, .. } => {
                let entries = Arc::make_mut(&mut self.entries);
                for edit in &edits {
                    match edit {
                        Edit::Put(entry) => entries.insert(entry.key.clone(), entry.clone()),
                        Edit::Delete { key, .. } => entries.remove(key),
                    };
                }
                Moved::Edited(edits)
            }
        };
        Ok((moved, at))
    }

    /// What it holds now.
    pub(super) fn held(&self) -> Result<Held, Failure> {
        Ok(Held {
            epoch: self.epoch.clone().ok_or("nothing came yet")?,
            revision: self.applier.revision(),
            entries: Arc::clone(&self.entries),
        })
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
    let mut watch = Watch::start(send, to, KeyRange::key(&key)?, None).await?;
    let mut place = Some(place);
    loop {
        match watch.next().await? {
            (Moved::Confirmed | Moved::Replaced, _) => {
                if place.take().is_some() {
                    board.is_live();
                }
            }
            (Moved::Edited(edits), at) => {
                for edit in edits {
                    if let Edit::Put(entry) = edit {
                        board.arrived(&entry.value, at)?;
                    }
                }
            }
            (Moved::No, _) => {}
        }
    }
}
