//! Closes the connections of clients that do not read.
//!
//! hyper asks a response for its next piece once the last one has room. A client that does not read
//! makes no room, so its stream is never asked again: it cannot be told anything, nor end itself. It
//! costs little (a cursor, the piece in hand, the connection's buffers), but it costs that for as long
//! as the client likes, and in the middle of a snapshot it pins the state that it is of. So every
//! stream notes when it handed a piece over, one task a server checks the notes now and then, and
//! where one is too old it closes the connection. The client comes back with what it has and gets what
//! changed since.
//!
//! The same holds for every other answer ([`Answer`](super::Answer)), and for the connection itself: a
//! client that reads nothing at all takes neither answers that are only headers nor answers to its pings.
//! They wait for the network, which takes no more.
//!
//! A stream that has nothing to send is not slow, however long that lasts.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::connection::Connection;
use super::registry::{Clock, Registry, SLICE};
use super::stream::StreamId;

/// How often within the timeout the streams are checked: it is exceeded by a quarter at most.
const CHECKS: u32 = 4;

/// The longest time between two checks, however long the timeout is: the other deadline, of snapshots,
/// is kept by the same checks.
const CHECK_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// How long a snapshot or conflated diff may take to be read. It pins the state that it is of, which
/// costs what changed since: at the worst, the whole keyspace once more for each moment at which
/// somebody began to read. So there has to be an end to it for whoever takes a little now and then,
/// too, whatever the size. 100 MiB at 200 KiB/s take this long; whoever is slower than that, or
/// watches more, should watch smaller ranges.
pub(super) const SYNC_PINNED_AT_MOST: Duration = Duration::from_secs(600);

/// How long a stream that was ended may take to be gone. A client that reads is through with its
/// goodbye in one round trip.
const GOODBYE_WITHIN: Duration = Duration::from_secs(5);

/// The check of all streams and connections of a server.
#[derive(Clone, Debug)]
pub(crate) struct SlowConsumers {
    registry: Registry,
    timeout: Duration,
}

impl SlowConsumers {
    /// A consumer is slow when a piece that was handed over is not taken within `timeout`.
    pub(crate) const fn new(registry: Registry, timeout: Duration) -> Self {
        Self { registry, timeout }
    }

    /// Closes the connections of slow consumers, and of streams that were ended and whose goodbye is
    /// not read. Runs until it is dropped.
    pub(crate) async fn run(&self) {
        let interval = (self.timeout / CHECKS).min(CHECK_AT_LEAST_EVERY);
        let mut next = Instant::now() + interval;
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    let ending = self.check_all(interval).await;
                    next = Instant::now() + if ending { interval.min(GOODBYE_WITHIN) } else { interval };
                }
                () = self.registry.stream_ended() => {
                    next = next.min(Instant::now() + GOODBYE_WITHIN);
                }
            }
        }
    }

    /// Returns whether there are streams that were ended and may take a little longer.
    async fn check_all(&self, interval: Duration) -> bool {
        let timeout = Clock::millis(self.timeout);
        for (n, connection) in self.registry.connections().enumerate() {
            if connection.is_stalled(self.registry.clock().now(), timeout) {
                self.close(&connection);
            }
            if (n + 1) % SLICE == 0 {
                tokio::task::yield_now().await;
            }
        }
        let (mut last, mut ending) = (None, false);
        loop {
            let mut found = Vec::new();
            let Some(id) = self.check(last, interval, &mut found, &mut ending) else {
                return ending;
            };
            last = Some(id);
            found.iter().for_each(|connection| self.close(connection));
            tokio::task::yield_now().await;
        }
    }

    fn close(&self, connection: &Connection) {
        if connection.close() {
            self.registry.metrics().slow_consumers_closed.inc();
            let peer = connection.peer().map(tracing::field::display);
            tracing::info!(peer, "closing a connection: its client does not read");
        }
    }

    /// Finds the connections to be closed among the next few streams, of which it returns the last.
    fn check(
        &self,
        after: Option<StreamId>,
        interval: Duration,
        found: &mut Vec<Connection>,
        ending: &mut bool,
    ) -> Option<StreamId> {
        let [timeout, interval, goodbye] =
            [self.timeout, interval, GOODBYE_WITHIN].map(Clock::millis);
        let now = self.registry.clock().now();
        self.registry.visit_streams(after, |stream| {
            let ended = stream.ended_at().map(|at| now.saturating_sub(at));
            let overstays = ended.is_some_and(|ago| ago >= goodbye);
            *ending |= ended.is_some() && !overstays;
            if overstays || stream.is_stalled(now, timeout, interval) {
                found.push(stream.connection().clone());
            }
        })
    }
}
