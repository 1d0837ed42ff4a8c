//! How fast streams take their pieces, and who is slow: a pure function of what was measured.
//!
//! A stream can be slow because of its own client, or because the server or its network is busy. Then
//! all are: so a stream is slow only if it is far below what another one gets at that time.

use std::time::Duration;

use tokio::time::Instant;

/// Nobody is slow whose pieces take less, on average: 640 KiB/s.
pub(super) const SLOW: Duration = Duration::from_millis(100);

/// Who takes longer for a piece is slow, when it is not known what others get.
pub(super) const STALLED: Duration = Duration::from_secs(1);

/// A stream is slow when its pieces take more than this many times as long as those of the fastest. TCP
/// alone gives streams on a busy link shares that differ by a few times.
const BELOW: f64 = 8.0;

/// The first quick pieces of a stream do not count: they go into the buffers between here and the client.
const BUFFERED: u32 = 8;

/// How many pieces the average is smoothed over.
const SMOOTH: u32 = 4;

/// For how long, at least, a pace counts as what others get; twice as long at most. A stream that is
/// slower than a piece in this time is compared with nobody.
const PERIOD: Duration = Duration::from_secs(10);

/// How long a stream's pieces take, on average.
#[derive(Debug, Default)]
pub(super) struct Pace {
    buffered: u32,
    counted: u32,
    seconds: f64,
}

impl Pace {
    /// A piece took this long. Returns what pieces take on average; `None` as long as nothing is known.
    pub(super) fn took(&mut self, took: Duration) -> Option<Duration> {
        if self.counted == 0 && self.buffered < BUFFERED && took < SLOW {
            self.buffered += 1;
            return None;
        }
        self.counted = (self.counted + 1).min(SMOOTH);
        self.seconds += (took.as_secs_f64() - self.seconds) / f64::from(self.counted);
        self.get()
    }

    pub(super) fn get(&self) -> Option<Duration> {
        (self.counted > 0).then(|| Duration::from_secs_f64(self.seconds))
    }
}

/// The pace of the fastest stream just now.
#[derive(Debug)]
pub(super) struct Fastest {
    since: Instant,
    now: Option<Duration>,
    before: Option<Duration>,
}

impl Fastest {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            since: now,
            now: None,
            before: None,
        }
    }

    /// A stream has this pace.
    pub(super) fn note(&mut self, pace: Duration, now: Instant) {
        self.turn(now);
        self.now = Some(self.now.map_or(pace, |fastest| fastest.min(pace)));
    }

    /// A stream is slow when its pieces take longer than this.
    pub(super) fn slow(&mut self, now: Instant) -> Duration {
        self.turn(now);
        let fastest = [self.now, self.before].into_iter().flatten().min();
        fastest.map_or(STALLED, |fastest| fastest.mul_f64(BELOW).max(SLOW))
    }

    fn turn(&mut self, now: Instant) {
        let periods = now.saturating_duration_since(self.since).as_nanos() / PERIOD.as_nanos();
        if periods > 0 {
            self.before = self.now.take().filter(|_| periods == 1);
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn pieces_that_fill_buffers_do_not_count() {
        let mut pace = Pace::default();
        for _ in 0..BUFFERED {
            assert_eq!(pace.took(ms(1)), None);
        }
        assert_eq!(pace.took(ms(40)), Some(ms(40)));
        // A slow one is no matter of buffers.
        let mut pace = Pace::default();
        assert_eq!(pace.took(ms(1)), None);
        assert_eq!(pace.took(ms(800)), Some(ms(800)));
        assert_eq!(pace.took(ms(400)), Some(ms(600)));
    }

    #[test]
    fn pace_follows_the_last_pieces() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.took(ms(200));
        }
        for _ in 0..20 {
            pace.took(ms(1));
        }
        assert!(pace.get().unwrap() < ms(3), "{pace:?}");
        // In bursts: it is the time that counts, and not most of the pieces.
        for _ in 0..10 {
            for _ in 0..15 {
                pace.took(Duration::ZERO);
            }
            pace.took(ms(12_800));
        }
        assert!(pace.get().unwrap() > ms(3_000), "{pace:?}");
    }

    #[test]
    fn slow_is_relative_and_absolute() {
        let start = Instant::now();
        let mut fastest = Fastest::new(start);
        assert_eq!(fastest.slow(start), STALLED, "nothing is known");
        fastest.note(ms(800), start);
        assert_eq!(fastest.slow(start), ms(6400), "all are as slow");
        fastest.note(ms(50), start);
        assert_eq!(fastest.slow(start), ms(400));
        fastest.note(Duration::from_micros(10), start);
        assert_eq!(fastest.slow(start), SLOW, "fast enough for anybody");
    }

    #[test]
    fn what_others_got_counts_for_seconds() {
        let start = Instant::now();
        let mut fastest = Fastest::new(start);
        fastest.note(ms(1), start);
        fastest.note(ms(800), start + PERIOD);
        assert_eq!(fastest.slow(start + PERIOD), SLOW);
        assert_eq!(fastest.slow(start + PERIOD * 2), ms(6400));
        assert_eq!(fastest.slow(start + PERIOD * 9), STALLED);
    }
}
