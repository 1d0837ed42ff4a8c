//! A budget for states that are kept only because somebody still reads them.
//!
//! A sync response pins the state that it is of. That costs nothing until something is overwritten: then
//! the old values are kept for it. Nobody walks a state to find out. A state knows how much had been
//! overwritten when it was taken, so what was overwritten between two pinned states, or since the last
//! one, is a difference. Of that, the earlier of the two keeps no more than all it has; the later one keeps
//! none of it. So each overwritten value is counted once, however many read it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::response::SyncResponse;
use crate::metrics::Metrics;
use crate::store::Snapshot;

/// The budget of a server, for all its prefixes together. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PinnedStates(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: u64,
    metrics: Metrics,
    pins: Mutex<Pins>,
}

#[derive(Debug, Default)]
struct Pins {
    prefixes: Vec<OfPrefix>,
    next: u64,
    /// What all of them cost.
    total: u64,
}

/// The order of a pin: how much had been overwritten by then, and a number.
type Place = (u64, u64);

#[derive(Debug, Default)]
struct OfPrefix {
    /// How much has been overwritten by now.
    overwritten: u64,
    pins: BTreeMap<Place, Pinned>,
    /// What all pins cost but the last.
    closed: u64,
}

#[derive(Debug)]
struct Pinned {
    /// All that the state has.
    bytes: u64,
    since: Instant,
    response: Weak<SyncResponse>,
}

impl Pinned {
    /// What is kept for this one: of what was overwritten between this place and the next.
    fn cost(&self, at: u64, next: u64) -> u64 {
        self.bytes.min(next.saturating_sub(at))
    }
}

impl PinnedStates {
    /// A budget of so many bytes.
    pub fn new(budget: usize, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            budget: u64::try_from(budget).unwrap_or(u64::MAX),
            metrics,
            pins: Mutex::default(),
        }))
    }

    /// One more prefix, whose states are pinned within the budget.
    pub fn add_prefix(&self) -> PinnedOfPrefix {
        let mut pins = self.0.pins.lock();
        pins.prefixes.push(OfPrefix::default());
        PinnedOfPrefix {
            states: self.clone(),
            prefix: pins.prefixes.len() - 1,
        }
    }

    fn show(&self, pins: &Pins) {
        let total = i64::try_from(pins.total).unwrap_or(i64::MAX);
        self.0.metrics.pinned_bytes.set(total);
    }
}

/// The pinned states of one prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PinnedOfPrefix {
    states: PinnedStates,
    prefix: usize,
}

impl PinnedOfPrefix {
    /// The response pins this state until the pin is dropped.
    pub(super) fn pin(&self, root: &Snapshot, response: Weak<SyncResponse>) -> Pin {
        let mut pins = self.states.0.pins.lock();
        let place = (root.overwritten(), pins.next);
        pins.next += 1;
        let pinned = Pinned {
            bytes: root.bytes(),
            since: Instant::now(),
            response,
        };
        pins.change(self.prefix, |it| it.insert(place, pinned));
        self.states.show(&pins);
        Pin {
            of: self.clone(),
            place,
        }
    }

    /// A state is published before which so much was [overwritten](Snapshot::overwritten). While the
    /// pinned ones cost too much, the one that was pinned first is taken away from its readers.
    pub fn published(&self, overwritten: u64) {
        let mut pins = self.states.0.pins.lock();
        pins.change(self.prefix, |it| it.overwritten = overwritten);
        let mut revoked = Vec::new();
        while pins.total > self.states.0.budget
            && let Some(oldest) = pins.take_oldest()
        {
            revoked.push(oldest.response);
        }
        self.states.show(&pins);
        drop(pins);
        // May free a lot, so outside the lock.
        for response in revoked.iter().filter_map(Weak::upgrade) {
            response.revoke();
        }
    }
}

/// Keeps a state among the pinned ones.
#[derive(Debug)]
pub(super) struct Pin {
    of: PinnedOfPrefix,
    place: Place,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.of.states.0.pins.lock();
        let gone = pins.change(self.of.prefix, |it| it.remove(self.place));
        self.of.states.show(&pins);
        drop(pins);
        drop(gone);
    }
}

impl Pins {
    /// Changes what is pinned of one prefix.
    fn change<R>(&mut self, prefix: usize, change: impl FnOnce(&mut OfPrefix) -> R) -> R {
        let it = &mut self.prefixes[prefix];
        let before = it.cost();
        let result = change(it);
        self.total = self.total - before + it.cost();
        result
    }

    /// Takes out the one that was pinned first, of those that cost anything.
    fn take_oldest(&mut self) -> Option<Pinned> {
        let prefixes = self.prefixes.iter().enumerate();
        let oldest = prefixes.filter_map(|(prefix, it)| {
            let (place, since) = it.oldest()?;
            Some((since, prefix, place))
        });
        let (_, prefix, place) = oldest.min()?;
        self.change(prefix, |it| it.remove(place))
    }
}

impl OfPrefix {
    fn cost(&self) -> u64 {
        let last = self.pins.last_key_value();
        let open = last.map_or(0, |((at, _), last)| last.cost(*at, self.overwritten));
        self.closed + open
    }

    /// What is kept for the pin at this place, if there is a later one.
    fn closed_cost(&self, place: Place) -> u64 {
        let later = (Bound::Excluded(place), Bound::Unbounded);
        let next = self.pins.range(later).next();
        match (self.pins.get(&place), next) {
            (Some(pinned), Some(((next, _), _))) => pinned.cost(place.0, *next),
            _ => 0,
        }
    }

    fn before(&self, place: Place) -> Option<Place> {
        self.pins
            .range(..place)
            .next_back()
            .map(|(place, _)| *place)
    }

    fn insert(&mut self, place: Place, pinned: Pinned) {
        let before = self.before(place);
        self.closed -= before.map_or(0, |before| self.closed_cost(before));
        self.pins.insert(place, pinned);
        self.closed += before.map_or(0, |before| self.closed_cost(before));
        self.closed += self.closed_cost(place);
    }

    fn remove(&mut self, place: Place) -> Option<Pinned> {
        let before = self.before(place);
        self.closed -= self.closed_cost(place);
        self.closed -= before.map_or(0, |before| self.closed_cost(before));
        let gone = self.pins.remove(&place);
        self.closed += before.map_or(0, |before| self.closed_cost(before));
        gone
    }

    /// The first one that costs anything.
    fn oldest(&self) -> Option<(Place, Instant)> {
        let mut pins = self.pins.iter().peekable();
        while let Some((place, pinned)) = pins.next() {
            let next = pins.peek().map_or(self.overwritten, |((at, _), _)| *at);
            if pinned.cost(place.0, next) > 0 {
                return Some((*place, pinned.since));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
