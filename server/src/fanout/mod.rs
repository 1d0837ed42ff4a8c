//! From one prefix's changes to the streams whose range they touch.
//!
//! [`Publisher`] (one, owned by the ingest task) publishes each new state together with the batch
//! that led to it; [`Fanout`] (cheap to clone) is how requests subscribe. There is no queue per
//! stream: a stream has a cursor, and reads from the shared log through the scope of its range.
//!
//! One lock per prefix guards what is published, so that a snapshot and a scope's digest are always
//! of the same moment. It is held for as long as it takes to swap pointers and to tell the scopes
//! that a batch touches; never across an await, never while something is encoded or hashed. Who
//! holds it may take a scope's lock, and who holds that may take a batch's; never the other way.

mod answers;
mod change_log;
mod pace;
mod scope;
mod scopes;
mod subscriber;
#[cfg(test)]
mod tests;
mod unsettled;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use driftless_proto::digest::Digest;
use driftless_proto::{KeyRange, Revision, v1};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::delta;
use crate::encode::{ChunkCache, EncodedBatch, EncodedPatch};
use crate::metrics::Metrics;
use crate::store::{Batch, OldValue, PastBatches, Snapshot, Span};
pub use answers::TIDY_EVERY;
pub use change_log::{ChangeLog, Past};
pub use pace::PACE;
pub use scope::Next;
use scope::{Pushed, Scope};
use scopes::Scopes;
pub use scopes::Walk;
pub use subscriber::Subscriber;
use unsettled::Queue;
pub use unsettled::{PatchEncoder, Unsettled};

/// Why all the streams of a prefix have to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The server shuts down.
    Drain,
    /// etcd's history went back or was replaced.
    History,
}

impl Ending {
    /// What to tell the client.
    pub fn goodbye(self) -> v1::Goodbye {
        let (reason, retry_after_ms) = match self {
            Self::Drain => (v1::goodbye::Reason::Drain, 0),
            Self::History => (v1::goodbye::Reason::History, 0),
        };
        v1::Goodbye {
            reason: reason.into(),
            retry_after_ms,
            purge: false,
        }
    }
}

/// Bytes of encoded snapshots and conflated diffs that are kept for readers yet to come, in one
/// prefix: enough for a crowd that starts anew, within what a server has to spare.
const CHUNK_CACHE: usize = 32 * 1024 * 1024;

/// How many scopes of a walk are visited before changes, and those who wait for the prefix's lock,
/// get their turn: some 20 µs.
const SLICE: usize = 256;

/// What all of one prefix's readers share.
#[derive(Debug)]
struct Shared {
    prefix: KeyRange,
    metrics: Metrics,
    chunk_cache: Arc<ChunkCache>,
    published: Mutex<Published>,
    /// The published revision, for those who wait for one. 0 before the first state.
    revision: watch::Sender<Revision>,
    /// Why etcd cannot be reached, while that is so.
    lost: watch::Sender<Option<String>>,
    /// The earliest revision that the log does not reach back to and somebody would like it to.
    wanted: watch::Sender<Option<Revision>>,
    /// How often it turned out whether the log can reach back.
    settled: watch::Sender<u64>,
    /// When etcd was last heard of, in milliseconds since `origin`.
    contact_ms: AtomicU64,
    origin: Instant,
}

#[derive(Debug)]
struct Published {
    state: Option<State>,
    scopes: Scopes,
    /// Scopes that have changes held back.
    paced: Vec<Arc<Scope>>,
    /// Batches whose deltas scopes wait for.
    unsettled: Queue,
    draining: bool,
}

impl Published {
    /// Ends all scopes and returns them, to be woken and let go of outside the lock. They know of
    /// their end before anybody can miss them here.
    fn end(&mut self, ending: Ending) -> Vec<Arc<Scope>> {
        let mut ended = self.scopes.take();
        ended.iter().for_each(|scope| scope.end(ending));
        ended.append(&mut self.paced);
        ended
    }
}

