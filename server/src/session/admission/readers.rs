//! Who waits for a permit, who reads with one, and who reads on without: the law of
//! [`Admission`](super::Admission). Pure: the clock is passed in, and it returns whom to wake.

use std::collections::{BTreeSet, HashMap};
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::fair_queue::{FairQueue, Requester};
use super::limit::Limit;
use super::pace::{Fastest, Pace, SLOW};
use crate::metrics::{GaugeGuard, Metrics};

/// How many permits there are beyond the limit, for connections without a running read. They are what
/// finds out, too, whether those within the limit are slower than they need be.
pub(super) const RESERVED: usize = 4;

/// How long a stream keeps one of these while others wait, before it reads on without one: longer than
/// most cold starts take. There are as many without one as the limit is, so a crowd of long reads that
/// drain well is still read in turns.
pub(super) const RESERVED_FOR: Duration = Duration::from_secs(2);

/// How many streams read without a permit. Each has one chunk in hand and another in its connection:
/// 128 MiB if none were shared. Beyond it, slow ones are told to come back while others wait.
const BACKGROUND: usize = 1024;

/// A piece that lies untaken for less than this says nothing about its stream: whoever is scheduled late
/// has that.
const UNTAKEN: Duration = Duration::from_millis(250);

/// How many streams may wait, of all, of one peer and of one connection. Each costs a few KiB. A peer may
/// be a proxy with a whole site behind it.
const QUEUE: usize = 16 * 1024;
const QUEUE_OF_PEER: usize = QUEUE / 2;
const QUEUE_OF_CONNECTION: usize = QUEUE / 8;

/// How many permits the average is smoothed over for which one is held.
const SMOOTH: u32 = 10;

#[derive(Debug)]
pub(super) struct Readers {
    metrics: Metrics,
    limit: Limit,
    fastest: Fastest,
    queue: FairQueue,
    waiting: HashMap<u64, Waiting>,
    /// When each of those that wait has waited for too long.
    deadlines: BTreeSet<(Instant, u64)>,
    running: HashMap<u64, Running>,
    /// How many of `running` are at each [`Place`].
    at: [usize; PLACES],
    /// How many may read without a permit because they are slow.
    background: usize,
    next: u64,
    /// How long a permit is held, on average, by those that are not slow.
    held_for: Option<Duration>,
}

#[derive(Debug)]
struct Waiting {
    who: Requester,
    until: Instant,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Running {
    who: Requester,
    place: Place,
    /// When it got the permit.
    since: Instant,
    /// When the piece that it has in hand was handed over.
    handed: Option<Instant>,
    begun: bool,
    pace: Pace,
    _counted: GaugeGuard,
    _background: Option<GaugeGuard>,
}

/// What a running stream counts as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Within the limit.
    Ordinary,
    /// Beyond it, as a newcomer.
    Reserved,
    /// It was a newcomer for long, and reads on without a permit.
    Overtaken,
    /// It was slow, gave its permit back, and reads on.
    Background,
    /// It was slow, and there was no room for it: it says so when it is asked for more.
    Revoked,
}

const PLACES: usize = Place::Revoked as usize + 1;

impl Running {
    /// Whether it is slow, compared with one whose pieces take `slow`.
    fn is_slow(&self, slow: Duration, now: Instant) -> bool {
        // A stream that never began has no piece in hand: its client has no room for the first.
        let untaken = self.handed.or((!self.begun).then_some(self.since));
        let untaken = untaken.map_or(Duration::ZERO, |since| now - since);
        self.pace.get().is_some_and(|pace| pace > slow) || untaken > slow.max(UNTAKEN)
    }

    const fn holds_permit(&self) -> bool {
        matches!(self.place, Place::Ordinary | Place::Reserved)
    }
}

/// What a stream that waits finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It may read.
    Now,
    /// Not yet.
    Later,
    /// It has waited for too long, and should come back after this time.
    Never(Duration),
    /// It does not wait.
    Unknown,
}

impl Readers {
    pub(super) fn new(metrics: Metrics, now: Instant) -> Self {
        Self::bounded(BACKGROUND, metrics, now)
    }

