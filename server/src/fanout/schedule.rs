//! When the publisher's own work is due.
//!
//! Pure: the caller passes the time.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::PACE;
use super::scopes::ScopeCursor;

/// How often expired sync responses are evicted. A response, the state that it pins and its room in
/// the chunk cache are freed this much later at most.
pub const EVICT_EVERY: Duration = Duration::from_secs(5);

/// A round that starts later than this puts off the ones after it, instead of catching up.
const LATE: Duration = Duration::from_millis(5);

/// When the publisher's own work is due.
#[derive(Debug)]
pub(super) struct Schedule {
    /// When changes that are held back have to be released; `None` if there are none.
    flush_at: Option<Instant>,
    /// Tells all scopes of a progress.
    pub(super) progress: Rounds,
    /// Drops expired sync responses of all scopes.
    pub(super) eviction: Rounds,
}

impl Schedule {
    pub(super) fn new(now: Instant, progress_interval: Duration) -> Self {
        Self {
            flush_at: None,
            progress: Rounds::new(now, progress_interval),
            eviction: Rounds::new(now, EVICT_EVERY),
        }
    }

    /// When the first of it is due. In the past or now while a round is under way.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let rounds = self.progress.due(now).min(self.eviction.due(now));
        self.flush_at.map_or(rounds, |at| at.min(rounds))
    }

    /// Changes are held back: they have to be released within [`PACE`].
    pub(super) fn hold_back(&mut self, now: Instant) {
        self.flush_at.get_or_insert(now + PACE);
    }

    /// Whether changes are held back.
    pub(super) const fn holds_back(&self) -> bool {
        self.flush_at.is_some()
    }

    /// Whether a flush is due.
    pub(super) fn flush_due(&self, now: Instant) -> bool {
        self.flush_at.is_some_and(|at| at <= now)
    }

    /// Nothing is held back now.
    pub(super) const fn flushed(&mut self) {
        self.flush_at = None;
    }
}

/// Something that is done for all scopes of a prefix at an interval, a slice at a time, so that no
/// change waits for it.
#[derive(Debug)]
pub(super) struct Rounds {
    interval: Duration,
    /// When the next round starts.
    next: Instant,
    /// The round under way.
    cursor: Option<ScopeCursor>,
}

impl Rounds {
    /// The first round starts after the first interval.
    fn new(now: Instant, interval: Duration) -> Self {
        Self {
            interval,
            next: now + interval,
            cursor: None,
        }
    }

    fn due(&self, now: Instant) -> Instant {
        match self.cursor {
            Some(_) => now,
            None => self.next,
        }
    }

    /// The round to go on with: the one under way, or a new one if it is time for that. Takes it;
    /// [`Rounds::resume`] puts it back if scopes are left.
    pub(super) fn take(
        &mut self,
        now: Instant,
        begin: impl FnOnce() -> ScopeCursor,
    ) -> Option<ScopeCursor> {
        if let Some(cursor) = self.cursor.take() {
            return Some(cursor);
        }
        if now < self.next {
            return None;
        }
        let late = now.saturating_duration_since(self.next) > LATE;
        self.next = if late { now } else { self.next } + self.interval;
        Some(begin())
    }

    /// There are more scopes to visit in this round.
    pub(super) fn resume(&mut self, cursor: ScopeCursor) {
        self.cursor = Some(cursor);
    }
}

#[cfg(test)]
mod tests {
    use super::super::scopes::Scopes;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begin() -> ScopeCursor {
        Scopes::default().cursor()
    }

    #[test]
    fn rounds_keep_their_interval_unless_late() {
        let start = Instant::now();
        let mut rounds = Rounds::new(start, SECOND);
        assert_eq!(rounds.due(start), start + SECOND);
        assert!(rounds.take(start, begin).is_none());
        let soon = start + SECOND + Duration::from_millis(1);
        assert!(rounds.take(soon, begin).is_some());
        assert_eq!(rounds.due(soon), start + 2 * SECOND);
        let late = start + 10 * SECOND;
        assert!(rounds.take(late, begin).is_some());
        assert_eq!(rounds.due(late), late + SECOND, "no burst");
    }

    #[test]
    fn round_under_way_is_due_at_once() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND);
        let now = start + SECOND;
        let cursor = schedule.progress.take(now, begin).expect("it is time");
        schedule.progress.resume(cursor);
        assert_eq!(schedule.due(now), now);
        assert!(schedule.progress.take(now, begin).is_some(), "the same one");
        assert_eq!(schedule.due(now), start + 2 * SECOND);
    }

    #[test]
    fn first_change_held_back_sets_the_flush() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, SECOND);
        schedule.hold_back(start);
        schedule.hold_back(start + PACE / 2);
        assert_eq!(schedule.due(start), start + PACE);
        assert!(!schedule.flush_due(start) && schedule.flush_due(start + PACE));
        schedule.flushed();
        assert_eq!(schedule.due(start), start + SECOND);
    }
}