/// A snapshot and the log that led to it.
#[derive(Debug)]
struct State {
    snapshot: Snapshot,
    log: ChangeLog,
}

impl Shared {
    fn clock_ms(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn contact_ms(&self) -> u64 {
        self.contact_ms.load(Ordering::Relaxed)
    }

    fn want(&self, revision: Revision) {
        self.wanted.send_if_modified(|wanted| {
            let earlier = wanted.is_none_or(|wanted| revision < wanted);
            if earlier {
                *wanted = Some(revision);
            }
            earlier
        });
    }

    /// Whoever waits for the log to reach back has to look again.
    fn settle(&self) {
        self.settled.send_modify(|settled| *settled += 1);
    }
}

/// A range's state at one moment.
#[derive(Debug)]
pub struct View {
    /// The prefix's keyspace.
    pub root: Snapshot,
    /// What changed lately in the prefix.
    pub log: ChangeLog,
    /// The range's digest at the root's revision.
    pub digest: Digest,
}

/// Why a range cannot be subscribed to just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// Nothing has come from etcd yet.
    NotSynced,
    /// The server shuts down.
    Draining,
}

/// The publishing end of a prefix. One exists, and its owner is the ingest task.
#[derive(Debug)]
pub struct Publisher(Arc<Shared>);

/// The subscribing end of a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Fanout(Arc<Shared>);

/// Both ends, for one served prefix, with nothing published yet. `origin` is the origin of the
/// server's clock.
pub fn fanout(prefix: KeyRange, metrics: Metrics, origin: Instant) -> (Publisher, Fanout) {
    let published = Published {
        state: None,
        scopes: Scopes::default(),
        paced: Vec::new(),
        unsettled: Queue::default(),
        draining: false,
    };
    let shared = Arc::new(Shared {
        prefix,
        metrics,
        chunk_cache: Arc::new(ChunkCache::new(CHUNK_CACHE)),
        published: Mutex::new(published),
        revision: watch::Sender::new(Revision::NONE),
        lost: watch::Sender::new(None),
        wanted: watch::Sender::new(None),
        settled: watch::Sender::new(0),
        contact_ms: AtomicU64::new(0),
        origin,
    });
    (Publisher(Arc::clone(&shared)), Fanout(shared))
}

impl Publisher {
    /// The served prefix.
    pub fn prefix(&self) -> &KeyRange {
        &self.0.prefix
    }

    /// The server's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// When etcd was heard of last, in milliseconds on the server's clock.
    pub fn contact_ms(&self) -> u64 {
        self.0.contact_ms()
    }

    /// etcd was heard of just now. Returns the server's clock, in milliseconds.
    pub fn contact(&self) -> u64 {
        let now = self.0.clock_ms();
        self.0.lost.send_if_modified(|lost| lost.take().is_some());
        self.0.contact_ms.store(now, Ordering::Relaxed);
        now
    }

    /// etcd cannot be reached. What was published stays good, and its age is said with it.
    pub fn lost(&self, reason: String) {
        self.0.lost.send_replace(Some(reason));
    }

    /// The first state, or one of another history: what was published before means nothing any more,
    /// and the streams that build on it are ended.
    pub fn publish_anew(&self, snapshot: Snapshot, log_budget: usize) {
        let revision = snapshot.revision();
        let mut published = self.0.published.lock();
        let log = ChangeLog::new(revision, log_budget);
        let old = published.state.replace(State { snapshot, log });
        let ended = published.end(Ending::History);
        drop(published);
        ended.iter().for_each(|scope| scope.wake());
        if let Some(old) = old {
            self.0
                .metrics
                .log_bytes
                .dec_by(i64::try_from(old.log.bytes()).unwrap_or(i64::MAX));
        }
        self.0.revision.send_replace(revision);
        self.0.settle();
    }