    /// As [`Readers::new`], with room for so many slow ones that have no permit.
    pub(super) fn bounded(background: usize, metrics: Metrics, now: Instant) -> Self {
        Self {
            metrics,
            limit: Limit::new(),
            fastest: Fastest::new(now),
            queue: FairQueue::default(),
            waiting: HashMap::new(),
            deadlines: BTreeSet::new(),
            running: HashMap::new(),
            at: [0; PLACES],
            background,
            next: 0,
            held_for: None,
        }
    }

    /// Takes a place in the queue, for this time at most. Returns its number.
    ///
    /// # Errors
    /// When the wait would be longer than that; how long it would be.
    pub(super) fn request(
        &mut self,
        who: Requester,
        at_most: Duration,
        now: Instant,
    ) -> Result<u64, Duration> {
        let wait = self.wait(who);
        let (of_peer, of_connection) = self.queue.waiting(who);
        if wait > at_most
            || self.queue.len() >= QUEUE
            || of_peer >= QUEUE_OF_PEER
            || of_connection >= QUEUE_OF_CONNECTION
        {
            return Err(wait);
        }
        let number = self.next;
        self.next += 1;
        let waiting = Waiting {
            who,
            until: now + at_most,
            waker: None,
        };
        self.deadlines.insert((waiting.until, number));
        self.waiting.insert(number, waiting);
        self.queue.add(who, number);
        Ok(number)
    }

    /// Whether a stream may read; it is woken when that changes.
    pub(super) fn turn(&mut self, number: u64, cx: &Context<'_>, now: Instant) -> Turn {
        if self.running.contains_key(&number) {
            return Turn::Now;
        }
        let Some(waiting) = self.waiting.get_mut(&number) else {
            return Turn::Unknown;
        };
        if waiting.until < now {
            let who = waiting.who;
            return Turn::Never(self.wait(who));
        }
        waiting.waker = Some(cx.waker().clone());
        Turn::Later
    }

    /// Gives permits to as many as the limit allows; returns whom to wake.
    pub(super) fn promote(&mut self, now: Instant) -> Vec<Waker> {
        let mut woken = Vec::new();
        loop {
            let place = if self.count(Place::Ordinary) < self.limit.get() {
                Place::Ordinary
            } else if self.count(Place::Reserved) < RESERVED {
                Place::Reserved
            } else {
                break;
            };
            let Some(number) = self.queue.admit(place == Place::Reserved) else {
                break;
            };
            let Some(waiting) = self.waiting.remove(&number) else {
                break;
            };
            self.deadlines.remove(&(waiting.until, number));
            let running = Running {
                who: waiting.who,
                place,
                since: now,
                handed: None,
                begun: false,
                pace: Pace::default(),
                _counted: GaugeGuard::new(&self.metrics.syncs_in_progress),
                _background: None,
            };
            self.at[place as usize] += 1;
            self.running.insert(number, running);
            woken.extend(waiting.waker);
        }
        woken
    }

    /// A piece was handed to the connection.
    pub(super) fn piece_handed(&mut self, number: u64, now: Instant) {
        if let Some(running) = self.running.get_mut(&number) {
            running.handed = Some(now);
            running.begun = true;
        }
    }

    /// The connection asks for the next. Returns whether the stream may read on.
    pub(super) fn piece_taken(&mut self, number: u64, now: Instant) -> bool {
        let Some(running) = self.running.get_mut(&number) else {
            return true;
        };
        if !running.holds_permit() {
            return running.place != Place::Revoked;
        }
        let Some(handed) = running.handed.take() else {
            return true;
        };
        let took = now - handed;
        if let Some(pace) = running.pace.took(took) {
            self.fastest.note(pace, now);
        }
        let is_slow = running.is_slow(self.fastest.slow(now), now);
        if !is_slow {
            let active = self.count(Place::Ordinary) + self.count(Place::Reserved);
            self.limit.measured(took, active);
        } else if self.count(Place::Background) < self.background {
            self.move_to(number, Place::Background);
        }
        true
    }

