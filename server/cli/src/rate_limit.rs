//! Limits how often one place in the code logs, so that who can cause a line cannot fill a disk.
//!
//! What is left out is counted, and reported when its time is over.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::stderr;

/// How many lines of one place are written within [`WINDOW`]: one each for all prefixes of a server
/// that loses etcd, and some 100 MB a day at most.
const LINES: u32 = 50;

/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(10);

/// The limit for this process.
pub(crate) static RATE_LIMIT: LazyLock<RateLimit> = LazyLock::new(RateLimit::default);

/// Counts what each place logs.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    /// As many as there are places in the code.
    sites: Mutex<HashMap<Identifier, Site>>,
}

/// One place in the code.
#[derive(Debug)]
struct Site {
    metadata: &'static Metadata<'static>,
    /// When its window began, and how many lines it wrote since then.
    since: Instant,
    lines: u32,
    left_out: u64,
    /// When that is reported.
    report: Option<Instant>,
}

impl RateLimit {
    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Site>> {
        self.sites.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a line of this place is written now. Wakes who reports it, if it is the first that is
    /// not.
    fn allows(&self, metadata: &'static Metadata<'static>, now: Instant) -> bool {
        let mut sites = self.lock();
        let site = sites.entry(metadata.callsite()).or_insert_with(|| Site {
            metadata,
            since: now,
            lines: 0,
            left_out: 0,
            report: None,
        });
        if now.saturating_duration_since(site.since) >= WINDOW {
            (site.since, site.lines) = (now, 0);
        }
        if site.lines < LINES {
            site.lines += 1;
            return true;
        }
        site.left_out += 1;
        if site.report.is_none() {
            site.report = Some(site.since + WINDOW);
            drop(sites);
            stderr::wake();
        }
        false
    }

    /// When the next report is due.
    pub(crate) fn next_report(&self) -> Option<Instant> {
        self.lock().values().filter_map(|site| site.report).min()
    }

    /// A line for each place of which lines were left out and whose window is over `now`; without a time,
    /// for all of them.
    pub(crate) fn take_reports(&self, now: Option<Instant>) -> Vec<String> {
        let mut sites = self.lock();
        let is_due = |at| now.is_none_or(|now| at <= now);
        let sites = sites.values_mut();
        let due = sites.filter(|site| site.report.is_some_and(is_due));
        due.map(|site| {
            site.report = None;
            let left_out = std::mem::take(&mut site.left_out);
            let (level, target) = (site.metadata.level(), site.metadata.target());
            let line = site.metadata.line().unwrap_or(0);
            format!(
                "driftless: left out {left_out} more lines like those of {level} {target}:{line}\n"
            )
        })
        .collect()
    }
}

/// Applies [`RATE_LIMIT`] to all levels but `trace`: who asks for that wants to see everything.
#[derive(Debug)]
pub(crate) struct RateLimitLayer;

impl<S: Subscriber> Layer<S> for RateLimitLayer {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        *metadata.level() == Level::TRACE || RATE_LIMIT.allows(metadata, Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::{Callsite, DefaultCallsite};
    use tracing::field::FieldSet;
    use tracing::metadata::Kind;

    use super::*;

    macro_rules! site {
        ($name:ident, $target:literal) => {{
            static CALLSITE: DefaultCallsite = DefaultCallsite::new(&METADATA);
            static METADATA: Metadata<'static> = Metadata::new(
                stringify!($name),
                $target,
                Level::WARN,
                None,
                Some(7),
                None,
                FieldSet::new(&[], Identifier(&CALLSITE)),
                Kind::EVENT,
            );
            CALLSITE.metadata()
        }};
    }

    #[test]
    fn lines_beyond_the_limit_are_left_out_and_reported() {
        let (noisy, quiet) = (site!(noisy, "h2::ping"), site!(quiet, "driftless"));
        let (limit, start) = (RateLimit::default(), Instant::now());
        let written = |site, at, times: u32| {
            let written = (0..times).filter(|_| limit.allows(site, start + at));
            written.count() as u32
        };
        assert_eq!(written(noisy, Duration::ZERO, 1000), LINES);
        assert_eq!(written(quiet, Duration::ZERO, 1), 1, "each for itself");
        assert_eq!(written(noisy, WINDOW / 2, 10), 0);
        assert_eq!(limit.next_report(), Some(start + WINDOW));
        assert!(limit.take_reports(Some(start + WINDOW / 2)).is_empty());
        // The next window has begun before the report is taken.
        assert_eq!(written(noisy, WINDOW, 1), 1);
        assert_eq!(
            limit.take_reports(Some(start + WINDOW)),
            ["driftless: left out 960 more lines like those of WARN h2::ping:7\n"]
        );
        assert_eq!(limit.next_report(), None);
        assert_eq!(written(noisy, WINDOW, LINES), LINES - 1);
        assert_eq!(limit.take_reports(None).len(), 1, "at the end");
    }
}