    /// Tells when somebody would like the log to reach back further.
    pub fn wanted(&self) -> watch::Receiver<Option<Revision>> {
        self.0.wanted.subscribe()
    }

    /// Somebody would like the log to reach back to `revision`.
    pub fn want(&self, revision: Revision) {
        self.0.want(revision);
    }

    /// What to ask the source for, so that the log comes to reach back as far as is wanted, and how
    /// many bytes of it there is room for. `None` when it cannot; nobody waits for it then.
    pub fn ask_back(&self) -> Option<(Span, usize)> {
        let wanted = self.0.wanted.send_replace(None)?;
        let mut published = self.0.published.lock();
        let state = published.state.as_mut();
        let asked = state.and_then(|state| {
            let span = state.log.ask_back(wanted, &state.snapshot)?;
            Some((span, state.log.room()))
        });
        drop(published);
        if asked.is_none() {
            self.0.settle();
        }
        asked
    }

    /// What changed before, up to `up_to`, is put in front of the log. Returns whether it still fits
    /// there. `snapshot` knows of the deletes.
    pub fn reach_back(&self, snapshot: Snapshot, past: PastBatches, up_to: Revision) -> bool {
        let mut published = self.0.published.lock();
        let Some(state) = &mut published.state else {
            return false;
        };
        let before = state.log.bytes();
        let (fits, dropped) = match state.log.reach_back(past, up_to, self.0.contact_ms()) {
            Some(dropped) => (true, dropped),
            None => (false, Vec::new()),
        };
        let grown = state.log.bytes() as i64 - before as i64;
        let old = std::mem::replace(&mut state.snapshot, snapshot);
        drop(published);
        self.0.metrics.log_bytes.inc_by(grown);
        self.0.settle();
        drop((old, dropped));
        fits
    }

    /// What changed before cannot be had.
    pub fn give_up_back(&self) {
        if let Some(state) = &mut self.0.published.lock().state {
            state.log.give_up_back();
        }
        self.0.settle();
    }

    /// A batch, and the state that it led to. Wakes the streams whose range it touches, and no
    /// others. Returns whether anything is held back, so that [`Publisher::flush`] is due within
    /// [`PACE`]. Where a stream would make use of patches, [`Publisher::unsettled`] has work to do.
    pub fn publish(&self, snapshot: Snapshot, mut batch: Batch) -> bool {
        let revision = snapshot.revision();
        self.0.metrics.changes.inc_by(batch.changes.len() as u64);
        let mut bases = std::mem::take(&mut batch.replaced);
        bases.retain(|replaced| pays(&batch, replaced));
        let batch = Arc::new(EncodedBatch::new(batch, self.0.contact_ms()));
        let now = Instant::now();
        let mut wake = Vec::new();
        let mut published = self.0.published.lock();
        let Published {
            state: Some(state),
            scopes,
            paced,
            unsettled,
            ..
        } = &mut *published
        else {
            return false;
        };
        let too_much = unsettled.fit(&batch, &mut bases);
        let mut wanted = Wanted::new(&batch, &bases);
        let before = state.log.bytes();
        let old = std::mem::replace(&mut state.snapshot, snapshot);
        let dropped = state.log.push(Arc::clone(&batch));
        let grown = state.log.bytes() as i64 - before as i64;
        let mut late = false;
        for scope in scopes.touched_by(&batch) {
            late |= too_much && scope.takes_patches();
            match scope.push(&batch, wanted.by(scope), now) {
                Pushed::Wake => wake.push(Arc::clone(scope)),
                Pushed::Hold => paced.push(Arc::clone(scope)),
                Pushed::Held => {}
            }
        }
        let holds_back = !paced.is_empty();
        let Wanted { which, scopes, .. } = wanted;
        if !scopes.is_empty() {
            let mut which = which.into_iter();
            bases.retain(|_| which.next() == Some(true));
            unsettled.add(Arc::clone(&batch), std::mem::take(&mut bases), scopes);
        }
        drop(published);
        drop(bases);
        self.0.metrics.deltas_late.inc_by(late.into());
        self.0.metrics.log_bytes.inc_by(grown);
        self.0.revision.send_replace(revision);
        wake.iter().for_each(|scope| scope.wake());
        // What is let go of may be large: it is freed outside the lock.
        drop((old, dropped));
        holds_back
    }

