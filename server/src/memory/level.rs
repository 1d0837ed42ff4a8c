//! How short memory is: a pure function of what is used, and the handle that tells everybody.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// The percentage of the limit from which memory is [tight](Level::Tight). What is left has to suffice
/// for what goes on: snapshots that are being read, the change log until it is full, and what the kernel
/// holds for sockets, which the resident memory does not include.
const TIGHT_FROM: usize = 85;

/// The same for [critical](Level::Critical). It leaves a few MiB in the smallest of containers, which a
/// burst of changes may need before anything that is ended has been freed.
const CRITICAL_FROM: usize = 95;

/// How many percent of the limit have to be free again below the mark that a level begins at, before it
/// ends. Otherwise a server near a mark would refuse and accept in turns.
const SLACK: usize = 5;

/// How long a client should wait that is refused for lack of memory. The allocator returns what was freed
/// to the system over ten seconds, so an earlier attempt would meet the same level.
pub(crate) const RETRY_TIGHT: Duration = Duration::from_secs(10);

/// How short memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// There is enough.
    #[default]
    Normal,
    /// No snapshot or conflated diff is begun, and caches are dropped. Everything else goes on.
    Tight,
    /// No connection is accepted either, and connections without streams are closed; then streams that
    /// are behind or read a snapshot are ended. Streams that keep up go on.
    Critical,
}

impl Level {
    /// The level that follows this one when so many bytes of the limit are used.
    pub(crate) fn after(self, used: usize, limit: usize) -> Self {
        // In 128 bits nothing overflows.
        let reaches = |percent: usize| used as u128 * 100 >= limit as u128 * percent as u128;
        let mark = |level: Self, from: usize| if self >= level { from - SLACK } else { from };
        if reaches(mark(Self::Critical, CRITICAL_FROM)) {
            Self::Critical
        } else if reaches(mark(Self::Tight, TIGHT_FROM)) {
            Self::Tight
        } else {
            Self::Normal
        }
    }

    /// Whether a snapshot or conflated diff may be begun.
    pub(crate) const fn allows_syncs(self) -> bool {
        matches!(self, Self::Normal)
    }

    /// Whether connections are accepted.
    pub(crate) const fn allows_connections(self) -> bool {
        !matches!(self, Self::Critical)
    }

    /// What it means, for `/readyz`. `None` when all is well.
    pub(crate) const fn notice(self) -> Option<&'static str> {
        match self {
            Self::Normal => None,
            Self::Tight => Some("memory is tight: new snapshots and diffs are refused"),
            Self::Critical => Some("memory is nearly used up: new connections are not accepted"),
        }
    }
}

/// Tells everybody the present [`Level`]. Cheap to clone. [`Level::Normal`] until a
/// [`Monitor`](super::Monitor) says otherwise.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pressure(Arc<watch::Sender<Level>>);

impl Pressure {
    /// The level now.
    pub(crate) fn level(&self) -> Level {
        *self.0.borrow()
    }

    /// Sets the level, and returns whether it is another than before.
    pub(crate) fn set(&self, level: Level) -> bool {
        self.0.send_if_modified(|now| {
            let before = std::mem::replace(now, level);
            before != level
        })
    }

    /// The level and its changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Level> {
        self.0.subscribe()
    }

    /// Waits until connections may be accepted.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    pub(crate) async fn allows_connections(&self) {
        // The sender lives in what `self` holds, so this cannot fail.
        let _ = self
            .subscribe()
            .wait_for(|level| level.allows_connections())
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use Level::{Critical, Normal, Tight};

    #[test]
    fn level_follows_use_with_slack_on_the_way_down() {
        // From each level, what so many percent of the limit lead to.
        let cases = [
            (
                Normal,
                [(0, Normal), (84, Normal), (85, Tight), (94, Tight)],
            ),
            (
                Normal,
                [
                    (95, Critical),
                    (100, Critical),
                    (101, Critical),
                    (1000, Critical),
                ],
            ),
            (Tight, [(85, Tight), (80, Tight), (79, Normal), (0, Normal)]),
            (
                Tight,
                [(90, Tight), (94, Tight), (95, Critical), (200, Critical)],
            ),
            (
                Critical,
                [(95, Critical), (90, Critical), (89, Tight), (80, Tight)],
            ),
            (
                Critical,
                [(79, Normal), (1, Normal), (0, Normal), (91, Critical)],
            ),
        ];
        for limit in [100, 64_000_000, usize::MAX / 100 * 100] {
            for (level, steps) in cases {
                for (percent, then) in steps {
                    let used = (limit / 100).saturating_mul(percent);
                    if percent > 100 && limit > usize::MAX / 1000 {
                        continue;
                    }
                    let next = level.after(used, limit);
                    assert_eq!(next, then, "{level:?} at {percent} % of {limit}");
                }
            }
        }
    }

    #[test]
    fn level_stays_where_use_wavers_around_a_mark() {
        let mut level = Normal;
        let mut changes = 0;
        for used in [84, 86, 84, 86, 83, 87, 81, 85, 84, 85] {
            let next = level.after(used, 100);
            changes += usize::from(next != level);
            level = next;
        }
        assert_eq!((level, changes), (Tight, 1));
    }

    #[test]
    fn each_level_allows_less_than_the_one_before() {
        let allowed = [Normal, Tight, Critical]
            .map(|level| (level.allows_syncs(), level.allows_connections()));
        assert_eq!(allowed, [(true, true), (false, true), (false, false)]);
        assert_eq!(Normal.notice(), None);
        assert!(Tight.notice().is_some() && Critical.notice().is_some());
    }

    #[tokio::test]
    async fn pressure_tells_of_changes_only() {
        let pressure = Pressure::default();
        let mut changes = pressure.subscribe();
        assert!(!pressure.set(Normal) && !changes.has_changed().unwrap());
        assert!(pressure.set(Critical) && !pressure.set(Critical));
        assert_eq!(*changes.borrow_and_update(), Critical);
        let waits = pressure.allows_connections();
        let falls = async { pressure.set(Tight) };
        assert_eq!(tokio::join!(waits, falls), ((), true));
        assert_eq!(pressure.level(), Tight);
    }
}