    /// Takes permits back for those that wait: from slow streams, and from those that were newcomers for
    /// too long. Returns whom to wake besides those whose turn it is then: those that waited too long.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Waker> {
        let slow = self.fastest.slow(now);
        let (mut slow_ones, mut overtaken) = (Vec::new(), Vec::new());
        for (number, running) in &self.running {
            let is_over = running.place == Place::Reserved && now - running.since > RESERVED_FOR;
            // After that it is compared with nobody: those within the limit may all be slow by themselves.
            let slow = if is_over { SLOW } else { slow };
            if running.holds_permit() && running.is_slow(slow, now) {
                slow_ones.push(*number);
            } else if is_over {
                overtaken.push(*number);
            }
        }
        // A few more for a peer that holds fewer permits.
        let fewest = self.queue.fewest_permits().unwrap_or(usize::MAX);
        let mut beyond = 1;
        for number in overtaken {
            let who = self.running[&number].who;
            let is_greedy = self.queue.permits(who) > fewest.saturating_add(1);
            if self.count(Place::Overtaken) < self.limit.get() {
                self.move_to(number, Place::Overtaken);
            } else if is_greedy && beyond > 0 {
                beyond -= 1;
                self.move_to(number, Place::Overtaken);
            }
        }
        // No more at a time than newcomers come of it: those that are to begin anew have read for nothing.
        let mut revocable = RESERVED;
        for number in slow_ones {
            if self.count(Place::Background) < self.background {
                self.move_to(number, Place::Background);
            } else if revocable > 0 {
                revocable -= 1;
                self.revoke_for(number);
            }
        }
        let mut woken = Vec::new();
        for (_, number) in self.deadlines.range(..(now, 0)) {
            let waiting = self.waiting.get_mut(number);
            woken.extend(waiting.and_then(|waiting| waiting.waker.take()));
        }
        woken
    }

    /// Makes room in the background for a slow stream: the last comer there, or this one, of the peer
    /// and the connection that have the most there has to come back later.
    fn revoke_for(&mut self, slow: u64) {
        let all = self
            .running
            .iter()
            .filter(|(number, running)| **number == slow || running.place == Place::Background);
        let most = all.max_by_key(|(number, running)| (self.queue.running(running.who), **number));
        let Some((&most, _)) = most else { return };
        self.move_to(most, Place::Revoked);
        if most != slow {
            self.move_to(slow, Place::Background);
        }
    }

    /// A stream leaves, wherever it is. Returns its waker, to be dropped outside any lock.
    pub(super) fn leave(&mut self, number: u64, now: Instant) -> Option<Waker> {
        let waited = self.waiting.remove(&number);
        if let Some(waiting) = &waited {
            self.deadlines.remove(&(waiting.until, number));
            self.queue.remove(waiting.who, number);
        }
        if let Some(running) = self.running.remove(&number) {
            self.at[running.place as usize] -= 1;
            if running.holds_permit() {
                self.queue.give_back(running.who);
                let held = now - running.since;
                let smooth = |before: Duration| (before * (SMOOTH - 1) + held) / SMOOTH;
                self.held_for = Some(self.held_for.map_or(held, smooth));
            }
            self.queue.ended(running.who);
        }
        waited.and_then(|waiting| waiting.waker)
    }

    const fn count(&self, place: Place) -> usize {
        self.at[place as usize]
    }

    /// How many wait.
    pub(super) const fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// All that wait, to be woken.
    pub(super) fn wake_all(&mut self) -> Vec<Waker> {
        let waiting = self.waiting.values_mut();
        waiting.filter_map(|waiting| waiting.waker.take()).collect()
    }

    /// The estimated wait of a stream that comes now.
    fn wait(&self, who: Requester) -> Duration {
        let held = self.held_for.unwrap_or_default().as_secs_f64();
        let mut a_second = self.limit.get() as f64 / held;
        if self.queue.running(who).1 == 0 {
            a_second += RESERVED as f64 / held.min(RESERVED_FOR.as_secs_f64());
        }
        Duration::from_secs_f64(self.queue.ahead(who) as f64 / a_second)
    }

    fn move_to(&mut self, number: u64, place: Place) {
        let Some(running) = self.running.get_mut(&number) else {
            return;
        };
        if running.holds_permit() {
            self.queue.give_back(running.who);
        }
        let before = std::mem::replace(&mut running.place, place);
        running._background = matches!(place, Place::Overtaken | Place::Background)
            .then(|| GaugeGuard::new(&self.metrics.syncs_in_background));
        self.at[before as usize] -= 1;
        self.at[place as usize] += 1;
    }
}

#[cfg(test)]
impl Readers {
    pub(super) const fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether nobody waits and nobody reads.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
            && self.deadlines.is_empty()
            && self.running.is_empty()
            && self.queue.is_empty()
            && self.at == [0; PLACES]
    }
}