    /// The batches published since the last call whose deltas streams wait for. Each is to be given
    /// to [`Publisher::settle`] soon, whatever is found.
    pub fn unsettled(&self) -> Vec<Unsettled> {
        self.0.published.lock().unsettled.take_new()
    }

    /// These deltas were found for the batch, and none that was not need be waited for any longer.
    pub fn settle(&self, unsettled: Unsettled, patches: Vec<EncodedPatch>) {
        let scopes = unsettled.scopes.iter().filter_map(Weak::upgrade);
        let mut scopes: Vec<Arc<Scope>> = scopes.collect();
        let batch = &unsettled.batch;
        let mut published = self.0.published.lock();
        published.unsettled.remove(&unsettled);
        let mut grown = 0;
        let mut dropped = Vec::new();
        if let Some(state) = &mut published.state {
            let before = state.log.bytes();
            dropped = state.log.add_patches(batch, patches);
            grown = state.log.bytes() as i64 - before as i64;
        }
        let wake: Vec<_> = scopes
            .extract_if(.., |scope| scope.settle(batch.to))
            .collect();
        drop(published);
        self.0.metrics.log_bytes.inc_by(grown);
        wake.iter().for_each(|scope| scope.wake());
        drop((dropped, scopes));
    }

    /// Nothing changed up to the snapshot's revision. Wakes nobody: streams learn of it with their
    /// next progress.
    pub fn advance(&self, snapshot: Snapshot) {
        let revision = snapshot.revision();
        let mut published = self.0.published.lock();
        let old = published
            .state
            .as_mut()
            .map(|state| std::mem::replace(&mut state.snapshot, snapshot));
        drop(published);
        drop(old);
        self.0.revision.send_replace(revision);
    }

    /// Lets out what was held back.
    pub fn flush(&self) {
        let paced = std::mem::take(&mut self.0.published.lock().paced);
        let now = Instant::now();
        paced.iter().for_each(|scope| scope.flush(now));
    }

    /// A walk through the scopes that there are now, for [`Publisher::progress`] or [`Publisher::tidy`].
    pub fn walk(&self) -> Walk {
        self.0.published.lock().scopes.walk()
    }

    /// Time for everybody's progress: tells the next few scopes of the walk, and returns whether
    /// there are more. Between two calls changes may be published.
    pub fn progress(&self, walk: &mut Walk) -> bool {
        let contact_ms = self.0.contact_ms();
        let published = self.0.published.lock();
        // Of this moment: a batch may have come between two slices.
        let Some(state) = &published.state else {
            return false;
        };
        let revision = state.snapshot.revision();
        let some = published.scopes.next_of(walk, SLICE);
        some.iter()
            .for_each(|scope| scope.progress(revision, contact_ms));
        drop(published);
        some.iter().for_each(|scope| scope.wake());
        !walk.is_over()
    }

    /// Lets go of what nobody will ask for any more: in the next few scopes of the walk. Returns
    /// whether there are more. Due every [`TIDY_EVERY`], however rare progress is.
    pub fn tidy(&self, walk: &mut Walk) -> bool {
        let some = self.0.published.lock().scopes.next_of(walk, SLICE);
        some.iter().for_each(|scope| scope.tidy());
        !walk.is_over()
    }
}

/// True if a patch of the old value could pay.
fn pays(batch: &Batch, replaced: &OldValue) -> bool {
    let new = unsettled::new_value(batch, replaced.change);
    new.is_some_and(|new| delta::is_worth_it(replaced.old.entry.value.len(), new.len()))
}

