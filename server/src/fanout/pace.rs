//! How often a scope may wake its streams.

use std::time::Duration;

use tokio::time::Instant;

/// How long changes to a scope that changes often are held back, so that they are sent together: 20
/// ms, once a burst of 64 is used up.
///
/// Fifty messages a second to each of thousands of streams cost far less than a thousand.
pub const PACE: Duration = Duration::from_millis(20);

/// How many changes may be sent one by one before [`PACE`] applies. Edits by a person, a deployment or
/// a script of a few dozen puts are never held back.
pub(super) const BURST: u32 = 64;

/// A bucket of [`BURST`] tokens that fills by one every [`PACE`].
#[derive(Debug)]
pub(super) struct Pace {
    tokens: u32,
    filled: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST,
            filled: now,
        }
    }

    /// Whether the streams may be woken now; takes a token if so.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.filled).as_millis() / PACE.as_millis();
        if earned > 0 {
            self.tokens = self
                .tokens
                .saturating_add(u32::try_from(earned).unwrap_or(u32::MAX))
                .min(BURST);
            self.filled = now;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_free_then_one_token_per_pace() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!((0..BURST).all(|_| pace.allows(start)));
        assert!(!pace.allows(start) && !pace.allows(start + PACE / 2));
        let mut allowed = 0;
        for millis in 1..=1000 {
            allowed += u32::from(pace.allows(start + Duration::from_millis(millis)));
        }
        assert_eq!(allowed, 50);
    }

    #[test]
    fn bucket_holds_at_most_a_burst() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(
            !pace.allows(start - PACE) || pace.tokens < BURST,
            "the clock may stand"
        );
        let later = start + Duration::from_secs(3600);
        let allowed = (0..2 * BURST).filter(|_| pace.allows(later)).count();
        assert_eq!(allowed, BURST as usize);
    }
}
