//! What a process holds at a moment, as the runtime and the kernel count it.

use std::fmt;
use std::fs;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// How long [`Counts::returned_to`] waits for its verdict: 5 s. Generous on purpose: a slow machine
/// must not fail a test, and a leak never returns.
pub const RETURN_WITHIN: Duration = Duration::from_secs(5);

/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// What the process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Tasks of the tokio runtime that are not finished, by its own count.
    pub tasks: usize,
    /// Open descriptors: files, sockets, pipes, timers of the kernel.
    pub descriptors: usize,
    /// Threads, those of the runtime included. Not compared by [`Counts::returned_to`]: the
    /// runtime's blocking pool comes and goes by itself.
    pub threads: usize,
}

impl Counts {
    /// As they are now.
    ///
    /// # Panics
    /// Outside a tokio runtime, and where there is no `/proc`.
    pub fn now() -> Self {
        let count = |folder: &str| match fs::read_dir(folder) {
            Ok(entries) => entries.count(),
            Err(error) => panic!("{folder} cannot be read ({error}); counting needs Linux"),
        };
        Self {
            tasks: tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks(),
            // Less the one that the counting itself opens.
            descriptors: count("/proc/self/fd") - 1,
            threads: count("/proc/self/task"),
        }
    }

    /// Waits until no more tasks and descriptors are held than `before`, and says how long that took.
    ///
    /// # Errors
    /// When they are not back after [`RETURN_WITHIN`].
    ///
    /// # Panics
    /// As [`Counts::now`].
    ///
    /// # Cancel safety
    /// Cancel-safe: it only looks.
    pub async fn returned_to(before: Self) -> Result<Duration, Leaked> {
        let start = Instant::now();
        loop {
            let after = Self::now();
            if after.tasks <= before.tasks && after.descriptors <= before.descriptors {
                return Ok(start.elapsed());
            }
            if start.elapsed() > RETURN_WITHIN {
                return Err(Leaked { before, after });
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Something did not go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leaked {
    /// What was held before.
    pub before: Counts,
    /// What was held in the end.
    pub after: Counts,
}

impl fmt::Display for Leaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after } = self;
        write!(
            f,
            "{} s later there are {} tasks where there were {}, and {} descriptors where there were {}",
            RETURN_WITHIN.as_secs(),
            after.tasks,
            before.tasks,
            after.descriptors,
            before.descriptors,
        )
    }
}

impl std::error::Error for Leaked {}