/// Which deltas of a batch are wanted, and by whom.
struct Wanted<'a> {
    batch: &'a EncodedBatch,
    bases: &'a [OldValue],
    which: Vec<bool>,
    scopes: Vec<Weak<Scope>>,
}

impl<'a> Wanted<'a> {
    fn new(batch: &'a EncodedBatch, bases: &'a [OldValue]) -> Self {
        Self {
            batch,
            bases,
            which: vec![false; bases.len()],
            scopes: Vec::new(),
        }
    }

    /// Whether the scope wants any; notes it.
    fn by(&mut self, scope: &Arc<Scope>) -> bool {
        if self.bases.is_empty() || !scope.takes_patches() {
            return false;
        }
        let mut any = false;
        for (base, wanted) in self.bases.iter().zip(&mut self.which) {
            let key = self.batch.changes.get(base.change).map(|c| c.edit.key());
            if key.is_some_and(|key| scope.range().contains(key.as_ref())) {
                (*wanted, any) = (true, true);
            }
        }
        if any {
            self.scopes.push(Arc::downgrade(scope));
        }
        any
    }
}

impl Fanout {
    /// The served prefix.
    pub fn prefix(&self) -> &KeyRange {
        &self.0.prefix
    }

    /// The server's counters.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// The published revision; [`Revision::NONE`] before the first state.
    pub fn revision(&self) -> Revision {
        *self.0.revision.borrow()
    }

    /// Whether there is a state. An empty etcd has revision 1, so any state has a revision.
    pub fn is_synced(&self) -> bool {
        self.revision() > Revision::NONE
    }

    /// Waits until there is a state.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn synced(&self) {
        self.reached(Revision::new(1)).await;
    }

    /// Waits until `revision` is published.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn reached(&self, revision: Revision) {
        // The sender lives in what `self` holds, so this cannot fail.
        let _ = self
            .0
            .revision
            .subscribe()
            .wait_for(|published| *published >= revision)
            .await;
    }

    /// Waits until the log reaches back to `revision`, or it turns out that it cannot. At once where
    /// that is clear already. Whoever waits at the same time shares one look at etcd's past.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub async fn reach_back(&self, revision: Revision) {
        let mut settled = self.0.settled.subscribe();
        loop {
            let may_reach = {
                let published = self.0.published.lock();
                let state = published.state.as_ref();
                state.is_some_and(|state| state.log.may_reach(revision))
            };
            if !may_reach {
                return;
            }
            self.0.want(revision);
            if settled.changed().await.is_err() {
                return;
            }
        }
    }

    /// Why etcd cannot be reached, while that is so.
    pub fn lost(&self) -> Option<String> {
        self.0.lost.borrow().clone()
    }

    /// The server's clock and its last proof of contact with etcd, in milliseconds on that clock.
    pub fn clock(&self) -> (u64, u64) {
        (self.0.clock_ms(), self.0.contact_ms())
    }

    /// Subscribes to a range within the prefix, making its scope when nobody watches it yet.
    ///
    /// # Errors
    /// When there is no state yet, or the server shuts down.
    pub fn subscribe(&self, range: KeyRange) -> Result<Subscriber, Unavailable> {
        let mut published = self.0.published.lock();
        if published.draining {
            return Err(Unavailable::Draining);
        }
        let Published {
            state: Some(state),
            scopes,
            ..
        } = &mut *published
        else {
            return Err(Unavailable::NotSynced);
        };
        let scope = scopes.join(range, |range| {
            Scope::new(range, state.snapshot.clone(), &self.0.metrics)
        });
        drop(published);
        Ok(Subscriber::new(Arc::clone(&self.0), scope))
    }

    /// Ends every stream with a goodbye and refuses new ones.
    pub fn drain(&self) {
        let mut published = self.0.published.lock();
        published.draining = true;
        let ended = published.end(Ending::Drain);
        drop(published);
        ended.iter().for_each(|scope| scope.wake());
    }
}
