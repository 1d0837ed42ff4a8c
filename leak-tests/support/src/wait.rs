//! Waiting for a condition, with a deadline that no machine is too slow for.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

/// How long anything may take before a test fails: 30 s, far more than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition that nothing announces.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// Waits until `condition` holds. Blocks the thread.
///
/// # Panics
/// When it does not hold within [`PATIENCE`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Waits until `look` finds something, and returns it. Blocks the thread.
///
/// # Panics
/// When it finds nothing within [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds, without holding up other tasks.
///
/// # Panics
/// When it does not hold within [`PATIENCE`].
///
/// # Cancel safety
/// Nothing is lost.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(
            start.elapsed() < PATIENCE,
            "not within {PATIENCE:?}: {what}"
        );
        tokio::time::sleep(POLL).await;
    }
}

/// Awaits `work`, but not for ever.
///
/// # Panics
/// When it takes longer than [`PATIENCE`].
///
/// # Cancel safety
/// That of `work`.
pub async fn in_time<F: Future>(what: &str, work: F) -> F::Output {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A free port of loopback. Somebody else may take it before it is used.
///
/// It is below those that the kernel picks for outgoing connections: nothing gets it by chance while
/// what listened there restarts.
///
/// # Panics
/// When none is found within [`PATIENCE`].
#[must_use]
pub fn free_port() -> u16 {
    /// Linux's default for the lowest of them.
    const EPHEMERAL: u16 = 32_768;
    const LOWEST: u16 = 10_000;
    wait_for("loopback has a free port", || {
        let random = RandomState::new().build_hasher().finish();
        let offset = u16::try_from(random % u64::from(EPHEMERAL - LOWEST)).ok()?;
        let port = LOWEST + offset;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        listener.ok().map(|_| port)
    })
}
